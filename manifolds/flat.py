"""Flat charts: an affine subspace with its principal coordinates, the shape of plain addition.

The straight member of the family: along it MoveAlong is the addition of a vector, and a geodesic
under another metric bends where the data are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.axes import Period, along
from manifolds.errors import ManifoldError
from manifolds.nearest_many import Bent
from manifolds.spec import Spec, check_spec, spec_digest
from manifolds.subspace import Subspace, arithmetic_dtype, fit_pca


@final
@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """The affine subspace x = mean + V^T u; u are its principal coordinates, in units of x.

    With one component u has the shape [...], with k of them [..., k].
    """

    subspace: Subspace

    @property
    def dim(self) -> int:
        """Number of coordinates: that of the components."""
        return self.subspace.k

    @property
    def d_model(self) -> int:
        """Width of the ambient space."""
        return self.subspace.d_model

    @property
    def periods(self) -> tuple[Period, ...]:
        """None for each coordinate: nothing closes."""
        return (None,) * self.dim

    @property
    def origin(self) -> Mapping[str, object] | None:
        """Where the points were read, as JSON values."""
        return self.subspace.origin

    def decode(self, u: Tensor) -> Float[Tensor, "*batch d_model"]:
        """Return the points at u."""
        return self.subspace.embed(self._rows(u))

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Tensor:
        """Return the coordinates of the nearest point."""
        found = self.subspace.coordinates(x)
        return found[..., 0] if self.dim == 1 else found

    def project(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the nearest point."""
        return self.subspace.flatten(x)

    def flatten(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the nearest point: the chart is its whole subspace."""
        return self.subspace.flatten(x)

    def distance(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the Euclidean distance from x to the subspace."""
        return (x.to(arithmetic_dtype(x)) - self.project(x)).norm(dim=-1)

    def tangent(self, u: Tensor) -> Tensor:
        """Return dx/du: the components, [..., d_model] for one of them, else [..., d_model, k]."""
        rows = self._rows(u)
        basis = self.subspace.basis.to(rows).T.expand(*rows.shape[:-1], self.d_model, self.dim)
        return basis[..., 0] if self.dim == 1 else basis

    def path(self, u0: Tensor, u1: Tensor, n: int) -> Tensor:
        """Return n equally spaced coordinates from u0 to u1, both included.

        Raises:
            ManifoldError: n is below 2.
        """
        start, end = torch.broadcast_tensors(self._rows(u0), self._rows(u1))
        found = along(start, end - start, n)
        return found[..., 0] if self.dim == 1 else found

    def arc_length(self, u0: Tensor, u1: Tensor) -> Float[Tensor, "*batch"]:
        """Return the distance between two points."""
        return (self._rows(u1) - self._rows(u0)).norm(dim=-1)

    def wrap(self, u: Tensor) -> Tensor:
        """Return u: nothing closes."""
        return u

    def jet(self, u: Tensor) -> Bent:
        """Return value, first and second derivative by the k coordinates."""
        rows = self._rows(u)
        eye = torch.eye(self.dim, dtype=rows.dtype, device=rows.device)
        first = eye.expand(*rows.shape, self.dim)
        return Bent(rows, first, torch.zeros_like(first)[..., None].expand(*first.shape, self.dim))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Flat":
        """Return the same chart on another device, and stored in another dtype if given."""
        return replace(self, subspace=self.subspace.to(device, dtype))

    def spec(self) -> Spec:
        """Return the plain dict, with tensors as leaves, this chart can be rebuilt from."""
        return {"kind": "manifolds.Flat", "version": 1, "subspace": self.subspace.spec()}

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Flat":
        """Rebuild the chart whose `spec()` this is; its subspace may be rebuilt already.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.Flat", frozenset({"subspace"}))
        part = spec["subspace"]
        if isinstance(part, Mapping):
            part = Subspace.from_spec(part)
        if not isinstance(part, Subspace):
            raise ManifoldError(
                f"The spec of a Flat has the subspace {part!r}, which is none. It was edited or "
                "truncated. Refit it."
            )
        return cls(part)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, never the numbers."""
        share = 100 * float(self.subspace.explained.sum())
        return f"Flat({self.dim} components, d_model {self.d_model}, {share:.1f}% of variance)"

    def _rows(self, u: Tensor) -> Tensor:
        """Return u as [..., k] in a dtype to compute in."""
        rows = u[..., None] if self.dim == 1 else u
        if rows.ndim == 0 or rows.shape[-1] != self.dim:
            raise ManifoldError(
                f"The coordinates have the shape {list(u.shape)}, but this chart has {self.dim}, "
                "which must be the last axis. Give one number for each component."
            )
        return rows.to(arithmetic_dtype(rows)) if rows.is_floating_point() else rows.float()


def fit_flat(
    x: Tensor | np.ndarray,
    *,
    n_components: int | None = None,
    variance: float | int = 0.999,
    origin: Mapping[str, object] | None = None,
) -> Flat:
    """Fit the affine subspace nearest to the rows of x [sample, d_model]: principal components.

    The baseline of every curved chart; its arguments are those of `fit_pca`.

    Raises:
        ManifoldError: what `fit_pca` refuses.
    """
    return Flat(fit_pca(x, n_components=n_components, variance=variance, origin=origin))
