import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

import manifolds
from manifolds import ManifoldError


def _ring(n_classes: int = 12, d_model: int = 20) -> torch.Tensor:
    angle = torch.arange(n_classes, dtype=torch.float64) * 2 * math.pi / n_classes
    parts = [4 * angle.cos(), 3 * angle.sin(), (2 * angle).cos(), 0.5 * (3 * angle).sin()]
    x = torch.stack(parts, 1)
    return x @ torch.randn(4, d_model, generator=torch.Generator().manual_seed(0)).double()


def _samples(noise: float, per_class: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    u = torch.arange(12).repeat(per_class)
    generator = torch.Generator().manual_seed(1)
    return _ring()[u] + noise * torch.randn(len(u), 20, generator=generator).double(), u


def test_the_curve_is_scipys_spline_through_the_class_averages() -> None:
    x, u = _samples(noise=0.3)
    averages = np.stack([x[u == i].mean(0).numpy() for i in range(12)])
    ring = manifolds.fit_curve(x, u, period=12, variance=1)
    scipys = CubicSpline(range(13), [*averages, averages[0]], bc_type="periodic")
    fine = np.linspace(0, 12, 97)
    # 1e-10: a spline commutes with the change of coordinates, all components being kept.
    assert np.allclose(ring.decode(torch.from_numpy(fine)).numpy(), scipys(fine), atol=1e-10)
    line = manifolds.fit_curve(x, u, variance=1)
    scipys = CubicSpline(range(12), averages, bc_type="natural")
    fine = np.linspace(0, 11, 97)
    assert np.allclose(line.decode(torch.from_numpy(fine)).numpy(), scipys(fine), atol=1e-10)


def test_on_fewer_components_it_meets_the_flattened_averages() -> None:
    x, u = _samples(noise=0.3)
    ring = manifolds.fit_curve(x, u, period=12, n_components=3)
    averages = torch.stack([x[u == i].mean(0) for i in range(12)])
    assert ring.subspace.k == 3
    assert torch.allclose(ring.decode(ring.knots), ring.flatten(averages), rtol=0, atol=1e-10)


def test_order_of_samples_whole_turns_and_kind_of_u_do_not_matter() -> None:
    x, u = _samples(noise=0.3)
    ring = manifolds.fit_curve(x, u, period=12)
    order = torch.randperm(len(u), generator=torch.Generator().manual_seed(2))
    turned = (u + 12 * (torch.arange(len(u)) % 3 - 1))[order]
    again = manifolds.fit_curve(x[order], turned.tolist(), period=12.0)
    fine = torch.linspace(0, 12, 50, dtype=torch.float64)
    # 1e-10: averages are summed in another order.
    assert torch.allclose(again.decode(fine), ring.decode(fine), rtol=0, atol=1e-10)
    from_numpy = manifolds.fit_curve(x.numpy(), u.numpy(), period=12)
    assert from_numpy.digest == ring.digest


def test_both_ends_of_a_period_are_one_class() -> None:
    x = torch.cat([_ring(), _ring()[:1] + 1])
    ring = manifolds.fit_curve(x, range(13), period=12)
    assert len(ring.knots) == 12
    assert ring.diagnostics["n_per_class"] == [2] + [1] * 11
    assert torch.allclose(ring.decode(0), ring.flatten(_ring()[0] + 0.5), rtol=0, atol=1e-10)
    thirds = [i / 3 for i in range(12)] + [4 - 1e-13]
    assert len(manifolds.fit_curve(x, thirds, period=4).knots) == 12


def test_coordinates_that_differ_by_rounding_are_one_class() -> None:
    x = _ring()[:4]
    line = manifolds.fit_curve(x, [0, 0.3, 0.1 + 0.2, 1])
    assert line.diagnostics["n_per_class"] == [1, 2, 1]


def test_components_are_those_of_the_class_averages_and_fewer_than_the_classes() -> None:
    x, u = _samples(noise=1.0)
    ring = manifolds.fit_curve(x, u, period=12)
    assert ring.subspace.k <= 11
    averages = torch.stack([x[u == i].mean(0) for i in range(12)])
    pca = manifolds.fit_pca(averages)
    assert torch.allclose(ring.subspace.basis, pca.basis, rtol=0, atol=1e-10)
    explained = ring.diagnostics["explained"]
    assert isinstance(explained, float)
    assert 0.999 <= explained <= 1


def test_residual_kept_is_the_share_of_the_samples_own_deviation_off_the_subspace() -> None:
    x, u = _samples(noise=1.0)
    ring = manifolds.fit_curve(x, u, period=12, n_components=3)
    own = x - torch.stack([x[u == i].mean(0) for i in range(12)])[u]
    off = own - own @ ring.subspace.basis.T @ ring.subspace.basis
    expected = float(off.square().sum() / own.square().sum())
    assert ring.diagnostics["residual_kept"] == pytest.approx(expected, rel=1e-9)
    # Components of all 24 prompts, one less than they are, keep nothing: a full replacement.
    few, v = x[:24], u[:24]
    everything = manifolds.fit_curve(few, v, period=12, subspace=manifolds.fit_pca(few, variance=1))
    assert everything.diagnostics["residual_kept"] == pytest.approx(0, abs=1e-12)
    assert manifolds.fit_curve(_ring(), range(12), period=12).diagnostics["residual_kept"] is None


def test_leave_one_class_out_tells_a_ring_from_permuted_labels() -> None:
    x, u = _samples(noise=0.2)
    permutation = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    right = manifolds.fit_curve(x, u, period=12).diagnostics["leave_one_class_out"]
    wrong = manifolds.fit_curve(x, permutation[u], period=12).diagnostics["leave_one_class_out"]
    assert isinstance(right, float)
    assert isinstance(wrong, float)
    assert right < 0.25
    assert wrong > 0.9


def test_smoothing_goes_near_the_averages_and_lies_nearer_to_the_truth() -> None:
    x, u = _samples(noise=2.0, per_class=4)
    truth = manifolds.fit_curve(_ring(), range(12), period=12, variance=1)
    fine = torch.linspace(0, 12, 200, dtype=torch.float64)

    def error(smoothing: float) -> float:
        ring = manifolds.fit_curve(x, u, period=12, variance=1, smoothing=smoothing)
        return float((ring.decode(fine) - truth.decode(fine)).square().mean())

    chosen = manifolds.fit_curve(x, u, period=12, variance=1, smoothing="loo")
    penalty = chosen.diagnostics["smoothing"]
    assert isinstance(penalty, float)
    assert penalty > 0
    assert error(penalty) < 0.8 * error(0)
    loo = [manifolds.fit_curve(x, u, period=12, smoothing=s) for s in (0, penalty)]
    assert loo[1].diagnostics["leave_one_class_out"] < loo[0].diagnostics["leave_one_class_out"]  # pyright: ignore[reportOperatorIssue]


def test_angle_knots_draw_the_published_curve_while_u_stays_the_users() -> None:
    x = _ring()
    ring = manifolds.fit_curve(x, range(12), period=12, knots="angle", variance=1)
    # The published recipe, by numpy: the angle of the standardised first two components, sorted.
    centred = x.numpy() - x.numpy().mean(0)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ rows[:2].T
    plane = (plane - plane.mean(0)) / plane.std(0)
    angle = np.mod(np.arctan2(plane[:, 1], plane[:, 0]), 2 * np.pi)
    order = np.argsort(angle)
    at = np.append(angle[order], angle[order[0]] + 2 * np.pi)
    published = CubicSpline(at, x.numpy()[np.append(order, order[0])], bc_type="periodic")
    fine = torch.linspace(0, 12, 400, dtype=torch.float64)
    cloud = torch.from_numpy(published(np.linspace(at[0], at[-1], 40_001)))
    # 2e-3: the spacing of the cloud of points of the published curve.
    assert torch.cdist(ring.decode(fine), cloud).amin(1).max() < 2e-3
    assert torch.allclose(ring.decode(ring.knots), x, rtol=0, atol=1e-10)
    assert ring.knots.tolist() == list(range(12))


def test_arc_knots_give_the_spline_nearly_unit_speed_in_its_own_parameter() -> None:
    uneven = [0.0, 0.2, 1.0, 1.1, 2.5, 4.0, 4.4, 5.9]
    angle = torch.tensor(uneven, dtype=torch.float64)
    x = torch.stack([3 * angle.cos(), 3 * angle.sin()], 1)
    ring = manifolds.fit_curve(x, range(8), period=8, knots="arc")
    speed = ring.spline.jet(torch.linspace(0, 18, 500).double()).first.norm(dim=1)
    # 0.15: a cubic through points of a circle cannot have exactly unit speed.
    assert (speed - 1).abs().max() < 0.15
    assert torch.allclose(ring.spline.breaks.diff(), _lengths(ring), rtol=1e-3)
    given = manifolds.fit_curve(x, range(8), period=8)
    fine = torch.linspace(0, 8, 500, dtype=torch.float64)
    off = [(curve.decode(fine).norm(dim=1) - 3).abs().max() for curve in (ring, given)]
    assert off[0] < 0.3 * off[1]


def _lengths(ring: manifolds.Curve) -> torch.Tensor:
    knots = ring.breaks
    return ring.arc_length(knots[:-1], knots[1:])


def test_a_given_subspace_is_used_as_it_is() -> None:
    x, u = _samples(noise=0.5)
    space = manifolds.fit_pca(x, n_components=6)
    ring = manifolds.fit_curve(x, u, period=12, subspace=space)
    assert torch.equal(ring.subspace.basis, space.basis)
    assert torch.equal(ring.flatten(x), space.flatten(x))


def test_the_fit_is_stored_in_float32_unless_the_data_are_float64() -> None:
    x, u = _samples(noise=0.5)
    assert manifolds.fit_curve(x, u, period=12).spline.coefficients.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16):
        ring = manifolds.fit_curve(x.to(dtype), u, period=12, knots="angle")
        assert ring.warp is not None
        for part in (ring.spline.coefficients, ring.warp.breaks, ring.subspace.basis):
            assert part.dtype == torch.float32


