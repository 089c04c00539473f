"""Piecewise cubic curves held as tensors: values, derivatives and lengths, batched.

Nothing is fitted here: the coefficients come from scipy, in `cubic`. Beyond its ends a spline
goes on straight with its end tangent; closing a ring is the caller's (`curve.Curve`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.errors import ManifoldError
from manifolds.spec import Spec


class Jet(NamedTuple):
    """A curve's value and its first two derivatives at the same coordinates."""

    value: Float[Tensor, "*batch k"]
    first: Float[Tensor, "*batch k"]
    second: Float[Tensor, "*batch k"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Spline:
    """A piecewise cubic: on interval i, sum over p of coefficients[p, i] (u - breaks[i])^(3-p).

    The layout is that of scipy's PPoly. Evaluated in the dtype of the coordinates.
    """

    breaks: Float[Tensor, " knot"]
    coefficients: Float[Tensor, "4 interval k"]

    def jet(self, u: Float[Tensor, "*batch"]) -> Jet:
        """Return value, first and second derivative at u."""
        breaks = self.breaks.to(u.dtype)
        inside = u.clamp(breaks[0], breaks[-1])
        last = self.coefficients.shape[1] - 1
        i = (torch.searchsorted(breaks, inside.detach().contiguous(), right=True) - 1).clamp(
            0, last
        )
        c3, c2, c1, c0 = self.coefficients.to(u.dtype)[:, i]
        t = (inside - breaks[i])[..., None]
        first = (3 * c3 * t + 2 * c2) * t + c1
        second = 6 * c3 * t + 2 * c2
        beyond = (u - inside)[..., None]
        value = ((c3 * t + c2) * t + c1) * t + c0 + beyond * first
        return Jet(value, first, torch.where(beyond == 0, second, torch.zeros_like(second)))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Spline":
        """Return the same spline on another device, and stored in another dtype if given."""
        return Spline(self.breaks.to(device, dtype), self.coefficients.to(device, dtype))

    def spec(self) -> Spec:
        """Return the plain dict this spline can be rebuilt from."""
        return {"breaks": self.breaks, "coefficients": self.coefficients}

    @classmethod
    def from_spec(cls, spec: object) -> "Spline":
        """Rebuild the spline whose `spec()` this is.

        Raises:
            ManifoldError: the breaks or the coefficients are missing or do not fit together.
        """
        breaks = spec.get("breaks") if isinstance(spec, Mapping) else None
        coefficients = spec.get("coefficients") if isinstance(spec, Mapping) else None
        if (
            not isinstance(breaks, Tensor)
            or not isinstance(coefficients, Tensor)
            or coefficients.ndim != 3
            or breaks.shape != (coefficients.shape[1] + 1,)
            or coefficients.shape[0] != 4
        ):
            raise ManifoldError(
                "The spec of a spline needs breaks [n + 1] and coefficients [4, n, k], and this "
                "one has not got them. It was edited or truncated. Refit it."
            )
        return cls(breaks, coefficients)


def dense_grid(breaks: Float[Tensor, " knot"], per_interval: int) -> Float[Tensor, " grid"]:
    """Return per_interval equally spaced coordinates in each interval, and the last break."""
    steps = torch.arange(per_interval, dtype=breaks.dtype, device=breaks.device) / per_interval
    inner = breaks[:-1, None] + steps * breaks.diff()[:, None]
    return torch.cat([inner.flatten(), breaks[-1:]])


# 16 nodes a cubic interval: the speed is the root of a quartic there, and a circle through 12
# knots comes out to 1e-12 in float64 (tests/manifolds/test_spline.py).
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def length_from_start(
    speed: Callable[[Tensor], Tensor],
    breaks: Float[Tensor, " knot"],
    u: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """Return the integral of speed from the first break to u, by Gauss-Legendre per interval.

    Negative before the first break; beyond the ends the speed there goes on.
    """
    nodes = torch.as_tensor(_NODES, dtype=u.dtype, device=u.device)
    weights = torch.as_tensor(_WEIGHTS, dtype=u.dtype, device=u.device)
    breaks = breaks.to(u.dtype)

    def integral(lower: Tensor, upper: Tensor) -> Tensor:
        half = ((upper - lower) / 2)[..., None]
        return (speed(lower[..., None] + half * (1 + nodes)) * weights * half).sum(-1)

    whole = torch.cat([breaks.new_zeros(1), integral(breaks[:-1], breaks[1:]).cumsum(0)])
    inside = u.clamp(breaks[0], breaks[-1]).contiguous()
    i = (torch.searchsorted(breaks, inside, right=True) - 1).clamp(0, len(breaks) - 2)
    return whole[i] + integral(breaks[i], inside) + (u - inside) * speed(inside)
