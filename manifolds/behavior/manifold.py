"""The behaviour manifold M_y: a curve of output distributions, and what is measured with it.

Distances between distributions are in `simplex`; the activation manifold is `curve.Curve`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.behavior.simplex import (
    Metric,
    check_distributions,
    concept_mass,
    distance_between,
    exp_map,
    exp_map_jet,
    log_map,
)
from manifolds.curve import Coordinate, Curve
from manifolds.errors import ManifoldError
from manifolds.fit import KnotRule, Numbers, curve_through, group
from manifolds.nearest import nearest
from manifolds.spec import Spec, check_spec, html_table, spec_digest
from manifolds.spline import Jet, dense_grid, length_from_start
from manifolds.subspace import arithmetic_dtype, as_points, fit_pca, storage

_FLOOR = 1e-8
# Denser than for a Curve: where the spline takes a root through zero, the square mirrors it back
# and the distance has a kink, so one interval can hide two minima. With 64 points, of 600 random
# distributions one was 5e-7 farther than a dense search; with 16, three by up to 2e-5.
_PER_INTERVAL = 64


@final
@dataclass(frozen=True, slots=True, eq=False)
class Behavior:
    """A line or ring of distributions p(u) = exp_base(t(u))^2, always on the simplex.

    The behaviour manifold M_y of Wurgaft et al. 2026 (arXiv:2605.05115): a spline t in the tangent
    space, at `base`, of the sphere of square roots. Results are float32, or float64 for float64.
    """

    base: Float[Tensor, " bin"]
    """Square roots of the distribution at which the tangent space touches; a unit vector."""
    tangent: Curve
    """The curve of tangent vectors: its ambient space is that of the bins."""
    other: bool = True
    """Whether the last bin holds everything that is no concept."""

    @property
    def dim(self) -> int:
        """Number of intrinsic coordinates: 1."""
        return 1

    @property
    def n_bins(self) -> int:
        """Number of bins, the other one included."""
        return self.base.shape[0]

    @property
    def period(self) -> float | int | None:
        """Period of u on a ring, None on a line."""
        return self.tangent.period

    @property
    def knots(self) -> Float[Tensor, " knot"]:
        """The coordinates of the fitted class means, increasing."""
        return self.tangent.knots

    @property
    def diagnostics(self) -> Mapping[str, object]:
        """What the fit in the tangent space was worth; see `fit_curve`."""
        return self.tangent.diagnostics

    @property
    def origin(self) -> Mapping[str, object] | None:
        """Where the distributions were read, as JSON values."""
        return self.tangent.origin

    def decode(self, u: Coordinate) -> Float[Tensor, "*batch bin"]:
        """Return the distributions [..., bin] at u: a number, or a tensor of any shape."""
        squared = exp_map(self.base, self.tangent.decode(u)).square()
        return squared / squared.sum(-1, keepdim=True)

    def encode(self, p: Float[Tensor, "*batch bin"]) -> Float[Tensor, "*batch"]:
        """Return the coordinate of the distribution of the manifold nearest to p.

        Hellinger, Bhattacharyya and Fisher-Rao distance all grow with the angle between the
        square roots, so they agree on what is nearest.

        Raises:
            ManifoldError: p does not hold distributions over n_bins.
        """
        check_distributions(p, self.n_bins)
        roots = p.to(arithmetic_dtype(p)).sqrt()
        roots = roots / roots.norm(dim=-1, keepdim=True)
        grid = dense_grid(self.tangent.breaks.to(roots.dtype), _PER_INTERVAL)
        grid = grid if self.period is None else grid[:-1]
        rows = roots.reshape(-1, self.n_bins)
        u = nearest(rows, self.jet, grid=grid, period=self.period)
        return self.tangent.wrap(u.reshape(p.shape[:-1]))

    def project(self, p: Float[Tensor, "*batch bin"]) -> Float[Tensor, "*batch bin"]:
        """Return the distribution of the manifold nearest to p: decode(encode(p))."""
        return self.decode(self.encode(p))

    def distance(
        self, p: Float[Tensor, "*batch bin"], metric: Metric = "bhattacharyya"
    ) -> Float[Tensor, "*batch"]:
        """Return the distance from p to the manifold: that to its nearest distribution.

        Raises:
            ManifoldError: p does not hold distributions over n_bins, or an unknown metric.
        """
        return distance_between(p, self.project(p), metric)

    def coherence(self, p: Float[Tensor, "*batch bin"]) -> Float[Tensor, "*batch"]:
        """Return the probability of any concept: 1 less that of the other bin.

        Raises:
            ManifoldError: the bins have no other one, or p is not over them.
        """
        return concept_mass(p, self.n_bins, other=self.other)

    def tangents(self, p: Float[Tensor, "*batch bin"]) -> Float[Tensor, "*batch bin"]:
        """Return the tangent vectors at the base that lead to p: where p is seen in pictures.

        Raises:
            ManifoldError: p does not hold distributions over n_bins.
        """
        check_distributions(p, self.n_bins)
        roots = p.to(arithmetic_dtype(p)).sqrt()
        return log_map(self.base, roots / roots.norm(dim=-1, keepdim=True))

    def path(self, u0: Coordinate, u1: Coordinate, n: int) -> Float[Tensor, "*batch point"]:
        """Return n coordinates from u0 to u1, the shorter way round; see `Curve.path`.

        Raises:
            ManifoldError: n is below 2.
        """
        return self.tangent.path(u0, u1, n)

    def arc_length(self, u0: Coordinate, u1: Coordinate) -> Float[Tensor, "*batch"]:
        """Return the Hellinger length of `path(u0, u1)`: the limit of sums of small distances."""
        ends = self.tangent.path(u0, u1, 2)
        start, end = (self._length_from_start(u) for u in ends.unbind(-1))
        return (end - start).abs()

    def jet(self, u: Float[Tensor, "*batch"]) -> Jet:
        """Return the square roots of the distribution at u and their first two derivatives."""
        inner = self.tangent.jet(u)
        space = self.tangent.subspace
        moving = Jet(
            space.embed(inner.value),
            space.embed_vector(inner.first),
            space.embed_vector(inner.second),
        )
        value, first, second = exp_map_jet(self.base.to(u.dtype), moving)
        # Past the edge of the simplex the square mirrors the sphere back into it.
        sign = torch.where(value < 0, -torch.ones_like(value), torch.ones_like(value))
        return Jet(value * sign, first * sign, second * sign)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Behavior":
        """Return the same behaviour on another device, and stored in another dtype if given."""
        return Behavior(self.base.to(device, dtype), self.tangent.to(device, dtype), self.other)

    def spec(self) -> Spec:
        """Return the plain dict, with tensors as leaves, this can be rebuilt from."""
        return {
            "kind": "manifolds.Behavior",
            "version": 1,
            "base": self.base,
            "tangent": self.tangent.spec(),
            "other": self.other,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Behavior":
        """Rebuild the behaviour whose `spec()` this is; its curve may be rebuilt already.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.Behavior", frozenset(cls.__dataclass_fields__))
        base, part, other = spec["base"], spec["tangent"], spec["other"]
        tangent = part if isinstance(part, Curve) else None
        if isinstance(part, Mapping):
            tangent = Curve.from_spec(part)
        if (
            tangent is None
            or not isinstance(base, Tensor)
            or base.shape != (tangent.d_model,)
            or not isinstance(other, bool)
        ):
            raise ManifoldError(
                f"The spec of a Behavior has {tangent!r} and a base that does not belong to it. "
                "It was edited or truncated. Refit it."
            )
        return cls(base, tangent, other)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, never the numbers."""
        closed = "open" if self.period is None else f"period {self.period:g}"
        last = ", the last one other" if self.other else ""
        return f"Behavior({len(self.knots)} knots, {closed}, {self.n_bins} bins{last})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the repr and the diagnostics as a table."""
        return html_table(repr(self), self.diagnostics)

    def _length_from_start(self, u: Tensor) -> Tensor:
        breaks = self.tangent.breaks.to(u.dtype)
        if self.period is None:
            return length_from_start(self._speed, breaks, u)
        turns = torch.floor((u - breaks[0]) / self.period)
        once = length_from_start(self._speed, breaks, breaks[-1])
        return turns * once + length_from_start(self._speed, breaks, u - turns * self.period)

    def _speed(self, u: Tensor) -> Tensor:
        return self.jet(u).first.norm(dim=-1) / 2**0.5


