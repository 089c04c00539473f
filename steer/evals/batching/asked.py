"""What one row asks of a batch, and what it is answered. Frozen values; no model here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from steer.evals.refusals import Refused
from steer.protocols import Intervention

Finish = Literal["stop", "length", "guarded"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is taken from the model's scores.

    Temperature 0 takes the likeliest token. The draws of a row come from a generator of its own,
    so they do not depend on what else is in the batch, and are those of
    `lm.generate([prompt], do_sample=True, seed=seed, temperature=..., top_k=..., top_p=...)`.

    Raises:
        Refused: bad_request, for a number out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    """Draw from the k likeliest; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest that hold this probability."""
    seed: int | None = None
    """None draws one, which the answer names."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise _bad("temperature", self.temperature, "from 0 (the likeliest token) to 100")
        if self.top_k < 0:
            raise _bad("top_k", self.top_k, "0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise _bad("top_p", self.top_p, "above 0, and at most 1")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise _bad("seed", self.seed, "an integer of 64 bits")


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Guard:
    """End a row, before its text leaves, where a Monitor of its plan reads above a threshold.

    The reading is reduced over tokens as the Monitor's Read says: reduce="max" ends a row for any
    token in scope, "last" for the latest. A token leaves only after it has been read itself, so a
    guarded row runs one token behind.
    """

    line: int
    """Which intervention of the plan, from 0."""
    above: float

    def __post_init__(self) -> None:
        """Check the threshold."""
        if not isfinite(self.above):
            raise _bad("guard", self.above, "a finite threshold")


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One row: a prompt and what is to be done with it."""

    ids: Sequence[int]
    """Token ids of the prompt."""
    plan: Sequence[Intervention] = ()
    max_new_tokens: int = 32
    sampling: Sampling = GREEDY
    stop: Sequence[str] = ()
    """The text ends before the first of these."""
    guards: Sequence[Guard] = ()
    top: int = 0
    """How many of the likeliest tokens to name at each place."""
    prompt_log_probs: bool = False
    """Whether to score the tokens of the prompt too, in a pass of their own."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What became of one row."""

    text: str
    """Without the stop string, and without what a guard held back."""
    tokens: Sequence[int]
    """The new token ids, the end token included. Those of a stop string are among them; what a
    guard held back is not, nor are its log-probabilities."""
    log_probs: Sequence[float]
    """Natural log, of each token, under the model's own steered logits (not reweighted)."""
    top: Sequence[Sequence[tuple[int, float]]]
    """At each place, the likeliest tokens and their log-probabilities, best first."""
    finish: Finish
    did: Sequence[Mapping[str, object]]
    """What each intervention of the plan did to this row (`steer.evals.evidence_of`)."""
    n_prompt: int
    seed: int | None
    """Of the sampling; None where the likeliest tokens were taken."""
    prompt_log_probs: Sequence[float] | None = None
    """Of each token of the prompt but the first, which nothing predicts."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A fixed shape of the batch: the deterministic mode.

    A matrix product rounds differently in another shape, so batch-mates move a row's logits (by
    4e-7 in fp32, 4e-3 in bf16). With every batch of the same rows and width they do not: the same
    request gives the same bits on the same machine, whoever shares its batch. Rows that nobody
    asked for are filled, so an idle server pays for a full batch.
    """

    rows: int
    width: int
    """Tokens of a prompt at most."""

    def __post_init__(self) -> None:
        """Check that there is room for a row."""
        if self.rows < 1 or self.width < 1:
            raise _bad("shape", (self.rows, self.width), "one row and one token at least")


def _bad(name: str, value: object, wanted: str) -> Refused:
    return Refused("bad_request", f"{name} is {value!r}, but it has to be {wanted}. Change it.")
