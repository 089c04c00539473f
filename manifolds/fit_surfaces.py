"""Fit a surface: samples and their coordinates in, a frozen `Surface` out.

Computed in float64 on the CPU. What a surface can do is in `surface`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.axes import Axes, Period
from manifolds.components import chosen_subspace, explained, isometric, residual_kept
from manifolds.errors import ManifoldError
from manifolds.radial import KERNELS, Kernel, left_out, planes, solve
from manifolds.spec import json_values
from manifolds.subspace import Subspace, as_points, storage
from manifolds.surface import Surface, start_counts

_PENALTIES = (0.0, *np.logspace(-7, 1, 33).tolist())


class Places(NamedTuple):
    """Samples grouped by their coordinates."""

    u: Float[Tensor, "knot dim"]
    centroids: Float[Tensor, "knot d_model"]
    of_sample: np.ndarray
    counts: np.ndarray


def fit_surface(
    x: Tensor | np.ndarray,
    u: Tensor | np.ndarray | Sequence[Sequence[int | float]],
    *,
    periods: Sequence[Period] | None = None,
    subspace: Subspace | None = None,
    n_components: int | None = None,
    variance: float | int = 0.999,
    smoothing: float | int | Literal["loo"] = 0,
    kernel: Kernel = "thin_plate_spline",
    origin: Mapping[str, object] | None = None,
) -> Surface:
    """Fit the surface on which samples x lie at the coordinates u, over any number of them.

    The activation manifold of Wurgaft et al. 2026 (arXiv:2605.05115) on graphs: samples of equal u
    are averaged, and a thin-plate spline goes through the averages, in the subspace of their
    principal components. With one periodic axis it is a cylinder, with two a torus; the paper
    closes an axis by ghost points, we by going round a circle. Open axes are scaled to length 1
    and periodic ones to circumference 1 before distances are taken.

    `kernel` is r^2 log r (the paper's, least bent in two coordinates) or r^3 ("cubic"), which also
    has a finite curvature at the knots. `smoothing` weighs the bending penalty; 0 goes exactly
    through the averages, "loo" chooses by leaving one class out.

    Diagnostics: n_samples, n_classes, n_per_class, explained (share of the variance between
    classes), leave_one_class_out (error relative to the spread), residual_kept (None with one
    sample per class), smoothing, kernel.

    Args:
        x: [sample, d_model]; the fit is on its device, in float64 if x is, else in float32.
        u: [sample, dim], dim at least 2.
        periods: for each coordinate its period, or None where it is open; all open if None.
        subspace: used as it is, in place of principal components.
        n_components: at most so many components.
        variance: share of the variance between the classes to keep.
        smoothing: as above.
        kernel: as above.
        origin: where x was read; carried along, in JSON values.

    Raises:
        ManifoldError: too few distinct u or all on a line, numbers that are not finite, lengths
            that differ, a period that is not positive, a negative penalty, an unknown kernel, or a
            subspace of another width.
    """
    points = as_points(x)
    closing = require_axes(periods, u)
    places = group_places(points, u, closing)
    subspace = chosen_subspace(places.centroids, subspace, n_components, variance, origin)
    surface = surface_through(places, subspace, closing, smoothing, kernel, origin)
    kept = residual_kept(points, places.centroids, places.of_sample, surface.subspace)
    diagnostics = MappingProxyType({**surface.diagnostics, "residual_kept": kept})
    return replace(surface, diagnostics=diagnostics).to(*storage(x))


def surface_through(
    places: Places,
    subspace: Subspace,
    periods: tuple[Period, ...],
    smoothing: float | int | str,
    kernel: Kernel,
    origin: Mapping[str, object] | None,
) -> Surface:
    """Return the surface through, or near, the classes' averages, on the CPU in float64.

    Raises:
        ManifoldError: as `fit_surface`, for the coordinates, the smoothing and the kernel.
    """
    if kernel not in KERNELS:
        raise ManifoldError(
            f"kernel is {kernel!r}, which names no radial function. Write one of "
            f"{', '.join(map(repr, KERNELS))}."
        )
    subspace = subspace.to("cpu", torch.float64)
    axes = _axes(places.u, periods)
    z = axes.lift(places.u).value
    _require_spread(z, axes, len(places.u))
    counts = torch.from_numpy(places.counts).double()
    spread = isometric(places.centroids)
    penalty = _penalty(z, spread, counts, smoothing, kernel)
    radial = solve(z, subspace.coordinates(places.centroids), counts, penalty, kernel)
    diagnostics = {
        "n_samples": int(places.counts.sum()),
        "n_classes": len(places.u),
        "n_per_class": places.counts.tolist(),
        "explained": explained(places.centroids, subspace),
        "leave_one_class_out": _left_out_error(z, spread, counts, penalty, kernel),
        "smoothing": penalty,
        "kernel": kernel,
    }
    kept = None if origin is None else json_values(origin, "origin")
    found = MappingProxyType(diagnostics)
    return Surface(subspace, radial, axes, places.u, start_counts(places.u), found, kept)


def group_places(points: Tensor, u: object, periods: tuple[Period, ...]) -> Places:
    """Average the samples of equal u, modulo the periods.

    Raises:
        ManifoldError: u is not one row of finite numbers per sample.
    """
    at = as_coordinates(u)
    if at.shape != (len(points), len(periods)):
        raise ManifoldError(
            f"There are {len(points)} samples and {len(periods)} axes, but u has the shape "
            f"{list(at.shape)}: each sample needs one number for each axis. Pass [sample, dim]."
        )
    bad = (~np.isfinite(at)).any(1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ManifoldError(
            f"u[{first}] is {at[first].tolist()}, and a surface has no point there. Drop that "
            "sample, or give it finite coordinates."
        )
    turn = np.array([np.nan if p is None else float(p) for p in periods])
    closed = ~np.isnan(turn)
    at = np.where(closed, np.mod(at, np.where(closed, turn, 1.0)), at)
    # Coordinates are told apart down to a billionth of their range: 0.1 + 0.2 equals 0.3.
    size = np.where(closed, turn, np.maximum(np.ptp(at, axis=0), np.abs(at).max(0)))
    near = 1e-9 * np.maximum(np.where(np.isnan(size), 0, size), 1e-300)
    at = np.where(closed & (at >= turn - near), 0.0, at)
    _, first, of_sample = np.unique(
        np.round(at / (4 * near)), axis=0, return_index=True, return_inverse=True
    )
    of_sample = of_sample.reshape(-1)
    counts = np.bincount(of_sample)
    total = torch.zeros(len(first), points.shape[1], dtype=torch.float64)
    total.index_add_(0, torch.from_numpy(of_sample), points)
    centroids = total / torch.from_numpy(counts)[:, None]
    return Places(torch.from_numpy(at[first]), centroids, of_sample, counts)


def as_coordinates(u: object) -> np.ndarray:
    """Return coordinates [sample, dim] as float64.

    Raises:
        ManifoldError: u is no table of numbers.
    """
    try:
        values = u.detach().cpu().double().numpy() if isinstance(u, Tensor) else np.asarray(u)
        return values.astype(np.float64)
    except (TypeError, ValueError) as reason:
        raise ManifoldError(
            f"u is no table of numbers: {reason}. A surface needs to know where its classes are. "
            "Give each sample its coordinates, such as row and column of a grid."
        ) from None


def require_axes(periods: Sequence[Period] | None, u: object) -> tuple[Period, ...]:
    """Return one period for each coordinate, None where the axis is open.

    Raises:
        ManifoldError: fewer than two coordinates, another number of periods, or one that is not
            positive.
    """
    shape = as_coordinates(u).shape
    if len(shape) != 2 or shape[1] < 2:
        raise ManifoldError(
            f"u has the shape {list(shape)}, but a surface has at least two coordinates, "
            "[sample, dim]. With one, use fit_curve."
        )
    found: tuple[Period, ...] = (None,) * shape[1] if periods is None else tuple(periods)
    if len(found) != shape[1]:
        raise ManifoldError(
            f"periods is {list(found)}, but u has {shape[1]} coordinates. Give one period for "
            "each, None where the axis is open."
        )
    for period in found:
        if period is not None and not (np.isfinite(period) and period > 0):
            raise ManifoldError(
                f"periods has {period}, but going once round takes a positive, finite step. Write "
                "12 for months, or None for an open axis."
            )
    return found


def _axes(u: Tensor, periods: tuple[Period, ...]) -> Axes:
    lower, upper = u.amin(0), u.amax(0)
    for i, period in enumerate(periods):
        if period is None and float(upper[i]) == float(lower[i]):
            raise ManifoldError(
                f"All classes have the same coordinate {float(lower[i]):g} on axis {i}, so it "
                "tells nothing apart. Leave that axis out."
            )
    turns = torch.tensor([0.0 if p is None else float(p) for p in periods], dtype=u.dtype)
    closed = torch.tensor([p is not None for p in periods])
    lower = torch.where(closed, torch.zeros_like(lower), lower)
    return Axes(lower, torch.where(closed, turns, upper), periods)


def _require_spread(z: Tensor, axes: Axes, n: int) -> None:
    """Refuse coordinates that leave the plane of the spline undetermined."""
    needed = axes.n_lifted + 1
    rank = int(torch.linalg.matrix_rank(planes(z)))
    if rank < needed:
        sides = " x ".join("open" if p is None else f"period {p:g}" for p in axes.periods)
        raise ManifoldError(
            f"The {n} distinct coordinates span {rank} of the {needed} directions that a surface "
            f"of the axes {sides} takes: too few classes (at least {needed}), or all on one line. "
            "Read samples at more places, or use fit_curve."
        )


def _penalty(
    z: Tensor, values: Tensor, counts: Tensor, smoothing: float | int | str, kernel: Kernel
) -> float:
    """Return the number that `smoothing` stands for."""
    if isinstance(smoothing, str):
        if smoothing != "loo":
            raise ManifoldError(
                f"smoothing is {smoothing!r}, which names no rule. Write a number from 0 up, or "
                "'loo' to choose it by leaving one class out."
            )
        scores = [_left_out_error(z, values, counts, penalty, kernel) for penalty in _PENALTIES]
        known = [np.inf if score is None else score for score in scores]
        return float(_PENALTIES[int(np.argmin(known))])
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise ManifoldError(
            f"smoothing is {smoothing}, and a penalty that is negative or not finite has no best "
            "surface. Write 0 to go through every class average, or a positive number."
        )
    return float(smoothing)


def _left_out_error(
    z: Tensor, values: Tensor, counts: Tensor, smoothing: float, kernel: Kernel
) -> float | None:
    """Return the error of predicting each class from the others, relative to the classes' spread.

    None where some class cannot be left out.
    """
    errors = left_out(z, values, counts, smoothing, kernel)
    if not bool(torch.isfinite(errors).all()):
        return None
    share = counts / counts.sum()
    spread = ((values - share @ values).square().sum(1) * share).sum()
    return float(((errors.square().sum(1) * share).sum() / spread).sqrt())