def fit_behavior(
    probabilities: Tensor | np.ndarray,
    u: Numbers,
    *,
    period: float | int | None = None,
    other: bool = True,
    smoothing: float | int | Literal["loo"] = 0,
    knots: KnotRule = "given",
    origin: Mapping[str, object] | None = None,
) -> Behavior:
    """Fit the line, or with a period the ring, of output distributions at the coordinates u.

    Section 1.3 of the methods, after Wurgaft et al. 2026 (arXiv:2605.05115): the distributions of
    equal u are averaged, floored at 1e-8 and mapped to the sphere of square roots; their
    normalised mean is the base; a spline of the family of `fit_curve`, with all components, goes
    through their log maps.

    Args:
        probabilities: [sample, bin], one distribution per sample over the same bins.
        u: [sample] numbers.
        period: u and u + period are the same; None is an open line.
        other: whether the last bin holds everything that is no concept.
        smoothing: as in `fit_curve`.
        knots: as in `fit_curve`.
        origin: where the distributions were read; carried along, in JSON values.

    Raises:
        ManifoldError: rows that are no distributions, and what `fit_curve` refuses.
    """
    rows = as_points(probabilities)
    check_distributions(rows)
    classes = group(rows, u, period)
    floored = classes.centroids.clamp_min(_FLOOR)
    roots = (floored / floored.sum(-1, keepdim=True)).sqrt()
    base = roots.mean(0) / roots.mean(0).norm()
    tangents = classes._replace(centroids=log_map(base, roots))
    tangent = curve_through(
        tangents,
        fit_pca(tangents.centroids, variance=1),
        period=period,
        smoothing=smoothing,
        knots=knots,
        origin=origin,
    )
    return Behavior(base, tangent, other).to(*storage(probabilities))
