"""What a pull-back needs of a chart, of its subspace and of a behaviour; and what it asks of them.

Declared by the consumer: the charts and behaviours of `manifolds` fit without being imported.
"""

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from steer.errors import PlanError


@runtime_checkable
class Plane(Protocol):
    """An affine subspace mean + span(basis), with orthonormal rows."""

    @property
    def mean(self) -> Tensor:
        """[d_model]: where its coordinates are 0."""
        ...

    @property
    def basis(self) -> Tensor:
        """[k, d_model]: orthonormal rows, the principal components first."""
        ...


@runtime_checkable
class Shape(Protocol):
    """A shape with coordinates u, in activation space or among distributions."""

    @property
    def dim(self) -> int:
        """How many coordinates a point has."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Return the coordinates of the nearest point."""
        ...

    def decode(self, u: Tensor, /) -> Tensor:
        """Return the point with these coordinates."""
        ...

    def path(self, u0: Tensor, u1: Tensor, n: int, /) -> Tensor:
        """Return n coordinates from u0 to u1, the shorter way round: [..., n] or [..., n, dim]."""
        ...


@runtime_checkable
class Chart(Shape, Protocol):
    """A shape in activation space, on a subspace."""

    @property
    def subspace(self) -> Plane:
        """Where it lives."""
        ...


@runtime_checkable
class Behaviour(Shape, Protocol):
    """A shape among distributions over bins."""

    @property
    def n_bins(self) -> int:
        """How many bins a distribution has."""
        ...


Coordinates = Tensor | float | int | Sequence[float | int]
"""Of one end of each path: a number or [pair] (dim 1), [dim] or [pair, dim]."""

OFF = 1e-3
"""Of the distance between the ends: by so much a point may miss the shape that it should lie on."""


def ends_of(u: Coordinates, chart: Chart, name: str) -> Tensor:
    """Return [pair] (dim 1) or [pair, dim], in float64 on the chart's device.

    Raises:
        PlanError: another shape, or not finite.
    """
    found = torch.as_tensor(u, dtype=torch.float64).detach().to(chart.subspace.basis.device)
    whole = 0 if chart.dim == 1 else 1
    found = found[None] if found.ndim == whole else found
    fits = found.ndim == whole + 1 and (chart.dim == 1 or found.shape[-1] == chart.dim)
    if not fits or not bool(torch.isfinite(found).all()) or not len(found):
        wanted = "a number, or [pair]" if chart.dim == 1 else f"[{chart.dim}], or [pair, dim]"
        raise PlanError(
            f"{name} has the shape {list(torch.as_tensor(u).shape)} (finite: "
            f"{bool(torch.isfinite(found).all())}), but the chart has {chart.dim} coordinates and "
            f"a path has two ends: {name} is {wanted}."
        )
    return found


def require_same_ends(chart: Chart, behaviour: Behaviour) -> None:
    """Refuse a chart and a behaviour whose coordinates are not the same.

    Raises:
        PlanError: other numbers of coordinates, or other periods.
    """
    mine, its = (_periods(shape) for shape in (chart, behaviour))
    if chart.dim != behaviour.dim or mine != its:
        raise PlanError(
            f"The chart has {chart.dim} coordinates with the periods {mine} and the behaviour "
            f"{behaviour.dim} with {its}, so the same u is not the same concept on both. Fit both "
            "with the same coordinates."
        )


def require_on(shape: Shape, u: Tensor, points: Tensor, what: str) -> None:
    """Refuse coordinates beyond the ends of a shape: nearest points of it are other points.

    Args:
        shape: the chart or the behaviour.
        u: [pair] or [pair, dim].
        points: [pair, ...], what it decodes them to.
        what: its name in the message.

    Raises:
        PlanError: names the coordinates.
    """
    off = (shape.decode(shape.encode(points)) - points).flatten(1).norm(dim=1)
    size = (points - points.mean(0)).flatten(1).norm(dim=1).max() + points.flatten(1).std()
    bad = (off > OFF * size).nonzero()[:, 0].tolist()
    if bad:
        raise PlanError(
            f"u = {u[bad[0]].tolist()} lies outside {what}: the nearest point of {what} is "
            f"{float(off[bad[0]]):.3g} away from where it would go on straight. What lies beyond "
            "the fitted points is made up. Choose ends within them, or fit more points."
        )


def _periods(shape: Shape) -> tuple[float | None, ...]:
    if hasattr(shape, "periods"):
        found = cast("tuple[float | None, ...]", getattr(shape, "periods"))  # noqa: B009
    else:
        found = (cast("float | None", getattr(shape, "period", None)),)
    return tuple(None if period is None else float(period) for period in found)
