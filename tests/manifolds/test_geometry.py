import math

import pytest
import torch
from torch import Tensor

import manifolds
from manifolds import ManifoldError


def _turned(x: Tensor, d_model: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator).double())
    return x.double() @ basis[: x.shape[1]] + 3


def _circle(n: int, radius: float) -> Tensor:
    angle = torch.arange(n).double() * 2 * math.pi / n
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _torus(n: int, m: int) -> manifolds.Surface:
    u = torch.cartesian_prod(torch.arange(n).double(), torch.arange(m).double())
    one, two = u[:, 0] * 2 * math.pi / n, u[:, 1] * 2 * math.pi / m
    ring = 5 + 2 * two.cos()
    x = torch.stack([ring * one.cos(), ring * one.sin(), 2 * two.sin()], 1)
    return manifolds.fit_surface(_turned(x), u, periods=(n, m), kernel="cubic")


def test_a_circle_bends_by_one_over_its_radius_towards_its_centre():
    ring = manifolds.fit_curve(_turned(_circle(48, 4.0)), range(48), period=48)
    u = torch.tensor([0.0, 7.5, 30.2]).double()
    assert torch.allclose(manifolds.curvature(ring, u), torch.full((3,), 0.25).double(), rtol=5e-3)
    inward = (ring.subspace.mean - ring.decode(u)) / 4
    assert torch.allclose(manifolds.normal(ring, u), inward, atol=1e-2)


def test_a_straight_chart_bends_nowhere_and_has_no_normal():
    flat = manifolds.fit_flat(_turned(torch.randn(9, 3)), n_components=2)
    u = torch.zeros(2).double()
    assert float(manifolds.curvature(flat, u)) == 0
    assert torch.isnan(manifolds.normal(flat, u)).all()
    assert torch.allclose(manifolds.metric_tensor(flat, u), torch.eye(2).double())


def test_a_cylinder_has_half_the_curvature_of_its_circle_and_no_gaussian_one():
    u = torch.cartesian_prod(torch.arange(16).double(), torch.arange(5).double())
    x = torch.cat([_circle(16, 4.0)[u[:, 0].long()], u[:, 1:]], 1)
    tube = manifolds.fit_surface(_turned(x), u, periods=(16, None), kernel="cubic")
    at = torch.tensor([[3.5, 2.5], [10.0, 1.0]]).double()
    assert torch.allclose(manifolds.curvature(tube, at), torch.full((2,), 1 / 8).double())
    assert manifolds.gaussian_curvature(tube, at).abs().max() < 1e-9


def test_a_torus_has_its_gaussian_curvature_outside_and_inside():
    torus = _torus(36, 24)
    found = manifolds.gaussian_curvature(torus, torch.tensor([[3.0, 0.0], [3.0, 12.0]]).double())
    # 3 %: the spline between 24 knots round the tube.
    assert torch.allclose(found, torch.tensor([1 / 14, -1 / 6]).double(), rtol=0.03)


def test_a_vector_splits_into_a_tangent_and_a_normal_part():
    torus = _torus(12, 8)
    u = torch.tensor([[1.3, 2.2], [7.1, 5.0]]).double()
    vector = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).double()
    along, across = manifolds.split(torus, u, vector)
    assert torch.allclose(along + across, vector)
    tangent = torus.tangent(u)
    assert (across[:, None] @ tangent).abs().max() < 1e-9
    steps = torch.linalg.lstsq(tangent, along[..., None]).solution
    assert torch.allclose((tangent @ steps)[..., 0], along)


def test_the_gaussian_curvature_of_a_line_is_refused():
    ring = manifolds.fit_curve(_circle(8, 1.0), range(8), period=8)
    with pytest.raises(ManifoldError, match="1 coordinates"):
        manifolds.gaussian_curvature(ring, 0.0)


def test_on_a_cylinder_the_shortest_way_is_the_helix():
    u = torch.cartesian_prod(torch.arange(16).double(), torch.arange(5).double())
    x = torch.cat([_circle(16, 4.0)[u[:, 0].long()], u[:, 1:]], 1)
    tube = manifolds.fit_surface(_turned(x), u, periods=(16, None))
    way = manifolds.geodesic(tube, torch.tensor([14.0, 0.0]), torch.tensor([2.0, 4.0]), 65)
    wanted = math.hypot(4 * 2 * math.pi * 4 / 16, 4)
    assert float(way.length) == pytest.approx(wanted, rel=1e-3)
    assert torch.allclose(way.u, tube.path(way.u[0], way.u[-1], 65), atol=0.02)


