from collections.abc import Callable

import numpy as np
import pytest
from scipy.interpolate import make_smoothing_spline

from manifolds.cubic import (
    Knots,
    choose_smoothing,
    interpolate,
    leave_one_out,
    monotone_map,
    smoother,
)


def _line(n: int = 9, seed: int = 0) -> tuple[Knots, np.ndarray]:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.uniform(0.3, 1.5, n))
    weights = rng.integers(1, 6, n).astype(float)
    return Knots(at, weights, None), np.sin(at)[:, None] + 0.3 * rng.normal(size=(n, 2))


def _ring(n: int = 10, seed: int = 0) -> tuple[Knots, np.ndarray]:
    rng = np.random.default_rng(seed)
    at = np.arange(n) + rng.uniform(0, 0.6, n)
    values = np.stack([np.cos(at * 2 * np.pi / n), np.sin(at * 2 * np.pi / n)], 1)
    return Knots(at, np.ones(n), float(n)), values + 0.2 * rng.normal(size=(n, 2))


@pytest.mark.parametrize("smoothing", [1e-3, 0.1, 3.0])
def test_smoothing_a_line_is_scipys_smoothing_spline(smoothing: float) -> None:
    knots, values = _line()
    weights = knots.weights / knots.weights.mean()
    lam = smoothing * knots.spacing**3
    fine = np.linspace(knots.at[0], knots.at[-1], 200)
    ours = interpolate(knots, smoother(knots, smoothing) @ values)
    for column in range(2):
        theirs = make_smoothing_spline(knots.at, values[:, column], w=weights, lam=lam)
        # 1e-8: scipy solves the same system in a B-spline basis.
        assert np.allclose(ours(fine)[:, column], theirs(fine), rtol=0, atol=1e-8)


def test_smoothing_a_ring_minimises_the_penalised_sum_of_squares() -> None:
    knots, values = _ring()
    lam = 0.2 * knots.spacing**3

    def cost(at_knots: np.ndarray) -> float:
        curve = interpolate(knots, at_knots)
        fine = np.linspace(curve.x[0], curve.x[-1], 40_001)
        bend = np.square(curve(fine, 2)).sum(1)
        integral = float(((bend[1:] + bend[:-1]) / 2 * np.diff(fine)).sum())
        return float(np.square(values - at_knots).sum()) + lam * integral

    best = smoother(knots, 0.2) @ values
    rng = np.random.default_rng(1)
    lowest = cost(best)
    assert all(cost(best + 1e-3 * rng.normal(size=best.shape)) > lowest for _ in range(20))


@pytest.mark.parametrize("make", [_line, _ring])
def test_no_smoothing_is_the_identity_and_endless_smoothing_has_no_bend(
    make: Callable[[], tuple[Knots, np.ndarray]],
) -> None:
    knots, values = make()
    assert np.array_equal(smoother(knots, 0.0), np.eye(len(knots.at)))
    stiff = smoother(knots, 1e6) @ values
    if knots.period is not None:
        # A ring without bend is one point: the mean.
        assert np.allclose(stiff, values.mean(0), rtol=0, atol=1e-5)
    else:
        design = np.stack([np.ones_like(knots.at), knots.at], 1) * np.sqrt(knots.weights)[:, None]
        target = values * np.sqrt(knots.weights)[:, None]
        coefficients = np.linalg.lstsq(design, target, rcond=None)[0]
        fitted = np.stack([np.ones_like(knots.at), knots.at], 1) @ coefficients
        # A line without bend is the weighted regression line; 1e-5 is what a penalty of 1e6 leaves.
        assert np.allclose(stiff, fitted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("make", [_line, _ring])
def test_leaving_one_out_is_refitting_without_it(
    make: Callable[[], tuple[Knots, np.ndarray]], smoothing: float
) -> None:
    knots, values = make()
    ring = knots.period is not None
    counted = range(len(knots.at)) if ring else range(1, len(knots.at) - 1)
    errors = []
    for i in counted:
        keep = np.delete(np.arange(len(knots.at)), i)
        rest = Knots(knots.at[keep], knots.weights[keep], knots.period)
        # The same penalty in absolute terms, though the mean spacing and weight are others.
        same = smoothing * (knots.spacing / rest.spacing) ** 3
        same *= knots.weights.mean() / rest.weights.mean()
        curve = interpolate(rest, smoother(rest, same) @ values[keep])
        at = knots.at[i] + (knots.period or 0 if knots.at[i] < rest.at[0] else 0)
        errors.append(np.square(curve(at) - values[i]).sum())
    mean = np.average(values, axis=0, weights=knots.weights)
    spread = np.average(np.square(values - mean).sum(1), weights=knots.weights)
    weights = knots.weights[list(counted)]
    expected = np.sqrt(np.average(errors, weights=weights) / spread)
    assert leave_one_out(knots, values, smoothing) == pytest.approx(expected, rel=1e-9)


def test_too_few_classes_leave_none_out() -> None:
    two = Knots(np.array([0.0, 1.0]), np.ones(2), None)
    assert leave_one_out(two, np.eye(2), 0.0) is None
    assert choose_smoothing(two, np.eye(2)) == 0
    three = Knots(np.arange(3.0), np.ones(3), 3.0)
    assert leave_one_out(three, np.eye(3), 0.0) is None


def test_the_chosen_smoothing_is_small_on_clean_data_and_pays_on_noisy_data() -> None:
    knots, _ = _ring(16)
    angle = knots.at * 2 * np.pi / 16
    clean = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert choose_smoothing(knots, clean) < 1e-3
    noisy = clean + 0.4 * np.random.default_rng(3).normal(size=clean.shape)
    chosen = choose_smoothing(knots, noisy)
    assert chosen > 1e-2
    smoothed, raw = smoother(knots, chosen) @ noisy, noisy
    assert np.square(smoothed - clean).sum() < 0.7 * np.square(raw - clean).sum()


@pytest.mark.parametrize("period", [None, 10.0])
def test_the_map_between_parameters_rises_and_meets_its_knots(period: float | None) -> None:
    at = np.array([0.0, 0.5, 3.0, 3.2, 7.0, 9.0])
    targets = np.array([0.0, 2.0, 2.2, 5.0, 5.5, 6.0])
    turn = None if period is None else 6.1
    rising = monotone_map(Knots(at, np.ones(6), period), targets, turn)
    assert np.allclose(rising(at), targets, rtol=0, atol=1e-13)
    fine = np.linspace(rising.x[0], rising.x[-1], 2001)
    assert (np.diff(rising(fine)) > 0).all()
    assert (rising(fine, 1) > 0).all()
    if period is not None:
        assert rising.x[-1] == period
        assert rising(period) == pytest.approx(6.1)
        assert rising(0, 1) == pytest.approx(float(rising(period, 1)))
