"""Geodesics: the shortest ways on a chart, under a metric of one's choice.

Steering is a geodesic of some metric (Wurgaft et al. 2026, arXiv:2605.05115, section 1.7 of the
methods): the ambient one on a flat chart gives a chord, a density one keeps to where data are, a
pull-back one to where behaviour changes least.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.axes import Period
from manifolds.errors import ManifoldError

_ROUNDS = 300
_ENOUGH = 1e-9
_EVENINGS = 4


@runtime_checkable
class Walkable(Protocol):
    """A chart on which a way can be looked for."""

    @property
    def dim(self) -> int:
        """How many coordinates a point has."""
        ...

    @property
    def periods(self) -> tuple[Period, ...]:
        """The period of each coordinate, None where it is open."""
        ...

    def decode(self, u: Tensor) -> Tensor:
        """Return the points at u."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Squared lengths of the short steps of a path."""

    def squares(self, u: Tensor, x: Tensor) -> Tensor:
        """Return [..., n - 1] for coordinates u [..., n(, dim)] and points x [..., n, d_model]."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Ambient:
    """The metric of activation space: |dx|^2."""

    def squares(self, u: Tensor, x: Tensor) -> Float[Tensor, "*batch step"]:
        """Return squared Euclidean lengths."""
        del u
        return x.diff(dim=-2).square().sum(-1)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Fisher:
    """The Fisher metric of behaviour, pulled back to the coordinates, and a little of the ambient.

    |dx|^2_F = 4 |d sqrt p|^2 + ridge |dx|^2, with p(u) = `behavior`(u): a fitted behaviour's
    `decode` on the same coordinates, or any differentiable map from u to distributions.
    """

    behavior: Callable[[Tensor], Tensor]
    ridge: float = 1e-6
    """Per squared unit of x: decides where behaviour does not change at all."""

    def squares(self, u: Tensor, x: Tensor) -> Float[Tensor, "*batch step"]:
        """Return squared Fisher lengths."""
        roots = self.behavior(u).clamp_min(1e-12).sqrt()
        behaved = 4 * roots.diff(dim=-2).square().sum(-1)
        return behaved + self.ridge * x.diff(dim=-2).square().sum(-1)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Density:
    """The ambient metric times 1 / (density + floor): far where no data are.

    The density is a Gaussian kernel estimate over the points, relative to its own mean at them,
    so that it is about 1 where the data lie; floor sets how much longer a step through emptiness
    is. The conformal metric (alpha exp(-E) + beta)^-1 of arXiv:2605.05115 with E = -log density.
    """

    points: Float[Tensor, "sample d_model"]
    bandwidth: float
    """Standard deviation of the kernel, in units of x."""
    floor: float = 0.01

    def squares(self, u: Tensor, x: Tensor) -> Float[Tensor, "*batch step"]:
        """Return squared lengths, with the density in the middle of each step."""
        del u
        middle = (x[..., 1:, :] + x[..., :-1, :]) / 2
        points = self.points.to(x)
        own = self._log_density(points, points).exp().mean()
        density = self._log_density(middle, points).exp() / own
        return x.diff(dim=-2).square().sum(-1) / (density + self.floor)

    def _log_density(self, x: Tensor, points: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        square = torch.cdist(flat, points).square()
        found = torch.logsumexp(-square / (2 * self.bandwidth**2), -1) - math.log(len(points))
        return found.reshape(x.shape[:-1])


@final
@dataclass(frozen=True, slots=True, eq=False)
class Geodesic:
    """The shortest ways that were found, and what was gained on the straight ones in u."""

    u: Tensor
    """[..., n] for dim 1, else [..., n, dim]: coordinates, about equally far apart."""
    length: Float[Tensor, "*batch"]
    """Under the metric."""
    straight_length: Float[Tensor, "*batch"]
    """Of the chart's own straight path, under the metric: not shorter, but for the steps' size."""

    def __repr__(self) -> str:
        """Say how many and how much shorter."""
        gain = float((1 - self.length / self.straight_length.clamp_min(1e-30)).mean())
        return f"Geodesic({self.length.numel()} ways, {100 * gain:.1f}% shorter than straight in u)"


def geodesic(
    chart: Walkable,
    u0: Tensor | float | int,
    u1: Tensor | float | int,
    n: int = 33,
    *,
    metric: Metric | None = None,
) -> Geodesic:
    """Return the shortest ways from u0 to u1 on a chart, of n points with both ends.

    The sum of squared lengths of the steps is minimised over the points in between (L-BFGS in
    float64), which gives the shortest way at even speed. The start is straight in u, round each
    periodic axis both ways; the shorter outcome is kept. It is a local minimum: a way round the
    other side of an obstacle may be shorter.

    Args:
        chart: any chart with coordinates; a flat one for ways through the ambient subspace.
        u0: [...] for dim 1, else [..., dim].
        u1: as u0.
        n: points.
        metric: `Ambient()` if None, `Fisher(behavior.decode)` or `Density(points, bandwidth)`.

    Raises:
        ManifoldError: n is below 3, or coordinates of another shape.
    """
    if n < 3:
        raise ManifoldError(
            f"A way of {n} points has none between its ends to move. Ask for at least 3."
        )
    chosen = metric or Ambient()
    start, end = (_rows(u, chart.dim) for u in (u0, u1))
    start, end = torch.broadcast_tensors(start, end)
    shape = start.shape[:-1]
    pairs = _ways(start.reshape(-1, chart.dim), end.reshape(-1, chart.dim), chart.periods)
    steps = torch.linspace(0, 1, n, dtype=torch.float64, device=start.device)[:, None]
    straight = pairs[0][:, :, None] + pairs[1][:, :, None] * steps
    found = _even(_shorten(_even(straight, chart, chosen), chart, chosen), chart, chosen)
    # Whatever the search did, the straight way itself is on offer.
    with torch.no_grad():
        spent, before = (_squares(ways, chart, chosen).sum(-1) for ways in (found, straight))
    found = torch.where((spent <= before)[..., None, None], found, straight)
    lengths = _lengths(found, chart, chosen)
    best = lengths.argmin(0)
    which = torch.arange(len(best), device=best.device)
    u = found[best, which].reshape(*shape, n, chart.dim)
    straightest = _lengths(straight[:1], chart, chosen)[0].reshape(shape)
    return Geodesic(
        u[..., 0] if chart.dim == 1 else u, lengths[best, which].reshape(shape), straightest
    )


def _rows(u: Tensor | float | int, dim: int) -> Tensor:
    at = u.detach().double() if isinstance(u, Tensor) else torch.tensor(float(u)).double()
    rows = at[..., None] if dim == 1 else at
    if rows.ndim == 0 or rows.shape[-1] != dim:
        raise ManifoldError(
            f"The coordinates have the shape {list(at.shape)}, but the chart has {dim}, which must "
            "be the last axis. Give one number for each."
        )
    return rows


def _ways(start: Tensor, end: Tensor, periods: tuple[Period, ...]) -> tuple[Tensor, Tensor]:
    """Return starts and steps [way, pair, dim]: the shorter way first, then the others round."""
    steps = (end - start)[None]
    for axis, period in enumerate(periods):
        if period is None:
            continue
        half = float(period) / 2
        short = half - torch.remainder(half - steps[..., axis], float(period))
        long = short - torch.where(short > 0, 1.0, -1.0) * float(period)
        both = [steps.clone(), steps.clone()]
        both[0][..., axis], both[1][..., axis] = short, long
        steps = torch.cat(both)
    return start[None].expand_as(steps), steps


def _shorten(straight: Tensor, chart: Walkable, metric: Metric) -> Tensor:
    """Return the ways [way, pair, n, dim] with their inner points moved to the least energy."""
    inner = straight[..., 1:-1, :].clone().requires_grad_(True)
    first, last = straight[..., :1, :], straight[..., -1:, :]
    solver = torch.optim.LBFGS(
        [inner],
        max_iter=_ROUNDS,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=_ENOUGH * 1e-3,
        line_search_fn="strong_wolfe",
    )
    size = _squares(straight, chart, metric).sum().detach().clamp_min(1e-30)

    def energy() -> Tensor:
        solver.zero_grad()
        path = torch.cat([first, inner, last], -2)
        total = _squares(path, chart, metric).sum() / size
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(energy)
    return torch.cat([first, inner.detach(), last], -2)


def _even(ways: Tensor, chart: Walkable, metric: Metric) -> Tensor:
    """Return the same ways with their points equally far apart under the metric."""
    n = ways.shape[-2]
    share = torch.linspace(0, 1, n, dtype=ways.dtype, device=ways.device)
    for _ in range(_EVENINGS):
        with torch.no_grad():
            steps = _squares(ways, chart, metric).clamp_min(0).sqrt()
        steps = steps + 1e-12 * steps.sum(-1, keepdim=True).clamp_min(1e-30)
        gone = torch.cat([torch.zeros_like(steps[..., :1]), steps.cumsum(-1)], -1)
        wanted = gone[..., -1:] * share
        right = torch.searchsorted(gone.contiguous(), wanted.contiguous()).clamp(1, n - 1)
        left = right - 1
        lower = gone.gather(-1, left)
        part = ((wanted - lower) / (gone.gather(-1, right) - lower))[..., None]
        index = [side[..., None].expand_as(ways) for side in (left, right)]
        first, second = (ways.gather(-2, i) for i in index)
        ways = first + part * (second - first)
    return ways


def _squares(ways: Tensor, chart: Walkable, metric: Metric) -> Tensor:
    u = ways[..., 0] if chart.dim == 1 else ways
    return metric.squares(u, chart.decode(u))


def _lengths(ways: Tensor, chart: Walkable, metric: Metric) -> Tensor:
    with torch.no_grad():
        return _squares(ways, chart, metric).clamp_min(0).sqrt().sum(-1)
