"""What a plan does to held-out text: how likely it is, and how far each prediction moves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.damage.diverging import Divergence, Texts, measured
from steer.engine.batch import Batch
from steer.evals.measuring.choices import BASE, Values, continuation_log_probs
from steer.evals.measuring.rendering import passage
from steer.evals.report.values import Interval
from steer.lm import LM
from steer.protocols import Intervention
from steer.scopes import FIRST, OUTPUT
from steer.sweep import sweep

PROMPT_TOKENS, MOST_TOKENS = 16, 96
"""The first tokens of a passage count as its prompt, the rest as generated: so a plan that acts on
the output only is measured too."""
N_RESAMPLES = 500


@dataclass(frozen=True, slots=True, eq=False)
class TextDamage:
    """What each arm did to held-out text."""

    arms: tuple[str, ...]
    """`base` first."""
    nats: Values
    """[arm, passage]: mean negative log-likelihood of its tokens after the prompt."""
    moved: Divergence
    """KL(base || arm) of each token, for the arms after `base`."""

    def kl(self, arm: str) -> NDArray[np.float64]:
        """Return [token]: nats that each token's prediction moved under an arm."""
        return self.moved.nats[self.arms.index(arm) - 1].double().numpy()


def measure_texts(
    lm: LM, texts: Sequence[str], arms: Mapping[str, Sequence[Intervention]]
) -> TextDamage:
    """Return likelihoods and divergences of held-out passages under each arm.

    Raises:
        SteerError: an arm does not fit, never fires, or makes logits that are no numbers.
    """
    rows = [passage(lm, text, most=MOST_TOKENS) for text in texts]
    rows = [row for row in rows if len(row) > 2]
    lengths = [min(PROMPT_TOKENS, len(row) - 1) for row in rows]

    def take(logits: Tensor, batch: Batch) -> Tensor:
        return continuation_log_probs(logits, batch, rows)

    swept = sweep(lm, rows, {BASE: [], **arms}, take, scope=OUTPUT, prompt_lengths=lengths)
    n_tokens = torch.tensor([len(row) - own for row, own in zip(rows, lengths, strict=True)])
    nats = (-swept.values.double() / n_tokens).numpy()
    held = Texts(tuple(map(tuple, rows)), tuple(lengths))
    moved = measured(lm, held, lambda _: list(arms.values()), ~FIRST)
    return TextDamage((BASE, *arms), nats, moved)


def clustered(
    damage: TextDamage, arm: str, *, quantile: float | None = None, seed: int = 0
) -> Interval:
    """Return the mean over tokens of the KL, or a quantile of it, with its interval.

    Passages are resampled and not tokens: tokens of one passage move together.
    """
    values, rows = damage.kl(arm), damage.moved.rows.numpy()
    groups = [values[rows == row] for row in np.unique(rows)]

    def of(parts: Sequence[NDArray[np.float64]]) -> float:
        every = np.concatenate(parts)
        return float(every.mean() if quantile is None else np.quantile(every, quantile))

    drawn = np.random.default_rng(seed).integers(len(groups), size=(N_RESAMPLES, len(groups)))
    lo, hi = np.percentile([of([groups[i] for i in row]) for row in drawn], [2.5, 97.5])
    return Interval(of(groups), float(lo), float(hi))
