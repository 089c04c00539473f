"""Bootstrap intervals over crossed clusters: arrays in, numbers with intervals out.

Measurements come as [pair, context] grids, NaN where there is none. Both axes are resampled,
because measurements of one context, or of one pair of concepts, are not independent. Everything is
paired: one resample reweighs the numerator and the denominator alike, and equal seeds draw equal
resamples.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]
"""[pair, context], NaN where nothing was measured."""

LEVEL = 0.95
N_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Number:
    """A measured value and its interval; None where it could not be measured or has none."""

    value: float | None
    lo: float | None = None
    hi: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return {value, lo, hi}."""
        return asdict(self)

    def __str__(self) -> str:
        """Print `1.43 [1.21, 1.66]`, or `unscored`."""
        if self.value is None:
            return "unscored"
        interval = "" if self.lo is None or self.hi is None else f" [{self.lo:.3g}, {self.hi:.3g}]"
        return f"{self.value:.3g}{interval}"


UNSCORED = Number(None)
"""Not measurable here: not zero."""


def mean(grid: Grid, *, seed: int, n_resamples: int = N_RESAMPLES) -> Number:
    """Return the mean of the measured cells and its interval."""
    return _quotient(np.nan_to_num(grid), np.isfinite(grid).astype(float), seed, n_resamples)


def ratio(
    numerator: Grid, denominator: Grid, *, seed: int, n_resamples: int = N_RESAMPLES
) -> Number:
    """Return mean(numerator) / mean(denominator), over the cells that both have, and its interval.

    A ratio of means, not a mean of ratios, which one small denominator would rule.
    """
    both = np.isfinite(numerator) & np.isfinite(denominator)
    return _quotient(
        np.where(both, numerator, 0.0), np.where(both, denominator, 0.0), seed, n_resamples
    )


def percentiles(value: float, replicates: NDArray[np.float64]) -> Number:
    """Return the value with the percentile interval of its replicates; unscored if not finite."""
    if not np.isfinite(value):
        return UNSCORED
    replicates = replicates[np.isfinite(replicates)]
    if len(replicates) < 2:
        return Number(float(value))
    lo, hi = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Number(float(value), float(lo), float(hi))


def counts(n: int, n_resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return [resample, n]: how often each of n clusters is drawn, n draws with replacement."""
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)


def _quotient(top: Grid, bottom: Grid, seed: int, n_resamples: int) -> Number:
    """Return sum(top) / sum(bottom), and its interval over resamples of rows and columns."""
    total = bottom.sum()
    if not total:
        return UNSCORED
    rng = np.random.default_rng(seed)
    rows = counts(top.shape[0], n_resamples, rng)
    columns = counts(top.shape[1], n_resamples, rng)
    tops = np.einsum("br,rc,bc->b", rows, top, columns)
    bottoms = np.einsum("br,rc,bc->b", rows, bottom, columns)
    # A resample may hit no measured cell; it says nothing and is left out.
    with np.errstate(invalid="ignore", divide="ignore"):
        return percentiles(top.sum() / total, tops / bottoms)
