"""Read concepts off a model: prompts as token ids, states at the last token, natural outputs.

Outputs are summed into one bin per concept and a last one, "other", for everything else, as in
Wurgaft et al. 2026 (arXiv:2605.05115).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import manifolds
import steer
from benchmarks.data.rings import Concepts, Context
from benchmarks.errors import BenchmarkError
from benchmarks.rings.order import Order
from steer.sites import AnySite

ENOUGH = 0.8
"""The share of the concepts that a model must know in some train context."""


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Which tokens of the vocabulary stand for which concept."""

    tokens: tuple[Tensor, ...]
    """For each concept the ids of the spellings that are one token."""

    @property
    def n_concepts(self) -> int:
        """Number of concepts; the bins are one more."""
        return len(self.tokens)

    def probabilities(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row bin"]:
        """Return the mass of each concept, and in the last bin that of everything else."""
        total = logits.float().logsumexp(-1)
        # Only the tokens of the bins are exponentiated: with 262,144 of them that is what counts.
        logs = [logits[:, t.to(logits.device)].float().logsumexp(-1) for t in self.tokens]
        mass = (torch.stack(logs, -1) - total[:, None]).exp()
        return torch.cat([mass, (1 - mass.sum(-1, keepdim=True)).clamp_min(0)], -1)

    def answers(self, logits: Float[Tensor, "row vocab"]) -> Int[Tensor, " row"]:
        """Return the concept that the likeliest token spells, -1 where it spells none."""
        best = logits.argmax(-1).cpu()
        found = torch.full_like(best, -1)
        for concept, tokens in enumerate(self.tokens):
            found[torch.isin(best, tokens)] = concept
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Prompts of some contexts, and what the model does at the last token of each."""

    rows: list[list[int]]
    """Token ids of each case, BOS included."""
    context: Int[Tensor, " case"]
    concept: Int[Tensor, " case"]
    states: Mapping[AnySite, Float[Tensor, "case d_model"]]
    """resid_post of every block."""
    natural: Float[Tensor, "case bin"]
    """The unsteered outputs."""
    correct: Bool[Tensor, " case"]
    """Whether the likeliest token is the concept that comes next."""

    def where(self, keep: Tensor) -> "Reading":
        """Return the cases that a mask or an index selects."""
        at = torch.arange(len(self.rows))[keep]
        return Reading(
            [self.rows[i] for i in at.tolist()],
            self.context[at],
            self.concept[at],
            {site: h[at] for site, h in self.states.items()},
            self.natural[at],
            self.correct[at],
        )

    def curve(self, site: AnySite, order: Order) -> manifolds.Curve:
        """Return the ring or line through the centroids of the concepts at a site."""
        return manifolds.fit_curve(self.states[site], self.concept, period=order.period)

    def behavior(self, order: Order) -> manifolds.Behavior:
        """Return the ring or line through the natural outputs."""
        return manifolds.fit_behavior(self.natural, self.concept, period=order.period)


def bins_of(lm: steer.LM, concepts: Concepts) -> Bins:
    """Return the bins of some concepts under this model's tokenizer.

    Raises:
        BenchmarkError: a concept has no spelling of one token.
    """
    found = []
    for concept, name in enumerate(concepts.concepts):
        spelt = [_ids(lm, text) for text in concepts.spellings(concept)]
        single = sorted({ids[0] for ids in spelt if len(ids) == 1})
        if not single:
            raise BenchmarkError(
                f"{name} is no single token of this model's tokenizer, in no spelling of "
                f"{', '.join(map(repr, concepts.spellings(concept)))}, so its probability cannot "
                "be read off one output. Run this task on another model."
            )
        found.append(torch.tensor(single))
    return Bins(tuple(found))


def read(
    lm: steer.LM,
    concepts: Concepts,
    contexts: Sequence[Context],
    bins: Bins,
    sites: Sequence[AnySite],
) -> Reading:
    """Return what the model does with every concept in every context, in one sweep of capture.

    A concept that a context cannot ask for is left out.
    """
    asked = [
        (c, z, text)
        for c, context in enumerate(contexts)
        for z in range(len(concepts))
        if (text := context.prompt(concepts, z)) is not None
    ]
    rows = [with_bos(lm, text) for _, _, text in asked]
    concept = torch.tensor([z for _, z, _ in asked])
    out = steer.Site.logits()
    acts = lm.capture(rows, [*sites, out], scope=steer.LAST)
    logits = acts[out]
    return Reading(
        rows,
        torch.tensor([c for c, _, _ in asked]),
        concept,
        {site: acts[site].float().cpu() for site in sites},
        bins.probabilities(logits).cpu(),
        bins.answers(logits) == concept,
    )


def with_bos(lm: steer.LM, text: str) -> list[int]:
    """Return the ids of a text after the BOS token, which some tokenizers add and others do not.

    Without it a small model's in-context ability collapses (gemma3-270m), so it is put in by id.
    """
    bos = lm.tokenizer.bos_token_id
    return [*([bos] if isinstance(bos, int) else []), *_ids(lm, text)]


def _ids(lm: steer.LM, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def known_concepts(reading: Reading, concepts: Concepts, kind: str) -> Int[Tensor, " known"]:
    """Return the concepts that the model goes on with in some context.

    The others have no centroid: a ring or line is drawn past them, as long as enough are left.

    Raises:
        BenchmarkError: fewer than 0.8 of the concepts are known; names the others.
    """
    known = reading.concept[reading.correct].unique()
    if len(known) >= ENOUGH * len(concepts):
        return known
    seen, n_correct = set(known.tolist()), int(reading.correct.sum())
    missing = [name for z, name in enumerate(concepts.concepts) if z not in seen]
    raise BenchmarkError(
        f"In no {kind} context does the model go on with {', '.join(missing)}: it answers "
        f"{n_correct} of {len(reading.rows)} prompts correctly "
        f"({n_correct / len(reading.rows):.0%}), and {len(seen)} of {len(concepts)} concepts in "
        f"any context, of which this task takes {ENOUGH:.0%}. Without their centroids there is no "
        f"{'ring' if concepts.closed else 'line'} of the {concepts.name}. Use a model that knows "
        "the order, or more contexts (a larger --limit)."
    )
