"""Wrappers and escapes: PreserveNorm and Redirect around another intervention, Custom."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions.arithmetic import as_vector, precise
from steer.interventions.recipe import Recipe
from steer.protocols import Intervention
from steer.scopes import ALL, Scope
from steer.sites import AnySite
from steer.step import Step


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PreserveNorm(Recipe):
    """Rescale what another intervention changed to the norm each token had before.

    Tokens that the inner intervention left alone keep their bits.
    """

    kind: ClassVar[str] = "steer.PreserveNorm"
    inner: Intervention

    @property
    def site(self) -> AnySite:
        """Where the inner intervention acts."""
        return self.inner.site

    @property
    def scope(self) -> Scope:
        """Where the inner intervention may act."""
        return self.inner.scope

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return the inner edit at the old norm."""
        edited = self.inner.edit(h, step)
        before, after = precise(h), precise(edited)
        old, new = before.norm(dim=-1, keepdim=True), after.norm(dim=-1, keepdim=True)
        changed = (edited != h).any(-1, keepdim=True) & (new > 0)
        return torch.where(changed, (after * (old / new.clamp(min=1e-30))).to(h.dtype), h)

    def parts(self) -> Sequence[object]:
        """Return what it wraps."""
        return (self.inner,)

    def __repr__(self) -> str:
        """Say what it wraps."""
        return f"PreserveNorm({self.inner!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Redirect(Recipe):
    """Move each token as far as another intervention would, but along a direction of its own.

    h <- h + |edit(h) - h| * direction / |direction|. With a random direction it is the control of
    any intervention: an edit of equal norm, at the same tokens, under the same gates, that means
    nothing. Tokens that the inner intervention leaves alone keep their bits.

    Raises:
        PlanError: a direction that is not finite, or is zero.
    """

    kind: ClassVar[str] = "steer.Redirect"
    inner: Intervention
    direction: Tensor

    def __post_init__(self) -> None:
        """Check the direction."""
        direction = as_vector(self.direction, "The direction of Redirect")
        if not bool(direction.any()):
            raise PlanError(
                "The direction of Redirect is zero, and there is no way along it. Give a vector "
                "that points somewhere: torch.randn(lm.d_model), say."
            )
        object.__setattr__(self, "direction", direction)

    @property
    def site(self) -> AnySite:
        """Where the inner intervention acts."""
        return self.inner.site

    @property
    def scope(self) -> Scope:
        """Where the inner intervention may act."""
        return self.inner.scope

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h, moved along the direction by the length of the inner edit."""
        edited = self.inner.edit(h, step)
        far = (precise(edited) - precise(h)).norm(dim=-1, keepdim=True)
        direction = step.vector(precise(self.direction), h)
        unit = direction / direction.norm(dim=-1, keepdim=True)
        moved = h + (far * unit).to(h.dtype)
        return torch.where((edited != h).any(-1, keepdim=True), moved, h)

    def widths(self) -> Mapping[str, int]:
        """Return the width of the direction."""
        return {"direction": self.direction.shape[0]}

    def parts(self) -> Sequence[object]:
        """Return what it wraps."""
        return (self.inner,)

    def __repr__(self) -> str:
        """Say what it wraps."""
        return f"Redirect({self.inner!r}, d={self.direction.shape[0]})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Custom(Recipe):
    """Apply your own pure function fn(h, step) -> h, of the same shape and dtype.

    It is given whole rows [row, pos, d_model] with padding; only tokens in scope keep its result.
    It can be used, but not saved, served or evaluated: code has no identity that a file could
    carry safely. It must not write into h.

    Raises:
        PlanError: in the pass, if it returns another shape.
    """

    kind: ClassVar[str] = "steer.Custom"
    site: AnySite
    fn: Callable[[Tensor, Step], Tensor]
    scope: Scope = ALL

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return the function's result in h's dtype."""
        new = self.fn(h, step)
        if not isinstance(new, Tensor) or new.shape != h.shape:
            found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise PlanError(
                f"The function of Custom at {self.site} returned {found} for an input of shape "
                f"{tuple(h.shape)}. The model cannot go on with another shape. Return a tensor of "
                "the same shape, one value for each token."
            )
        return new.to(h.dtype)

    def __repr__(self) -> str:
        """Say where and which function."""
        name = getattr(self.fn, "__qualname__", type(self.fn).__name__)
        return f"Custom({self.site}, {name}, scope={self.scope!r})"
