"""Interventions that are linear or affine in the stream: Add, Ablate, Clamp, Scale, Rotate, Affine.

Each is a frozen value with a pure `edit`. strength s means h + s * (edit(h) - h), except for
Rotate, where it multiplies the angle; s = 0 selects the untouched bits. A tensor [batch] gives each
row its own strength.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions.arithmetic import (
    Number,
    Relative,
    Strength,
    add_delta,
    as_basis,
    as_strength,
    as_vector,
    coordinates,
    precise,
    require_finite,
    scaled,
    within,
)
from steer.interventions.recipe import Recipe, batch_length
from steer.scopes import ALL, Scope
from steer.sites import AnySite
from steer.step import Step


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Add(Recipe):
    """Add a direction to the stream: h <- h + strength * direction.

    The steering of Turner et al. 2023 (arXiv:2308.10248) and of CAA (Rimsky et al. 2023,
    arXiv:2312.06681). strength is in raw activation units; `Relative(0.3)` means 0.3 times each
    token's own norm along the unit direction. The delta is cast to the model's dtype.

    Raises:
        PlanError: a direction or strength that is not finite.
        WidthMismatch: a direction that is not [d_model]; at attach, one of another model's width.

    >>> import torch, steer
    >>> -steer.Add(steer.Site(1, "resid_post"), torch.ones(4), 2.0)
    Add(blocks.1.resid_post, strength=-2, scope=ALL, norm=2, d=4)
    """

    kind: ClassVar[str] = "steer.Add"
    site: AnySite
    direction: Tensor
    strength: Strength = 1.0
    scope: Scope = ALL

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "direction", as_vector(self.direction, "The direction of Add"))
        object.__setattr__(self, "strength", as_strength(self.strength, "Add"))
        if isinstance(self.strength, Relative) and not bool(self.direction.any()):
            raise PlanError(
                "The direction of Add is zero, and a Relative strength needs its unit vector, "
                "which does not exist. Check the fit, or leave the intervention out."
            )

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h + strength * direction."""
        direction = step.vector(precise(self.direction), h)
        if not isinstance(self.strength, Relative):
            return scaled(h, direction, self.strength, step)
        unit = direction / direction.norm(dim=-1, keepdim=True)
        return scaled(h, precise(h).norm(dim=-1, keepdim=True) * unit, self.strength, step)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(strength=self.strength)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return {"the direction": self.direction.shape[0]}

    def __mul__(self, factor: Number) -> "Add":
        """Scale the strength."""
        if isinstance(self.strength, Relative):
            return replace(self, strength=Relative(self.strength.multiple * factor))
        return replace(self, strength=self.strength * factor)

    __rmul__ = __mul__

    def __neg__(self) -> "Add":
        """Reverse the direction of steering."""
        return self * -1.0

    def __repr__(self) -> str:
        """Say where, how much and how long the direction is."""
        return describe(self, norm=f"{float(precise(self.direction).norm()):.4g}")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ablate(Recipe):
    """Remove a subspace: h <- h - strength * V^T V h, V the orthonormalised basis rows.

    Directional ablation (Arditi et al. 2024, arXiv:2406.11717), here out of place and at one site;
    theirs is at every site that writes to the stream.

    Raises:
        PlanError: dependent or non-finite directions.
    """

    kind: ClassVar[str] = "steer.Ablate"
    site: AnySite
    basis: Tensor
    strength: Strength = 1.0
    scope: Scope = ALL

    def __post_init__(self) -> None:
        """Orthonormalise the basis."""
        object.__setattr__(self, "basis", as_basis(self.basis, "The basis of Ablate"))
        object.__setattr__(self, "strength", no_relative(self.strength, "Ablate"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h without its part in the subspace."""
        basis = step.basis(self.basis, h)
        return scaled(h, -within(coordinates(h, basis), basis), self.strength, step)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(strength=self.strength)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return {"the basis": self.basis.shape[1]}

    def __repr__(self) -> str:
        """Say where and how many directions go."""
        return describe(self, k=self.basis.shape[0])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Clamp(Recipe):
    """Set the coordinate along a unit direction: h <- h + strength * (to - h.v) v.

    `to` is in units of the projection on the unit direction, a number or one per row [batch].
    """

    kind: ClassVar[str] = "steer.Clamp"
    site: AnySite
    direction: Tensor
    to: Number | Tensor
    strength: Strength = 1.0
    scope: Scope = ALL

    def __post_init__(self) -> None:
        """Normalise the direction."""
        vector = precise(as_vector(self.direction, "The direction of Clamp"))
        if not float(vector.norm()) > 0:
            raise PlanError(
                "The direction of Clamp is zero, so no coordinate along it exists. Check the fit."
            )
        object.__setattr__(self, "direction", as_basis(vector, "The direction of Clamp")[0])
        object.__setattr__(self, "to", no_relative(self.to, "Clamp (its target)"))
        object.__setattr__(self, "strength", no_relative(self.strength, "Clamp"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h moved along the direction to the target coordinate."""
        basis = step.basis(self.direction[..., None, :], h)
        now = coordinates(h, basis)
        to = step.of_row(self.to, h).to(now.dtype) if isinstance(self.to, Tensor) else self.to
        return scaled(h, within(to - now, basis), self.strength, step)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(to=self.to, strength=self.strength)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return {"the direction": self.direction.shape[0]}

    def __repr__(self) -> str:
        """Say where and to what."""
        to = f"[{self.to.shape[0]} rows]" if isinstance(self.to, Tensor) else f"{self.to:.4g}"
        return describe(self, to=to)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scale(Recipe):
    """Multiply what is at the site: h <- h + strength * (factor - 1) h. Factor 0 removes it."""

    kind: ClassVar[str] = "steer.Scale"
    site: AnySite
    factor: Number | Tensor
    strength: Strength = 1.0
    scope: Scope = ALL

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "factor", no_relative(self.factor, "Scale (its factor)"))
        object.__setattr__(self, "strength", no_relative(self.strength, "Scale"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return the scaled tensor."""
        x = precise(h)
        if not isinstance(self.factor, Tensor):
            delta = (self.factor - 1.0) * x
        else:
            delta = (step.of_row(self.factor, h).to(x.dtype) - 1.0) * x
        return scaled(h, delta, self.strength, step)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(factor=self.factor, strength=self.strength)

    def widths(self) -> Mapping[str, int]:
        """Return nothing: a factor fits every width."""
        return {}

    def __repr__(self) -> str:
        """Say where and by how much."""
        factor = self.factor
        return describe(self, factor=f"{factor:.4g}" if isinstance(factor, float) else "[batch]")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rotate(Recipe):
    """Rotate within a plane by strength * angle (radians), from its first row towards its second.

    Selective steering (arXiv:2601.19375): a true rotation, so every norm is kept. Angular steering
    (Vu et al. 2025) instead sets the angle; that is Clamp on the plane's two coordinates.

    Args:
        plane: [2, d_model], orthonormalised in order.
        angle: radians, a number or one per row [batch].
    """

    kind: ClassVar[str] = "steer.Rotate"
    site: AnySite
    plane: Tensor
    angle: Number | Tensor
    strength: Strength = 1.0
    scope: Scope = ALL

    def __post_init__(self) -> None:
        """Orthonormalise the plane."""
        plane = as_basis(self.plane, "The plane of Rotate")
        if plane.shape[0] != 2:
            raise PlanError(
                f"The plane of Rotate has {plane.shape[0]} directions; a rotation needs exactly 2. "
                "Give the direction to turn from and the one to turn towards, as rows."
            )
        object.__setattr__(self, "plane", plane)
        object.__setattr__(self, "angle", no_relative(self.angle, "Rotate (its angle)"))
        object.__setattr__(self, "strength", no_relative(self.strength, "Rotate"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h rotated within the plane."""
        plane = step.basis(self.plane, h)
        c = coordinates(h, plane)
        turn = torch.ones((), dtype=c.dtype, device=c.device)
        for part in (self.angle, self.strength):
            assert not isinstance(part, Relative)
            turn = turn * (step.of_row(part, h).to(c.dtype) if isinstance(part, Tensor) else part)
        cos, sin = turn.cos(), turn.sin()
        x, y = c[..., :1], c[..., 1:]
        delta = torch.cat([(cos - 1) * x - sin * y, sin * x + (cos - 1) * y], dim=-1)
        return add_delta(h, within(delta, plane))

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(angle=self.angle, strength=self.strength)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return {"the plane": self.plane.shape[1]}

    def __repr__(self) -> str:
        """Say where and how far."""
        angle = f"{self.angle:.4g}" if isinstance(self.angle, float) else "[batch]"
        return describe(self, angle=angle)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Affine(Recipe):
    """Apply an affine map to each coordinate: h <- h + strength * (scale * h + shift - h).

    Linear-AcT and LinEAS (arXiv:2503.10679) fit such maps; scale and shift are [d_model].
    """

    kind: ClassVar[str] = "steer.Affine"
    site: AnySite
    scale: Tensor
    shift: Tensor
    strength: Strength = 1.0
    scope: Scope = ALL

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "scale", as_vector(self.scale, "The scale of Affine"))
        object.__setattr__(self, "shift", as_vector(self.shift, "The shift of Affine"))
        object.__setattr__(self, "strength", no_relative(self.strength, "Affine"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return the mapped tensor."""
        x = precise(h)
        scale, shift = (step.vector(precise(v), h).to(x.dtype) for v in (self.scale, self.shift))
        delta = (scale - 1.0) * x + shift
        return scaled(h, delta, self.strength, step)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(strength=self.strength)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return {"the scale": self.scale.shape[0], "the shift": self.shift.shape[0]}

    def __repr__(self) -> str:
        """Say where."""
        return describe(self)


Linear = Add | Ablate | Clamp | Scale | Rotate | Affine


def no_relative(value: Strength, owner: str) -> float | Tensor:
    """Return a checked number or [batch] tensor.

    Raises:
        PlanError: Relative, which has a meaning for Add alone.
    """
    if isinstance(value, Relative):
        raise PlanError(
            f"{owner} cannot take {value!r}: multiples of a token's norm are a length, and only "
            "Add has a direction to lay it along. Give a plain number."
        )
    checked = as_strength(value, owner)
    assert not isinstance(checked, Relative)
    return require_finite(checked, owner) if isinstance(checked, Tensor) else float(checked)


def describe(item: Linear, **extra: object) -> str:
    """Return the common `Kind(site, strength=, scope=, ...)` line."""
    s = item.strength
    if isinstance(s, Tensor):
        amount = f"[{s.shape[0]} rows]"
    else:
        amount = repr(s) if isinstance(s, Relative) else f"{s:.4g}"
    more = "".join(f", {name}={value}" for name, value in extra.items())
    width = next((f", d={w}" for w in item.widths().values()), "")
    return (
        f"{type(item).__name__}({item.site}, strength={amount}, scope={item.scope!r}{more}{width})"
    )
