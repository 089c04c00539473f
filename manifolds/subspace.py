"""Affine subspaces of activation space: principal components, frozen once fitted.

Every shape of this package lives on such a subspace, and what lies off it is left to the caller:
a write that keeps the residual adds `embed(c) - flatten(h)` to `h`. Shapes are in `curve`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.errors import ManifoldError
from manifolds.spec import Spec, check_spec, json_values, spec_digest


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64 input and float32 for all else: half precision is never used."""
    return torch.promote_types(x.dtype, torch.float32)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """The affine subspace mean + span(basis), with orthonormal rows.

    Arithmetic is float32 (float64 for float64 input), whatever the input's dtype and under
    autocast too, and that is the dtype of every result.
    """

    mean: Float[Tensor, " d_model"]
    basis: Float[Tensor, "k d_model"]
    explained: Float[Tensor, " k"]
    """Share of the total variance of the fitted points along each row of the basis."""
    origin: Mapping[str, object] | None = None
    """Where the points were read (model, weights, site, scope), as JSON values."""

    def __post_init__(self) -> None:
        """Lay the rows out one after the other, as a saved basis is: products round by layout."""
        object.__setattr__(self, "basis", self.basis.contiguous())

    @property
    def d_model(self) -> int:
        """Width of the ambient space."""
        return self.basis.shape[1]

    @property
    def k(self) -> int:
        """Number of components."""
        return self.basis.shape[0]

    def coordinates(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch k"]:
        """Return V (x - mean), the coordinates of the nearest point of the subspace.

        Raises:
            ManifoldError: x is not as wide as the subspace's ambient space.
        """
        check_width(x, self.d_model)
        dtype = arithmetic_dtype(x)
        # Autocast would run this product in half precision, and its error would be written back.
        with torch.autocast(x.device.type, enabled=False):
            return (x.to(dtype) - self.mean.to(dtype)) @ self.basis.to(dtype).T

    def embed(self, c: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d_model"]:
        """Return mean + V^T c, the ambient point with these coordinates."""
        return self.mean.to(arithmetic_dtype(c)) + self.embed_vector(c)

    def embed_vector(self, c: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d_model"]:
        """Return V^T c: a difference of points, so without the mean."""
        dtype = arithmetic_dtype(c)
        with torch.autocast(c.device.type, enabled=False):
            return c.to(dtype) @ self.basis.to(dtype)

    def flatten(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the subspace nearest to x: mean + V^T V (x - mean)."""
        return self.embed(self.coordinates(x))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Subspace":
        """Return the same subspace on another device, and stored in another dtype if given."""
        mean, basis = self.mean.to(device, dtype), self.basis.to(device, dtype)
        return Subspace(mean, basis, self.explained.to(device, dtype), self.origin)

    def spec(self) -> Spec:
        """Return the plain dict this subspace can be rebuilt from."""
        return {
            "kind": "manifolds.Subspace",
            "version": 1,
            "mean": self.mean,
            "basis": self.basis,
            "explained": self.explained,
            "origin": None if self.origin is None else dict(self.origin),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Subspace":
        """Rebuild the subspace whose `spec()` this is.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.Subspace", frozenset(cls.__dataclass_fields__))
        mean, basis, explained = spec["mean"], spec["basis"], spec["explained"]
        if not (
            isinstance(mean, Tensor) and isinstance(basis, Tensor) and isinstance(explained, Tensor)
        ):
            raise ManifoldError(
                "The spec of a Subspace has a mean, basis or explained that is no tensor, so there "
                "is nothing to project on. It was edited or truncated. Refit it."
            )
        if basis.ndim != 2 or mean.shape != basis.shape[1:] or explained.shape != basis.shape[:1]:
            raise ManifoldError(
                f"The spec of a Subspace has a mean {list(mean.shape)}, a basis "
                f"{list(basis.shape)} and explained {list(explained.shape)}: these do not belong "
                "together. Expected [d], [k, d] and [k]. Refit it."
            )
        origin = None if spec["origin"] is None else json_values(spec["origin"], "origin")
        return cls(mean, basis, explained, origin)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, never the numbers."""
        share = 100 * float(self.explained.sum())
        return f"Subspace({self.k} components of d_model {self.d_model}, {share:.1f}% of variance)"


def fit_pca(
    x: Tensor | np.ndarray,
    *,
    n_components: int | None = None,
    variance: float | int = 0.999,
    origin: Mapping[str, object] | None = None,
) -> Subspace:
    """Fit the principal components of the rows of x [sample, d_model].

    The smallest number of components that hold the share `variance` is kept, at most
    `n_components` of them, and never more than the rows support (their number less one, or their
    rank). Computed in float64; each row's sign makes its largest loading positive.

    Raises:
        ManifoldError: fewer than two rows, rows that are not finite or all equal, a variance not
            in (0, 1], or n_components below one or above what the rows support.
    """
    points = as_points(x)
    if points.shape[0] < 2:
        raise ManifoldError(
            f"Principal components need at least 2 rows, and there is {points.shape[0]}: one point "
            "spans nothing. Read more prompts."
        )
    if not 0 < variance <= 1:
        raise ManifoldError(
            f"variance is {variance}: it is the share of the total to keep, so it lies above 0 and "
            "at most at 1. Write variance=0.99 for 99 %."
        )
    mean = points.mean(0)
    _, singular, rows = torch.linalg.svd(points - mean, full_matrices=False)
    # Centring leaves rounding errors of the size of the points themselves, not of their spread.
    floor = 1e-12 * points.abs().max().item() * max(points.shape) ** 0.5
    rank = min(int((singular > max(floor, 1e-10 * singular[0].item())).sum()), len(points) - 1)
    if rank == 0:
        raise ManifoldError(
            f"All {points.shape[0]} rows are equal, so they span no subspace. Check the site and "
            "the scope they were read with."
        )
    if n_components is not None and not 1 <= n_components <= rank:
        raise ManifoldError(
            f"n_components is {n_components}, but these {points.shape[0]} rows support 1 to {rank} "
            "components. Ask for fewer, or fit on more rows."
        )
    share = singular.square() / singular.square().sum()
    # The margin lets variance=1 mean all components, in spite of the rounding of the sum.
    wanted = int((share.cumsum(0) < variance * (1 - 1e-12)).sum()) + 1
    k = min(wanted, rank, n_components or rank)
    basis = rows[:k]
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    kept = None if origin is None else json_values(origin, "origin")
    return Subspace(mean, basis * largest.sign(), share[:k], kept).to(*storage(x))


def storage(x: Tensor | np.ndarray) -> tuple[torch.device, torch.dtype]:
    """Return where a fit to x is kept: on its device, in float64 only if x is in it."""
    if isinstance(x, Tensor):
        return x.device, torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.device("cpu"), torch.float64 if x.dtype == np.float64 else torch.float32


def as_points(x: Tensor | np.ndarray) -> Float[Tensor, "sample d_model"]:
    """Return x [sample, d_model] as float64 on the CPU, where fits are computed.

    Raises:
        ManifoldError: x is not a matrix, or not finite.
    """
    points = (x.detach() if isinstance(x, Tensor) else torch.from_numpy(x)).to("cpu", torch.float64)
    if points.ndim != 2 or 0 in points.shape:
        raise ManifoldError(
            f"The data have the shape {list(points.shape)}, but a fit takes one row per sample, "
            "[sample, d_model]. Capture one token a row, or index the position you mean."
        )
    bad = (~torch.isfinite(points)).any(1).nonzero().flatten().tolist()
    if bad:
        raise ManifoldError(
            f"{len(bad)} of {points.shape[0]} rows are not finite (first: row {bad[0]}), and one "
            "such row would spoil every number of the fit. Find out where they come from; a model "
            "that overflows in half precision is the usual cause."
        )
    return points


def check_width(x: Tensor, d_model: int) -> None:
    """Refuse a tensor whose last axis is not d_model wide."""
    if x.ndim == 0 or x.shape[-1] != d_model:
        raise ManifoldError(
            f"The tensor has the shape {list(x.shape)}, but this was fitted in {d_model} "
            "dimensions, which must be the last axis. It is probably read at another site or from "
            "another model. Refit on activations of this one."
        )
