import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline, RBFInterpolator
from torch import Tensor

import manifolds
from manifolds import ManifoldError


def _grid(*sizes: int) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(n).double() for n in sizes))


def _states(n: int, d_model: int = 9) -> Tensor:
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(0)).double()


def _lifted(u: Tensor, periods: tuple[float | None, ...]) -> np.ndarray:
    """Scale open axes to length 1 and turn periodic ones into circles of circumference 1."""
    sides = []
    for axis, turn in enumerate(periods):
        side = u[:, axis].numpy()
        if turn is None:
            sides.append((side - side.min()) / np.ptp(side))
        else:
            angle = 2 * np.pi * side / turn
            sides += [np.cos(angle) / (2 * np.pi), np.sin(angle) / (2 * np.pi)]
    return np.stack(sides, 1)


@pytest.mark.parametrize("kernel", ["thin_plate_spline", "cubic"])
@pytest.mark.parametrize("periods", [(None, None), (6, None), (6, 4)])
@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_it_is_scipys_radial_interpolator_over_the_lifted_coordinates(kernel, periods, smoothing):
    u, x = _grid(6, 4), _states(24)
    surface = manifolds.fit_surface(x, u, periods=periods, kernel=kernel, smoothing=smoothing)
    values = surface.subspace.coordinates(x).numpy()
    oracle = RBFInterpolator(
        _lifted(u, periods), values, kernel=kernel, degree=1, smoothing=smoothing
    )
    inside = torch.cat([u, u + 0.25])[torch.tensor([0, 5, 9, 24, 29, 33])]
    inside = torch.minimum(inside, surface.axes.upper)
    both = _lifted(torch.cat([inside, u]), periods)[:6]
    assert np.abs(oracle(both) - surface.value(inside).numpy()).max() < 1e-9


def test_samples_of_equal_coordinates_are_averaged_and_weighed_by_their_number():
    u = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [2, 1], [13, 0]]).double()
    x = _states(7)
    wrapped = manifolds.fit_surface(x, u, periods=(12, None), smoothing=0.1)
    assert wrapped.diagnostics["n_per_class"] == [1, 1, 2, 2, 1]
    exact = manifolds.fit_surface(x, u, periods=(12, None), variance=1)
    assert torch.allclose(exact.decode(u[2]), (x[2] + x[6]) / 2)
    assert torch.allclose(exact.decode(u[4]), (x[3] + x[4]) / 2)


def test_a_plane_is_reproduced_and_no_class_is_missed_when_left_out():
    u = _grid(5, 4)
    x = u @ _states(2) + 3
    surface = manifolds.fit_surface(x, u, variance=1)
    between = torch.tensor([[0.3, 1.7], [3.2, 2.9]]).double()
    assert torch.allclose(surface.decode(between), between @ _states(2) + 3)
    error = surface.diagnostics["leave_one_class_out"]
    assert isinstance(error, float)
    assert error < 1e-9


@pytest.mark.parametrize("smoothing", [0, 0.05])
def test_leaving_a_class_out_is_what_refitting_without_it_gives(smoothing):
    u = _grid(4, 4)
    x = torch.cat([_states(16), 4 * u], 1)
    found = manifolds.fit_surface(x, u, smoothing=smoothing, variance=1)
    away = x - x.mean(0)
    missed = []
    for i in range(16):
        rest = torch.arange(16) != i
        z = _lifted(u, (None, None))
        oracle = RBFInterpolator(
            z[rest.numpy()],
            x[rest].numpy(),
            degree=1,
            kernel="thin_plate_spline",
            smoothing=smoothing,
        )
        missed.append(np.square(oracle(z[i : i + 1])[0] - x[i].numpy()).sum())
    wanted = math.sqrt(np.mean(missed) / float(away.square().sum(1).mean()))
    assert found.diagnostics["leave_one_class_out"] == pytest.approx(wanted, rel=1e-8)


def test_smoothing_chosen_by_leaving_one_out_comes_nearer_to_the_truth_than_none():
    u = _grid(8, 6)
    truth = torch.stack([u[:, 0], u[:, 1], (u[:, 0] / 3).sin()], 1) @ _states(3)
    noisy = truth + 0.7 * torch.randn(48, 9, generator=torch.Generator().manual_seed(1)).double()
    rough = manifolds.fit_surface(noisy, u, variance=1)
    chosen = manifolds.fit_surface(noisy, u, smoothing="loo", variance=1)
    assert chosen.diagnostics["smoothing"] > 0  # type: ignore[operator]
    assert (chosen.decode(u) - truth).norm() < 0.7 * (rough.decode(u) - truth).norm()


def test_the_cubic_kernel_on_a_strip_is_close_to_a_natural_spline_along_it():
    side = torch.arange(9).double()
    u = torch.cartesian_prod(side, torch.tensor([0.0, 40.0]).double())
    wave = torch.stack([u[:, 0], (u[:, 0] / 1.5).sin(), torch.zeros(18).double()], 1)
    surface = manifolds.fit_surface(wave, u, kernel="cubic", variance=1)
    at = torch.tensor([[3.4, 0.0], [4.7, 0.0]]).double()
    oracle = CubicSpline(side, (side / 1.5).sin(), bc_type="natural")(at[:, 0])
    assert np.abs(surface.decode(at)[:, 1].numpy() - oracle).max() < 0.01


def test_what_no_surface_can_be_fitted_to_is_refused():
    u, x = _grid(3, 3), _states(9)
    line = torch.stack([torch.arange(9), 2 * torch.arange(9)], 1).double()
    for coordinates, how, message in [
        (torch.arange(9.0), {}, "use fit_curve"),
        (line, {}, "all on one line"),
        (u[:2].repeat(5, 1)[:9], {}, "same coordinate"),
        (u, {"periods": (3,)}, "one period for each"),
        (u, {"periods": (0, None)}, "positive, finite step"),
        (torch.where(u == 2, torch.nan, u), {}, "finite coordinates"),
        (u[:4], {}, "one number for each axis"),
        (u, {"smoothing": -1}, "negative"),
        (torch.where(u > 0, 1.0, 0.0) * torch.tensor([1, 0]), {}, "same coordinate"),
    ]:
        with pytest.raises(ManifoldError, match=message):
            manifolds.fit_surface(x, coordinates, **how)


def test_behaviour_rows_that_are_no_distributions_are_refused():
    with pytest.raises(ManifoldError, match="adds up to"):
        manifolds.fit_behavior_surface(torch.rand(9, 4) + 1, _grid(3, 3))


def test_a_behaviour_surface_meets_its_class_means():
    p = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)).double().softmax(1)
    fitted = manifolds.fit_behavior_surface(p, _grid(4, 3))
    assert torch.allclose(fitted.decode(_grid(4, 3)), p, atol=1e-7)
    assert fitted.distance(p).max() < 1e-9
    assert torch.allclose(fitted.coherence(p), 1 - p[:, -1])
