"""Surfaces: several intrinsic coordinates, a point of activation space for each, and the way back.

Evaluation only, in pure torch on any device. Fitting is in `fit_surfaces`; steering with a surface
is `steer.MoveTo`, `MoveAlong` and `Snap`, as with a curve.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.axes import Axes, Period, along
from manifolds.curve import Curve
from manifolds.errors import ManifoldError
from manifolds.nearest_many import Bent, nearest_many
from manifolds.radial import KERNELS, Radial
from manifolds.segment import segment
from manifolds.spec import Spec, check_spec, html_table, json_values, spec_digest
from manifolds.subspace import Subspace, arithmetic_dtype

_TENSORS = ("centers", "weights", "plane", "lower", "upper", "knots")
_OTHERS = ("subspace", "kernel", "periods", "counts", "diagnostics", "origin")
_MOST = 8192
"""Points of the dense start, at most."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A surface x = mean + V^T g(u), with g a thin-plate spline, on an affine subspace.

    The activation manifold M_h of Wurgaft et al. 2026 (arXiv:2605.05115) for several coordinates:
    a sheet, with one periodic axis a cylinder, with two a torus. Where they close an axis by ghost
    points a period away, ours goes round a circle, which closes exactly. Periodic coordinates are
    taken modulo their period; along an open axis the surface goes on straight beyond its range in
    `decode`, while `encode` clamps to it. Arithmetic is float32 (float64 for float64 input).
    """

    subspace: Subspace
    radial: Radial
    axes: Axes
    knots: Float[Tensor, "knot dim"]
    """The coordinates of the classes that the surface was fitted to."""
    counts: tuple[int, ...]
    """Points of the dense start along each axis."""
    diagnostics: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """What the fit was worth, in JSON values; see `fit_surface`."""
    origin: Mapping[str, object] | None = None
    """Where the points were read (model, weights, site, scope), as JSON values."""

    @property
    def dim(self) -> int:
        """Number of intrinsic coordinates."""
        return self.axes.dim

    @property
    def d_model(self) -> int:
        """Width of the ambient space."""
        return self.subspace.d_model

    @property
    def periods(self) -> tuple[Period, ...]:
        """The period of each coordinate, None where it is open."""
        return self.axes.periods

    def decode(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch d_model"]:
        """Return the points [..., d_model] at u [..., dim].

        Raises:
            ManifoldError: u has another number of coordinates.
        """
        return self.subspace.embed(self.value(self._numbers(u)))

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch dim"]:
        """Return the coordinates of the point of the surface nearest to x.

        Periodic ones lie in [0, period). Differentiable in x by the implicit function theorem.

        Raises:
            ManifoldError: x is not d_model wide.
        """
        rows = self.subspace.coordinates(x).reshape(-1, self.subspace.k)
        u = nearest_many(
            rows, self._value_inside, self._jet_inside, axes=self.axes, counts=self.counts
        )
        return self.axes.wrap(u).reshape(*x.shape[:-1], self.dim)

    def project(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the surface nearest to x: decode(encode(x))."""
        return self.decode(self.encode(x))

    def flatten(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the surface's affine subspace nearest to x."""
        return self.subspace.flatten(x)

    def distance(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the Euclidean distance from x to the surface, its off-subspace part included."""
        return (x.to(arithmetic_dtype(x)) - self.project(x)).norm(dim=-1)

    def tangent(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch d_model dim"]:
        """Return dx/du [..., d_model, dim]: units of x per unit of each coordinate."""
        first = self.jet(self._numbers(u)).first
        return self.subspace.embed_vector(first.mT).mT

    def path(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"], n: int
    ) -> Float[Tensor, "*batch point dim"]:
        """Return n coordinates equally spaced from u0 to u1, the shorter way on periodic axes.

        Straight in u; `geodesic` gives the shortest way. Both ends are included, and periodic
        coordinates run on past the period.

        Raises:
            ManifoldError: n is below 2.
        """
        start, end = torch.broadcast_tensors(self._numbers(u0), self._numbers(u1))
        return along(start, self.axes.between(start, end), n)

    def arc_length(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch"]:
        """Return the length of `path(u0, u1)` in the units of x, to about 1e-5 of it."""
        points = self.value(self.path(u0, u1, 513))
        return points.diff(dim=-2).norm(dim=-1).sum(-1)

    def chord(self, u0: Float[Tensor, " dim"], u1: Float[Tensor, " dim"]) -> Curve:
        """Return the straight segment from decode(u0), at coordinate 0, to decode(u1), at 1.

        It lies on the same subspace: the baseline that compares like with like.

        Raises:
            ManifoldError: u0 or u1 is not a single point.
        """
        ends = torch.stack([self._numbers(u0), self._numbers(u1)]).to(self.knots)
        return segment(self.subspace, self.value(ends), self.origin)

    def wrap(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return u with periodic coordinates within [0, period)."""
        return self.axes.wrap(u)

    def value(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch k"]:
        """Return the points at u in coordinates of the subspace."""
        inside = self.axes.clamp(u)
        if self._closed:
            return self._value_inside(inside)
        at = self._jet_inside(inside)
        return at.value + (at.first @ (u - inside)[..., None])[..., 0]

    def jet(self, u: Float[Tensor, "*batch dim"]) -> Bent:
        """Return value [..., k] and first two derivatives by u in coordinates of the subspace."""
        inside = self.axes.clamp(u)
        at = self._jet_inside(inside)
        if self._closed:
            return at
        beyond = u - inside
        out = beyond != 0
        moved = torch.einsum("...kde,...e->...kd", at.second, beyond)
        first = at.first + moved * ~out[..., None, :]
        # Straight on beyond an end; the third derivatives of the other axes there are left out.
        both = out[..., :, None] & out[..., None, :]
        value = at.value + (at.first @ beyond[..., None])[..., 0]
        return Bent(value, first, at.second * ~both[..., None, :, :])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Surface":
        """Return the same surface on another device, and stored in another dtype if given."""
        return replace(
            self,
            subspace=self.subspace.to(device, dtype),
            radial=self.radial.to(device, dtype),
            axes=self.axes.to(device, dtype),
            knots=self.knots.to(device, dtype),
        )

    def spec(self) -> Spec:
        """Return the plain dict, with tensors as leaves, this surface can be rebuilt from."""
        return {
            "kind": "manifolds.Surface",
            "version": 1,
            "subspace": self.subspace.spec(),
            "centers": self.radial.centers,
            "weights": self.radial.weights,
            "plane": self.radial.plane,
            "kernel": self.radial.kernel,
            "lower": self.axes.lower,
            "upper": self.axes.upper,
            "periods": list(self.axes.periods),
            "knots": self.knots,
            "counts": list(self.counts),
            "diagnostics": json_values(dict(self.diagnostics), "diagnostics"),
            "origin": None if self.origin is None else dict(self.origin),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Surface":
        """Rebuild the surface whose `spec()` this is; its subspace may be rebuilt already.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.Surface", frozenset(_TENSORS + _OTHERS))
        part = spec["subspace"]
        subspace = part if isinstance(part, Subspace) else None
        if isinstance(part, Mapping):
            subspace = Subspace.from_spec(part)
        tensors = [spec[name] for name in _TENSORS]
        parts = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        kernel, periods, counts = (spec[name] for name in ("kernel", "periods", "counts"))
        if (
            subspace is None
            or len(parts) != len(_TENSORS)
            or kernel not in KERNELS
            or not isinstance(periods, list | tuple)
            or not isinstance(counts, list | tuple)
            or not all(isinstance(count, int) and count > 0 for count in counts)
            or not all(p is None or (isinstance(p, int | float) and p > 0) for p in periods)
        ):
            raise ManifoldError(
                "The spec of a Surface has a part of another type than a surface has. It was "
                "edited or truncated. Refit it."
            )
        centers, weights, plane, lower, upper, knots = parts
        axes = Axes(lower, upper, tuple(periods))
        n, lifted, dim = len(centers), axes.n_lifted, axes.dim
        wanted = ((n, lifted), (n, subspace.k), (1 + lifted, subspace.k), (dim,), (dim,), (n, dim))
        shapes = tuple(tuple(part.shape) for part in parts)
        if shapes != wanted or len(counts) != dim:
            raise ManifoldError(
                f"The spec of a Surface with {dim} coordinates on {subspace!r} has parts of the "
                f"shapes {[list(s) for s in shapes]}, which do not belong together. It was edited "
                "or truncated. Refit it."
            )
        radial = Radial(centers, weights, plane, kernel)
        origin = None if spec["origin"] is None else json_values(spec["origin"], "origin")
        diagnostics = MappingProxyType(json_values(spec["diagnostics"], "diagnostics"))
        return cls(subspace, radial, axes, knots, tuple(counts), diagnostics, origin)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, never the numbers."""
        sides = " x ".join("open" if p is None else f"period {p:g}" for p in self.periods)
        share = 100 * float(self.subspace.explained.sum())
        return (
            f"Surface({len(self.knots)} knots, {sides}, d_model {self.d_model}, "
            f"k {self.subspace.k}, {share:.1f}% of variance)"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the repr and the diagnostics as a table."""
        return html_table(repr(self), self.diagnostics)

    @property
    def _closed(self) -> bool:
        return all(period is not None for period in self.periods)

    def _value_inside(self, u: Tensor) -> Tensor:
        return self.radial.value(self.axes.lift(u).value)

    def _jet_inside(self, u: Tensor) -> Bent:
        """Return the jet at coordinates within the range: the chain rule through the lift."""
        lifted = self.axes.lift(u)
        bend = self.radial.bend(lifted.value)
        place = torch.nn.functional.one_hot(torch.tensor(lifted.axis), self.dim).to(u)
        inner = lifted.first[..., :, None] * place
        second = torch.einsum("...klm,...ld,...me->...kde", bend.second, inner, inner)
        turned = torch.einsum("...kl,...l,ld->...kd", bend.first, lifted.second, place)
        first = torch.einsum("...kl,...ld->...kd", bend.first, inner)
        return Bent(bend.value, first, second + torch.diag_embed(turned))

    def _numbers(self, u: Tensor) -> Tensor:
        """Return u as a tensor in which the surface can be evaluated."""
        if u.ndim == 0 or u.shape[-1] != self.dim:
            raise ManifoldError(
                f"The coordinates have the shape {list(u.shape)}, but this surface has {self.dim}, "
                "which must be the last axis. Give one number for each of its axes."
            )
        return u if u.is_floating_point() and u.dtype.itemsize >= 4 else u.to(torch.float32)


def start_counts(knots: Float[Tensor, "knot dim"], per_interval: int = 6) -> tuple[int, ...]:
    """Return how many points of a dense start to lay along each axis: some in each knot interval.

    All are made fewer alike where the grid would have more than 8,192 points.
    """
    wanted = [per_interval * max(2, len(side.unique())) for side in knots.T]
    total = 1.0
    for count in wanted:
        total *= count
    shrink = min(1.0, (_MOST / total) ** (1 / len(wanted)))
    return tuple(max(4, int(count * shrink)) for count in wanted)
