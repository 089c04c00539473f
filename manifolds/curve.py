"""Curves: one intrinsic coordinate u, a point of activation space for each, and the way back.

Evaluation only, in pure torch on any device. Fitting is in `fit`; steering with a curve is
`steer.MoveTo`, `MoveAlong` and `Snap`, which know it through a Protocol.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.errors import ManifoldError
from manifolds.nearest import nearest
from manifolds.spec import Spec, check_spec, html_table, json_values, spec_digest
from manifolds.spline import Jet, Spline, dense_grid, length_from_start
from manifolds.subspace import Subspace, arithmetic_dtype

PER_INTERVAL = 16
"""Points of the dense start in each knot interval."""

Coordinate = Tensor | float | int


@final
@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A line or a ring x = mean + V^T g(u), with g piecewise cubic, on an affine subspace.

    The activation manifold M_h of Wurgaft et al. 2026 (arXiv:2605.05115) for one coordinate. On a
    ring u is taken modulo the period; an open curve goes on straight beyond its ends in `decode`,
    while `encode` clamps to them. Arithmetic is float32 (float64 for float64 input) and so are
    all results, whatever the input's dtype: keeping the residual is
    `h + (curve.decode(u) - curve.flatten(h)).to(h.dtype)`.
    """

    subspace: Subspace
    spline: Spline
    warp: Spline | None = None
    """The increasing map from u to the spline's own parameter; None where they are the same."""
    period: float | int | None = None
    diagnostics: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """What the fit was worth, in JSON values; see `fit_curve`."""
    origin: Mapping[str, object] | None = None
    """Where the points were read (model, weights, site, scope), as JSON values."""

    @property
    def dim(self) -> int:
        """Number of intrinsic coordinates: 1."""
        return 1

    @property
    def d_model(self) -> int:
        """Width of the ambient space."""
        return self.subspace.d_model

    @property
    def periods(self) -> tuple[float | int | None]:
        """The period of its one coordinate, as charts of several have them."""
        return (self.period,)

    @property
    def breaks(self) -> Float[Tensor, " knot"]:
        """The coordinates of the knots; on a ring the first one comes again, a period later."""
        return (self.warp or self.spline).breaks

    @property
    def knots(self) -> Float[Tensor, " knot"]:
        """The coordinates of the knots, each once, increasing."""
        return self.breaks if self.period is None else self.breaks[:-1]

    @property
    def length(self) -> Float[Tensor, ""]:
        """Length of the whole curve, once round for a ring, in the units of x."""
        return self._length_from_start(self.breaks[-1])

    def decode(self, u: Coordinate) -> Float[Tensor, "*batch d_model"]:
        """Return the points [..., d_model] at u: a number, or a tensor of any shape."""
        return self.subspace.embed(self.jet(self._numbers(u)).value)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the coordinate of the point of the curve nearest to x.

        On a ring it lies in [0, period). Differentiable in x by the implicit function theorem.

        Raises:
            ManifoldError: x is not d_model wide.
        """
        coordinates = self.subspace.coordinates(x)
        breaks = self.breaks.to(coordinates.dtype)
        grid = dense_grid(breaks, PER_INTERVAL)
        grid = grid if self.period is None else grid[:-1]
        rows = coordinates.reshape(-1, self.subspace.k)
        u = nearest(rows, self.jet, grid=grid, period=self.period).reshape(x.shape[:-1])
        return self.wrap(u)

    def project(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the curve nearest to x: decode(encode(x))."""
        return self.decode(self.encode(x))

    def flatten(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the curve's affine subspace nearest to x.

        Raises:
            ManifoldError: x is not d_model wide.
        """
        return self.subspace.flatten(x)

    def distance(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the Euclidean distance from x to the curve, the part off the subspace included.

        Within the subspace it is `distance(flatten(x))`.
        """
        return (x.to(arithmetic_dtype(x)) - self.project(x)).norm(dim=-1)

    def tangent(self, u: Coordinate) -> Float[Tensor, "*batch d_model"]:
        """Return dx/du [..., d_model]: units of x per unit of u, so not of norm 1."""
        return self.subspace.embed_vector(self.jet(self._numbers(u)).first)

    def path(self, u0: Coordinate, u1: Coordinate, n: int) -> Float[Tensor, "*batch point"]:
        """Return n equally spaced coordinates from u0 to u1, the shorter way round on a ring.

        Both ends are included. Half a turn goes upwards. On a ring the numbers run on past the
        period (11, 11.5, 12, 12.5, 13) rather than wrap; every method here takes them so.

        Raises:
            ManifoldError: n is below 2.
        """
        if n < 2:
            raise ManifoldError(
                f"A path of {n} points cannot have both ends. Ask for at least 2 points."
            )
        start, by = self._from_to(u0, u1)
        steps = torch.linspace(0, 1, n, dtype=start.dtype, device=start.device)
        return start[..., None] + by[..., None] * steps

    def arc_length(self, u0: Coordinate, u1: Coordinate) -> Float[Tensor, "*batch"]:
        """Return the length along the curve of `path(u0, u1)`, in the units of x; never negative.

        On a ring the way is the one shorter in u, which is not always the shorter one in x.
        """
        start, by = self._from_to(u0, u1)
        return (self._length_from_start(start + by) - self._length_from_start(start)).abs()

    def chord(self, u0: Coordinate, u1: Coordinate) -> "Curve":
        """Return the straight segment from decode(u0), at coordinate 0, to decode(u1), at 1.

        It lies on the same subspace, so a move along it keeps the same residual as one along the
        curve: the baseline that compares like with like.

        Raises:
            ManifoldError: u0 or u1 is not a single coordinate.
        """
        start, end = self._numbers(u0), self._numbers(u1)
        if start.numel() != 1 or end.numel() != 1:
            raise ManifoldError(
                f"A chord joins two points, but its ends were given {start.numel()} and "
                f"{end.numel()} coordinates. Make one chord per pair."
            )
        ends = torch.cat([u.reshape(1).to(self.spline.breaks) for u in (start, end)])
        first, last = self.jet(ends).value.to(self.spline.coefficients.dtype)
        none = torch.zeros_like(first)
        line = Spline(
            torch.tensor([0.0, 1.0]).to(self.spline.breaks),
            torch.stack([none, none, last - first, first])[:, None],
        )
        return Curve(self.subspace, line, origin=self.origin)

    def wrap(self, u: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return u within [0, period) on a ring, and unchanged on an open curve."""
        if self.period is None:
            return u
        wrapped = torch.remainder(u, self.period)
        # The remainder of a tiny negative number rounds up to the period itself.
        return torch.where(wrapped >= self.period, torch.zeros_like(wrapped), wrapped)

    def jet(self, u: Float[Tensor, "*batch"]) -> Jet:
        """Return value and first two derivatives by u, in coordinates of the subspace [..., k]."""
        if self.period is not None:
            start = self.breaks[0].to(u.dtype)
            u = start + torch.remainder(u - start, self.period)
        if self.warp is None:
            return self.spline.jet(u)
        inner = self.warp.jet(u)
        outer = self.spline.jet(inner.value[..., 0])
        return Jet(
            outer.value,
            outer.first * inner.first,
            outer.second * inner.first.square() + outer.first * inner.second,
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Curve":
        """Return the same curve on another device, and stored in another dtype if given."""
        return replace(
            self,
            subspace=self.subspace.to(device, dtype),
            spline=self.spline.to(device, dtype),
            warp=None if self.warp is None else self.warp.to(device, dtype),
        )

    def spec(self) -> Spec:
        """Return the plain dict, with tensors as leaves, this curve can be rebuilt from."""
        return {
            "kind": "manifolds.Curve",
            "version": 1,
            "subspace": self.subspace.spec(),
            "spline": self.spline.spec(),
            "warp": None if self.warp is None else self.warp.spec(),
            "period": self.period,
            "diagnostics": json_values(dict(self.diagnostics), "diagnostics"),
            "origin": None if self.origin is None else dict(self.origin),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Curve":
        """Rebuild the curve whose `spec()` this is; its subspace may be rebuilt already.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.Curve", frozenset(cls.__dataclass_fields__))
        part, period = spec["subspace"], spec["period"]
        subspace = part if isinstance(part, Subspace) else None
        if isinstance(part, Mapping):
            subspace = Subspace.from_spec(part)
        spline = Spline.from_spec(spec["spline"])
        warp = None if spec["warp"] is None else Spline.from_spec(spec["warp"])
        if subspace is None or spline.coefficients.shape[2] != subspace.k:
            raise ManifoldError(
                f"The spec of a Curve has a spline of {spline.coefficients.shape[2]} coordinates "
                f"on {subspace!r}, which does not have as many. It was edited or truncated. Refit."
            )
        if period is not None and (not isinstance(period, int | float) or period <= 0):
            raise ManifoldError(
                f"The spec of a Curve has the period {period!r}, which is no positive number. It "
                "was edited. Refit the curve."
            )
        origin = None if spec["origin"] is None else json_values(spec["origin"], "origin")
        diagnostics = MappingProxyType(json_values(spec["diagnostics"], "diagnostics"))
        return cls(subspace, spline, warp, period, diagnostics, origin)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, never the numbers."""
        closed = "open" if self.period is None else f"period {self.period:g}"
        share = 100 * float(self.subspace.explained.sum())
        return (
            f"Curve({len(self.knots)} knots, {closed}, d_model {self.d_model}, "
            f"k {self.subspace.k}, {share:.1f}% of variance)"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the repr and the diagnostics as a table."""
        return html_table(repr(self), self.diagnostics)

    def _numbers(self, u: Coordinate) -> Tensor:
        """Return u as a tensor in which the curve can be evaluated."""
        if isinstance(u, Tensor):
            return u if u.is_floating_point() and u.dtype.itemsize >= 4 else u.to(torch.float32)
        return torch.tensor(float(u), dtype=self.breaks.dtype, device=self.breaks.device)

    def _from_to(self, u0: Coordinate, u1: Coordinate) -> tuple[Tensor, Tensor]:
        """Return the start and the signed way to the end, the shorter way round on a ring."""
        start, end = torch.broadcast_tensors(self._numbers(u0), self._numbers(u1))
        start, end = start.to(torch.promote_types(start.dtype, end.dtype)), end.to(start.dtype)
        if self.period is None:
            return start, end - start
        half = self.period / 2
        return start, half - torch.remainder(half - (end - start), self.period)

    def _length_from_start(self, u: Tensor) -> Tensor:
        """Return the signed length from the first knot to u, full turns counted."""
        breaks = self.breaks.to(u.dtype)
        if self.period is None:
            return length_from_start(self._speed, breaks, u)
        turns = torch.floor((u - breaks[0]) / self.period)
        once = length_from_start(self._speed, breaks, breaks[-1])
        return turns * once + length_from_start(self._speed, breaks, u - turns * self.period)

    def _speed(self, u: Tensor) -> Tensor:
        return self.jet(u).first.norm(dim=-1)
