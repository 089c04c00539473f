"""Steering along a fitted manifold: MoveTo, MoveAlong, Snap.

Manifold steering (Wurgaft et al. 2026, arXiv:2605.05115): the state is moved along the surface on
which the states live, not along a straight line through it. Any value with encode, decode and
flatten will do (`steer.protocols.Manifold`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions.arithmetic import Number, Strength, precise, require_finite, scaled
from steer.interventions.linear import no_relative
from steer.interventions.recipe import Recipe, batch_length
from steer.protocols import Manifold
from steer.scopes import OUTPUT, Scope
from steer.sites import AnySite
from steer.step import Step

Mode = Literal["replace", "transport"]
"""replace writes the point and keeps what is off the subspace; transport adds the difference of
two points, keeps what is off the manifold too, and is plain addition where the manifold is flat."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MoveTo(Recipe):
    """Move to the point with coordinates u.

    replace: h <- h + s(u) - flatten(h), the paper's write (its own off-subspace part is kept);
    transport: h <- h + s(u) - s(encode(h)). strength s scales the change.

    Args:
        u: a number, [dim], or one per row: [batch] (dim 1) or [batch, dim]. In the manifold's own
            units; periodic axes wrap.

    Raises:
        PlanError: an unknown mode, or coordinates of the wrong shape or not finite.
        WidthMismatch: at attach, a manifold fitted on states of another width.
    """

    kind: ClassVar[str] = "steer.MoveTo"
    site: AnySite
    manifold: Manifold
    u: Number | Tensor
    mode: Mode = "replace"
    strength: Strength = 1.0
    scope: Scope = OUTPUT

    def __post_init__(self) -> None:
        """Check the coordinates."""
        check_mode(self.mode, "MoveTo")
        object.__setattr__(self, "u", as_coordinates(self.u, self.manifold, "MoveTo"))
        object.__setattr__(self, "strength", no_relative(self.strength, "MoveTo"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h at the target point."""
        x = precise(h)
        u = coordinates_of(self.u, self.manifold, step, x)
        target = self.manifold.decode(u)
        if self.mode == "replace":
            origin = self.manifold.flatten(x)
        else:
            origin = self.manifold.decode(self.manifold.encode(x))
        return scaled(h, target - origin, self.strength, step)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return manifold_width(self.manifold)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(strength=self.strength) | coordinate_rows("u", self.u, self.manifold)

    def __repr__(self) -> str:
        """Say where and to which point."""
        return f"MoveTo({self.site}, u={show(self.u)}, {self.mode}, scope={self.scope!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MoveAlong(Recipe):
    """Move along the manifold by a difference of coordinates, from wherever the state is.

    transport: h <- h + s(u + by) - s(u) with u = encode(h), which keeps everything that is not on
    the manifold and becomes the addition of a vector where s is affine; replace: h <- h + s(u + by)
    - flatten(h). Moving by 0 in transport changes nothing, to the bit. Our generalisation of
    Wurgaft et al. 2026 (their write is MoveTo).

    Args:
        by: in the manifold's own units; a number, [dim], [batch] (dim 1) or [batch, dim].
    """

    kind: ClassVar[str] = "steer.MoveAlong"
    site: AnySite
    manifold: Manifold
    by: Number | Tensor
    mode: Mode = "transport"
    strength: Strength = 1.0
    scope: Scope = OUTPUT

    def __post_init__(self) -> None:
        """Check the displacement."""
        check_mode(self.mode, "MoveAlong")
        object.__setattr__(self, "by", as_coordinates(self.by, self.manifold, "MoveAlong"))
        object.__setattr__(self, "strength", no_relative(self.strength, "MoveAlong"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h moved along the manifold."""
        x = precise(h)
        by = coordinates_of(self.by, self.manifold, step, x)
        u = self.manifold.encode(x)
        here = self.manifold.decode(u)
        there = torch.where(
            still(by, self.manifold), here, self.manifold.decode(u + by.to(u.dtype))
        )
        origin = self.manifold.flatten(x) if self.mode == "replace" else here
        return scaled(h, there - origin, self.strength, step)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return manifold_width(self.manifold)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(strength=self.strength) | coordinate_rows("by", self.by, self.manifold)

    def __repr__(self) -> str:
        """Say where and how far."""
        return f"MoveAlong({self.site}, by={show(self.by)}, {self.mode}, scope={self.scope!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Snap(Recipe):
    """Move to the nearest point of the manifold, keeping what is off the subspace.

    h <- h + strength * (s(encode(h)) - flatten(h)). Points of the manifold stay where they are.
    """

    kind: ClassVar[str] = "steer.Snap"
    site: AnySite
    manifold: Manifold
    strength: Strength = 1.0
    scope: Scope = OUTPUT

    def __post_init__(self) -> None:
        """Check the strength."""
        object.__setattr__(self, "strength", no_relative(self.strength, "Snap"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h on the manifold."""
        x = precise(h)
        nearest = self.manifold.decode(self.manifold.encode(x))
        return scaled(h, nearest - self.manifold.flatten(x), self.strength, step)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return manifold_width(self.manifold)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(strength=self.strength)

    def __repr__(self) -> str:
        """Say where."""
        return f"Snap({self.site}, {self.manifold!r}, scope={self.scope!r})"


def check_mode(mode: str, owner: str) -> None:
    """Refuse a mode that is neither.

    Raises:
        PlanError: always with the two that exist.
    """
    if mode not in ("replace", "transport"):
        raise PlanError(
            f"{owner} has no mode {mode!r}. The modes are 'replace' (write the point, keep what is "
            "off the subspace) and 'transport' (add the difference of two points)."
        )


def as_coordinates(u: Number | Tensor, manifold: Manifold, owner: str) -> float | Tensor:
    """Return a float, [dim], [batch] or [batch, dim]: finite, detached.

    Raises:
        PlanError: another shape for this manifold, or not finite.
    """
    values = torch.as_tensor(u).detach()
    require_finite(values, f"The coordinates of {owner}")
    if values.ndim == 0:
        return float(u)  # of the number as given: as a tensor it would be rounded to fp32
    fits = values.ndim <= 2 and (manifold.dim == 1 or values.shape[-1] == manifold.dim)
    if not fits or (manifold.dim == 1 and values.ndim == 2 and values.shape[1] != 1):
        raise PlanError(
            f"The coordinates of {owner} have shape {tuple(values.shape)}, but the manifold has "
            f"{manifold.dim}. Give a number, [{manifold.dim}], or one set per row: [batch"
            f"{'' if manifold.dim == 1 else f', {manifold.dim}'}]."
        )
    return values[:, 0] if manifold.dim == 1 and values.ndim == 2 else values


def coordinates_of(u: Number | Tensor, manifold: Manifold, step: Step, x: Tensor) -> Tensor:
    """Return coordinates for each token: x.shape[:-1], with [dim] appended where dim > 1."""
    shape = x.shape[:-1] if manifold.dim == 1 else (*x.shape[:-1], manifold.dim)
    if not isinstance(u, Tensor):
        return torch.full(shape, float(u), dtype=x.dtype, device=x.device)
    u = u.to(x.dtype)
    if manifold.dim == 1:
        return step.of_row(u, x[..., 0]).expand(shape)
    return (u if u.ndim == 1 else step.of_row(u, x)).expand(shape)


def still(by: Tensor, manifold: Manifold) -> Tensor:
    """Return [..., 1] bool: tokens that are moved by exactly 0."""
    zero = by == 0
    return zero[..., None] if manifold.dim == 1 else zero.all(-1, keepdim=True)


def coordinate_rows(name: str, u: Number | Tensor, manifold: Manifold) -> dict[str, int]:
    """Return the length of coordinates that are given per row."""
    per_row = isinstance(u, Tensor) and u.ndim == (1 if manifold.dim == 1 else 2)
    return {name: u.shape[0]} if per_row and isinstance(u, Tensor) else {}


def manifold_width(manifold: Manifold) -> dict[str, int]:
    """Return the manifold's ambient width, where it says it."""
    width = cast("int | None", getattr(manifold, "d_model", None))
    return {} if width is None else {"the manifold": width}


def show(u: Number | Tensor) -> str:
    """Print coordinates briefly."""
    return f"{list(u.shape)}" if isinstance(u, Tensor) else f"{u:.4g}"
