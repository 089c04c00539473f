"""Texts of digits drawn from one normal law each, and what a model does at their commas.

The setting of Sarfati, Bigelow, Wurgaft et al. 2026 (arXiv:2602.02315), who take numbers up to 999
that are one token each; we take the digits 0 to 9, which most tokenizers keep apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import steer
from benchmarks.errors import BenchmarkError

DIGITS = torch.arange(10, dtype=torch.float64)
MEANS = tuple(2 + 0.625 * k for k in range(9))
SIGMAS = (0.5, 0.8, 1.1, 1.5, 2.0, 2.6, 3.2)
SIGMA, MEAN = 1.0, 4.5
"""The spread while the mean varies, and the mean while the spread does."""
LENGTH, BURN_IN, EVERY = 72, 32, 4
"""Digits of a text, those before the first reading, and digits from reading to reading."""
BATCH = 8


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of what texts are made of."""

    bos: tuple[int, ...]
    digits: tuple[int, ...]
    comma: int

    def row(self, digits: Sequence[int]) -> list[int]:
        """Return the ids of `3,1,4,`, after BOS where the model has one."""
        return [*self.bos, *(i for d in digits for i in (self.digits[d], self.comma))]

    def place(self, n: int) -> int:
        """Return the position of the comma after the n-th digit."""
        return len(self.bos) + 2 * n - 1


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Texts, and what the model does at some of their commas."""

    digits: Int[Tensor, "text time"]
    u: Float[Tensor, " text"]
    """The mean of each text's law, or the log of its standard deviation."""
    after: tuple[int, ...]
    """After how many digits it was read."""
    probabilities: Float[Tensor, "text read digit"]
    """Of the next digit, over the mass of all ten."""
    mass: Float[Tensor, "text read"]
    states: Float[Tensor, "block text read d_model"]

    @property
    def mean(self) -> Float[Tensor, "text read"]:
        """The expected next digit."""
        return mean_of(self.probabilities)

    @property
    def spread(self) -> Float[Tensor, "text read"]:
        """The standard deviation of the next digit."""
        return spread_of(self.probabilities)

    @property
    def labels(self) -> Float[Tensor, " sample"]:
        """U of every reading, texts first."""
        return self.u[:, None].expand(-1, len(self.after)).flatten()

    @property
    def texts(self) -> Int[Tensor, " sample"]:
        """The text of every reading."""
        return torch.arange(len(self.u)).repeat_interleave(len(self.after))

    def where(self, keep: Tensor) -> "Readings":
        """Return some of the texts."""
        return Readings(
            self.digits[keep],
            self.u[keep],
            self.after,
            self.probabilities[keep],
            self.mass[keep],
            self.states[:, keep],
        )


def mean_of(p: Float[Tensor, "*batch digit"]) -> Float[Tensor, "*batch"]:
    """Return the expected digit."""
    return p.double() @ DIGITS


def spread_of(p: Float[Tensor, "*batch digit"]) -> Float[Tensor, "*batch"]:
    """Return the standard deviation of the digit."""
    about = (DIGITS - mean_of(p)[..., None]).square()
    return (p.double() * about).sum(-1).sqrt()


def tokens_of(lm: steer.LM) -> Tokens:
    """Return the ids of digits and comma.

    Raises:
        BenchmarkError: one of them is not one token of its own.
    """
    found = [
        list(lm.tokenizer(piece, add_special_tokens=False)["input_ids"])
        for piece in (*"0123456789", ",")
    ]
    if any(len(one) != 1 for one in found) or len({one[0] for one in found}) < len(found):
        raise BenchmarkError(
            "The tokenizer does not give each digit and the comma one token of its own, so the "
            "next digit's chance is in no single place. Run this task on another model."
        )
    *digits, comma = (one[0] for one in found)
    bos = lm.tokenizer.bos_token_id
    # Some tokenizers put BOS in front and others do not: it is put in by id.
    return Tokens((bos,) if isinstance(bos, int) else (), tuple(digits), comma)


def draw(
    laws: Sequence[tuple[float, float]], n: int, length: int, seed: int
) -> Int[Tensor, "text time"]:
    """Return n texts of digits for each (mean, standard deviation), law by law."""
    chance = np.random.default_rng(seed)
    rows = np.repeat(np.array(laws), n, 0)
    drawn = rows[:, :1] + rows[:, 1:] * chance.standard_normal((len(rows), length))
    return torch.from_numpy(drawn.round().clip(0, 9).astype(np.int64))


def shuffled(digits: Int[Tensor, "text time"], seed: int) -> Int[Tensor, "text time"]:
    """Return texts whose digits are exchanged over all texts: no text has a law of its own."""
    order = torch.randperm(digits.numel(), generator=torch.Generator().manual_seed(seed))
    return digits.flatten()[order].view_as(digits)


def read(
    lm: steer.LM,
    digits: Int[Tensor, "text time"],
    u: Float[Tensor, " text"],
    after: Sequence[int],
    blocks: Sequence[int],
) -> Readings:
    """Return states at some blocks, and outputs, after some numbers of digits."""
    ids = tokens_of(lm)
    rows = [ids.row(row) for row in digits.tolist()]
    scope = reduce(or_, (steer.at(ids.place(n)) for n in after))
    sites, out = [steer.Site(block, "resid_post") for block in blocks], steer.Site.logits()
    parts, mass, states = [], [], []
    for start in range(0, len(rows), BATCH):
        acts = lm.capture(rows[start : start + BATCH], [*sites, out], scope=scope)
        shape = (-1, len(after))
        logits = acts[out].reshape(*shape, acts[out].shape[-1])
        p, total = digits_of(logits, ids)
        parts.append(p)
        mass.append(total)
        states.append(torch.stack([acts[s].reshape(*shape, lm.d_model) for s in sites]).float())
    return Readings(
        digits, u, tuple(after), torch.cat(parts), torch.cat(mass), torch.cat(states, 1).cpu()
    )


def digits_of(
    logits: Float[Tensor, "*batch vocab"], ids: Tokens
) -> tuple[Float[Tensor, "*batch digit"], Float[Tensor, "*batch"]]:
    """Return the chances of the digits among themselves, and of any digit."""
    chosen = logits[..., list(ids.digits)].double().cpu()
    whole = logits.float().logsumexp(-1).double().cpu()
    return chosen.softmax(-1), (chosen.logsumexp(-1) - whole).exp()


def stretches() -> tuple[int, ...]:
    """Return after how many digits texts of one law are read."""
    return tuple(range(BURN_IN, LENGTH + 1, EVERY))
