"""Point clouds made ready for topology: components above the noise, and spread-out landmarks.

What is read off the landmarks is in `topology`.
"""

import numpy as np
from scipy.spatial.distance import cdist

from manifolds.cubic import Array
from manifolds.errors import ManifoldError

ENOUGH_FOR_NOISE = 16
"""Singular values from which their median tells the noise level."""


def principal(points: Array, *, n_components: int | None = None) -> Array:
    """Return the coordinates [sample, k] on the components that stand out of the noise.

    With 16 singular values or more, those above the optimal threshold of Gavish and Donoho 2014
    (arXiv:1305.5870) for white noise of unknown level; it can leave none. With fewer, the
    components of 99.9 % of the variance.

    Raises:
        ManifoldError: all points are equal, or n_components is more than the points span.
    """
    away = points - points.mean(0)
    left, singular, _ = np.linalg.svd(away, full_matrices=False)
    floor = max(1e-10 * singular[0], 1e-12 * np.abs(points).max() * max(points.shape) ** 0.5)
    rank = int((singular > floor).sum())
    if rank == 0:
        raise ManifoldError(
            f"All {len(points)} points are equal, so they have no shape. Check the site and the "
            "scope they were read with."
        )
    if n_components is not None and not 1 <= n_components <= rank:
        raise ManifoldError(
            f"n_components is {n_components}, but these {len(points)} points span 1 to {rank} "
            "components. Ask for fewer, or read more points."
        )
    k = n_components if n_components is not None else _above_noise(singular, points.shape)
    k = min(k, rank)
    return left[:, :k] * singular[:k]


def landmarks(points: Array, n: int) -> Array:
    """Return n points spread over the cloud: farthest points, each then averaged over its cell.

    The start is the point farthest from the centre, so that turning the cloud changes nothing.
    The averaging is one step of Lloyd's and takes out part of the noise.
    """
    if n >= len(points):
        return points
    chosen = farthest(points, n)
    own = cdist(points, points[chosen]).argmin(1)
    total = np.zeros((n, points.shape[1]))
    np.add.at(total, own, points)
    return total / np.bincount(own, minlength=n)[:, None]


def farthest(points: Array, n: int) -> np.ndarray:
    """Return the indices of n points, each the farthest from those before it."""
    chosen = np.empty(n, np.int64)
    chosen[0] = np.square(points - points.mean(0)).sum(1).argmax()
    gap = np.full(len(points), np.inf)
    for i in range(1, n):
        gap = np.minimum(gap, np.square(points - points[chosen[i - 1]]).sum(1))
        chosen[i] = gap.argmax()
    return chosen


def _above_noise(singular: Array, shape: tuple[int, ...]) -> int:
    count = min(shape[0] - 1, shape[1])
    if count < ENOUGH_FOR_NOISE:
        share = np.cumsum(singular**2) / np.square(singular).sum()
        return int((share < 0.999).sum()) + 1
    beta = min(shape) / max(shape)
    # The cubic of Gavish and Donoho's equation 5; it is within 0.02 of the exact factor.
    factor = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return int((singular > factor * np.median(singular[:count])).sum())
