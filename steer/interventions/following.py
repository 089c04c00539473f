"""Follow: steering by a field of local directions, integrated in small steps.

A parameter that bends through the space has no single direction: each value has its own (Sarfati
et al. 2026, arXiv:2602.02315). Any value with coordinate and tangent is a field; `ProbeField` makes
one of a probe that reads the parameter and a shape that says where each of its values lies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from steer import spec as specs
from steer.errors import PlanError
from steer.interventions.arithmetic import Number, Strength, precise, require_finite, scaled
from steer.interventions.linear import no_relative
from steer.interventions.recipe import Movable, Recipe, Shared, batch_length
from steer.protocols import Probe
from steer.scopes import OUTPUT, Scope
from steer.sites import AnySite
from steer.step import Step


@runtime_checkable
class Field(Protocol):
    """A parameter u of the states, and at each u the way in which the states change with it.

    Where u closes on itself, an attribute `period` says so.
    """

    def coordinate(self, x: Tensor) -> Tensor:
        """Return the parameter of each state: [..., d_model] -> [...]."""
        ...

    def tangent(self, u: Tensor) -> Tensor:
        """Return dx/du, in units of x per unit of u: [...] -> [..., d_model]."""
        ...


@runtime_checkable
class Tangential(Protocol):
    """A shape with one coordinate that knows its own derivative, such as manifolds.Curve."""

    def tangent(self, u: Tensor) -> Tensor:
        """Return dx/du: [...] -> [..., d_model]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ProbeField(Shared):
    """A field whose parameter a probe reads, and whose directions are the tangents of a shape.

    With probes.fit_field(x, u) and manifolds.fit_curve(x, u) of the same u: the probe says where
    the state is (its mean value under the softmax), the curve which way leads on from there.
    """

    kind: ClassVar[str] = "steer.ProbeField"
    probe: Probe
    shape: Tangential

    def __post_init__(self) -> None:
        """Refuse two parts that do not speak of the same parameter.

        Raises:
            PlanError: one is periodic and the other is not, or their periods or widths differ.
        """
        mine, its = period_of(self.probe), period_of(self.shape)
        if mine != its:
            raise PlanError(
                f"The probe has the period {mine} and the shape {its}, so the u that is read is "
                "not the u that is followed. Fit both on the same coordinates and period."
            )
        widths = {width for width in (width_of(self.probe), width_of(self.shape)) if width}
        if len(widths) > 1:
            raise PlanError(
                f"The probe reads states {width_of(self.probe)} wide and the shape lies in "
                f"{width_of(self.shape)} dimensions: they are of different sites or models. Fit "
                "both on the same activations."
            )

    @property
    def period(self) -> float | None:
        """The period of u; None on a line."""
        return period_of(self.shape)

    @property
    def d_model(self) -> int | None:
        """Width of the states, where a part says it."""
        return width_of(self.shape) or width_of(self.probe)

    def coordinate(self, x: Tensor) -> Tensor:
        """Return what the probe reads."""
        return self.probe.scores(x)

    def tangent(self, u: Tensor) -> Tensor:
        """Return the shape's derivative."""
        return self.shape.tangent(u)

    def to(self, device: torch.device) -> "ProbeField":
        """Return the same field on another device."""
        probe, shape = (
            cast("Movable", part).to(device) if callable(getattr(part, "to", None)) else part
            for part in (self.probe, self.shape)
        )
        return replace(self, probe=cast("Probe", probe), shape=cast("Tangential", shape))

    def spec(self) -> dict[str, object]:
        """Return the plain dict with tensors from which it is rebuilt."""
        return specs.encode(self)


