"""The nearest point of a shape with several coordinates: a dense start, then damped Newton steps.

The counterpart of `nearest` for surfaces. Batched over targets and candidates, without host
synchronisation.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.axes import Axes

CANDIDATES = 4
"""Local minima of the dense start that are refined: one of them could lead to a wrong branch."""
# Newton steps double the digits of a smooth surface; the rest is for starts far from the minimum.
_STEPS = 12
_POLISH = 4
_CLOSE = 0.1
"""A Newton step this short, in steps of the grid, is taken without a look at the distance."""
_CHUNK = 1 << 22


class Bent(NamedTuple):
    """A shape's value and first two derivatives at the same coordinates."""

    value: Float[Tensor, "*batch k"]
    first: Float[Tensor, "*batch k dim"]
    second: Float[Tensor, "*batch k dim dim"]


def nearest_many(
    target: Float[Tensor, "row k"],
    value: Callable[[Tensor], Tensor],
    jet: Callable[[Tensor], Bent],
    *,
    axes: Axes,
    counts: tuple[int, ...],
) -> Float[Tensor, "row dim"]:
    """Return for each target the coordinates in the axes' range whose point is nearest.

    The best local minima over a regular grid are refined by steps that never go uphill: of a
    Newton step, a Gauss-Newton step and a quarter of it, the one that comes nearest is taken, if
    it comes nearer at all, and none is longer than a step of the grid, so a refined point does
    not jump to another branch. The nearest of them wins. Open axes clamp at their ends. The
    gradient is that of the implicit function theorem, zero along a clamped axis. A target that is
    not finite gives NaN.
    """
    grid = axes.grid(counts).to(target)
    points = value(grid)
    reach = (axes.upper - axes.lower).to(target) / torch.tensor(counts).to(target)
    rows = max(1, _CHUNK // len(grid))
    found = [
        _chunk(part, value, jet, axes, grid, points, counts, reach)
        for part in target.detach().split(rows)
    ]
    u = torch.cat(found) if found else target.new_zeros(0, axes.dim)
    return _differentiable(u, target, jet, axes) if target.requires_grad else u


def _chunk(
    target: Tensor,
    value: Callable[[Tensor], Tensor],
    jet: Callable[[Tensor], Bent],
    axes: Axes,
    grid: Tensor,
    points: Tensor,
    counts: tuple[int, ...],
    reach: Tensor,
) -> Tensor:
    u = grid[_local_minima(target, points, axes, counts)]
    goal = target[:, None]
    for _ in range(_STEPS):
        steps = _steps(jet(u), goal, u, axes)
        steps = torch.maximum(torch.minimum(steps, reach), -reach)
        tried = axes.clamp(torch.cat([u[..., None, :], u[..., None, :] + steps], -2))
        gain = _nearer(value(tried), goal[..., None, :])
        best = torch.where(torch.isfinite(gain), gain, torch.inf).argmin(-1)
        u = tried.gather(-2, best[..., None, None].expand(*best.shape, 1, axes.dim))[..., 0, :]
    # Distances compare to half of the digits only, slopes to all.
    for _ in range(_POLISH):
        at = jet(u)
        step = _steps(at, goal, u, axes)[..., 0, :]
        slope = torch.einsum("...kd,...k->...d", at.first, at.value - goal)
        down = (slope * step).sum(-1) <= 0
        close = down & (step.abs() < _CLOSE * reach).all(-1)
        u = torch.where(close[..., None], axes.clamp(u + step), u)
    best = _nearer(value(u), goal).argmin(1)
    chosen = u.gather(1, best[:, None, None].expand(-1, 1, axes.dim))[:, 0]
    known = torch.isfinite(target).all(-1, keepdim=True)
    return torch.where(known, chosen, torch.full_like(chosen, torch.nan))


def _nearer(at: Tensor, goal: Tensor) -> Tensor:
    """Return squared distances [..., candidate] to the goal, less that of the first candidate.

    Factored: float32 would lose the difference of two squares for a target far away.
    """
    first = at[..., :1, :]
    return ((at - first) * (at + first - 2 * goal)).sum(-1)


def _local_minima(target: Tensor, points: Tensor, axes: Axes, counts: tuple[int, ...]) -> Tensor:
    """Return the grid indices [row, candidate] of the best local minima of the distance."""
    with torch.autocast(target.device.type, enabled=False):
        flat = points.square().sum(-1) - 2 * target @ points.T
    squared = flat.reshape(-1, *counts)
    minimum = torch.ones_like(squared, dtype=torch.bool)
    for axis, period in enumerate(axes.periods, start=1):
        for way in (1, -1):
            beside = squared.roll(way, axis)
            if period is None:
                edge = 0 if way == 1 else squared.shape[axis] - 1
                wall = torch.arange(squared.shape[axis], device=flat.device) == edge
                shape = [1] * squared.ndim
                shape[axis] = -1
                beside = beside.masked_fill(wall.reshape(shape), torch.inf)
            minimum = minimum & (squared <= beside)
    score = torch.where(minimum.flatten(1), flat, torch.full_like(flat, torch.inf))
    return score.topk(min(CANDIDATES, len(points)), largest=False).indices


def _steps(at: Bent, goal: Tensor, u: Tensor, axes: Axes) -> Tensor:
    """Return the candidate steps [..., 3, dim]: Newton, Gauss-Newton, a quarter of that."""
    away = at.value - goal
    slope = torch.einsum("...kd,...k->...d", at.first, away)
    gauss = at.first.mT @ at.first
    newton = gauss + torch.einsum("...kde,...k->...de", at.second, away)
    # An axis at its end whose slope points outwards stays there; the others step as if alone.
    free = _free(slope, u, axes)
    slope = slope * free
    gauss, newton = (_without(form, free) for form in (gauss, newton))
    ridge = 1e-6 * gauss.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(axes.dim, dtype=u.dtype, device=u.device)
    both = torch.stack([newton, gauss + ridge * eye], -3)
    found = torch.linalg.solve_ex(both, -slope[..., None, :, None].expand(*both.shape[:-1], 1))
    full = found.result[..., 0]
    return torch.cat([full, full[..., 1:, :] / 4], -2)


def _free(slope: Tensor, u: Tensor, axes: Axes) -> Tensor:
    """Return, as 0 and 1, which axes may move: not those pressed against an open end."""
    stuck = ((u <= axes.lower.to(u)) & (slope > 0)) | ((u >= axes.upper.to(u)) & (slope < 0))
    return (axes.closed(u) | ~stuck).to(u.dtype)


def _without(form: Tensor, free: Tensor) -> Tensor:
    """Return the form with the rows and columns of axes that stay replaced by unit ones."""
    kept = form * free[..., :, None] * free[..., None, :]
    return kept + torch.diag_embed(1 - free)


def _differentiable(u: Tensor, target: Tensor, jet: Callable[[Tensor], Bent], axes: Axes) -> Tensor:
    """Attach to u its gradient by the target: one more Newton step, of which only that remains."""
    at = jet(u)
    away = at.value - target.detach()
    slope = torch.einsum("...kd,...k->...d", at.first, away)
    free = _free(slope, u, axes)
    newton = at.first.mT @ at.first + torch.einsum("...kde,...k->...de", at.second, away)
    pull = torch.einsum("...kd,...k->...d", at.first, target) * free
    found = torch.linalg.solve_ex(_without(newton, free), pull[..., None])
    step = torch.where(torch.isfinite(found.result[..., 0]), found.result[..., 0], 0.0)
    return u + (step - step.detach())
