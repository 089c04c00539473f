"""Differential geometry of charts: tangent and normal parts, curvature, dimension by dimension.

Pure functions of any chart that can say its jet: curves, helices, surfaces and flats.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.curve import Coordinate
from manifolds.errors import ManifoldError
from manifolds.nearest_many import Bent
from manifolds.spline import Jet
from manifolds.subspace import Subspace


@runtime_checkable
class Chart(Protocol):
    """A fitted shape with derivatives: u of shape [...] for dim 1, [..., dim] otherwise."""

    @property
    def dim(self) -> int:
        """How many coordinates a point has."""
        ...

    @property
    def subspace(self) -> Subspace:
        """The affine subspace on which it lies."""
        ...

    def jet(self, u: Tensor) -> Jet | Bent:
        """Return value and first two derivatives at u, in coordinates of the subspace."""
        ...


def bent(chart: Chart, u: Coordinate) -> Bent:
    """Return the jet of any chart with an axis for its coordinates, of length 1 for a curve."""
    at = u if isinstance(u, Tensor) else torch.tensor(float(u), dtype=torch.float64)
    found = chart.jet(at if at.is_floating_point() else at.double())
    if isinstance(found, Jet):
        return Bent(found.value, found.first[..., None], found.second[..., None, None])
    return found


def metric_tensor(chart: Chart, u: Coordinate) -> Float[Tensor, "*batch dim dim"]:
    """Return g = J^T J: squared lengths of small steps in u, in squared units of x."""
    first = bent(chart, u).first
    return first.mT @ first


def split(
    chart: Chart, u: Coordinate, vector: Float[Tensor, "*batch d_model"]
) -> tuple[Float[Tensor, "*batch d_model"], Float[Tensor, "*batch d_model"]]:
    """Return the part of an ambient vector that lies along the chart at u, and the rest."""
    space = chart.subspace
    first = bent(chart, u).first
    flat = vector.to(first.dtype) @ space.basis.to(first.dtype).T
    steps = torch.linalg.lstsq(first, flat[..., None]).solution
    along = space.embed_vector((first @ steps)[..., 0])
    return along, vector.to(along.dtype) - along


def normal(chart: Chart, u: Coordinate) -> Float[Tensor, "*batch d_model"]:
    """Return the unit vector towards which the chart bends at u: of its mean curvature.

    Of a curve it is the principal normal. NaN where the chart is straight, as no normal is then
    told from another.
    """
    bend = _mean_bend(bent(chart, u))
    size = bend.norm(dim=-1, keepdim=True)
    unit = torch.where(size > 1e-12, bend / size.clamp_min(1e-30), torch.nan)
    return chart.subspace.embed_vector(unit)


def curvature(chart: Chart, u: Coordinate) -> Float[Tensor, "*batch"]:
    """Return how much the chart bends at u, in 1 / units of x: 1 / radius for a circle.

    Of a curve its curvature; of more coordinates the norm of the mean curvature vector, the mean
    of the curvatures in orthogonal directions (a sphere of radius r has 1 / r, a cylinder 1 / 2r).
    """
    return _mean_bend(bent(chart, u)).norm(dim=-1)


def gaussian_curvature(chart: Chart, u: Coordinate) -> Float[Tensor, "*batch"]:
    """Return the intrinsic curvature of a chart of two coordinates, in 1 / squared units of x.

    By the Gauss equation, in any codimension: <II11, II22> - |II12|^2 over det g. A cylinder has
    0, a sphere of radius r 1 / r^2, the inside of a torus a negative one.

    Raises:
        ManifoldError: a chart of another number of coordinates.
    """
    if chart.dim != 2:
        raise ManifoldError(
            f"The chart has {chart.dim} coordinates, and Gaussian curvature is of two. Use "
            "curvature(chart, u)."
        )
    at = bent(chart, u)
    second = _second_form(at)
    one, both, two = second[..., 0, 0], second[..., 0, 1], second[..., 1, 1]
    top = (one * two).sum(-1) - both.square().sum(-1)
    return top / torch.linalg.det(at.first.mT @ at.first)


def _second_form(at: Bent) -> Tensor:
    """Return the normal part of the second derivatives [..., k, dim, dim]."""
    first, second = at.first, at.second
    flat = second.flatten(-2)
    steps = torch.linalg.lstsq(first, flat).solution
    return (flat - first @ steps).reshape(second.shape)


def _mean_bend(at: Bent) -> Tensor:
    """Return the mean curvature vector [..., k]."""
    inverse = torch.linalg.inv(at.first.mT @ at.first)
    dim = at.first.shape[-1]
    return torch.einsum("...de,...kde->...k", inverse, _second_form(at)) / dim
