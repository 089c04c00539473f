"""Fit a curve: samples and their coordinates in, a frozen `Curve` out.

Computed in float64 on the CPU with scipy's splines. What a curve can do is in `curve`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from manifolds import cubic
from manifolds.components import chosen_subspace, explained, isometric, residual_kept
from manifolds.cubic import Array, Knots
from manifolds.curve import Curve
from manifolds.errors import ManifoldError
from manifolds.spec import json_values
from manifolds.subspace import Subspace, as_points, storage

Numbers = Sequence[int | float] | np.ndarray | Tensor
KnotRule = Literal["given", "angle", "arc"]


class Classes(NamedTuple):
    """Samples grouped by coordinate: the groups in increasing order of u."""

    u: Array
    centroids: Float[Tensor, "knot d_model"]
    of_sample: Array
    counts: Array


def fit_curve(
    x: Tensor | np.ndarray,
    u: Numbers,
    *,
    period: float | int | None = None,
    subspace: Subspace | None = None,
    n_components: int | None = None,
    variance: float | int = 0.999,
    smoothing: float | int | Literal["loo"] = 0,
    knots: KnotRule = "given",
    origin: Mapping[str, object] | None = None,
) -> Curve:
    """Fit the line, or with a period the ring, on which samples x lie at the coordinates u.

    The activation manifold of Wurgaft et al. 2026 (arXiv:2605.05115): samples of equal u (modulo
    the period) are averaged, and a natural or periodic cubic spline goes through the averages, in
    an affine subspace. We differ in the subspace: theirs is 64 principal components of all
    prompts, which with 49 prompts is all there is, so that "keeping the residual" keeps nothing.
    Ours is the principal components of the class averages, as many as hold `variance` of the
    spread between classes: fewer than there are classes, however many prompts. The diagnostic
    `residual_kept` says how much of the samples' own deviation from their class lies off it, and
    so survives a write; 0 means that a write is a full replacement.

    `knots` sets the parameter in which the spline is cubic; the coordinate stays u, through an
    increasing map, and the image is what changes. "given": u itself, twice differentiable in u.
    "angle": the angle of the first two principal coordinates, each centred and divided by its
    standard deviation (the paper's code for rings; it sorts the classes by angle, we refuse a
    disorder). "arc": the length along the curve itself. These two are once differentiable in u.

    `smoothing` is the weight of the bending penalty in units of the mean knot spacing cubed; 0
    goes exactly through the averages, "loo" chooses by leaving one class out.

    Diagnostics: n_samples, n_classes, n_per_class, explained (share of the variance between
    classes), leave_one_class_out (error relative to the spread; None with too few classes),
    residual_kept (None with one sample per class), smoothing, knots.

    Args:
        x: [sample, d_model]; the fit is on its device, in float64 if x is, else in float32.
        u: [sample] numbers.
        period: u and u + period are the same; None is an open line.
        subspace: used as it is, in place of principal components.
        n_components: at most so many components.
        variance: share of the variance between the classes to keep.
        smoothing: as above.
        knots: as above.
        origin: where x was read; carried along, in JSON values.

    Raises:
        ManifoldError: too few distinct u, numbers that are not finite, lengths that differ, a
            period that is not positive, a ring that does not close, more components than the
            classes support, a negative penalty, angles out of order, or a subspace of another
            width.
    """
    points = as_points(x)
    classes = group(points, u, period)
    subspace = chosen_subspace(classes.centroids, subspace, n_components, variance, origin)
    curve = curve_through(
        classes, subspace, period=period, smoothing=smoothing, knots=knots, origin=origin
    )
    kept = residual_kept(points, classes.centroids, classes.of_sample, curve.subspace)
    diagnostics = MappingProxyType({**curve.diagnostics, "residual_kept": kept})
    return replace(curve, diagnostics=diagnostics).to(*storage(x))


def curve_through(
    classes: Classes,
    subspace: Subspace,
    *,
    period: float | int | None,
    smoothing: float | int | str,
    knots: str,
    origin: Mapping[str, object] | None,
) -> Curve:
    """Return the curve through, or near, the classes' averages, on the CPU in float64.

    Raises:
        ManifoldError: as `fit_curve`, for the smoothing, the knots and the origin, and for a ring
            that does not close.
    """
    _require_closing(classes, period)
    subspace = subspace.to("cpu", torch.float64)
    values = subspace.coordinates(classes.centroids).numpy()
    at = Knots(classes.u, classes.counts.astype(float), None if period is None else float(period))
    inner = _parameter(at, values, knots)
    spread = isometric(classes.centroids).numpy()
    penalty = _penalty(inner, spread, smoothing)
    spline = cubic.tensors(cubic.interpolate(inner, cubic.smoother(inner, penalty) @ values))
    warp = None
    if inner is not at:
        warp = cubic.tensors(cubic.monotone_map(at, inner.at, inner.period))
    diagnostics = {
        "n_samples": int(classes.counts.sum()),
        "n_classes": len(classes.u),
        "n_per_class": classes.counts.tolist(),
        "explained": explained(classes.centroids, subspace),
        "leave_one_class_out": cubic.leave_one_out(
            inner, isometric(classes.centroids).numpy(), penalty
        ),
        "smoothing": penalty,
        "knots": knots,
    }
    kept_origin = None if origin is None else json_values(origin, "origin")
    return Curve(subspace, spline, warp, period, MappingProxyType(diagnostics), kept_origin)


def group(
    points: Float[Tensor, "sample d_model"], u: object, period: float | int | None
) -> Classes:
    """Average the samples of equal u; on a ring, of equal u modulo the period.

    Raises:
        ManifoldError: u is not one finite number per sample, has too few distinct values, or the
            period is not positive.
    """
    at = _coordinates(u, len(points), period)
    # Coordinates are told apart down to a billionth of their range: 0.1 + 0.2 equals 0.3.
    near = 1e-9 * (period or max(float(np.ptp(at)), float(np.abs(at).max()), 1e-300))
    if period is not None:
        at = np.mod(at, period)
        at[at >= period - near] = 0.0
    order = np.argsort(at, kind="stable")
    starts = np.diff(at[order], prepend=-np.inf) > near
    of_sample = np.empty(len(at), dtype=np.int64)
    of_sample[order] = np.cumsum(starts) - 1
    distinct = at[order][starts]
    needed = 2 if period is None else 3
    if len(distinct) < needed:
        kind = "a line" if period is None else "a ring"
        modulo = "" if period is None else f" modulo {period:g}"
        raise ManifoldError(
            f"u has {len(distinct)} distinct values{modulo}, but {kind} takes at least {needed}. "
            "Read samples at more coordinates."
        )
    counts = np.bincount(of_sample)
    total = torch.zeros(len(distinct), points.shape[1], dtype=torch.float64)
    total.index_add_(0, torch.from_numpy(of_sample), points)
    return Classes(distinct, total / torch.from_numpy(counts)[:, None], of_sample, counts)


_OPEN = 3
"""A ring does not close if its last step is this many times as steep as any other."""


def _require_closing(classes: Classes, period: float | int | None) -> None:
    """Refuse a ring whose two ends in u are far apart: a line that was given a period."""
    if period is None or len(classes.u) < 5:
        return
    gaps = np.diff(classes.u, append=classes.u[0] + period)
    steps = (classes.centroids.roll(-1, 0) - classes.centroids).norm(dim=1).numpy() / gaps
    if steps[-1] > _OPEN * steps[:-1].max():
        raise ManifoldError(
            f"The ring does not close: from u = {classes.u[-1]:g} on to {classes.u[0] + period:g} "
            f"the states move {steps[-1]:.3g} per unit of u, elsewhere {steps[:-1].max():.3g} at "
            "most. These classes lie on a line. Leave out period, or read the classes in between."
        )


def _coordinates(u: object, n_samples: int, period: float | int | None) -> Array:
    """Return u as float64, one per sample, or refuse."""
    try:
        values = u.detach().cpu().double().numpy() if isinstance(u, Tensor) else np.asarray(u)
        values = values.astype(np.float64)
    except (TypeError, ValueError) as reason:
        raise ManifoldError(
            f"u is no list of numbers: {reason}. A curve needs to know how far apart the classes "
            "are. Number them, such as 0 to 11 for the months."
        ) from None
    if values.shape != (n_samples,):
        raise ManifoldError(
            f"There are {n_samples} samples but u has the shape {list(values.shape)}: each sample "
            "needs its one coordinate. Pass a list of as many numbers as x has rows."
        )
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ManifoldError(
            f"u[{first}] is {values[first]}, and a curve has no point there. Drop that sample, or "
            "give it a finite coordinate."
        )
    if period is not None and not (np.isfinite(period) and period > 0):
        raise ManifoldError(
            f"The period is {period}, but going once round a ring takes a positive, finite step. "
            "Write period=12 for months, or leave it out for an open line."
        )
    return values


def _parameter(at: Knots, values: Array, rule: str) -> Knots:
    """Return the knots in the parameter in which the spline is to be cubic."""
    if rule not in _RULES:
        raise ManifoldError(
            f"knots is {rule!r}, which names no parameter of the spline. Write one of "
            f"{', '.join(map(repr, _RULES))}."
        )
    return _RULES[rule](at, values)


def _given(at: Knots, values: Array) -> Knots:
    del values
    return at


def _angles(at: Knots, values: Array) -> Knots:
    """Return the knots at the angles in the first two coordinates, standardised."""
    if at.period is None or values.shape[1] < 2:
        raise ManifoldError(
            f"knots='angle' was asked for with period {at.period} in {values.shape[1]} "
            "components: angles go round a ring, in a plane. Give a period and at least two "
            "components, or use knots='given' or 'arc'."
        )
    plane = values[:, :2] - values[:, :2].mean(0)
    plane = plane / plane.std(0)
    angle = np.arctan2(plane[:, 1], plane[:, 0])
    up = np.mod(np.diff(angle, append=angle[0]), 2 * np.pi)
    down = np.mod(-np.diff(angle, append=angle[0]), 2 * np.pi)
    steps = up if up.sum() < down.sum() else down
    # Each step is taken modulo a turn, so they add up to whole turns: one if they are in order.
    if not np.isclose(steps.sum(), 2 * np.pi) or steps.min() < 1e-6:
        raise ManifoldError(
            f"The angles of the {len(angle)} classes do not follow the order of u once round: they "
            f"make {steps.sum() / (2 * np.pi):.0f} turns. The first two components do not show "
            "this ring, so the angle cannot be its parameter. Use knots='given' or 'arc'."
        )
    return Knots(np.concatenate([[0.0], steps[:-1].cumsum()]), at.weights, 2 * np.pi)


def _arc_lengths(at: Knots, values: Array) -> Knots:
    """Return the knots at their lengths along the curve, which is found by iteration."""
    ring = at.period is not None
    corners = np.concatenate([values, values[:1]]) if ring else values
    steps = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    if steps.min() <= 1e-9 * steps.max():
        raise ManifoldError(
            "Two neighbouring classes have the same average, so no length lies between them and "
            "knots='arc' cannot tell them apart. Use knots='given', or join the classes."
        )
    nodes, weights = np.polynomial.legendre.leggauss(16)
    knots = at
    # Four rounds from the chord lengths settle the knots of a circle of 5 to 1e-3 of a step.
    for _ in range(5):
        ends = np.concatenate([[0.0], steps.cumsum()])
        knots = Knots(ends[:-1] if ring else ends, at.weights, float(ends[-1]) if ring else None)
        spline: CubicSpline = cubic.interpolate(knots, values)
        half = np.diff(ends)[:, None] / 2
        inner = ends[:-1, None] + half * (1 + nodes)
        steps = (np.linalg.norm(spline(inner, 1), axis=-1) * weights * half).sum(1)
    return knots


_RULES: Mapping[str, Callable[[Knots, Array], Knots]] = MappingProxyType(
    {"given": _given, "angle": _angles, "arc": _arc_lengths}
)


def _penalty(knots: Knots, spread: Array, smoothing: float | int | str) -> float:
    """Return the number that `smoothing` stands for."""
    if isinstance(smoothing, str):
        if smoothing != "loo":
            raise ManifoldError(
                f"smoothing is {smoothing!r}, which names no rule. Write a number from 0 up, or "
                "'loo' to choose it by leaving one class out."
            )
        return cubic.choose_smoothing(knots, spread)
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise ManifoldError(
            f"smoothing is {smoothing}, and a penalty that is negative or not finite has no best "
            "curve. Write 0 to go through every class average, or a positive number."
        )
    return float(smoothing)
