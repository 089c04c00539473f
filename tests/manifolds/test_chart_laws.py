"""Laws that every chart but the curve keeps; those of curves are in test_laws."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import manifolds
from manifolds import BehaviorSurface


class Case(NamedTuple):
    name: str
    make: Callable[[Callable[[Tensor], Tensor]], Any]
    """Takes a map of the ambient space, which is applied to the points before the fit."""
    smooth: bool = True
    """Whether the second derivative is finite everywhere: the thin plate's is not at a knot."""


def _same(x: Tensor) -> Tensor:
    return x


def _turned(x: Tensor, d_model: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator).double())
    offset = 3 * torch.randn(d_model, generator=generator).double()
    return x.double() @ basis[: x.shape[1]] + offset


def _grid(*sizes: int) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(n).double() for n in sizes))


def _sheet(u: Tensor) -> Tensor:
    a, b = u[:, 0], u[:, 1]
    return torch.stack([a, b, 0.5 * (a / 2).sin() * b, 0.2 * (a - 2).square()], 1)


def _cylinder(u: Tensor) -> Tensor:
    angle = u[:, 0] * 2 * math.pi / 8
    return torch.stack([3 * angle.cos(), 3 * angle.sin(), u[:, 1], (2 * angle).cos()], 1)


def _torus(u: Tensor) -> Tensor:
    one, two = u[:, 0] * 2 * math.pi / 9, u[:, 1] * 2 * math.pi / 6
    return torch.stack([4 * one.cos(), 4 * one.sin(), 2 * two.cos(), 2 * two.sin()], 1)


def _tube(u: Tensor) -> Tensor:
    return torch.cat([_cylinder(u[:, :2]), u[:, 2:] + 0.1 * u[:, 2:].square()], 1)


def _ball(n: int, dim: int) -> Tensor:
    noise = torch.randn(n, dim + 1, generator=torch.Generator().manual_seed(1)).double()
    return 4 * torch.nn.functional.normalize(noise, dim=1) + 1


def _spiral(n: int) -> Tensor:
    a = torch.arange(n).double()
    turns = [f(2 * math.pi * a / t) for t in (5, 10) for f in (torch.cos, torch.sin)]
    return torch.stack([a / 4, *turns], 1)


def _bumps(u: Tensor, turns: tuple[float | None, ...]) -> Tensor:
    gap = (u[:, None] - u).abs()
    for axis, turn in enumerate(turns):
        if turn is not None:
            gap[..., axis] = torch.minimum(gap[..., axis], turn - gap[..., axis])
    logits = -gap.square().sum(-1) / 3
    return torch.cat([logits, torch.full((len(u), 1), -1.0).double()], 1).softmax(1)


_RING = [(i, (i + 1) % 8) for i in range(8)]
_MESH = [(4 * r + c, 4 * r + c + 1) for r in range(4) for c in range(3)] + [
    (4 * r + c, 4 * r + c + 4) for r in range(3) for c in range(4)
]


def _surface(
    shape: Callable[[Tensor], Tensor], u: Tensor, periods: tuple[float | None, ...], **how: Any
) -> Callable[[Callable[[Tensor], Tensor]], Any]:
    return lambda move: manifolds.fit_surface(
        move(_turned(shape(u))), u, periods=periods, variance=1, **how
    )


def _smoothed(move: Callable[[Tensor], Tensor]) -> manifolds.Surface:
    u = _grid(6, 5).repeat(4, 1)
    noise = torch.randn(len(u), 20, generator=torch.Generator().manual_seed(1)).double()
    x = _turned(_sheet(u)) + 0.1 * noise
    return manifolds.fit_surface(move(x), u, smoothing=0.01)


