"""The nearest point of a curve: a dense start, then Newton steps kept inside a bracket.

Works for any curve that can say its jet, so for `Curve` in its subspace and for `Behavior` on the
sphere of square roots. Batched, with no host synchronisation.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.spline import Jet

CANDIDATES = 3
"""Local minima of the dense start that are refined: one of them could lead to a wrong branch."""
# Four bring every target of the laws to rounding; two more are in reserve.
_STEPS = 6
_CHUNK = 1 << 22


def nearest(
    target: Float[Tensor, "row k"],
    jet: Callable[[Tensor], Jet],
    *,
    grid: Float[Tensor, " grid"],
    period: float | int | None,
) -> Float[Tensor, " row"]:
    """Return for each target the coordinate in the grid's range whose point is nearest.

    The grid is increasing and, for a ring, without its closing copy. The best local minima over
    the grid are refined by Newton steps on the squared distance, damped to Gauss-Newton where the
    curvature is not safely positive and bisected where a step leaves the bracket, so a refined
    point cannot jump to another branch; the nearest of them wins. Open curves clamp at the ends.
    The gradient is that of the implicit function theorem, zero at a clamped end. A target that is
    not finite gives NaN.
    """
    points = jet(grid).value
    rows = max(1, _CHUNK // len(grid))
    found = [
        _nearest_chunk(part, jet, grid, points, period) for part in target.detach().split(rows)
    ]
    u = torch.cat(found) if found else target.new_zeros(0)
    return _differentiable(u, target, jet, grid, period) if target.requires_grad else u


def _nearest_chunk(
    target: Tensor,
    jet: Callable[[Tensor], Jet],
    grid: Tensor,
    points: Tensor,
    period: float | int | None,
) -> Tensor:
    start = _local_minima(target, points, closed=period is not None)
    if period is None:
        before, after = torch.cat([grid[:1], grid[:-1]]), torch.cat([grid[1:], grid[-1:]])
    else:
        before = torch.cat([grid[-1:] - period, grid[:-1]])
        after = torch.cat([grid[1:], grid[:1] + period])
    u, low, high = grid[start], before[start], after[start]
    for _ in range(_STEPS):
        slope, curvature = _slope_and_curvature(jet(u), target[:, None])
        low, high = torch.where(slope <= 0, u, low), torch.where(slope >= 0, u, high)
        step = u - slope / curvature
        u = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    # Squared distances relative to the first candidate's, factored: float32 would lose the
    # difference of two squares for a target far away, as the first token's state is.
    at = jet(u).value
    closer = ((at - at[:, :1]) * (at + at[:, :1] - 2 * target[:, None])).sum(-1)
    best = u.gather(1, closer.argmin(1, keepdim=True))[:, 0]
    return torch.where(torch.isfinite(target).all(-1), best, torch.full_like(best, torch.nan))


def _local_minima(target: Tensor, points: Tensor, *, closed: bool) -> Tensor:
    """Return the grid indices [row, candidate] of the best local minima of the distance."""
    with torch.autocast(target.device.type, enabled=False):
        squared = points.square().sum(-1) - 2 * target @ points.T
    if closed:
        left, right = squared.roll(1, -1), squared.roll(-1, -1)
    else:
        wall = torch.full_like(squared[:, :1], torch.inf)
        left = torch.cat([wall, squared[:, :-1]], 1)
        right = torch.cat([squared[:, 1:], wall], 1)
    minimum = (squared <= left) & (squared <= right)
    score = torch.where(minimum, squared, torch.full_like(squared, torch.inf))
    return score.topk(min(CANDIDATES, len(points)), largest=False).indices


def _slope_and_curvature(at: Jet, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivative of half the squared distance and a safely positive second one."""
    away = at.value - target
    slope = (at.first * away).sum(-1)
    gauss = at.first.square().sum(-1)
    newton = gauss + (at.second * away).sum(-1)
    tiny = torch.finfo(gauss.dtype).tiny
    return slope, torch.where(newton > 1e-4 * gauss, newton, gauss).clamp_min(tiny)


def _differentiable(
    u: Tensor,
    target: Tensor,
    jet: Callable[[Tensor], Jet],
    grid: Tensor,
    period: float | int | None,
) -> Tensor:
    """Attach to u its gradient by the target: one more Newton step, of which only that remains."""
    at = jet(u)
    gauss = at.first.square().sum(-1)
    newton = gauss + (at.second * (at.value - target.detach())).sum(-1)
    free = newton > 1e-6 * gauss
    if period is None:
        free = free & (u > grid[0]) & (u < grid[-1])
    pull = -(at.first * target).sum(-1) / torch.where(free, newton, torch.ones_like(newton))
    return u - torch.where(free, pull - pull.detach(), torch.zeros_like(pull))
