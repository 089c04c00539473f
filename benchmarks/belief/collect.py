"""Collect the log-odds of a whole grid, evidence by strength, through the engine.

A text is run once up to the block that is written to, and once above it for each strength; every
`was` at which a question stands is read in the same pass, so one pass gives the curve in evidence
and no prefix is computed twice. The vector is added at every token, those of the evidence included:
that is what steering a conversation does, and what a controller does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

import steer
from benchmarks.belief.data import (
    Design,
    SentimentItems,
    Text,
    at_all,
    ids_of,
    question,
    row_of,
    statement,
    with_bos,
)
from benchmarks.errors import BenchmarkError

DEPTH = 0.48
"""The share of the blocks below the one that is written to: 14 of 30, 9 of 18, 12 of 24."""
N_SHOWN = 4
"""Statements in the contexts on which the direction is fitted."""


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Log-odds of the positive words over the negative ones at every question, in nats."""

    strengths: NDArray[np.float64]
    """[strength], in units of the raw mean difference."""
    values: NDArray[np.float64]
    """[strength, reading]"""
    evidence: NDArray[np.float64]
    """[reading]: statements before the question."""
    cell: NDArray[np.int64]
    """[reading]: the cell of the design that it belongs to."""
    question: NDArray[np.int64]
    order: NDArray[np.int64]
    """[reading]: the context; see `Text`."""
    concept: NDArray[np.int64]
    """[reading]: 1 where the statements are positive, -1 where they are negative."""

    def where(self, keep: NDArray[np.bool_] | NDArray[np.int_]) -> "Readings":
        """Return some of the readings."""
        return Readings(
            self.strengths,
            self.values[:, keep],
            self.evidence[keep],
            self.cell[keep],
            self.question[keep],
            self.order[keep],
            self.concept[keep],
        )

    def at(self, keep: NDArray[np.bool_]) -> "Readings":
        """Return the readings at some of the strengths."""
        return Readings(
            self.strengths[keep],
            self.values[keep],
            self.evidence,
            self.cell,
            self.question,
            self.order,
            self.concept,
        )


def joined(parts: Sequence[Readings]) -> Readings:
    """Return the readings of several sweeps at the same strengths as one."""
    return Readings(
        parts[0].strengths,
        np.concatenate([part.values for part in parts], axis=1),
        np.concatenate([part.evidence for part in parts]),
        np.concatenate([part.cell for part in parts]),
        np.concatenate([part.question for part in parts]),
        np.concatenate([part.order for part in parts]),
        np.concatenate([part.concept for part in parts]),
    )


def site_of(lm: steer.LM) -> steer.Site:
    """Return where it is written: the stream a little below the middle of the model."""
    return steer.Site(round(DEPTH * lm.n_layers), "resid_post")


def odds_of(lm: steer.LM, items: SentimentItems) -> steer.belief.TokenOdds:
    """Return the log-odds that are read: all positive adjectives over all negative ones."""
    sides = [
        tuple(ids_of(lm, f" {word}")[0] for word in words)
        for words in (items.positive, items.negative)
    ]
    return steer.belief.TokenOdds(sides[0], sides[1])


def fit_direction(
    lm: steer.LM, items: SentimentItems, site: steer.Site, *, seed: int
) -> Float[Tensor, " d_model"]:
    """Return the raw mean difference, positive minus negative contexts, at their last token.

    CAA (Rimsky et al. 2023, arXiv:2312.06681), on nouns of its own: as many contexts as nouns, each
    of a few statements, alike but for the adjectives. Strength 1 adds all of it.
    """
    rng = np.random.default_rng(seed)
    n = min(N_SHOWN, len(items.fit))
    drawn = [rng.permutation(len(items.fit))[:n] for _ in items.fit]
    states = []
    for concept in (1, -1):
        words = items.adjectives(concept)
        rows = [
            with_bos(
                lm,
                " ".join(
                    statement((items.fit[at], str(word))) for at, word in zip(d, w, strict=True)
                ),
            )
            for d, w in zip(drawn, rng.choice(words, (len(drawn), n)), strict=True)
        ]
        states.append(lm.capture(rows, [site], scope=steer.LAST)[site].float().mean(0))
    return states[0] - states[1]


def random_like(direction: Float[Tensor, " d_model"], *, seed: int) -> Float[Tensor, " d_model"]:
    """Return a random direction of the same norm."""
    drawn = torch.randn(direction.shape, generator=torch.Generator().manual_seed(seed))
    drawn = drawn.to(direction.device, direction.dtype)
    return drawn * (direction.norm() / drawn.norm())


def collect(
    lm: steer.LM,
    items: SentimentItems,
    texts: Sequence[Text],
    design: Design,
    site: steer.Site,
    direction: Float[Tensor, " d_model"],
    strengths: Sequence[float],
) -> Readings:
    """Return the log-odds at every question of texts of one length, at every strength.

    Raises:
        BenchmarkError: the questions of the texts do not stand at the same tokens.
    """
    made = [row_of(lm, text) for text in texts]
    places = made[0][1]
    if any(found != places for _, found in made):
        raise BenchmarkError(
            "The questions of these texts stand at different tokens, as some noun or adjective is "
            "several tokens in this model. One scope must fit all rows: choose words of one token."
        )
    odds = odds_of(lm, items)
    arms = [[steer.Add(site, direction, float(m))] for m in strengths]
    swept = steer.sweep(
        lm,
        [row for row, _ in made],
        arms,
        lambda logits, _: _readings(odds, logits, len(places)),
        scope=at_all(places),
    )
    n_rows, n = len(texts), len(places)
    evidence = np.array([text.evidence for text in texts])
    return Readings(
        np.asarray(strengths, float),
        swept.values.double().numpy().reshape(len(strengths), n_rows * n),
        evidence.ravel().astype(float),
        np.array([design.cell_of(int(e)) for e in evidence.ravel()]),
        np.array([text.questions for text in texts]).ravel(),
        np.repeat([text.order for text in texts], n),
        np.repeat([text.concept for text in texts], n),
    )


def _readings(odds: steer.belief.TokenOdds, logits: Tensor, n: int) -> Tensor:
    """Return [row, n]; a scope of one token comes without its axis."""
    return odds.scores(logits).reshape(len(logits), n)


def neutral_shift(
    lm: steer.LM, items: SentimentItems, evidence: Sequence[int], *, seed: int
) -> NDArray[np.float64]:
    """Return [evidence, question]: unsteered log-odds after so many unrelated sentences.

    The sentences are as long as statements and judge nothing; the questions are all questions.
    """
    rng = np.random.default_rng(seed)
    odds = odds_of(lm, items)
    found = []
    for n in evidence:
        rows = []
        for noun in items.questions:
            pairs = rng.choice(items.context, (n, 2))
            told = [f"We saw the {a} near the {b}." for a, b in pairs]
            rows.append(with_bos(lm, " ".join([*told, question(noun)])))
        found.append(odds.scores(lm.logits(rows, scope=steer.LAST)).reshape(len(rows)))
    return torch.stack(found).double().cpu().numpy()
