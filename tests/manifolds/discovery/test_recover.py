import math

import numpy as np
import pytest
import torch

from manifolds import ManifoldError, fit_curve
from manifolds.discovery.recover import Recovered, recover

AMBIENT = 64


def _turned(x: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Lay the points into 64 dimensions, turn them at random and add noise in all of them."""
    rng = np.random.default_rng(seed + 1000)
    turn = np.linalg.qr(rng.normal(size=(AMBIENT, AMBIENT)))[0]
    wide = np.pad(x, ((0, 0), (0, AMBIENT - x.shape[1]))) @ turn
    return wide + noise * rng.normal(size=wide.shape)


def _shape(name: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points at random on a shape, and their coordinates."""
    rng = np.random.default_rng(seed)
    a, b = rng.random(n), rng.random(n)
    t, s = math.tau * a, math.tau * b
    ball = rng.normal(size=(n, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    made = {
        "circle": ([np.cos(t), np.sin(t)], [t]),
        "line": ([2 * a, np.sin(4 * a), np.cos(3 * a)], [a]),
        "grid": ([2 * a, 1.5 * b, 0.3 * a * a], [a, b]),
        "cylinder": ([np.cos(t), np.sin(t), 2.5 * b], [t, b]),
        "torus": ([np.cos(t), np.sin(t), np.cos(s), np.sin(s)], [t, s]),
        "sphere": (list(ball.T), list(ball.T)),
    }
    x, u = (np.stack(part, 1) for part in made[name])
    return x, u[:, 0] if u.shape[1] == 1 else u


# Rank and circular correlations of simulations with three seeds; the worst seen is above each.
FLOOR = {
    "circle": 0.99,
    "line": 0.99,
    "grid": 0.93,
    "cylinder": 0.95,
    "torus": 0.9,
    "sphere": 0.99,
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(FLOOR))
def test_a_shape_in_64_dimensions_is_named_and_its_coordinate_recovered(
    name: str, seed: int
) -> None:
    x, u = _shape(name, 300, seed)
    found = recover(_turned(x, 0.03, seed), resamples=3)
    assert found.topology == name
    assert found.agreement(u) > FLOOR[name]
    assert found.p < 0.01
    assert found.confidence > 0.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [3, 5, 64])
def test_a_gaussian_cloud_is_unclear_and_has_no_coordinate(k: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(200, k)) * np.linspace(1, 0.6, k)
    found = recover(_turned(x, 0.03, seed), resamples=2)
    assert found.topology == "unclear"
    assert found.u is None
    assert found.confidence == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_a_torus_too_faint_to_be_seen_is_not_called_a_patch(seed: int) -> None:
    _, u = _shape("torus", 200, seed)
    t, s = u.T
    ring = 2 + np.cos(s)
    x = np.stack([ring * np.cos(t), ring * np.sin(t), np.sin(s)], 1)
    assert recover(_turned(x, 0.05, seed), resamples=1).topology in ("torus", "unclear")


def test_a_gaussian_cloud_in_a_plane_is_a_patch_of_it() -> None:
    x = np.random.default_rng(0).normal(size=(200, 2))
    assert recover(_turned(x, 0.03, 0), resamples=2).topology == "grid"


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("n", [100, 500])
def test_bumps_that_tile_a_line_or_a_ring_are_put_in_order(n: int, closed: bool) -> None:
    # Beyond the width of a bump all places are equally far apart: a graph of all pairs has more
    # weight in its short cuts than along the line, and orders these with a rank correlation of .4.
    place = np.random.default_rng(0).random(n) * 24
    gap = place[:, None] - np.arange(24)
    gap = (gap + 12) % 24 - 12 if closed else gap
    found = recover(_turned(np.exp(-np.square(gap) / 4.5), 0.02, 0), resamples=1)
    assert found.topology == ("circle" if closed else "line")
    assert found.agreement(place, period=24) > 0.98 if closed else found.agreement(place) > 0.999


def test_twelve_averages_on_a_ring_are_a_circle_in_the_order_of_the_year() -> None:
    angle = np.arange(12) * math.tau / 12
    shuffled = np.random.default_rng(3).permutation(12)
    x = np.stack([np.cos(angle), np.sin(angle), 0.2 * np.cos(2 * angle)], 1)[shuffled]
    found = recover(_turned(x, 0.01, 0))
    assert found.topology == "circle"
    steps = np.diff(shuffled[found.order.numpy()]) % 12
    assert set(steps.tolist()) in ({1}, {11})
    assert found.agreement(angle[shuffled]) > 0.99


def test_twelve_clusters_of_eight_on_a_ring_are_a_circle() -> None:
    month = np.repeat(np.arange(12), 8)
    angle = month * math.tau / 12
    found = recover(_turned(np.stack([np.cos(angle), np.sin(angle)], 1), 0.05, 2))
    assert found.topology == "circle"
    assert found.agreement(month, period=12) > 0.99


@pytest.mark.parametrize("n", [7, 12])
def test_few_points_without_structure_are_seldom_given_a_shape(n: int) -> None:
    rng = np.random.default_rng(0)
    named = [recover(rng.normal(size=(n, 4))).topology != "unclear" for _ in range(20)]
    # Two tests at .05 each: 2 of 20 expected at most, 5 is the 99 % point of that law.
    assert sum(named) <= 5


def test_the_confidence_falls_as_the_noise_rises() -> None:
    x, _ = _shape("circle", 200, 0)
    sure = [recover(_turned(x, noise, 0)).confidence for noise in (0.02, 0.25, 0.6)]
    assert sure[0] > 0.9
    assert sure[0] >= sure[1] >= sure[2]
    assert sure[2] < 0.5


def test_turning_moving_and_scaling_change_neither_the_verdict_nor_the_coordinate() -> None:
    x, _ = _shape("circle", 120, 1)
    at = _turned(x, 0.05, 1)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(AMBIENT, AMBIENT)))[0]
    first, second = recover(at), recover(37.0 * at @ turn + 5.0)
    assert (first.topology, first.loops) == (second.topology, second.loops)
    assert first.confidence == pytest.approx(second.confidence, abs=1e-9)
    assert first.u is not None
    assert second.agreement(first.u) > 1 - 1e-9


