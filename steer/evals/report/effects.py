"""The statistics of a dose-response, from values [factor, item]. Pure; no model here.

Per-item slopes and the anti-steerable fraction are those of Tan et al. 2024 (arXiv:2407.12404):
the mean of a vector's effect hides items that it moves the wrong way. They fit a line to the logit
difference over multipliers; so do we, with bootstrap intervals over items.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steer.evals.report.values import Interval

N_RESAMPLES = 2000
Values = NDArray[np.float64]


def mean(values: Values, *, seed: int = 0) -> Interval:
    """Return the mean over items [item], with its bootstrap interval."""
    return _resampled(values[None], seed)[0]


def means(values: Values, *, seed: int = 0) -> tuple[Interval, ...]:
    """Return the mean over items at each factor, from [factor, item]."""
    return tuple(_resampled(values, seed))


def effect(values: Values, factors: Sequence[float], *, at: float = 1.0, seed: int = 0) -> Interval:
    """Return the mean change from factor 0 to another one; items are paired.

    Args:
        values: [factor, item].
        factors: of the plan's strength; 0 and `at` are among them.
        at: the other one.
        seed: of the bootstrap.
    """
    return mean(change(values, factors, at=at), seed=seed)


def change(values: Values, factors: Sequence[float], *, at: float = 1.0) -> Values:
    """Return each item's change from factor 0 to another one."""
    order = list(factors)
    return values[order.index(at)] - values[order.index(0.0)]


def slopes(values: Values, factors: Sequence[float]) -> Values:
    """Return [item]: the slope of each item's value over the factors, by least squares."""
    x = np.asarray(factors, dtype=np.float64)
    centred = x - x.mean()
    return centred @ (values - values.mean(0)) / (centred @ centred)


def anti_steerable(values: Values, factors: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the share of items whose slope is below 0."""
    return mean((slopes(values, factors) < 0).astype(np.float64), seed=seed)


def shuffled(
    values: Values, factors: Sequence[float], *, at: float = 1.0, seed: int = 0
) -> Interval:
    """Return the effect under labels without meaning: the sign of each item's change at random.

    The value is the mean over shuffles, which is near 0; the interval holds 95 % of them, so an
    effect inside it is what chance gives.
    """
    moved = change(values, factors, at=at)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(N_RESAMPLES, len(moved)))
    found = (signs * moved).mean(1)
    lo, hi = np.percentile(found, [2.5, 97.5])
    return Interval(float(found.mean()), float(lo), float(hi))


def quantile(values: Values, q: float, *, seed: int = 0) -> Interval:
    """Return a quantile over items [item], with its bootstrap interval."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(N_RESAMPLES, len(values)))
    lo, hi = np.percentile(np.quantile(values[drawn], q, axis=1), [2.5, 97.5])
    return Interval(float(np.quantile(values, q)), float(lo), float(hi))


def _resampled(values: Values, seed: int) -> list[Interval]:
    n = values.shape[1]
    drawn = np.random.default_rng(seed).integers(n, size=(N_RESAMPLES, n))
    # Counts of each item instead of the items themselves: one matrix product for all factors.
    counts = np.zeros((N_RESAMPLES, n))
    np.add.at(counts, (np.arange(N_RESAMPLES)[:, None], drawn), 1.0)
    found = values @ counts.T / n
    lo, hi = np.percentile(found, [2.5, 97.5], axis=1)
    return [
        Interval(float(value), float(low), float(high))
        for value, low, high in zip(values.mean(1), lo, hi, strict=True)
    ]
