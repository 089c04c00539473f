import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from manifolds.cubic import Knots, interpolate, tensors
from manifolds.spline import Spline, dense_grid, length_from_start


def _knots(period: float | None) -> Knots:
    return Knots(np.array([0.0, 0.7, 2.0, 2.5, 4.1]), np.ones(5), period)


@pytest.mark.parametrize("period", [None, 5.0])
def test_value_and_derivatives_are_those_of_scipy(period: float | None) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    scipys = interpolate(_knots(period), values)
    spline = tensors(scipys)
    u = torch.linspace(0, float(scipys.x[-1]), 301).double()
    jet = spline.jet(u)
    for order, ours in enumerate(jet):
        # 1e-12: the same polynomials, summed in another order.
        assert np.allclose(ours.numpy(), scipys(u.numpy(), order), rtol=0, atol=1e-12)


@pytest.mark.parametrize("period", [None, 5.0])
def test_a_knot_is_met_exactly(period: float | None) -> None:
    values = np.random.default_rng(1).normal(size=(5, 3))
    spline = tensors(interpolate(_knots(period), values))
    found = spline.jet(torch.from_numpy(_knots(period).at)).value
    assert np.allclose(found.numpy(), values, rtol=0, atol=1e-14)
    first = spline.jet(torch.from_numpy(_knots(period).at)[:-1]).value
    # The left end of an interval is its constant coefficient, so equal bit by bit.
    assert np.array_equal(first.numpy(), values[:-1])


def test_beyond_the_ends_it_goes_on_straight() -> None:
    spline = tensors(CubicSpline([0.0, 1, 2, 4], [[0.0], [1], [0], [3]], bc_type="natural"))
    end = spline.jet(torch.tensor([4.0]).double())
    beyond = spline.jet(torch.tensor([6.0]).double())
    assert torch.allclose(beyond.value, end.value + 2 * end.first, rtol=1e-14)
    assert torch.equal(beyond.first, end.first)
    assert torch.equal(beyond.second, torch.zeros(1, 1).double())


def test_any_shape_and_a_strided_view_of_coordinates_is_accepted() -> None:
    spline = tensors(interpolate(_knots(5.0), np.random.default_rng(2).normal(size=(5, 3))))
    u = torch.rand(4, 6).double() * 5
    assert torch.equal(spline.jet(u.T).value, spline.jet(u).value.transpose(0, 1))
    assert spline.jet(torch.tensor(0.3)).value.shape == (3,)
    assert spline.jet(torch.tensor(0.3)).value.dtype == torch.float32


def test_the_grid_has_every_knot_and_equal_steps_between_them() -> None:
    grid = dense_grid(torch.tensor([0.0, 1.0, 3.0]), 4)
    assert grid.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3]


def test_the_length_of_a_straight_line_and_beyond_it() -> None:
    def speed(u: torch.Tensor) -> torch.Tensor:
        return torch.full_like(u, 2.0)

    breaks = torch.tensor([1.0, 2.0, 4.0]).double()
    u = torch.tensor([-1.0, 1.0, 1.5, 4.0, 5.0]).double()
    found = length_from_start(speed, breaks, u)
    assert torch.allclose(found, torch.tensor([-4.0, 0, 1, 6, 8]).double(), rtol=1e-14)


def test_the_length_of_an_ellipse_is_the_elliptic_integral() -> None:
    # Perimeter 4 a E(e) with a = 2, b = 1; scipy's ellipe takes m = e^2 = 3/4.
    perimeter = 8 * 1.2110560275684594

    def speed(u: torch.Tensor) -> torch.Tensor:
        return (4 * u.sin().square() + u.cos().square()).sqrt()

    breaks = torch.linspace(0, 2 * math.pi, 13, dtype=torch.float64)
    # 1e-10: sixteen nodes in each twelfth of the ellipse.
    assert abs(float(length_from_start(speed, breaks, breaks[-1])) - perimeter) < 1e-10


def test_to_returns_another_dtype() -> None:
    spline = tensors(interpolate(_knots(None), np.eye(5)))
    single = spline.to("cpu", torch.float32)
    assert isinstance(single, Spline)
    assert single.coefficients.dtype == torch.float32
    assert spline.coefficients.dtype == torch.float64