def test_the_coordinate_can_be_given_to_fit_curve() -> None:
    x, _ = _shape("circle", 96, 0)
    at = torch.from_numpy(_turned(x, 0.01, 0)).float()
    found = recover(at)
    assert found.u is not None
    assert found.u.dtype == torch.float32
    assert found.periods is not None
    (period,) = found.periods
    ring = fit_curve(at, found.u, period=period, smoothing="loo")
    # Noise of 0.01 in 64 dimensions has the norm 0.08, and the ring the radius 1.
    assert ring.distance(at).mean() < 0.12


def test_agreement_does_not_see_start_direction_or_unit() -> None:
    angle = np.random.default_rng(0).random(50) * math.tau
    found = _made("circle", angle)
    assert found.agreement(((2.0 - angle) % math.tau) * 7 / math.tau, period=7) > 1 - 1e-12
    assert found.agreement(np.random.default_rng(1).random(50) * math.tau) < 0.3
    line = _made("line", np.linspace(0, 1, 9))
    assert line.agreement(np.exp(-np.arange(9.0))) == pytest.approx(1)


def test_agreement_on_a_torus_allows_another_basis_of_its_loops() -> None:
    u = np.random.default_rng(0).random((80, 2)) * math.tau
    mixed = np.stack([u[:, 1], u[:, 0] - u[:, 1]], 1)
    assert _made("torus", mixed).agreement(u) == pytest.approx(1)


def test_what_cannot_be_decided_or_asked_says_why() -> None:
    with pytest.raises(ManifoldError, match="There are 4 points"):
        recover(np.eye(4))
    with pytest.raises(ManifoldError, match="All 9 points are equal"):
        recover(np.ones((9, 3)))
    with pytest.raises(ManifoldError, match="not finite"):
        recover(np.full((9, 3), np.nan))
    with pytest.raises(ManifoldError, match="n_components is 9"):
        recover(np.random.default_rng(0).normal(size=(20, 4)), n_components=9)
    with pytest.raises(ManifoldError, match="3 draws of the null"):
        recover(np.random.default_rng(0).normal(size=(20, 4)), draws=3)
    unclear = recover(np.random.default_rng(0).normal(size=(40, 40)))
    with pytest.raises(ManifoldError, match="The shape is unclear"):
        unclear.agreement(np.zeros(40))
    with pytest.raises(ManifoldError, match="have an order"):
        _ = unclear.order
    with pytest.raises(ManifoldError, match="have the shape"):
        _made("line", np.arange(5.0)).agreement(np.zeros(6))


def test_the_repr_says_what_was_found_and_how_sure() -> None:
    x, _ = _shape("circle", 60, 0)
    assert "Recovered(circle, confidence 0." in repr(recover(_turned(x, 0.02, 0)))


def _made(topology: str, u: np.ndarray) -> Recovered:
    at = torch.from_numpy(np.ascontiguousarray(u))
    return Recovered(topology, 1.0, 0.0, 1.0, 0, 0, "made by hand", at, len(u))  # pyright: ignore[reportArgumentType]
