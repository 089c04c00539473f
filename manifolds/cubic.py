"""Cubic splines through or near points: scipy's natural and periodic ones, and the smoothing.

Plain float64 arrays in and out; `fit` turns the result into tensors.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator

from manifolds.spline import Spline

Array = np.ndarray
_PENALTIES = np.concatenate([[0.0], np.logspace(-5, 3, 33)])


class Knots(NamedTuple):
    """Where the values sit: increasing positions, their weights, the length of the ring or None."""

    at: Array
    weights: Array
    period: float | None

    @property
    def spacing(self) -> float:
        """Mean distance between neighbours."""
        if self.period is not None:
            return self.period / len(self.at)
        return float((self.at[-1] - self.at[0]) / (len(self.at) - 1))


def interpolate(knots: Knots, values: Array) -> CubicSpline:
    """Return the natural or periodic cubic spline through values [knot, k]."""
    if knots.period is None:
        return CubicSpline(knots.at, values, bc_type="natural")
    at = np.append(knots.at, knots.at[0] + knots.period)
    return CubicSpline(at, np.concatenate([values, values[:1]]), bc_type="periodic")


def bending(knots: Knots) -> Array:
    """Return the matrix [knot, knot] of the integral of |g''|^2 as a form in the values at knots.

    In units of the mean spacing h: the integral times h^3.
    """
    cardinal = interpolate(knots, np.eye(len(knots.at)))
    bend = cardinal(cardinal.x, 2)
    left, right = bend[:-1], bend[1:]
    # The second derivative is straight between knots, so Simpson's rule is exact.
    h = np.diff(cardinal.x)[:, None] / 6
    form = (h * left).T @ (2 * left + right) + (h * right).T @ (left + 2 * right)
    return form * knots.spacing**3


def smoother(knots: Knots, smoothing: float) -> Array:
    """Return the matrix [knot, knot] from values to the smoothing spline's values at the knots.

    The spline minimises sum_i w_i |a_i - g(u_i)|^2 + smoothing * h^3 * integral of |g''|^2, with
    h the mean spacing (so smoothing has no unit) and w the weights scaled to mean 1. The minimiser
    is the cubic interpolant of its own values at the knots (Green and Silverman 1994, ch. 2),
    natural or periodic, so the integral is a quadratic form in those values.
    """
    if smoothing == 0:
        return np.eye(len(knots.at))
    weights = np.diag(knots.weights / knots.weights.mean())
    return np.linalg.solve(weights + smoothing * bending(knots), weights)


def leave_one_out(knots: Knots, values: Array, smoothing: float) -> float | None:
    """Return the error of predicting each class from the others, relative to the classes' spread.

    Root of the weighted mean squared distance to the left-out value, over that of the values to
    their mean: 0 is perfect, 1 no better than the mean. The ends of an open curve are left out of
    the count, as predicting them would be extrapolation. None with too few classes to leave one
    out. The penalty keeps its absolute size when a class is left out.
    """
    closed = knots.period is not None
    if len(knots.at) < (4 if closed else 3):
        return None
    # Closed forms of a linear smoother with a quadratic penalty; without smoothing, their limit.
    if smoothing == 0:
        form = bending(knots)
        missed = form @ values / np.diag(form)[:, None]
    else:
        hat = smoother(knots, smoothing)
        missed = (values - hat @ values) / (1 - np.diag(hat))[:, None]
    counted = slice(None) if closed else slice(1, -1)
    errors = np.square(missed).sum(1)[counted]
    mean = np.average(values, axis=0, weights=knots.weights)
    spread = np.average(np.square(values - mean).sum(1), weights=knots.weights)
    return float(np.sqrt(np.average(errors, weights=knots.weights[counted]) / spread))


def choose_smoothing(knots: Knots, values: Array) -> float:
    """Return the penalty of a fixed grid (0, then 1e-5 to 1e3) with the least `leave_one_out`.

    Zero with too few classes to leave one out.
    """
    scores = [leave_one_out(knots, values, float(penalty)) for penalty in _PENALTIES]
    known = [np.inf if score is None else score for score in scores]
    return float(_PENALTIES[int(np.argmin(known))])


def monotone_map(knots: Knots, targets: Array, target_period: float | None) -> PchipInterpolator:
    """Return the increasing once-differentiable map through (knots.at, targets).

    Over one turn for a ring. The slopes at the ends of an open map are the end secants.
    """
    at = knots.at
    if knots.period is not None and target_period is not None:
        turns = (-1, 0, 1, 2)
        wide = np.concatenate([at + turn * knots.period for turn in turns])
        high = np.concatenate([targets + turn * target_period for turn in turns])
        inner = slice(len(at), 2 * len(at) + 1)
    else:
        wide = np.concatenate([[2 * at[0] - at[1]], at, [2 * at[-1] - at[-2]]])
        first, last = 2 * targets[0] - targets[1], 2 * targets[-1] - targets[-2]
        high = np.concatenate([[first], targets, [last]])
        inner = slice(1, len(at) + 1)
    slopes = PchipInterpolator(wide, high)
    pieces = slice(inner.start, inner.stop - 1)
    return PchipInterpolator.construct_fast(slopes.c[:, pieces], slopes.x[inner])


def tensors(piecewise: CubicSpline | PchipInterpolator) -> Spline:
    """Return scipy's piecewise cubic as tensors in float64."""
    coefficients = np.ascontiguousarray(piecewise.c)
    if coefficients.ndim == 2:
        coefficients = coefficients[:, :, None]
    return Spline(
        torch.from_numpy(np.array(piecewise.x, dtype=np.float64)),
        torch.from_numpy(np.array(coefficients, dtype=np.float64)),
    )