CASES = [
    Case("sheet", _surface(_sheet, _grid(6, 5), (None, None)), smooth=False),
    Case("cubic sheet", _surface(_sheet, _grid(6, 5), (None, None), kernel="cubic")),
    Case("cylinder", _surface(_cylinder, _grid(8, 4), (8, None)), smooth=False),
    Case("torus", _surface(_torus, _grid(9, 6), (9, 6), kernel="cubic")),
    Case("tube", _surface(_tube, _grid(8, 4, 3), (8, None, None), kernel="cubic")),
    Case("smoothed sheet", _smoothed, smooth=False),
    Case("flat", lambda move: manifolds.fit_flat(move(_turned(_sheet(_grid(6, 5)))))),
    Case(
        "line",
        lambda move: manifolds.fit_flat(move(_turned(_sheet(_grid(6, 5)))), n_components=1),
    ),
    Case("circle", lambda move: manifolds.fit_sphere(move(_turned(_ball(20, 1))), dim=1)),
    Case("sphere", lambda move: manifolds.fit_sphere(move(_turned(_ball(40, 2))))),
    Case("helix", lambda move: manifolds.fit_helix(move(_turned(_spiral(40))), range(40))),
    Case(
        "graph ring",
        lambda move: manifolds.fit_graph(
            move(_turned(_cylinder(_grid(8, 1)))), range(8), _RING, kernel="cubic"
        ),
    ),
    Case(
        "graph mesh",
        lambda move: manifolds.fit_graph(move(_turned(_sheet(_grid(4, 4)))), range(16), _MESH),
        smooth=False,
    ),
    Case(
        "behaviour sheet",
        lambda _: manifolds.fit_behavior_surface(
            _bumps(_grid(5, 4), (None, None)), _grid(5, 4), kernel="cubic"
        ),
    ),
    Case(
        "behaviour cylinder",
        lambda _: manifolds.fit_behavior_surface(
            _bumps(_grid(8, 3), (8, None)), _grid(8, 3), periods=(8, None)
        ),
        smooth=False,
    ),
]
ACTIVATION = [case for case in CASES if not case.name.startswith("behaviour")]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def _inside(shape: Any, n: int = 60) -> Tensor:
    """Return coordinates strictly inside the fitted range."""
    generator = torch.Generator().manual_seed(2)
    if isinstance(shape, manifolds.Sphere):
        return shape.wrap(torch.randn(n, shape.dim, generator=generator).double())
    steps = 0.03 + 0.94 * torch.rand(n, shape.dim, generator=generator).double()
    if isinstance(shape, manifolds.Helix):
        return (shape.lower + steps * (shape.upper - shape.lower))[:, 0]
    if isinstance(shape, manifolds.Flat):
        u = 4 * steps - 2
        return u[:, 0] if shape.dim == 1 else u
    if isinstance(shape, BehaviorSurface):
        shape = shape.tangent
    elif isinstance(shape, manifolds.Graph):
        shape = shape.surface
    return shape.axes.lower + steps * (shape.axes.upper - shape.axes.lower)


