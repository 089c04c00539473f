import math

import numpy as np
import pytest
import torch

from manifolds import nearest as module
from manifolds.cubic import Knots, interpolate, tensors
from manifolds.nearest import nearest
from manifolds.spline import Jet, dense_grid


def _circle(u: torch.Tensor) -> Jet:
    """The unit circle by angle, exactly."""
    at = torch.stack([u.cos(), u.sin()], -1)
    along = torch.stack([-u.sin(), u.cos()], -1)
    return Jet(at, along, -at)


def test_on_a_circle_the_nearest_point_is_at_the_angle() -> None:
    grid = torch.arange(40).double() * 2 * math.pi / 40
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(500, 2, generator=generator).double()
    angle = torch.atan2(target[:, 1], target[:, 0])
    gap = nearest(target, _circle, grid=grid, period=2 * math.pi) - angle
    # 1e-12: Newton's limit in float64, also for targets inside, close to the centre.
    assert torch.sin(gap / 2).abs().max() < 1e-12


def test_the_nearest_knot_can_lie_on_the_wrong_branch() -> None:
    # A hairpin: the way out has knots at every unit, the way back only at its ends. Targets hug
    # the way back, so the nearest knot is on the way out, 4 times as far as the true point.
    out = [[float(i), 0.0] for i in range(11)]
    values = np.array([*out, [12.0, 0.5], [11.0, 1.0], [-1.0, 1.0]])
    knots = Knots(np.arange(14.0), np.ones(14), None)
    spline = tensors(interpolate(knots, values))
    grid = dense_grid(spline.breaks, 16)
    back = torch.linspace(12.1, 12.9, 50).double()
    target = spline.jet(back).value
    start = torch.from_numpy(values)
    nearest_knot = torch.cdist(target, start).argmin(1)
    assert (nearest_knot < 11).any()
    found = nearest(target, spline.jet, grid=grid, period=None)
    assert (found - back).abs().max() < 1e-9


def test_the_coarse_minimum_can_be_the_wrong_one_and_is_corrected() -> None:
    # The curve passes the target at a distance of 0.1 at u = 0.5, between two points of the grid,
    # and of 0.3 at u = 3, on one. Seen from the grid the second is nearer (0.3 against 2).
    def jet(u: torch.Tensor) -> Jet:
        early, zero = u < 1.5, torch.zeros_like(u)
        along = torch.where(early, 4 * (u - 0.5), 2 * (u - 3))
        across = torch.where(early, zero + 0.1, zero + 0.3)
        speed = torch.where(early, zero + 4, zero + 2)
        second = torch.stack([zero, zero], -1)
        return Jet(torch.stack([along, across], -1), torch.stack([speed, zero], -1), second)

    grid = torch.arange(0.0, 5.0).double()
    found = nearest(torch.zeros(1, 2).double(), jet, grid=grid, period=None)
    assert found.tolist() == [0.5]


def test_points_beyond_an_end_clamp_to_it_exactly() -> None:
    def line(u: torch.Tensor) -> Jet:
        zero = torch.zeros_like(u)
        return Jet(
            torch.stack([u, zero], -1),
            torch.stack([zero + 1, zero], -1),
            torch.stack([zero, zero], -1),
        )

    grid = torch.linspace(-1, 2, 31).double()
    target = torch.tensor([[-5, 3], [7, 1], [0.123, 9]], dtype=torch.float64)
    found = nearest(target, line, grid=grid, period=None)
    assert torch.equal(found[:2], torch.tensor([-1.0, 2.0]).double())
    assert abs(float(found[2]) - 0.123) < 1e-14


def test_chunks_give_the_same_as_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = torch.arange(40).double() * 2 * math.pi / 40
    target = torch.randn(100, 2, generator=torch.Generator().manual_seed(1)).double()
    whole = nearest(target, _circle, grid=grid, period=2 * math.pi)
    monkeypatch.setattr(module, "_CHUNK", 7 * 40)
    assert torch.allclose(
        nearest(target, _circle, grid=grid, period=2 * math.pi), whole, atol=1e-12
    )


def test_the_gradient_is_zero_at_a_clamped_end() -> None:
    spline = tensors(
        interpolate(Knots(np.arange(3.0), np.ones(3), None), np.array([[0.0], [1], [3]]))
    )
    target = torch.tensor([[-2.0], [0.5], [9.0]], dtype=torch.float64, requires_grad=True)
    u = nearest(target, spline.jet, grid=dense_grid(spline.breaks, 16), period=None)
    (gradient,) = torch.autograd.grad(u.sum(), target)
    assert gradient[[0, 2]].tolist() == [[0.0], [0.0]]
    # On a line in one dimension the coordinate is the inverse function: 1 / slope.
    inverse = 1 / spline.jet(u.detach()[1]).first
    assert torch.allclose(gradient[1], inverse, rtol=1e-9)