@dataclass(frozen=True, slots=True, eq=False)
class To(Shared):
    """A place to follow a field to, in place of a distance: steer.Follow(site, field, To(3.0))."""

    kind: ClassVar[str] = "steer.To"
    u: Number | Tensor
    """A number, or one per row of the batch."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Follow(Recipe):
    """Follow a field: h <- h + strength * integral of tangent(u) du, from u(h) to u(h) + by.

    The steering that linear field probing suggests (Sarfati et al. 2026, arXiv:2602.02315): they
    show that directions are local and move along a polygon through class means; the integral along
    the field is ours. The midpoint rule in u is used: the integrand does not depend on h once u(h)
    is read, so all `steps` directions come from one batched call, and the error falls as
    1 / steps^2 where Euler's falls as 1 / steps at the same price. With `reread`, u is read again
    from the moved state at the start and in the middle of each step (the midpoint method for
    dh/ds = by * tangent(u(h))): it costs 2 * steps readings, follows the field where reading and
    tangent disagree, but a probe that saturates stays behind. Everything of h that the field does
    not name is kept.

    Args:
        by: in the field's own units, a number or one per row [batch]; or To(u), a place, which a
            field with a period approaches the shorter way round.

    Raises:
        PlanError: by not finite or of another shape than a number or [batch]; fewer than one step.
        WidthMismatch: at attach, a field of another width.
    """

    kind: ClassVar[str] = "steer.Follow"
    site: AnySite
    field: Field
    by: Number | Tensor | To
    steps: int = 16
    reread: bool = False
    strength: Strength = 1.0
    scope: Scope = OUTPUT

    def __post_init__(self) -> None:
        """Check the values."""
        if self.steps < 1:
            raise PlanError(
                f"Follow was given {self.steps} steps, and a field is followed in at least 1. "
                "More steps follow a bend more closely; 16 is the default."
            )
        if isinstance(self.by, To):
            object.__setattr__(self, "by", To(_per_row(self.by.u, "place")))
        else:
            object.__setattr__(self, "by", _per_row(self.by, "distance"))
        object.__setattr__(self, "strength", no_relative(self.strength, "Follow"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h moved along the field."""
        x = precise(h)
        u = self.field.coordinate(x).to(x.dtype)
        by = self._distance(u, x, step)
        delta = self._reread(x, by) if self.reread else self._along(u, by)
        return scaled(h, delta.to(x.dtype), self.strength, step)

    def _distance(self, u: Tensor, x: Tensor, step: Step) -> Tensor:
        """Return how far each token goes, [...]."""
        asked = self.by.u if isinstance(self.by, To) else self.by
        if isinstance(asked, Tensor):
            asked = step.of_row(asked.to(u.dtype), x[..., 0])
        if not isinstance(self.by, To):
            return asked + torch.zeros_like(u)
        way, period = asked - u, period_of(self.field)
        if period is None:
            return way
        # Half a turn goes upwards, as on the charts.
        return period / 2 - torch.remainder(period / 2 - way, period)

    def _along(self, u: Tensor, by: Tensor) -> Tensor:
        shares = (torch.arange(self.steps, dtype=u.dtype, device=u.device) + 0.5) / self.steps
        ways = self.field.tangent(u[..., None] + by[..., None] * shares)
        return by[..., None] * ways.mean(-2)

    def _reread(self, x: Tensor, by: Tensor) -> Tensor:
        du, moved = by[..., None] / self.steps, x
        for _ in range(self.steps):
            half = moved + du / 2 * self._way(moved)
            moved = moved + du * self._way(half)
        return moved - x

    def _way(self, x: Tensor) -> Tensor:
        return self.field.tangent(self.field.coordinate(x).to(x.dtype)).to(x.dtype)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        width = width_of(self.field)
        return {} if width is None else {"the field": width}

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        asked = self.by.u if isinstance(self.by, To) else self.by
        return batch_length(strength=self.strength, by=asked)

    def __repr__(self) -> str:
        """Say where and how far."""
        asked = self.by.u if isinstance(self.by, To) else self.by
        amount = f"[{len(asked)} rows]" if isinstance(asked, Tensor) else f"{asked:.4g}"
        told = f"to={amount}" if isinstance(self.by, To) else f"by={amount}"
        return f"Follow({self.site}, {told}, {self.steps} steps, scope={self.scope!r})"


def period_of(part: object) -> float | None:
    """Return the period that a probe, shape or field says it has; None for a line."""
    period = cast("float | None", getattr(part, "period", None))
    return None if period is None else float(period)


def width_of(part: object) -> int | None:
    """Return the width of the states that a probe, shape or field says it is for."""
    return cast("int | None", getattr(part, "d_model", None))


def _per_row(values: Number | Tensor, what: str) -> float | Tensor:
    """Return a float, or a detached tensor [batch].

    Raises:
        PlanError: another shape, or not finite.
    """
    given = torch.as_tensor(values).detach()
    require_finite(given, f"The {what} of Follow")
    if given.ndim == 0:
        return float(values)
    if given.ndim != 1:
        raise PlanError(
            f"The {what} of Follow has shape {tuple(given.shape)}. A field has one coordinate, so "
            "it is a number, or a tensor [batch] with one for each row."
        )
    return given
