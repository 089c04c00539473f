"""A monitor's ROC and its calibrated threshold. Pure; scikit-learn draws the curve."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steer.errors import PlanError
from steer.evals.report.values import Interval

N_RESAMPLES = 500
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """How well a monitor tells positives from negatives."""

    auc: Interval
    auc_shuffled: Interval
    """The same with shuffled labels: its control."""
    threshold: float
    """Calibrated on one half: the lowest at which at most `false_positives` of it are flagged."""
    true_rate: Interval
    """Share of the positives of the other half above the threshold."""
    false_rate: Interval
    """Share of the negatives of the other half above the threshold."""
    curve: tuple[tuple[float, ...], tuple[float, ...]]
    """(false-positive rates, true-positive rates), of all."""


def roc(scores: Scores, positive: NDArray[np.bool_], *, most_false: float, seed: int = 0) -> Roc:
    """Return the ROC of scores [item], and a threshold calibrated on half of the negatives.

    Raises:
        PlanError: fewer than 4 positives or negatives, or a rate not in (0, 1).
    """
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if min(n_pos, n_neg) < 4 or not 0 < most_false < 1:
        raise PlanError(
            f"A ROC of {n_pos} positives and {n_neg} negatives at a false-positive rate of "
            f"{most_false:g} says nothing. Give 4 of each at least, and a rate between 0 and 1."
        )
    drawn = np.random.default_rng(seed)
    half = np.zeros(len(scores), dtype=bool)
    for group in (positive, ~positive):
        members = drawn.permutation(np.flatnonzero(group))
        half[members[: len(members) // 2]] = True
    # Takes most of a second to import, and only an evaluation with monitors needs it.
    from sklearn.metrics import roc_curve

    threshold = _threshold(scores[half & ~positive], most_false)
    fpr, tpr, _ = roc_curve(positive, scores)
    shuffled = drawn.permutation(positive)
    above = (scores > threshold).astype(np.float64)
    return Roc(
        _auc(scores, positive, drawn),
        _auc(scores, shuffled, drawn),
        threshold,
        _rate(above[~half & positive], drawn),
        _rate(above[~half & ~positive], drawn),
        (tuple(map(float, fpr)), tuple(map(float, tpr))),
    )


def _threshold(negatives: Scores, most_false: float) -> float:
    """Return the lowest score above which at most that share of the negatives lie."""
    ordered = np.sort(negatives)
    allowed = int(np.floor(most_false * len(ordered)))
    return float(ordered[len(ordered) - 1 - allowed])


def _auc(scores: Scores, positive: NDArray[np.bool_], drawn: np.random.Generator) -> Interval:
    # As above.
    from sklearn.metrics import roc_auc_score

    groups = np.flatnonzero(positive), np.flatnonzero(~positive)
    found = []
    for _ in range(N_RESAMPLES):
        picked = np.concatenate([drawn.choice(group, len(group)) for group in groups])
        found.append(roc_auc_score(positive[picked], scores[picked]))
    lo, hi = np.percentile(found, [2.5, 97.5])
    return Interval(float(roc_auc_score(positive, scores)), float(lo), float(hi))


def _rate(flags: Scores, drawn: np.random.Generator) -> Interval:
    picked = drawn.integers(len(flags), size=(N_RESAMPLES, len(flags)))
    lo, hi = np.percentile(flags[picked].mean(1), [2.5, 97.5])
    return Interval(float(flags.mean()), float(lo), float(hi))
