"""Spheres: points at one distance from a centre; unit vectors are their coordinates.

A point of an m-sphere has m + 1 coordinates of norm 1 and not m angles, which would have poles.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import least_squares
from torch import Tensor

from manifolds.axes import Period
from manifolds.errors import ManifoldError
from manifolds.spec import Spec, check_spec, html_table, json_values, spec_digest
from manifolds.subspace import Subspace, arithmetic_dtype, as_points, fit_pca, storage


@final
@dataclass(frozen=True, slots=True, eq=False)
class Sphere:
    """The sphere x = mean + V^T (centre + radius u), |u| = 1, on an affine subspace.

    `decode` takes any vector that is not zero and uses its direction, so moving along by a
    difference of coordinates moves on the sphere. `encode` is in closed form; the centre itself,
    from which all points are as near, gets the first axis.
    """

    subspace: Subspace
    centre: Float[Tensor, " k"]
    radius: Float[Tensor, ""]
    diagnostics: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """What the fit was worth, in JSON values; see `fit_sphere`."""

    @property
    def dim(self) -> int:
        """Number of coordinates of a point: one more than the sphere has dimensions."""
        return self.subspace.k

    @property
    def d_model(self) -> int:
        """Width of the ambient space."""
        return self.subspace.d_model

    @property
    def periods(self) -> tuple[Period, ...]:
        """None for each coordinate: they are no angles."""
        return (None,) * self.dim

    @property
    def origin(self) -> Mapping[str, object] | None:
        """Where the points were read, as JSON values."""
        return self.subspace.origin

    def decode(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch d_model"]:
        """Return the points in the directions u."""
        unit = self.wrap(u)
        return self.subspace.embed(self.centre.to(unit) + self.radius.to(unit) * unit)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch dim"]:
        """Return the unit vectors from the centre to the points nearest to x."""
        found = self.subspace.coordinates(x)
        return self.wrap(found - self.centre.to(found))

    def project(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the sphere nearest to x: decode(encode(x))."""
        return self.decode(self.encode(x))

    def flatten(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the sphere's affine subspace nearest to x."""
        return self.subspace.flatten(x)

    def distance(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the Euclidean distance from x to the sphere."""
        return (x.to(arithmetic_dtype(x)) - self.project(x)).norm(dim=-1)

    def tangent(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch d_model dim"]:
        """Return dx/du of the unit vector u: radius times the projector off u."""
        unit = self.wrap(u)
        eye = torch.eye(self.dim, dtype=unit.dtype, device=unit.device)
        off = eye - unit[..., :, None] * unit[..., None, :]
        return self.subspace.embed_vector(self.radius.to(unit) * off).mT

    def path(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"], n: int
    ) -> Float[Tensor, "*batch point dim"]:
        """Return n unit vectors equally spaced on the great circle from u0 to u1, the shorter way.

        Raises:
            ManifoldError: n is below 2, or opposite points, between which every way is as short.
        """
        if n < 2:
            raise ManifoldError(
                f"A path of {n} points cannot have both ends. Ask for at least 2 points."
            )
        start, end = torch.broadcast_tensors(self.wrap(u0), self.wrap(u1))
        off = end - (start * end).sum(-1, keepdim=True) * start
        size = off.norm(dim=-1, keepdim=True)
        angle = _angle(start, end)[..., None]
        if bool(((size < 1e-6) & (angle > 1)).any()):
            raise ManifoldError(
                "The ends of the path are opposite points of the sphere, between which all great "
                "circles are as short. Go by way of a third point."
            )
        side = off / size.clamp_min(torch.finfo(size.dtype).tiny)
        steps = torch.linspace(0, 1, n, dtype=start.dtype, device=start.device)[:, None]
        turn = angle[..., None, :] * steps
        return torch.cos(turn) * start[..., None, :] + torch.sin(turn) * side[..., None, :]

    def arc_length(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch"]:
        """Return the length of the great circle between two points, in the units of x."""
        start, end = self.wrap(u0), self.wrap(u1)
        return self.radius.to(start) * _angle(start, end)

    def wrap(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return u at norm 1; the first axis where u is zero.

        Raises:
            ManifoldError: u has another number of coordinates.
        """
        if u.ndim == 0 or u.shape[-1] != self.dim:
            raise ManifoldError(
                f"The coordinates have the shape {list(u.shape)}, but a point of this sphere has "
                f"{self.dim}, which must be the last axis. Give a vector from the centre."
            )
        u = u.to(arithmetic_dtype(u)) if u.is_floating_point() else u.float()
        size = u.norm(dim=-1, keepdim=True)
        none = size == 0
        first = torch.nn.functional.one_hot(torch.zeros_like(u[..., 0]).long(), self.dim).to(u)
        return torch.where(none, first, u / size.masked_fill(none, 1))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Sphere":
        """Return the same sphere on another device, and stored in another dtype if given."""
        return replace(
            self,
            subspace=self.subspace.to(device, dtype),
            centre=self.centre.to(device, dtype),
            radius=self.radius.to(device, dtype),
        )

    def spec(self) -> Spec:
        """Return the plain dict, with tensors as leaves, this sphere can be rebuilt from."""
        return {
            "kind": "manifolds.Sphere",
            "version": 1,
            "subspace": self.subspace.spec(),
            "centre": self.centre,
            "radius": self.radius,
            "diagnostics": json_values(dict(self.diagnostics), "diagnostics"),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Sphere":
        """Rebuild the sphere whose `spec()` this is; its subspace may be rebuilt already.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.Sphere", frozenset(cls.__dataclass_fields__))
        part, centre, radius = spec["subspace"], spec["centre"], spec["radius"]
        if isinstance(part, Mapping):
            part = Subspace.from_spec(part)
        if (
            not isinstance(part, Subspace)
            or not isinstance(centre, Tensor)
            or not isinstance(radius, Tensor)
            or centre.shape != (part.k,)
            or radius.shape != ()
        ):
            raise ManifoldError(
                f"The spec of a Sphere has a centre and a radius that do not belong to {part!r}. "
                "It was edited or truncated. Refit it."
            )
        diagnostics = MappingProxyType(json_values(spec["diagnostics"], "diagnostics"))
        return cls(part, centre, radius, diagnostics)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, and the radius."""
        return (
            f"Sphere({self.dim - 1}-sphere of radius {float(self.radius):.4g}, "
            f"d_model {self.d_model})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the repr and the diagnostics as a table."""
        return html_table(repr(self), self.diagnostics)


def fit_sphere(
    x: Tensor | np.ndarray,
    *,
    dim: int = 2,
    subspace: Subspace | None = None,
    origin: Mapping[str, object] | None = None,
) -> Sphere:
    """Fit the sphere of `dim` dimensions nearest to the rows of x [sample, d_model].

    On the first dim + 1 principal components; least squares of the distances to the sphere, from
    the algebraic fit (Coope 1993). dim=1 is a circle without an order of its points.

    Diagnostics: n_samples, radius, relative_error (root mean square distance to the sphere on the
    subspace over the radius), explained (share of the variance on the subspace).

    Raises:
        ManifoldError: fewer than dim + 2 points or points that span less than dim + 1 dimensions,
            a dim below 1, a subspace of another number of components, or points whose best sphere
            is so large that they lie on a plane.
    """
    if dim < 1:
        raise ManifoldError(
            f"A sphere of {dim} dimensions has no points to move between. Use 1 up."
        )
    points = as_points(x)
    if len(points) < dim + 2:
        raise ManifoldError(
            f"There are {len(points)} points, and {dim + 2} settle a sphere of {dim} dimensions at "
            "the least. Read more."
        )
    space = subspace or fit_pca(x, n_components=dim + 1, variance=1, origin=origin)
    if space.k != dim + 1:
        raise ManifoldError(
            f"A sphere of {dim} dimensions lies in {dim + 1} components, but the subspace has "
            f"{space.k}. Fit one with n_components={dim + 1}."
        )
    at = space.to("cpu", torch.float64).coordinates(points).numpy()
    columns = np.concatenate([2 * at, np.ones((len(at), 1))], 1)
    found, *_ = np.linalg.lstsq(columns, np.square(at).sum(1), rcond=None)
    centre, square = found[:-1], found[-1] + np.square(found[:-1]).sum()
    start = np.append(centre, np.sqrt(max(square, 0.0)))
    refined = least_squares(
        lambda p: np.linalg.norm(at - p[:-1], axis=1) - p[-1], start, method="lm"
    )
    centre, radius = refined.x[:-1], abs(float(refined.x[-1]))
    spread = float(np.linalg.norm(at - at.mean(0), axis=1).max())
    if not np.isfinite(radius) or radius > 1e3 * spread:
        raise ManifoldError(
            f"The best sphere has the radius {radius:.3g}, {radius / spread:.0f} times the reach "
            "of the points: they lie on a plane, and which side the centre is on is noise. Use "
            "fit_flat."
        )
    diagnostics = {
        "n_samples": len(points),
        "radius": radius,
        "relative_error": float(np.sqrt(np.mean(np.square(refined.fun)))) / radius,
        "explained": float(space.explained.sum()),
    }
    sphere = Sphere(
        space.to("cpu", torch.float64),
        torch.from_numpy(centre),
        torch.tensor(radius, dtype=torch.float64),
        MappingProxyType(diagnostics),
    )
    return sphere.to(*storage(x))


def _angle(u: Tensor, v: Tensor) -> Tensor:
    """Return the angle between unit vectors, to full precision at both ends."""
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
