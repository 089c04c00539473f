"""Helices: a number's value as a straight line and circles of several periods.

Kantamneni and Tegmark 2025 (arXiv:2502.00873): helix(a) = C [a, cos(2 pi a / T), sin(2 pi a / T)].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.axes import Period, along
from manifolds.curve import Coordinate, Curve
from manifolds.errors import ManifoldError
from manifolds.nearest import nearest
from manifolds.segment import segment
from manifolds.spec import Spec, check_spec, html_table, json_values, spec_digest
from manifolds.spline import Jet, dense_grid, length_from_start
from manifolds.subspace import Subspace, arithmetic_dtype, as_points, storage

PERIODS = (2, 5, 10, 100)
"""Those of the paper."""
_PER_PERIOD = 16
"""Points of the dense start in each turn of the fastest circle."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Helix:
    """The line x = mean + V^T (c_0 a' + sum over T of c_T cos(2 pi a / T) + s_T sin(2 pi a / T)).

    a is the number and a' the number counted from the middle of the fitted range in units of half
    of it. The subspace is what the columns of C span, at most 1 + 2 per period. `encode` looks
    within the fitted range; `decode` goes on by the formula beyond it.
    """

    subspace: Subspace
    coefficients: Float[Tensor, "feature k"]
    """Of a', then of cosine and sine for each period, in coordinates of the subspace."""
    turns: tuple[float, ...]
    """The periods T."""
    lower: float
    upper: float
    diagnostics: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """What the fit was worth, in JSON values; see `fit_helix`."""

    def __post_init__(self) -> None:
        """Lay the rows out one after the other, as saved ones are: products round by layout."""
        object.__setattr__(self, "coefficients", self.coefficients.contiguous())

    @property
    def dim(self) -> int:
        """Number of intrinsic coordinates: 1, the number itself."""
        return 1

    @property
    def d_model(self) -> int:
        """Width of the ambient space."""
        return self.subspace.d_model

    @property
    def periods(self) -> tuple[Period, ...]:
        """(None,): the line never closes, though its circles do; those are in `turns`."""
        return (None,)

    @property
    def origin(self) -> Mapping[str, object] | None:
        """Where the points were read, as JSON values."""
        return self.subspace.origin

    def decode(self, u: Coordinate) -> Float[Tensor, "*batch d_model"]:
        """Return the points [..., d_model] of the numbers u."""
        return self.subspace.embed(self.jet(self._numbers(u)).value)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the number, within the fitted range, whose point is nearest to x."""
        found = self.subspace.coordinates(x)
        grid = self._grid().to(found)
        rows = found.reshape(-1, self.subspace.k)
        return nearest(rows, self.jet, grid=grid, period=None).reshape(x.shape[:-1])

    def fourier(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch feature"]:
        """Return the features C^+ (x - mean): a', then cosine and sine for each period.

        Of a point of the helix they are its own; of others, what a linear reading gives.
        """
        found = self.subspace.coordinates(x)
        return found @ torch.linalg.pinv(self.coefficients.to(found))

    def project(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the helix nearest to x: decode(encode(x))."""
        return self.decode(self.encode(x))

    def flatten(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the helix's affine subspace nearest to x."""
        return self.subspace.flatten(x)

    def distance(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the Euclidean distance from x to the helix."""
        return (x.to(arithmetic_dtype(x)) - self.project(x)).norm(dim=-1)

    def tangent(self, u: Coordinate) -> Float[Tensor, "*batch d_model"]:
        """Return dx/du [..., d_model]: units of x per unit of the number."""
        return self.subspace.embed_vector(self.jet(self._numbers(u)).first)

    def path(self, u0: Coordinate, u1: Coordinate, n: int) -> Float[Tensor, "*batch point"]:
        """Return n equally spaced numbers from u0 to u1, both included.

        Raises:
            ManifoldError: n is below 2.
        """
        start, end = torch.broadcast_tensors(self._numbers(u0), self._numbers(u1))
        return along(start[..., None], (end - start)[..., None], n)[..., 0]

    def arc_length(self, u0: Coordinate, u1: Coordinate) -> Float[Tensor, "*batch"]:
        """Return the length along the helix between two numbers, in the units of x."""
        grid = self._grid()

        def speed(u: Tensor) -> Tensor:
            return self.jet(u).first.norm(dim=-1)

        ends = (self._numbers(u) for u in (u0, u1))
        first, last = (length_from_start(speed, grid.to(u), u) for u in ends)
        return (last - first).abs()

    def chord(self, u0: Coordinate, u1: Coordinate) -> Curve:
        """Return the straight segment from decode(u0), at coordinate 0, to decode(u1), at 1.

        Raises:
            ManifoldError: u0 or u1 is not a single number.
        """
        ends = [self._numbers(u) for u in (u0, u1)]
        if any(end.numel() != 1 for end in ends):
            raise ManifoldError(
                f"A chord joins two points, but its ends were given "
                f"{' and '.join(str(end.numel()) for end in ends)} numbers. Make one per pair."
            )
        points = self.jet(torch.stack([end.reshape(()) for end in ends])).value
        return segment(self.subspace, points.to(self.coefficients), self.origin)

    def wrap(self, u: Tensor) -> Tensor:
        """Return u: the line does not close."""
        return u

    def jet(self, u: Float[Tensor, "*batch"]) -> Jet:
        """Return value and first two derivatives by the number, in coordinates of the subspace."""
        half = (self.upper - self.lower) / 2
        value = [(u - self.lower - half) / half]
        first, second = [torch.full_like(u, 1 / half)], [torch.zeros_like(u)]
        for turn in self.turns:
            rate = 2 * math.pi / turn
            cos, sin = torch.cos(rate * u), torch.sin(rate * u)
            value += [cos, sin]
            first += [-rate * sin, rate * cos]
            second += [-(rate**2) * cos, -(rate**2) * sin]
        matrix = self.coefficients.to(u)
        return Jet(*(torch.stack(part, -1) @ matrix for part in (value, first, second)))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Helix":
        """Return the same helix on another device, and stored in another dtype if given."""
        return replace(
            self,
            subspace=self.subspace.to(device, dtype),
            coefficients=self.coefficients.to(device, dtype),
        )

    def spec(self) -> Spec:
        """Return the plain dict, with tensors as leaves, this helix can be rebuilt from."""
        return {
            "kind": "manifolds.Helix",
            "version": 1,
            "subspace": self.subspace.spec(),
            "coefficients": self.coefficients,
            "turns": list(self.turns),
            "lower": self.lower,
            "upper": self.upper,
            "diagnostics": json_values(dict(self.diagnostics), "diagnostics"),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Helix":
        """Rebuild the helix whose `spec()` this is; its subspace may be rebuilt already.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.Helix", frozenset(cls.__dataclass_fields__))
        part, matrix, turns = spec["subspace"], spec["coefficients"], spec["turns"]
        lower, upper = spec["lower"], spec["upper"]
        if isinstance(part, Mapping):
            part = Subspace.from_spec(part)
        if (
            not isinstance(part, Subspace)
            or not isinstance(matrix, Tensor)
            or not isinstance(turns, list | tuple)
            or not all(isinstance(turn, int | float) and turn > 0 for turn in turns)
            or not isinstance(lower, int | float)
            or not isinstance(upper, int | float)
            or not lower < upper
            or matrix.shape != (1 + 2 * len(turns), part.k)
        ):
            raise ManifoldError(
                f"The spec of a Helix has coefficients, periods or a range that do not belong to "
                f"{part!r}. It was edited or truncated. Refit it."
            )
        diagnostics = MappingProxyType(json_values(spec["diagnostics"], "diagnostics"))
        found = tuple(float(turn) for turn in turns)
        return cls(part, matrix, found, float(lower), float(upper), diagnostics)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, never the numbers."""
        turns = ", ".join(f"{turn:g}" for turn in self.turns)
        return (
            f"Helix({self.lower:g} to {self.upper:g}, periods {turns}, d_model {self.d_model}, "
            f"k {self.subspace.k}, R2 {self.diagnostics.get('r2', math.nan):.3f})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the repr and the diagnostics as a table."""
        return html_table(repr(self), self.diagnostics)

    def _grid(self) -> Tensor:
        fastest = min(self.turns, default=self.upper - self.lower)
        count = max(2, math.ceil((self.upper - self.lower) / fastest))
        breaks = torch.linspace(self.lower, self.upper, count + 1, dtype=torch.float64)
        return dense_grid(breaks, _PER_PERIOD).to(self.coefficients.device)

    def _numbers(self, u: Coordinate) -> Tensor:
        if isinstance(u, Tensor):
            return u if u.is_floating_point() and u.dtype.itemsize >= 4 else u.to(torch.float32)
        like = self.coefficients
        return torch.tensor(float(u), dtype=like.dtype, device=like.device)


def fit_helix(
    x: Tensor | np.ndarray,
    values: Sequence[int | float] | np.ndarray | Tensor,
    *,
    periods: Sequence[int | float] = PERIODS,
    n_components: int | None = 100,
    origin: Mapping[str, object] | None = None,
) -> Helix:
    """Fit the helix of the numbers `values` to their states x, by least squares.

    After Kantamneni and Tegmark 2025 (arXiv:2502.00873), whose basis is [a, cos, sin] for the
    periods 2, 5, 10 and 100: the states are centred and reduced to their first 100 principal
    components, and C is the least-squares map from the basis to them. A period of which the
    samples cannot show the sine (T = 2 of whole numbers) keeps its cosine.

    Diagnostics: n_samples, r2 (share of the variance of the reduced states), r2_left_out (the
    same for samples predicted from all others, in closed form), r2_line (of a line alone), rank.

    Args:
        x: [sample, d_model].
        values: [sample], the numbers.
        periods: T of the circles, in units of the numbers.
        n_components: of the principal components that are fitted; None for all.
        origin: where x was read; carried along, in JSON values.

    Raises:
        ManifoldError: fewer samples than the basis needs, lengths that differ, values that are not
            finite or all equal, or a period that is not positive or names no circle twice.
    """
    points = as_points(x)
    numbers = _values(values, len(points))
    turns = tuple(float(turn) for turn in periods)
    if any(not (math.isfinite(turn) and turn > 0) for turn in turns) or len(set(turns)) < len(
        turns
    ):
        raise ManifoldError(
            f"The periods are {list(periods)}: each must be positive, finite and there once, to be "
            "a circle of its own. Drop the others."
        )
    needed = 2 + 2 * len(turns)
    if len(np.unique(numbers)) < needed:
        raise ManifoldError(
            f"There are {len(np.unique(numbers))} distinct numbers, but a line and {len(turns)} "
            f"circles have {needed - 1} parameters for each component: at least {needed} numbers "
            "are needed. Read more numbers, or fit fewer periods."
        )
    lower, upper = float(numbers.min()), float(numbers.max())
    mean = points.mean(0)
    left, singular, rows = torch.linalg.svd(points - mean, full_matrices=False)
    k = min(len(singular), n_components or len(singular))
    reduced = left[:, :k] * singular[:k]
    columns = _columns(torch.from_numpy(numbers), turns, lower, upper)
    fit, hat = _least_squares(columns, reduced)
    line, _ = _least_squares(columns[:, :2], reduced)
    matrix = fit[1:] @ rows[:k]
    basis, scale, rank = _span(matrix)
    total = reduced.square().sum()
    missed = reduced - columns @ fit
    left_out = missed / (1 - hat).clamp_min(1e-9)[:, None]
    diagnostics = {
        "n_samples": len(points),
        "r2": 1 - float(missed.square().sum() / total),
        "r2_left_out": 1 - float(left_out.square().sum() / total),
        "r2_line": 1 - float((reduced - columns[:, :2] @ line).square().sum() / total),
        "rank": rank,
    }
    away = points - mean
    shares = (away @ basis.T).square().sum(0) / away.square().sum()
    kept = None if origin is None else json_values(origin, "origin")
    space = Subspace(mean + fit[0] @ rows[:k], basis, shares, kept)
    helix = Helix(space, scale, turns, lower, upper, MappingProxyType(diagnostics))
    return helix.to(*storage(x))


def _values(values: object, n: int) -> np.ndarray:
    try:
        found = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        found = found.astype(np.float64)
    except (TypeError, ValueError) as reason:
        raise ManifoldError(
            f"values are no list of numbers: {reason}. A helix is a curve over a number line. "
            "Give each sample its number."
        ) from None
    if found.shape != (n,) or not np.isfinite(found).all():
        raise ManifoldError(
            f"There are {n} samples, but values has the shape {list(found.shape)} with "
            f"{int((~np.isfinite(found)).sum())} numbers that are not finite. Give each sample "
            "one finite number."
        )
    return found


def _columns(numbers: Tensor, turns: tuple[float, ...], lower: float, upper: float) -> Tensor:
    half = (upper - lower) / 2
    columns = [torch.ones_like(numbers), (numbers - lower - half) / half]
    for turn in turns:
        angle = 2 * math.pi * numbers / turn
        columns += [torch.cos(angle), torch.sin(angle)]
    return torch.stack(columns, 1)


def _least_squares(columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least-norm solution, and how much each sample predicts itself."""
    # The sine of a whole number of half turns is rounding error: it must not become a direction.
    left, singular, right = torch.linalg.svd(columns, full_matrices=False)
    kept = singular > 1e-9 * singular[0]
    left, singular, right = left[:, kept], singular[kept], right[kept]
    return right.T @ ((left.T @ values) / singular[:, None]), left.square().sum(1)


def _span(matrix: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return an orthonormal basis of the rows, the rows in it, and how many there are."""
    _, singular, rows = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((singular > 1e-9 * singular[0]).sum())
    basis = rows[:rank]
    return basis, matrix @ basis.T, rank
