"""Laws that every shape of activation or behaviour space must keep, over a list of factories."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import manifolds
from manifolds import Behavior, Curve


class Case(NamedTuple):
    name: str
    make: Callable[[], Curve | Behavior]
    ring: bool


def _turned(x: Tensor, d_model: int = 24) -> Tensor:
    """Put low-dimensional points somewhere into a wider space, off the origin."""
    generator = torch.Generator().manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator).double())
    offset = 3 * torch.randn(d_model, generator=generator).double()
    return x.double() @ basis[: x.shape[1]] + offset


def _circle(n: int) -> Tensor:
    angle = torch.arange(n).double() * 2 * math.pi / n
    return torch.stack([5 * angle.cos(), 5 * angle.sin()], 1)


def _crown(n: int) -> Tensor:
    angle = torch.arange(n).double() * 2 * math.pi / n
    return torch.cat([_circle(n), (2 * angle).cos()[:, None], (3 * angle).sin()[:, None]], 1)


def _boundary_of_a_moebius_strip(n: int) -> Tensor:
    """Twice round, so that the two branches run close to each other."""
    angle = torch.arange(n).double() * 4 * math.pi / n
    radius = 5 + (angle / 2).cos()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), (angle / 2).sin()], 1)


def _helix(n: int) -> Tensor:
    angle = torch.linspace(0, 3 * math.pi, n).double()
    return torch.stack([3 * angle.cos(), 3 * angle.sin(), angle], 1)


def _uneven_ring() -> Curve:
    angle = torch.tensor([0.0, 0.3, 1.1, 2.0, 2.9, 3.3, 4.6, 5.5]).double()
    x = torch.stack([4 * angle.cos(), 4 * angle.sin()], 1)
    return manifolds.fit_curve(_turned(x), range(8), period=8, knots="angle")


def _noisy_ring(smoothing: float) -> Curve:
    u = torch.arange(12).repeat(10)
    noise = torch.randn(120, 24, generator=torch.Generator().manual_seed(1)).double()
    x = _turned(_crown(12))[u] + 0.3 * noise
    return manifolds.fit_curve(x, u, period=12, smoothing=smoothing)


def _distributions(n: int, ring: bool) -> Tensor:
    gap = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    gap = torch.minimum(gap, n - gap) if ring else gap
    return torch.cat([-0.7 * gap.double(), torch.full((n, 1), -2.0).double()], 1).softmax(1)


CASES = [
    Case("circle", lambda: manifolds.fit_curve(_turned(_circle(12)), range(12), period=12), True),
    Case("crown", lambda: manifolds.fit_curve(_turned(_crown(12)), range(12), period=12), True),
    Case(
        "moebius",
        lambda: manifolds.fit_curve(
            _turned(_boundary_of_a_moebius_strip(32)), range(32), period=32
        ),
        True,
    ),
    Case(
        "offset ring", lambda: manifolds.fit_curve(_turned(_crown(7)), range(1, 8), period=7), True
    ),
    Case("angle knots", _uneven_ring, True),
    Case(
        "arc knots, ring",
        lambda: manifolds.fit_curve(_turned(_crown(12)), range(12), period=12, knots="arc"),
        True,
    ),
    Case("smoothed ring", lambda: _noisy_ring(0.05), True),
    Case("helix", lambda: manifolds.fit_curve(_turned(_helix(15)), range(10, 25)), False),
    Case(
        "arc knots, line",
        lambda: manifolds.fit_curve(_turned(_helix(15)), range(15), knots="arc"),
        False,
    ),
    Case("segment", lambda: manifolds.fit_curve(_turned(_helix(2)), [-1.5, 2]), False),
    Case(
        "chord",
        lambda: manifolds.fit_curve(_turned(_crown(12)), range(12), period=12).chord(2, 7),
        False,
    ),
    Case(
        "behaviour ring",
        lambda: manifolds.fit_behavior(_distributions(12, True), range(12), period=12),
        True,
    ),
    Case(
        "behaviour line", lambda: manifolds.fit_behavior(_distributions(9, False), range(9)), False
    ),
]


RINGS = [case for case in CASES if case.ring]
CURVES = [case for case in CASES if not case.name.startswith("behaviour")]
OPEN_CURVES = [case for case in CURVES if not case.ring]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def _curve(case: Case) -> Curve:
    shape = case.make()
    assert isinstance(shape, Curve)
    return shape


def _inside(shape: Curve | Behavior, n: int = 400) -> Tensor:
    """Return coordinates strictly inside the fitted range."""
    breaks = (shape.tangent if isinstance(shape, Behavior) else shape).breaks
    steps = torch.rand(n, generator=torch.Generator().manual_seed(2)).double()
    return breaks[0] + (0.001 + 0.998 * steps) * (breaks[-1] - breaks[0])


def _outside(shape: Curve | Behavior, n: int = 200) -> Tensor:
    """Return ambient points off the shape."""
    generator = torch.Generator().manual_seed(3)
    if isinstance(shape, Behavior):
        return (2 * torch.randn(n, shape.n_bins, generator=generator).double()).softmax(1)
    return shape.subspace.mean + 4 * torch.randn(n, shape.d_model, generator=generator).double()


def _apart(a: Tensor, b: Tensor, shape: Curve | Behavior) -> Tensor:
    gap = (a - b).abs()
    return gap if shape.period is None else torch.minimum(gap, shape.period - gap)


def test_encode_recovers_the_coordinate_of_a_point_of_the_shape(case: Case) -> None:
    shape = case.make()
    u = _inside(shape)
    wanted = u if shape.period is None else u % shape.period
    # 1e-9: seven Newton steps in float64 from a sixteenth of a knot interval.
    assert _apart(shape.encode(shape.decode(u)), wanted, shape).max() < 1e-9


def test_encode_recovers_the_coordinate_in_float32_within_1e_4(case: Case) -> None:
    shape = case.make().to("cpu", torch.float32)
    u = _inside(shape).float()
    wanted = u if shape.period is None else u % shape.period
    assert _apart(shape.encode(shape.decode(u)), wanted, shape).max() < 1e-4


def test_projecting_twice_is_projecting_once(case: Case) -> None:
    shape = case.make()
    once = shape.project(_outside(shape))
    # 1e-8 of the point's size: the second search starts from the point itself.
    assert torch.allclose(shape.project(once), once, rtol=0, atol=1e-8 * float(once.abs().max()))


def test_project_is_decode_after_encode(case: Case) -> None:
    shape = case.make()
    x = _outside(shape)
    assert torch.equal(shape.project(x), shape.decode(shape.encode(x)))


def test_nothing_on_a_dense_grid_is_nearer_than_encode(case: Case) -> None:
    shape = case.make()
    x = _outside(shape)
    breaks = (shape.tangent if isinstance(shape, Behavior) else shape).breaks
    grid = shape.decode(torch.linspace(float(breaks[0]), float(breaks[-1]), 20_001).double())
    if isinstance(shape, Behavior):
        brute = torch.cdist(x.sqrt(), grid.sqrt(), compute_mode="donot_use_mm_for_euclid_dist")
        found = (x.sqrt() - shape.project(x).sqrt()).norm(dim=1)
    else:
        brute = torch.cdist(x, grid, compute_mode="donot_use_mm_for_euclid_dist")
        found = shape.distance(x)
    # Never farther than the grid's best (1e-9 for rounding), and the grid is that fine.
    assert (found - brute.amin(1)).max() < 1e-9
    assert (brute.amin(1) - found).max() < 1e-3


def test_a_batch_is_its_rows_one_by_one(case: Case) -> None:
    shape = case.make().to("cpu", torch.float32)
    x = _outside(shape, 24).float()
    looped = torch.stack([shape.encode(row) for row in x])
    batched = shape.encode(x.reshape(2, 3, 4, -1))
    assert batched.shape == (2, 3, 4)
    # 1e-4: matrix products of other shapes sum in another order, and a point far off the curve
    # magnifies that.
    assert _apart(batched.flatten(), looped, shape).max() < 1e-4
    decoded = torch.stack([shape.decode(u) for u in looped])
    assert torch.allclose(shape.decode(looped), decoded, rtol=0, atol=1e-5)


def test_empty_batches_pass_through(case: Case) -> None:
    shape = case.make()
    x = _outside(shape, 1)[:0]
    assert shape.encode(x).shape == (0,)
    assert shape.decode(shape.encode(x)).shape == x.shape


def test_the_second_derivative_has_no_jump_at_the_knots(case: Case) -> None:
    shape = case.make()
    curve = shape.tangent if isinstance(shape, Behavior) else shape
    u = curve.breaks[1:-1] if curve.period is None else curve.breaks[:-1]
    before, after = curve.jet(u - 1e-7), curve.jet(u + 1e-7)
    scale = curve.jet(_inside(shape)).second.abs().max() + 1
    for order in ("value", "first", "second"):
        if order == "second" and curve.warp is not None:
            continue  # the map from u to angle or length is once differentiable, as documented
        jump = (getattr(after, order) - getattr(before, order)).abs()
        # 1e-5: what a continuous third derivative changes over 2e-7.
        assert jump.numel() == 0 or jump.max() < 1e-5 * scale


def test_derivatives_agree_with_finite_differences(case: Case) -> None:
    shape = case.make()
    u, h = _inside(shape, 50), 1e-5
    at, after, before = shape.jet(u), shape.jet(u + h), shape.jet(u - h)
    # 1e-6 relative: error of a central difference of step 1e-5 in float64.
    scale = 1 + at.second.abs().max()
    assert ((after.value - before.value) / (2 * h) - at.first).abs().max() < 1e-6 * scale
    spread = (after.first - before.first) / (2 * h) - at.second
    # Away from the knots, where a warped curve's second derivative may jump.
    curve = shape.tangent if isinstance(shape, Behavior) else shape
    far = (u[:, None] - curve.breaks).abs().amin(1) > 2 * h
    assert spread[far].abs().max() < 1e-4 * scale


def test_encode_has_the_gradient_of_finite_differences(case: Case) -> None:
    shape = case.make()
    generator = torch.Generator().manual_seed(4)
    near = shape.decode(_inside(shape, 6))
    if isinstance(shape, Behavior):
        x = (near.log() + 0.05 * torch.randn(near.shape, generator=generator).double()).softmax(1)
        nudge = torch.randn(x.shape, generator=generator).double()
        nudge = (nudge - nudge.mean(1, keepdim=True)) * x.amin()
    else:
        x = near + 0.05 * torch.randn(near.shape, generator=generator).double()
        nudge = torch.randn(x.shape, generator=generator).double()
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(shape.encode(x).sum(), x)
    h = 1e-6
    moved = shape.encode((x + h * nudge).detach()) - shape.encode((x - h * nudge).detach())
    # 1e-4 of the largest slope: a central difference of step 1e-6 in float64.
    slopes = (gradient * nudge).sum(1)
    assert (moved / (2 * h) - slopes).abs().max() < 1e-4 * (1 + slopes.abs().max())


def test_gradients_do_not_change_the_coordinate(case: Case) -> None:
    shape = case.make()
    x = _outside(shape, 20)
    assert torch.equal(shape.encode(x), shape.encode(x.clone().requires_grad_()).detach())


def test_a_path_starts_and_ends_where_told_in_equal_steps(case: Case) -> None:
    shape = case.make()
    u = _inside(shape, 40)
    path = shape.path(u[:20], u[20:], 9)
    assert path.shape == (20, 9)
    assert torch.allclose(shape.decode(path[:, 0]), shape.decode(u[:20]), rtol=0, atol=1e-9)
    assert torch.allclose(shape.decode(path[:, -1]), shape.decode(u[20:]), rtol=0, atol=1e-9)
    assert torch.allclose(path.diff(dim=1), path.diff(dim=1)[:, :1].expand(-1, 8), atol=1e-9)
    if shape.period is not None:
        assert (path[:, -1] - path[:, 0]).abs().max() <= shape.period / 2


def test_arc_length_is_the_limit_of_small_steps(case: Case) -> None:
    shape = case.make()
    u = _inside(shape, 20)
    points = shape.decode(shape.path(u[:10], u[10:], 4001))
    if isinstance(shape, Behavior):
        points = points.sqrt() / 2**0.5
    steps = points.diff(dim=1).norm(dim=-1).sum(1)
    # 1e-5 relative: 4000 chords fall short of an arc by the square of a step.
    assert torch.allclose(shape.arc_length(u[:10], u[10:]), steps, rtol=1e-5, atol=1e-9)
    assert torch.allclose(
        shape.arc_length(u[:10], u[10:]), shape.arc_length(u[10:], u[:10]), rtol=1e-10
    )


@pytest.mark.parametrize("case", RINGS, ids=lambda case: case.name)
def test_a_ring_comes_back_after_a_period(case: Case) -> None:
    shape = case.make()
    assert shape.period is not None
    u = _inside(shape)
    for turns in (-2, 1, 3):
        again = shape.decode(u + turns * shape.period)
        # 1e-12 relative: the rounding of the sum.
        assert torch.allclose(again, shape.decode(u), rtol=0, atol=1e-11)
    coordinates = shape.encode(_outside(shape))
    assert coordinates.min() >= 0
    assert coordinates.max() < shape.period


@pytest.mark.parametrize("case", OPEN_CURVES, ids=lambda case: case.name)
def test_an_open_shape_clamps_to_its_ends(case: Case) -> None:
    curve = _curve(case)
    first, last = curve.breaks[0], curve.breaks[-1]
    beyond = torch.stack([first - 0.7, last + 0.7])
    # The continuation is straight, so its nearest point of the curve is the end, exactly.
    assert torch.equal(curve.encode(curve.decode(beyond)), torch.stack([first, last]))


@pytest.mark.parametrize("case", OPEN_CURVES, ids=lambda case: case.name)
def test_an_open_curve_goes_on_straight_beyond_its_ends(case: Case) -> None:
    curve = _curve(case)
    last = curve.breaks[-1]
    ahead = curve.decode(last + torch.tensor([0.5, 1.0, 2.0]).double()) - curve.decode(last)
    # 1e-12 relative: rounding in float64.
    assert torch.allclose(ahead[1], 2 * ahead[0], rtol=1e-9, atol=1e-11)
    assert torch.allclose(ahead[2], 2 * curve.tangent(last), rtol=1e-9, atol=1e-11)


def test_rotating_and_shifting_the_space_rotates_and_shifts_the_fit() -> None:
    generator = torch.Generator().manual_seed(8)
    x = _turned(_crown(12)) + 0.1 * torch.randn(12, 24, generator=generator).double()
    rotation, _ = torch.linalg.qr(torch.randn(24, 24, generator=generator).double())
    shift = torch.randn(24, generator=generator).double()
    probe = 4 * torch.randn(50, 24, generator=generator).double()
    for knots in ("given", "angle", "arc"):
        ring = manifolds.fit_curve(x, range(12), period=12, knots=knots)
        other = manifolds.fit_curve(x @ rotation + shift, range(12), period=12, knots=knots)
        u = _inside(ring)
        # 1e-9: two decompositions in float64.
        assert torch.allclose(other.decode(u), ring.decode(u) @ rotation + shift, atol=1e-9)
        turned = other.encode(probe @ rotation + shift)
        assert _apart(turned, ring.encode(probe), ring).max() < 1e-7


def test_scaling_the_space_scales_the_fit() -> None:
    x = _turned(_crown(12))
    ring = manifolds.fit_curve(x, range(12), period=12)
    large = manifolds.fit_curve(1000 * x, range(12), period=12)
    u = _inside(ring)
    assert torch.allclose(large.decode(u), 1000 * ring.decode(u), rtol=1e-9)
    assert torch.allclose(large.length, 1000 * ring.length, rtol=1e-9)


def test_a_spec_rebuilds_the_same_values_and_the_same_digest(case: Case) -> None:
    shape = case.make()
    again = type(shape).from_spec(shape.spec())
    assert again.digest == shape.digest
    assert repr(again) == repr(shape)
    u, x = _inside(shape, 10), _outside(shape, 10)
    assert torch.equal(again.decode(u), shape.decode(u))
    assert torch.equal(again.encode(x), shape.encode(x))


@pytest.mark.parametrize("case", CURVES, ids=lambda case: case.name)
def test_a_value_that_is_not_finite_gives_nan_and_leaves_the_other_rows_alone(case: Case) -> None:
    curve = _curve(case)
    x = _outside(curve, 3)
    spoilt = x.clone()
    spoilt[1, 0] = torch.nan
    clean, found = curve.encode(x), curve.encode(spoilt)
    assert torch.isnan(found[1])
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_inputs_are_left_untouched(case: Case) -> None:
    shape = case.make()
    x, u = _outside(shape, 10), _inside(shape, 10)
    before = x.clone(), u.clone(), shape.digest
    for call in (shape.encode, shape.project, shape.distance):
        call(x)
    shape.decode(u)
    shape.arc_length(u, u + 0.1)
    assert torch.equal(x, before[0])
    assert torch.equal(u, before[1])
    assert shape.digest == before[2]
