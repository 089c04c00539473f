"""Steering along a manifold against closed forms on a ring that imports nothing of ours."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer.interventions import MoveAlong, MoveTo, Snap
from steer.sites import Site
from steer.step import Step

SITE = Site(1, "resid_post")
D = 8


class Ring:
    """A circle of radius r about a centre, in the plane of the first two axes; u in radians."""

    dim = 1
    d_model = D

    def __init__(self, radius: float = 2.0) -> None:
        self.radius = radius
        self.center = torch.linspace(-1, 1, D, dtype=torch.float64)

    def encode(self, x: Tensor) -> Tensor:
        """Return the angle."""
        off = x - self.center.to(x.dtype)
        return torch.atan2(off[..., 1], off[..., 0])

    def decode(self, u: Tensor) -> Tensor:
        """Return the point at an angle."""
        flat = torch.zeros(*u.shape, D - 2, dtype=u.dtype)
        circle = self.radius * torch.stack([u.cos(), u.sin()], -1)
        return torch.cat([circle, flat], -1) + self.center.to(u.dtype)

    def flatten(self, x: Tensor) -> Tensor:
        """Return the nearest point of the plane."""
        center = self.center.to(x.dtype)
        return torch.cat([x[..., :2], center[2:].expand(*x.shape[:-1], D - 2)], -1)


RING = Ring()
H = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STEP = Step(torch.arange(4).expand(3, 4), torch.tensor([1, 0, 2]))


def polar(h: Tensor) -> tuple[Tensor, Tensor]:
    off = h - RING.center
    return torch.atan2(off[..., 1], off[..., 0]), off[..., :2].norm(dim=-1)


def at_angle(h: Tensor, angle: Tensor, radius: Tensor | float) -> Tensor:
    new = h.clone()
    new[..., 0] = RING.center[0] + radius * angle.cos()
    new[..., 1] = RING.center[1] + radius * angle.sin()
    return new


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_moving_to_a_point_replaces_the_part_within_the_plane():
    expected = at_angle(H, torch.full((3, 4), 0.7, dtype=torch.float64), 2.0)
    close(MoveTo(SITE, RING, 0.7).edit(H, STEP), expected)
    close(MoveTo(SITE, RING, 0.7, strength=0.25).edit(H, STEP), H + 0.25 * (expected - H))


def test_transport_to_a_point_adds_the_difference_of_two_points_of_the_ring():
    angle, _ = polar(H)
    here, there = RING.decode(angle), RING.decode(torch.full_like(angle, 0.7))
    close(MoveTo(SITE, RING, 0.7, mode="transport").edit(H, STEP), H + there - here)


def test_moving_along_adds_the_displacement_and_keeps_what_is_off_the_ring():
    angle, _ = polar(H)
    expected = H + RING.decode(angle + 0.5) - RING.decode(angle)
    close(MoveAlong(SITE, RING, 0.5).edit(H, STEP), expected)
    replaced = at_angle(H, angle + 0.5, 2.0)
    close(MoveAlong(SITE, RING, 0.5, mode="replace").edit(H, STEP), replaced)


def test_each_row_of_the_batch_has_its_own_coordinate():
    u = torch.tensor([0.1, 1.0, -2.0], dtype=torch.float64)
    angle, _ = polar(H)
    mine = u[STEP.rows][:, None].expand(3, 4)
    close(MoveTo(SITE, RING, u).edit(H, STEP), at_angle(H, mine, 2.0))
    expected = H + RING.decode(angle + mine) - RING.decode(angle)
    close(MoveAlong(SITE, RING, u).edit(H, STEP), expected)
    close(MoveTo(SITE, RING, u[:, None]).edit(H, STEP), at_angle(H, mine, 2.0))


def test_snap_goes_to_the_nearest_point_and_leaves_the_ring_where_it_is():
    angle, _ = polar(H)
    close(Snap(SITE, RING).edit(H, STEP), at_angle(H, angle, 2.0))
    on = RING.decode(torch.tensor([[0.3, -1.0, 2.0, 3.0]], dtype=torch.float64).expand(3, 4))
    close(Snap(SITE, RING).edit(on, STEP), on)


def test_a_full_turn_comes_back():
    close(MoveAlong(SITE, RING, 2 * math.pi).edit(H, STEP), H)
    half = MoveAlong(SITE, RING, math.pi)
    close(half.edit(half.edit(on_ring(), STEP), STEP), on_ring())


def on_ring() -> Tensor:
    angle, _ = polar(H)
    return RING.decode(angle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moving_by_zero_or_with_strength_zero_keeps_the_bits(dtype):
    h = H.to(dtype)
    h[0, 0, 0] = -0.0
    bits = {2: torch.int16, 4: torch.int32}[h.element_size()]
    some = torch.tensor([0.0, 1.0, 0.0])
    for item in (
        MoveAlong(SITE, RING, 0.0),
        MoveAlong(SITE, RING, 1.0, strength=0.0),
        MoveTo(SITE, RING, 1.0, strength=0.0),
        Snap(SITE, RING, strength=0.0),
    ):
        assert torch.equal(item.edit(h, STEP).view(bits), h.view(bits))
    found = MoveAlong(SITE, RING, some).edit(h, STEP)
    assert torch.equal(found[[1, 2]].view(bits), h[[1, 2]].view(bits))  # rows 0 and 2 of the batch
    assert not torch.equal(found[0], h[0])


class Plane:
    """A flat chart of two coordinates."""

    dim = 2
    d_model = D

    def encode(self, x: Tensor) -> Tensor:
        """Return the first two entries."""
        return x[..., :2]

    def decode(self, u: Tensor) -> Tensor:
        """Return the point."""
        return torch.cat([u, torch.zeros(*u.shape[:-1], D - 2, dtype=u.dtype)], -1)

    def flatten(self, x: Tensor) -> Tensor:
        """Return the nearest point of the plane."""
        return self.decode(x[..., :2])


def test_on_a_flat_manifold_transport_is_the_addition_of_a_vector():
    by = torch.tensor([0.5, -1.0], dtype=torch.float64)
    shift = torch.cat([by, torch.zeros(D - 2, dtype=torch.float64)])
    close(MoveAlong(SITE, Plane(), by).edit(H, STEP), H + shift)
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    found = MoveAlong(SITE, Plane(), rows).edit(H, STEP)
    for at, row in enumerate([1, 0, 2]):
        expected = H[at] + torch.cat([rows[row], torch.zeros(D - 2, dtype=torch.float64)])
        close(found[at], expected)
    assert torch.equal(found[2], H[2])


def test_moving_to_a_point_of_two_coordinates():
    u = torch.tensor([3.0, -4.0], dtype=torch.float64)
    found = MoveTo(SITE, Plane(), u).edit(H, STEP)
    close(found[..., :2], u.expand(3, 4, 2))
    close(found[..., 2:], H[..., 2:])


def test_by_default_they_act_on_every_position_that_makes_an_output_token():
    for item in (MoveTo(SITE, RING, 1.0), MoveAlong(SITE, RING, 1.0), Snap(SITE, RING)):
        assert item.scope == steer.OUTPUT


@pytest.mark.parametrize(
    "u", [torch.ones(2, 3), torch.ones(2, 2, 2), torch.tensor([float("nan")])], ids=str
)
def test_coordinates_that_do_not_fit_are_refused(u):
    for make in (lambda m: MoveTo(SITE, m, u), lambda m: MoveAlong(SITE, m, u)):
        for manifold in (RING, Plane()):
            with pytest.raises(steer.PlanError, match=r"coordinates of Move"):
                make(manifold)


def test_reprs_say_where_and_how_far():
    said: list[Any] = [MoveTo(SITE, RING, 0.5), MoveAlong(SITE, RING, torch.ones(3))]
    assert repr(said[0]) == "MoveTo(blocks.1.resid_post, u=0.5, replace, scope=OUTPUT)"
    assert repr(said[1]) == "MoveAlong(blocks.1.resid_post, by=[3], transport, scope=OUTPUT)"
