"""Radial functions through scattered points: thin-plate splines, their values and derivatives.

f(z) = sum_i w_i phi(|z - c_i|) + a + B z, with sum_i w_i = 0 and sum_i w_i c_i = 0. The system
is that of scipy's RBFInterpolator, which gives no derivatives and no way to leave a point out.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

Kernel = Literal["thin_plate_spline", "cubic"]
"""phi = r^2 log r, the least bent surface in two coordinates; or phi = r^3, which has curvature
at its own knots too and is the natural cubic spline of one coordinate."""
KERNELS: tuple[Kernel, ...] = ("thin_plate_spline", "cubic")


class Bend(NamedTuple):
    """A function's value, gradient and second derivatives at the same points."""

    value: Float[Tensor, "*batch k"]
    first: Float[Tensor, "*batch k lift"]
    second: Float[Tensor, "*batch k lift lift"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Radial:
    """A fitted sum of radial functions and a plane."""

    centers: Float[Tensor, "knot lift"]
    weights: Float[Tensor, "knot k"]
    plane: Float[Tensor, "one_and_lift k"]
    kernel: Kernel

    def __post_init__(self) -> None:
        """Lay the rows out one after the other, as saved ones are: products round by layout."""
        for name in ("centers", "weights", "plane"):
            object.__setattr__(self, name, getattr(self, name).contiguous())

    def value(self, z: Float[Tensor, "*batch lift"]) -> Float[Tensor, "*batch k"]:
        """Return f(z)."""
        centers, weights, plane = (part.to(z) for part in self._parts)
        phi = _phi(_squared(z, centers), self.kernel)
        return phi @ weights + plane[0] + z @ plane[1:]

    def bend(self, z: Float[Tensor, "*batch lift"]) -> Bend:
        """Return f(z) with its first two derivatives by z."""
        centers, weights, plane = (part.to(z) for part in self._parts)
        away = z[..., None, :] - centers
        square = away.square().sum(-1)
        slope, turn = _derivatives(square, self.kernel)
        value = _phi(square, self.kernel) @ weights + plane[0] + z @ plane[1:]
        first = torch.einsum("...n,...nl,nk->...kl", slope, away, weights) + plane[1:].T
        second = torch.einsum("...n,...nl,...nm,nk->...klm", turn, away, away, weights)
        even = torch.einsum("...n,nk->...k", slope, weights)
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        return Bend(value, first, second + even[..., None, None] * eye)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Radial":
        """Return the same function on another device, and stored in another dtype if given."""
        centers, weights, plane = (part.to(device, dtype) for part in self._parts)
        return Radial(centers, weights, plane, self.kernel)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.centers, self.weights, self.plane


def planes(z: Float[Tensor, "knot lift"]) -> Float[Tensor, "knot one_and_lift"]:
    """Return the columns 1, z: what the plane is made of."""
    return torch.cat([torch.ones_like(z[:, :1]), z], 1)


def solve(
    z: Float[Tensor, "knot lift"],
    values: Float[Tensor, "knot k"],
    counts: Float[Tensor, " knot"],
    smoothing: float,
    kernel: Kernel,
) -> Radial:
    """Return the function through the values, or near them.

    It minimises sum_i n_i |y_i - f(z_i)|^2 + smoothing * bending, with n_i the counts scaled to
    mean 1. float64 is expected; z must span its space (checked by the caller).
    """
    n, width = len(z), z.shape[1] + 1
    found = torch.linalg.solve(
        _system(z, counts, smoothing, kernel),
        torch.cat([values, values.new_zeros(width, values.shape[1])]),
    )
    return Radial(z, found[:n], found[n:], kernel)


def left_out(
    z: Float[Tensor, "knot lift"],
    values: Float[Tensor, "knot k"],
    counts: Float[Tensor, " knot"],
    smoothing: float,
    kernel: Kernel,
) -> Float[Tensor, "knot k"]:
    """Return the errors of predicting each value from the others, in closed form (Rippa 1999).

    Infinite for a knot without which the others do not span the space: nothing predicts it.
    """
    n = len(z)
    inverse = torch.linalg.inv(_system(z, counts, smoothing, kernel))[:n, :n]
    scale = inverse.diagonal()
    errors = (inverse @ values) / scale[:, None]
    known = scale.abs() > 1e-9 * scale.abs().max()
    return torch.where(known[:, None], errors, torch.full_like(errors, torch.inf))


def _system(z: Tensor, counts: Tensor, smoothing: float, kernel: Kernel) -> Tensor:
    columns = planes(z)
    width = columns.shape[1]
    own = torch.diag(smoothing * counts.mean() / counts)
    top = torch.cat([_phi(_squared(z, z), kernel) + own, columns], 1)
    return torch.cat([top, torch.cat([columns.T, columns.new_zeros(width, width)], 1)])


def _squared(z: Tensor, centers: Tensor) -> Tensor:
    return (z[..., None, :] - centers).square().sum(-1)


def _phi(square: Tensor, kernel: Kernel) -> Tensor:
    if kernel == "cubic":
        return square**1.5
    # The logarithm of 0 would turn the gradient at a knot, which is 0, into NaN.
    return square * square.masked_fill(square == 0, 1).log() / 2


def _derivatives(square: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Return a and b of gradient a d and second derivatives a I + b d d^T, with d = z - c.

    At its own knot the thin plate has an infinite second derivative; there the pair is that of a
    point a millionth of a unit away.
    """
    if kernel == "cubic":
        root = square.sqrt()
        near = root == 0
        return 3 * root, torch.where(near, torch.zeros_like(root), 3 / root.masked_fill(near, 1))
    safe = square.clamp_min(1e-12)
    return safe.log() + 1, 2 / safe