def test_on_a_torus_no_perturbed_way_is_shorter_and_the_inner_side_is_taken():
    torus = _torus(18, 12)
    start, end = torch.tensor([0.0, 2.0]).double(), torch.tensor([7.0, 2.0]).double()
    way = manifolds.geodesic(torus, start, end, 41)
    assert way.length < 0.97 * way.straight_length
    bump = torch.linspace(0, math.pi, 41).double().sin()[:, None]
    for seed in range(5):
        by = 0.3 * torch.randn(2, generator=torch.Generator().manual_seed(seed)).double()
        points = torus.decode(way.u + bump * by)
        assert points.diff(dim=0).norm(dim=1).sum() >= way.length - 1e-3
    assert way.u[20, 1] > 2.3 or way.u[20, 1] < -0.3  # towards the hole, where circles are short


def test_the_shorter_way_round_is_found_where_the_shorter_one_in_u_is_longer():
    angle = torch.tensor([0.0, 1.2, 2.4, 3.6, 3.9, 4.2, 4.5, 4.8, 5.1, 5.4, 5.7, 6.0]).double()
    x = torch.stack([angle.cos(), angle.sin()], 1)
    ring = manifolds.fit_curve(x, range(12), period=12)
    way = manifolds.geodesic(ring, 3.0, 9.0, 129)  # six steps either way; one is .9 shorter
    both = [float(ring._length_from_start(torch.tensor(v).double())) for v in (3.0, 9.0)]
    short = min(both[1] - both[0], float(ring.length) - both[1] + both[0])
    assert float(way.length) == pytest.approx(short, rel=1e-3)


def test_under_a_density_the_way_through_a_flat_space_follows_the_data():
    angle = torch.linspace(0, math.pi, 60).double()
    x = _turned(torch.stack([5 * angle.cos(), 5 * angle.sin()], 1))
    flat = manifolds.fit_flat(x)
    ends = flat.encode(x[[0, -1]])
    way = manifolds.geodesic(flat, ends[0], ends[1], 41, metric=manifolds.Density(x, 0.6))
    straight = manifolds.geodesic(flat, ends[0], ends[1], 41)
    off = torch.cdist(flat.decode(way.u), x).amin(1).max()
    assert float(straight.length) == pytest.approx(10, rel=1e-6)
    assert off < 0.3
    assert torch.cdist(flat.decode(straight.u), x).amin(1).max() > 3


def test_under_the_fisher_metric_equal_steps_change_behaviour_alike():
    u = torch.arange(8).double()
    x = torch.stack([u, torch.zeros(8).double()], 1)
    line = manifolds.fit_curve(x, u)

    def behavior(at: Tensor) -> Tensor:
        p = torch.sigmoid(4 * (at - 3.5))
        return torch.stack([p, 1 - p], -1)

    way = manifolds.geodesic(line, 0.0, 7.0, 81, metric=manifolds.Fisher(behavior))
    angles = 2 * torch.asin(behavior(torch.tensor([0.0, 7.0]).double())[:, 0].sqrt())
    assert float(way.length) == pytest.approx(float(angles.diff().abs()), rel=2e-2)
    steps = behavior(way.u).sqrt().diff(dim=0).norm(dim=1)
    assert steps.max() < 1.2 * steps.min()


def test_a_batch_of_ways_is_its_ways_one_by_one():
    torus = _torus(12, 8)
    start = torch.tensor([[0.0, 2.0], [3.0, 7.0]]).double()
    end = torch.tensor([[4.0, 3.0], [9.0, 1.0]]).double()
    together = manifolds.geodesic(torus, start, end, 17)
    for i in range(2):
        alone = manifolds.geodesic(torus, start[i], end[i], 17)
        assert float(together.length[i]) == pytest.approx(float(alone.length), rel=1e-4)
    assert "2 ways" in repr(together)
    with pytest.raises(ManifoldError, match="at least 3"):
        manifolds.geodesic(torus, start, end, 2)