def _outside(shape: Any, n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if isinstance(shape, BehaviorSurface):
        return torch.randn(n, shape.n_bins, generator=generator).double().softmax(1)
    return shape.subspace.mean + 2 * torch.randn(n, shape.d_model, generator=generator).double()


def _apart(a: Tensor, b: Tensor, shape: Any) -> Tensor:
    gap = (a - b).abs()
    rows = gap[..., None] if shape.dim == 1 else gap
    sides = [
        rows[..., i] if turn is None else torch.minimum(rows[..., i], turn - rows[..., i])
        for i, turn in enumerate(shape.periods)
    ]
    return torch.stack(sides, -1)


def test_encode_recovers_the_coordinates_of_a_point_of_the_shape(case: Case) -> None:
    shape = case.make(_same)
    u = _inside(shape)
    # 1e-8: a dozen steps in float64 that double the digits near the end.
    assert _apart(shape.encode(shape.decode(u)), shape.wrap(u), shape).max() < 1e-8


def test_a_turn_more_is_the_same_place_and_coordinates_lie_within_one_turn(case: Case) -> None:
    shape = case.make(_same)
    u = _inside(shape, 20)
    rows = u[:, None] if shape.dim == 1 and u.ndim == 1 else u
    for axis, turn in enumerate(shape.periods):
        if turn is None:
            continue
        step = torch.zeros_like(rows)
        step[:, axis] = turn
        more = (rows + step).reshape(u.shape)
        assert torch.allclose(shape.decode(more), shape.decode(u), rtol=0, atol=1e-9)
        assert torch.allclose(shape.wrap(more), shape.wrap(u), rtol=0, atol=1e-9)
        found = shape.encode(_outside(shape))
        assert (found.reshape(len(found), -1)[:, axis] >= 0).all()
        assert (found.reshape(len(found), -1)[:, axis] < turn).all()


def test_encode_recovers_the_coordinates_in_float32(case: Case) -> None:
    shape = case.make(_same).to("cpu", torch.float32)
    u = _inside(shape).float()
    # 2e-3 of a unit: the graphs' coordinates have a range of one, the others of several.
    assert _apart(shape.encode(shape.decode(u)), shape.wrap(u), shape).max() < 2e-3


def test_projecting_twice_is_projecting_once(case: Case) -> None:
    shape = case.make(_same)
    once = shape.project(_outside(shape))
    assert torch.allclose(shape.project(once), once, rtol=0, atol=1e-7 * float(once.abs().max()))


@pytest.mark.parametrize("case", ACTIVATION, ids=lambda case: case.name)
def test_nothing_nearby_or_far_is_nearer_than_encode(case: Case) -> None:
    shape = case.make(_same)
    x = _outside(shape)
    tried = _inside(shape, 20_000)
    brute = torch.cdist(x, shape.decode(tried), compute_mode="donot_use_mm_for_euclid_dist")
    assert (shape.distance(x) - brute.amin(1)).max() < 1e-9


def test_a_batch_is_its_rows_one_by_one(case: Case) -> None:
    shape = case.make(_same)
    x = _outside(shape, 12)
    looped = torch.stack([shape.encode(row) for row in x])
    batched = shape.encode(x.reshape(2, 6, -1)).reshape(looped.shape)
    # 1e-6: sums of another order, magnified for points far off the shape.
    assert _apart(batched, looped, shape).max() < 1e-6
    decoded = torch.stack([shape.decode(u) for u in looped])
    assert torch.allclose(shape.decode(looped), decoded, rtol=0, atol=1e-10)


def test_empty_batches_pass_through(case: Case) -> None:
    shape = case.make(_same)
    x = _outside(shape, 1)[:0]
    assert shape.decode(shape.encode(x)).shape == x.shape


@pytest.mark.parametrize("case", ACTIVATION, ids=lambda case: case.name)
def test_the_tangent_agrees_with_finite_differences(case: Case) -> None:
    shape = case.make(_same)
    u, h = _inside(shape, 20), 1e-6
    rows = u[:, None] if shape.dim == 1 else u
    tangent = shape.tangent(u)[..., None] if shape.dim == 1 else shape.tangent(u)
    for axis in range(shape.dim):
        step = torch.zeros_like(rows)
        step[:, axis] = h
        ahead, behind = (shape.decode((rows + s).reshape(u.shape)) for s in (step, -step))
        slope = (ahead - behind) / (2 * h)
        assert (slope - tangent[..., axis]).abs().max() < 1e-6 * (1 + slope.abs().max())


def test_encode_has_the_gradient_of_finite_differences(case: Case) -> None:
    shape = case.make(_same)
    generator = torch.Generator().manual_seed(4)
    near = shape.decode(_inside(shape, 6))
    if isinstance(shape, BehaviorSurface):
        x = (near.log() + 0.05 * torch.randn(near.shape, generator=generator).double()).softmax(1)
        nudge = torch.randn(x.shape, generator=generator).double()
        nudge = (nudge - nudge.mean(1, keepdim=True)) * x.amin()
    else:
        x = near + 0.02 * torch.randn(near.shape, generator=generator).double()
        nudge = torch.randn(x.shape, generator=generator).double()
    x = x.requires_grad_()
    weight = torch.randn(shape.encode(x).shape, generator=generator).double()
    (gradient,) = torch.autograd.grad((weight * shape.encode(x)).sum(), x)
    h = 1e-6
    moved = shape.encode((x + h * nudge).detach()) - shape.encode((x - h * nudge).detach())
    found = (weight * moved / (2 * h)).reshape(len(x), -1).sum(1)
    slopes = (gradient * nudge).sum(1)
    assert (found - slopes).abs().max() < 1e-4 * (1 + slopes.abs().max())


def test_a_path_starts_and_ends_where_told(case: Case) -> None:
    shape = case.make(_same)
    u = _inside(shape, 40)
    path = shape.path(u[:20], u[20:], 9)
    first, last = (path[:, i] for i in (0, -1))
    assert torch.allclose(shape.decode(first), shape.decode(u[:20]), rtol=0, atol=1e-9)
    assert torch.allclose(shape.decode(last), shape.decode(u[20:]), rtol=0, atol=1e-9)
    with pytest.raises(manifolds.ManifoldError, match="both ends"):
        shape.path(u[0], u[1], 1)


def test_arc_length_is_the_limit_of_small_steps(case: Case) -> None:
    shape = case.make(_same)
    u = _inside(shape, 20)
    points = shape.decode(shape.path(u[:10], u[10:], 4001))
    if isinstance(shape, BehaviorSurface):
        points = points.sqrt() / 2**0.5
    steps = points.diff(dim=1).norm(dim=-1).sum(1)
    # 1e-4 relative: 512 chords, or 4000, fall short of an arc by the square of a step.
    assert torch.allclose(shape.arc_length(u[:10], u[10:]), steps, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("case", ACTIVATION, ids=lambda case: case.name)
def test_rotating_shifting_and_scaling_the_space_does_so_to_the_fit(case: Case) -> None:
    generator = torch.Generator().manual_seed(8)
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=generator).double())
    shift = torch.randn(20, generator=generator).double()

    def moved(x: Tensor) -> Tensor:
        return 2.5 * x @ rotation + shift

    here, there = case.make(_same), case.make(moved)
    x = _outside(here)
    # The frame of a flat chart or of a sphere may turn with the space; its points may not.
    at = there.project(moved(x))
    assert torch.allclose(at, moved(here.project(x)), rtol=0, atol=1e-5)
    if not isinstance(here, manifolds.Flat | manifolds.Sphere):
        u = _inside(here)
        assert torch.allclose(there.decode(u), moved(here.decode(u)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", ACTIVATION, ids=lambda case: case.name)
def test_flattening_keeps_points_of_the_chart_and_all_that_is_off_its_subspace(case: Case) -> None:
    shape = case.make(_same)
    x = _outside(shape)
    point = shape.decode(_inside(shape, 40))
    assert torch.allclose(shape.flatten(point), point, rtol=0, atol=1e-9)
    left = x - shape.flatten(x)
    basis, mean = shape.subspace.basis, shape.subspace.mean
    assert (left @ basis.T).abs().max() < 1e-9
    inside = shape.flatten(x) - mean
    assert torch.allclose(inside @ basis.T @ basis, inside, rtol=0, atol=1e-9)
    moved = left + point
    assert torch.allclose(moved - shape.flatten(moved), left, rtol=0, atol=1e-9)


def test_a_spec_rebuilds_the_same_values_and_the_same_digest(case: Case) -> None:
    shape = case.make(_same)
    again = type(shape).from_spec(shape.spec())
    assert again.digest == shape.digest
    x = _outside(shape, 5)
    assert torch.equal(again.project(x), shape.project(x))
    assert repr(again) == repr(shape)
    with pytest.raises(manifolds.ManifoldError, match="lacks"):
        type(shape).from_spec({k: v for k, v in shape.spec().items() if k in ("kind", "version")})


@pytest.mark.parametrize("case", ACTIVATION, ids=lambda case: case.name)
def test_a_row_that_is_not_finite_leaves_the_others_alone(case: Case) -> None:
    shape = case.make(_same)
    x = _outside(shape, 4)
    bad = x.clone()
    bad[1] = torch.nan
    found, alone = shape.encode(bad), shape.encode(x)
    assert not torch.isfinite(found[1]).all()
    assert torch.equal(found[[0, 2, 3]], alone[[0, 2, 3]])


def test_half_precision_comes_back_as_float32(case: Case) -> None:
    shape = case.make(_same).to("cpu", torch.float32)
    x = _outside(shape, 3)
    if isinstance(shape, BehaviorSurface):
        return
    assert shape.project(x.bfloat16()).dtype == torch.float32