def test_coordinates_in_half_precision_are_accepted() -> None:
    u = torch.arange(12, dtype=torch.bfloat16)
    assert manifolds.fit_curve(_ring(), u, period=12).knots.tolist() == list(range(12))


def test_gradients_of_the_data_are_no_obstacle() -> None:
    x, u = _samples(noise=0.5)
    ring = manifolds.fit_curve(x.requires_grad_(), u, period=12)
    assert not ring.decode(1).requires_grad


def _bad(**changes: Any) -> dict[str, Any]:
    return {"x": _ring(), "u": list(range(12)), "period": 12, **changes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (_bad(u=[0, 1] * 6), r"2 distinct values modulo 12, but a ring takes at least 3"),
        (_bad(u=[0, 12, 24] * 4), r"1 distinct values modulo 12"),
        (_bad(u=[5] * 12, period=None), r"1 distinct values, but a line takes at least 2"),
        (_bad(u=list(range(11))), r"12 samples but u has the shape \[11\].*as many numbers"),
        (_bad(u=[*range(11), math.nan]), r"u\[11\] is nan.*Drop that sample"),
        (_bad(u=["January"] * 12), r"u is no list of numbers: .*January.*Number them"),
        (_bad(u=[[0, 1], [2]]), r"u is no list of numbers"),
        (_bad(period=0), r"period is 0.*positive"),
        (_bad(period=-12), r"period is -12"),
        (_bad(period=math.inf), r"period is inf"),
        (_bad(x=_ring() * math.inf), r"12 of 12 rows are not finite"),
        (_bad(x=torch.ones(12, 5)), r"All 12 rows are equal"),
        (_bad(x=torch.ones(12, 2, 5)), r"shape \[12, 2, 5\]"),
        (_bad(n_components=12), r"support 1 to 4 components"),
        (_bad(n_components=2, subspace=manifolds.fit_pca(_ring())), r"Both a subspace and n_comp"),
        (_bad(subspace=manifolds.fit_pca(torch.eye(5))), r"fitted in 5 dimensions"),
        (_bad(smoothing=-1), r"smoothing is -1"),
        (_bad(smoothing="gcv"), r"smoothing is 'gcv'.*'loo'"),
        (_bad(knots="equal"), r"knots is 'equal'.*'given', 'angle', 'arc'"),
        (_bad(knots="angle", period=None), r"knots='angle' was asked for with period None"),
        (_bad(knots="angle", n_components=1), r"in 1 components"),
        (_bad(knots="angle", u=[0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]), r"make \d+ turns"),
        (_bad(x=_ring()[[0, 0, *range(2, 12)]], knots="arc"), r"Two neighbouring classes"),
    ],
)
def test_what_no_curve_can_be_fitted_to_is_refused(arguments: dict[str, Any], message: str) -> None:
    # Unwrapped, as the shape checker of the test run would refuse a misspelt choice before us.
    with pytest.raises(ManifoldError, match=message):
        inspect.unwrap(manifolds.fit_curve)(**arguments)


def test_remedies_name_parameters_that_exist() -> None:
    parameters = manifolds.fit_curve.__annotations__.keys()
    assert {"period", "knots", "smoothing", "n_components", "subspace", "variance"} <= parameters


def test_a_line_that_is_given_a_period_does_not_close() -> None:
    line = torch.stack([torch.arange(8.0), torch.arange(8.0).square() / 20], 1)
    with pytest.raises(ManifoldError, match="does not close: from u = 7 on to 8"):
        manifolds.fit_curve(line, range(8), period=8)
    # Seven eighths of a circle close: the last step is as long as it takes.
    angle = torch.arange(7) * 2 * torch.pi / 8
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    assert manifolds.fit_curve(circle, range(7), period=8).period == 8
