"""Behaviour manifolds of several coordinates: a surface of output distributions.

The counterpart of `manifold.Behavior` for charts such as a grid, a cylinder or a torus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.axes import Period
from manifolds.behavior.simplex import (
    Metric,
    check_distributions,
    concept_mass,
    distance_between,
    exp_map,
    exp_map_bent,
    log_map,
)
from manifolds.errors import ManifoldError
from manifolds.fit_surfaces import group_places, require_axes, surface_through
from manifolds.nearest_many import Bent, nearest_many
from manifolds.radial import Kernel
from manifolds.spec import Spec, check_spec, html_table, spec_digest
from manifolds.subspace import arithmetic_dtype, as_points, fit_pca, storage
from manifolds.surface import Surface

_FLOOR = 1e-8


@final
@dataclass(frozen=True, slots=True, eq=False)
class BehaviorSurface:
    """A surface of distributions p(u) = exp_base(t(u))^2, always on the simplex.

    The behaviour manifold M_y of Wurgaft et al. 2026 (arXiv:2605.05115) for several coordinates: a
    thin-plate spline t in the tangent space, at `base`, of the sphere of square roots.
    """

    base: Float[Tensor, " bin"]
    """Square roots of the distribution at which the tangent space touches; a unit vector."""
    tangent: Surface
    """The surface of tangent vectors: its ambient space is that of the bins."""
    other: bool = True
    """Whether the last bin holds everything that is no concept."""

    @property
    def dim(self) -> int:
        """Number of intrinsic coordinates."""
        return self.tangent.dim

    @property
    def n_bins(self) -> int:
        """Number of bins, the other one included."""
        return self.base.shape[0]

    @property
    def periods(self) -> tuple[Period, ...]:
        """The period of each coordinate, None where it is open."""
        return self.tangent.periods

    @property
    def knots(self) -> Float[Tensor, "knot dim"]:
        """The coordinates of the fitted class means."""
        return self.tangent.knots

    @property
    def diagnostics(self) -> Mapping[str, object]:
        """What the fit was worth; see `fit_surface`."""
        return self.tangent.diagnostics

    @property
    def origin(self) -> Mapping[str, object] | None:
        """Where the distributions were read, as JSON values."""
        return self.tangent.origin

    def decode(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch bin"]:
        """Return the distributions [..., bin] at u [..., dim]."""
        squared = exp_map(self.base, self.tangent.decode(u)).square()
        return squared / squared.sum(-1, keepdim=True)

    def encode(self, p: Float[Tensor, "*batch bin"]) -> Float[Tensor, "*batch dim"]:
        """Return the coordinates of the distribution of the manifold nearest to p.

        Raises:
            ManifoldError: p does not hold distributions over n_bins.
        """
        check_distributions(p, self.n_bins)
        roots = p.to(arithmetic_dtype(p)).sqrt()
        roots = roots / roots.norm(dim=-1, keepdim=True)
        axes, counts = self.tangent.axes, self.tangent.counts
        rows = roots.reshape(-1, self.n_bins)
        u = nearest_many(rows, self.roots, self.jet, axes=axes, counts=counts)
        return axes.wrap(u).reshape(*p.shape[:-1], self.dim)

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

    def path(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"], n: int
    ) -> Float[Tensor, "*batch point dim"]:
        """Return n coordinates from u0 to u1; see `Surface.path`."""
        return self.tangent.path(u0, u1, n)

    def arc_length(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch"]:
        """Return the Hellinger length of `path(u0, u1)`, to about 1e-5 of it."""
        roots = self.roots(self.path(u0, u1, 513))
        return roots.diff(dim=-2).norm(dim=-1).sum(-1) / 2**0.5

    def roots(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch bin"]:
        """Return the square roots of the distributions at u, a unit vector each."""
        # Past the edge of the simplex the square mirrors the sphere back into it.
        return exp_map(self.base.to(u), self.tangent.decode(u)).abs()

    def jet(self, u: Float[Tensor, "*batch dim"]) -> Bent:
        """Return the square roots at u and their first two derivatives."""
        inner, space = self.tangent.jet(u), self.tangent.subspace
        moving = Bent(
            space.embed(inner.value),
            space.embed_vector(inner.first.mT).mT,
            space.embed_vector(inner.second.movedim(-3, -1)).movedim(-1, -3),
        )
        value, first, second = exp_map_bent(self.base.to(u), moving)
        sign = torch.where(value < 0, -torch.ones_like(value), torch.ones_like(value))
        return Bent(value * sign, first * sign[..., None], second * sign[..., None, None])

    def wrap(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return u with periodic coordinates within [0, period)."""
        return self.tangent.wrap(u)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "BehaviorSurface":
        """Return the same surface on another device, and stored in another dtype if given."""
        base = self.base.to(device, dtype)
        return BehaviorSurface(base, self.tangent.to(device, dtype), self.other)

    def spec(self) -> Spec:
        """Return the plain dict, with tensors as leaves, this can be rebuilt from."""
        return {
            "kind": "manifolds.BehaviorSurface",
            "version": 1,
            "base": self.base,
            "tangent": self.tangent.spec(),
            "other": self.other,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "BehaviorSurface":
        """Rebuild the surface whose `spec()` this is; its tangent may be rebuilt already.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.BehaviorSurface", frozenset(cls.__dataclass_fields__))
        base, part, other = spec["base"], spec["tangent"], spec["other"]
        if isinstance(part, Mapping):
            part = Surface.from_spec(part)
        if (
            not isinstance(part, Surface)
            or not isinstance(base, Tensor)
            or base.shape != (part.d_model,)
            or not isinstance(other, bool)
        ):
            raise ManifoldError(
                f"The spec of a BehaviorSurface has {part!r} and a base that does not belong to "
                "it. It was edited or truncated. Refit it."
            )
        return cls(base, part, other)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, never the numbers."""
        sides = " x ".join("open" if p is None else f"period {p:g}" for p in self.periods)
        last = ", the last one other" if self.other else ""
        return f"BehaviorSurface({len(self.knots)} knots, {sides}, {self.n_bins} bins{last})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the repr and the diagnostics as a table."""
        return html_table(repr(self), self.diagnostics)


def fit_behavior_surface(
    probabilities: Tensor | np.ndarray,
    u: Tensor | np.ndarray | Sequence[Sequence[int | float]],
    *,
    periods: Sequence[Period] | None = None,
    other: bool = True,
    smoothing: float | int | Literal["loo"] = 0,
    kernel: Kernel = "thin_plate_spline",
    origin: Mapping[str, object] | None = None,
) -> BehaviorSurface:
    """Fit the surface of output distributions at the coordinates u.

    As `fit_behavior`, with the spline of `fit_surface` (arXiv:2605.05115): the distributions of
    equal u are averaged, floored at 1e-8 and mapped to the sphere of square roots; their
    normalised mean is the base; the surface goes through their log maps.

    Args:
        probabilities: [sample, bin], one distribution per sample over the same bins.
        u: [sample, dim].
        periods: for each coordinate its period, or None where it is open.
        other: whether the last bin holds everything that is no concept.
        smoothing: as in `fit_surface`.
        kernel: as in `fit_surface`.
        origin: where the distributions were read; carried along, in JSON values.

    Raises:
        ManifoldError: rows that are no distributions, and what `fit_surface` refuses.
    """
    rows = as_points(probabilities)
    check_distributions(rows)
    closing = require_axes(periods, u)
    places = group_places(rows, u, closing)
    floored = places.centroids.clamp_min(_FLOOR)
    roots = (floored / floored.sum(-1, keepdim=True)).sqrt()
    base = roots.mean(0) / roots.mean(0).norm()
    tangents = places._replace(centroids=log_map(base, roots))
    space = fit_pca(tangents.centroids, variance=1)
    tangent = surface_through(tangents, space, closing, smoothing, kernel, origin)
    return BehaviorSurface(base, tangent, other).to(*storage(probabilities))
