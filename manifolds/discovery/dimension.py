"""How many coordinates a cloud of points has, with an interval."""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from scipy.spatial import KDTree
from scipy.stats import chi2
from torch import Tensor

from manifolds.cubic import Array
from manifolds.errors import ManifoldError
from manifolds.subspace import as_points

Method = Literal["twonn", "pca"]

KEPT = 0.9
"""Share of the ratios that TwoNN looks at: the largest ones come from the edge of the cloud."""
LEAST = 10


@final
@dataclass(frozen=True, slots=True, eq=False)
class Dimension:
    """An estimate of the intrinsic dimension and its interval."""

    value: float
    low: float
    high: float
    """Ends of the interval at `level`."""
    method: Method
    participation: float
    """(sum l)^2 / sum l^2 of the eigenvalues l of the covariance: a curved line has more than 1."""
    level: float
    n_samples: int

    def __repr__(self) -> str:
        """Say the estimate, its interval, and what it was made from."""
        return (
            f"Dimension({self.value:.2f} by {self.method}, {100 * self.level:g}% "
            f"{self.low:.2f} to {self.high:.2f}, {self.n_samples} points)"
        )


def intrinsic_dimension(
    x: Tensor | np.ndarray,
    method: Method = "twonn",
    *,
    variance: float | int = 0.9,
    level: float | int = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Dimension:
    """Estimate the intrinsic dimension of points [sample, d_model].

    TwoNN (Facco et al. 2017, arXiv:1803.06992): the ratio of the distances to the second and to
    the first neighbour has the survival function ratio^(-dimension), whatever the density. We do
    not fit a line to it but maximise the likelihood, the largest tenth of the ratios censored, and
    the interval is exact if the ratios are independent (twice dimension times total log ratio is
    chi-squared). It sees the smallest scale there is: noise in all dimensions of the ambient space
    gives a large number. The edge of a cloud lowers it in high dimensions (about 4.6 for 2000
    points in a cube of 5).

    PCA: the number of components that hold the share `variance`, which a curved manifold makes
    larger than its dimension; the interval is a bootstrap over points.

    Args:
        x: the points.
        method: "twonn" or "pca".
        variance: share of the variance, for "pca".
        level: of the interval.
        resamples: of the bootstrap, for "pca".
        seed: of the bootstrap.

    Raises:
        ManifoldError: fewer than 10 points, points not finite or all equal, equal points (TwoNN),
            or a variance or level that is no share.
    """
    points = as_points(x).numpy()
    if len(points) < LEAST:
        raise ManifoldError(
            f"There are {len(points)} points, and a dimension needs {LEAST} at least to have any "
            "interval worth the name. Read more."
        )
    for name, share in (("variance", variance), ("level", level)):
        if not 0 < share < 1:
            raise ManifoldError(
                f"{name} is {share}, and a share lies between 0 and 1. Write 0.9 for 90 %."
            )
    values = _eigenvalues(points)
    if values[0] <= 1e-24 * np.square(points).max():
        raise ManifoldError(
            f"All {len(points)} points are equal, so they have no dimension. Check the site and "
            "the scope they were read with."
        )
    if method == "twonn":
        found = _twonn(points, level)
    elif method == "pca":
        found = _components(points, variance, level, resamples, np.random.default_rng(seed))
    else:
        raise ManifoldError(f"method is {method!r}, and only 'twonn' and 'pca' are known here.")
    return Dimension(*found, method, _participation(values), level, len(points))


def _twonn(points: Array, level: float) -> tuple[float, float, float]:
    near = np.asarray(KDTree(points).query(points, 3)[0])[:, 1:]
    if (near[:, 0] <= 0).any():
        raise ManifoldError(
            f"{int((near[:, 0] <= 0).sum())} points have an equal one, at the distance 0, and a "
            "ratio of distances cannot be taken. Leave repeated prompts out."
        )
    ratios = np.sort(np.log(near[:, 1] / near[:, 0]))
    kept = max(2, round(KEPT * len(ratios)))
    total = ratios[:kept].sum() + (len(ratios) - kept) * ratios[kept - 1]
    if total <= 0:
        raise ManifoldError(
            f"Each of {len(points)} points has two neighbours at one distance, as on a regular "
            "lattice, so the ratios say nothing. Use method='pca', or points off the lattice."
        )
    tails = chi2.ppf([(1 - level) / 2, (1 + level) / 2], 2 * kept) / (2 * total)
    return float(kept / total), float(tails[0]), float(tails[1])


def _components(
    points: Array, variance: float, level: float, resamples: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    # The left factor has the same distances, and is no wider than there are points.
    left, singular, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    small = left * singular
    drawn = [small[rng.integers(0, len(small), len(small))] for _ in range(resamples)]
    counts = [_count(_eigenvalues(part), variance) for part in drawn]
    low, high = np.quantile(counts, [(1 - level) / 2, (1 + level) / 2])
    value = _count(np.square(singular), variance)
    # A resample has fewer distinct points, so fewer components: the estimate may lie above all.
    return float(value), float(min(low, value)), float(max(high, value))


def _eigenvalues(points: Array) -> Array:
    return np.square(np.linalg.svd(points - points.mean(0), compute_uv=False)) / len(points)


def _count(values: Array, variance: float) -> int:
    return int((values.cumsum() < variance * values.sum()).sum()) + 1


def _participation(values: Array) -> float:
    return float(values.sum() ** 2 / np.square(values).sum())
