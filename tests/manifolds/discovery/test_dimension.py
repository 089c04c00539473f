import numpy as np
import pytest
import torch

from manifolds import ManifoldError
from manifolds.discovery.dimension import intrinsic_dimension


def _cube(n: int, dim: int, seed: int) -> np.ndarray:
    """Return n even points in a cube, turned at random in 32 dimensions."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    return rng.random((n, dim)) @ turn[:dim]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_twonn_finds_the_dimension_of_a_cube(dim: int) -> None:
    found = intrinsic_dimension(_cube(2000, dim, 0))
    # 2000 ratios have a standard error of 2.4 %, and the edge of the cube takes a few more.
    assert found.value == pytest.approx(dim, rel=0.08)
    assert found.low < found.value < found.high


def test_the_edge_of_a_cube_of_many_dimensions_lowers_twonn() -> None:
    assert 4.2 < intrinsic_dimension(_cube(2000, 5, 0)).value < 5


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_twonn_finds_the_dimension_of_a_sphere_which_has_no_edge(dim: int) -> None:
    x = np.random.default_rng(1).normal(size=(2000, dim + 1))
    found = intrinsic_dimension(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert found.value == pytest.approx(dim, rel=0.06)


def test_the_interval_of_twonn_holds_the_truth_about_as_often_as_it_says() -> None:
    # Points on a ring have no edge. Neighbours share distances, so the ratios are not quite
    # independent: 80 of 100 is asked of an interval that says 95.
    held = 0
    for seed in range(100):
        angle = np.random.default_rng(seed).random(200) * 2 * np.pi
        found = intrinsic_dimension(np.stack([np.cos(angle), np.sin(angle)], 1))
        held += found.low <= 1 <= found.high
    assert 80 <= held <= 100


def test_more_points_make_the_interval_of_twonn_narrower_as_their_root() -> None:
    widths = [
        (found.high - found.low) / found.value
        for found in (intrinsic_dimension(_cube(n, 2, 3)) for n in (250, 4000))
    ]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.1)


def test_a_curved_line_is_one_dimensional_to_twonn_and_more_to_pca() -> None:
    u = np.random.default_rng(0).random(1000)
    curve = np.stack([np.cos(6 * u), np.sin(6 * u), np.cos(9 * u)], 1)
    assert intrinsic_dimension(curve).value == pytest.approx(1, rel=0.1)
    assert intrinsic_dimension(curve, "pca", variance=0.95).value == 3


def test_pca_counts_components_and_gives_the_participation_ratio() -> None:
    x = np.random.default_rng(0).normal(size=(4000, 8)) * np.array([3.0, 3, 3, 3, 0.1, 0, 0, 0])
    found = intrinsic_dimension(x, "pca", variance=0.99)
    assert (found.value, found.low, found.high) == (4, 4, 4)
    assert found.participation == pytest.approx(4, rel=0.01)


def test_turning_and_scaling_change_nothing() -> None:
    x = _cube(300, 2, 5)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0]
    first, second = intrinsic_dimension(x), intrinsic_dimension(torch.from_numpy(9 * x @ turn - 2))
    assert first.value == pytest.approx(second.value, rel=1e-9)
    assert first.participation == pytest.approx(second.participation, rel=1e-9)


def test_what_has_no_dimension_says_why() -> None:
    with pytest.raises(ManifoldError, match="There are 6 points"):
        intrinsic_dimension(np.eye(6))
    with pytest.raises(ManifoldError, match="All 12 points are equal"):
        intrinsic_dimension(np.ones((12, 3)))
    with pytest.raises(ManifoldError, match="24 points have an equal one"):
        intrinsic_dimension(np.repeat(np.random.default_rng(0).normal(size=(12, 3)), 2, 0))
    with pytest.raises(ManifoldError, match="at one distance"):
        intrinsic_dimension(np.eye(12))
    with pytest.raises(ManifoldError, match="variance is 99"):
        intrinsic_dimension(_cube(20, 2, 0), "pca", variance=99)


def test_the_repr_says_the_interval() -> None:
    assert "by twonn, 95%" in repr(intrinsic_dimension(_cube(100, 2, 0)))
