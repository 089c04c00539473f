"""What a path of steered outputs is worth: its energy, and the isometry of the two manifolds.

After Wurgaft et al. 2026 (arXiv:2605.05115). Outputs come in as tensors; no model is run here.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.behavior.manifold import Behavior
from manifolds.behavior.simplex import Metric
from manifolds.curve import Curve
from manifolds.errors import ManifoldError
from manifolds.spline import dense_grid


class Isometry(NamedTuple):
    """Pearson correlations with the lengths on the behaviour manifold, over pairs of points."""

    manifold: float
    """Of the lengths along the activation manifold."""
    chord: float
    """Of the straight distances in activation space."""
    n_pairs: int


def energy(
    path_probabilities: Tensor,
    behavior: Behavior,
    *,
    metric: Metric = "bhattacharyya",
    reduce: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, "*batch"]:
    """Return how far the outputs along a path are from natural ones: sum of min_q D(p_j, q).

    The path is [..., point, bin]. The defaults are the paper's naturalness energy, with the
    Bhattacharyya distance in nats. It grows with the number of waypoints; the mean does not.
    Compare with the energy of unsteered outputs of the same contexts, which is not zero.

    Raises:
        ManifoldError: rows that are no distributions over the behaviour's bins, or no point axis.
    """
    if path_probabilities.ndim < 2:
        raise ManifoldError(
            f"The path has the shape {list(path_probabilities.shape)}, but an energy adds up over "
            "waypoints: [..., point, bin]. For single outputs use behavior.distance."
        )
    distances = behavior.distance(path_probabilities, metric)
    return {"sum": torch.sum, "mean": torch.mean}[reduce](distances, -1)


def isometry(curve: Curve, behavior: Behavior, *, interior: int = 0) -> Isometry:
    """Return how well lengths of activation paths predict lengths of behaviour paths.

    Over all pairs of the curve's knots, and of `interior` points equally spaced inside each knot
    interval, where pairs inside one interval are dropped unless they are its two ends. Lengths
    along the manifolds are of the same way, the shorter one in u; they are integrals, where the
    paper sums over 150 steps. The pairs share points, so they are not independent samples.

    Raises:
        ManifoldError: one is a ring and the other a line, the periods differ, the behaviour does
            not reach as far as the curve, interior is negative, or there are fewer than 3 pairs.
    """
    if curve.period != behavior.period:
        raise ManifoldError(
            f"The curve has the period {curve.period} and the behaviour {behavior.period}, so the "
            "same u is not the same concept on both. Fit both with the same coordinates."
        )
    if interior < 0:
        raise ManifoldError(
            f"interior is {interior}, and an interval cannot have fewer than no points inside. "
            "Write a number from 0 up."
        )
    ends, reach = curve.knots.double(), behavior.knots.double().to(curve.knots.device)
    if curve.period is None and (ends[0] < reach[0] or ends[-1] > reach[-1]):
        raise ManifoldError(
            f"The curve goes from {float(ends[0]):g} to {float(ends[-1]):g}, but the behaviour "
            f"only from {float(reach[0]):g} to {float(reach[-1]):g}, so lengths beyond that would "
            "be made up. Fit the behaviour on the same classes."
        )
    u = dense_grid(curve.breaks.double(), interior + 1)
    u = u if curve.period is None else u[:-1]
    first, second = _pairs(len(u), interior + 1, closed=curve.period is not None)
    if len(first) < 3:
        raise ManifoldError(
            f"There are {len(first)} pairs of knots, and a correlation takes at least 3. Fit more "
            "classes, or set interior."
        )
    u0, u1 = u[first.to(u.device)], u[second.to(u.device)]
    target = behavior.arc_length(u0.to(behavior.base.device), u1.to(behavior.base.device)).cpu()
    straight = (curve.decode(u0) - curve.decode(u1)).norm(dim=-1).cpu()
    along = curve.arc_length(u0, u1).cpu()
    return Isometry(_pearson(along, target), _pearson(straight, target), len(first))


def _pairs(n: int, per_interval: int, *, closed: bool) -> tuple[Tensor, Tensor]:
    """Return the index pairs of n grid points, less those inside one interval."""
    first, second = torch.triu_indices(n, n, 1)
    gap = second - first
    # Point i lies in interval i // m, and a knot also in the one before.
    inside = second <= (first // per_interval + 1) * per_interval
    whole = (gap == per_interval) & (first % per_interval == 0)
    if closed:
        last = n - per_interval
        across = (first == 0) & (second >= last)
        inside, whole = inside | across, whole | (across & (second == last))
    keep = ~inside | whole
    return first[keep], second[keep]


def _pearson(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two vectors; NaN if one of them is constant."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])
