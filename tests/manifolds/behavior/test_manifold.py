import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

import manifolds
from manifolds import Behavior, ManifoldError


def _means(n: int = 12, sharpness: float = 0.5) -> torch.Tensor:
    gap = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    gap = torch.minimum(gap, n - gap).double()
    return torch.cat([-sharpness * gap.square(), torch.full((n, 1), -2.0).double()], 1).softmax(1)


def _samples() -> tuple[torch.Tensor, torch.Tensor]:
    u = torch.arange(12).repeat(8)
    noise = torch.randn(96, 13, generator=torch.Generator().manual_seed(0)).double()
    return (_means()[u].log() + 0.3 * noise).softmax(1), u


def _ring() -> Behavior:
    p, u = _samples()
    return manifolds.fit_behavior(p, u, period=12)


def test_it_is_the_published_recipe_in_numpy() -> None:
    p, u = _samples()
    means = np.stack([p[u == i].mean(0).numpy() for i in range(12)])
    floored = np.maximum(means, 1e-8)
    psi = np.sqrt(floored / floored.sum(1, keepdims=True))
    base = psi.mean(0) / np.linalg.norm(psi.mean(0))
    angle = np.arccos(psi @ base)[:, None]
    tangent = angle / np.sin(angle) * (psi - np.cos(angle) * base)
    spline = CubicSpline(range(13), np.concatenate([tangent, tangent[:1]]), bc_type="periodic")
    fine = np.linspace(0, 12, 61)
    t = spline(fine)
    size = np.linalg.norm(t, axis=1, keepdims=True)
    expected = np.square(np.cos(size) * base + np.sin(size) * t / size)
    found = _ring().decode(torch.from_numpy(fine))
    # 1e-12: the same formulas in float64.
    assert np.allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_class_means_are_met_and_everything_is_a_distribution() -> None:
    p, u = _samples()
    ring = _ring()
    means = torch.stack([p[u == i].mean(0) for i in range(12)])
    assert torch.allclose(ring.decode(ring.knots), means, rtol=0, atol=1e-7)
    between = ring.decode(torch.linspace(-30, 30, 2000, dtype=torch.float64))
    assert (between >= 0).all()
    assert (between.sum(1) - 1).abs().max() < 1e-14


def test_hard_outputs_stay_distributions_too() -> None:
    hard = torch.eye(7)
    ring = manifolds.fit_behavior(hard, range(7), period=7, other=False)
    between = ring.decode(torch.linspace(0, 7, 300))
    assert (between >= 0).all()
    # 1e-6: float32.
    assert (between.sum(1) - 1).abs().max() < 1e-6
    assert torch.allclose(ring.decode(range_tensor(7)), hard, rtol=0, atol=1e-5)
    assert torch.allclose(ring.encode(hard), range_tensor(7), rtol=0, atol=1e-3)


def range_tensor(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32)


def test_the_nearest_distribution_is_nearest_by_every_metric() -> None:
    ring = _ring()
    generator = torch.Generator().manual_seed(1)
    p = (2 * torch.randn(60, 13, generator=generator).double()).softmax(1)
    cloud = ring.decode(torch.linspace(0, 12, 12_001, dtype=torch.float64))
    for name in ("bhattacharyya", "hellinger", "fisher_rao"):
        brute = getattr(manifolds, name)(p[:, None], cloud).amin(1)
        found = ring.distance(p, name)
        # 3e-6: where a root passes zero the mirrored manifold has a kink that can hide a minimum.
        assert (found - brute).max() < 3e-6
        # 1e-6: the cloud is a thousandth of a class apart, and the minimum is flat.
        assert (brute - found).max() < 1e-6


def test_points_of_the_manifold_are_at_no_distance() -> None:
    ring = _ring().to("cpu", torch.float32)
    p = ring.decode(torch.linspace(0, 12, 100))
    assert ring.distance(p, "hellinger").max() < 1e-6
    assert ring.distance(p).max() < 1e-12


def test_totals_that_are_off_by_rounding_do_not_count_as_distance() -> None:
    ring = _ring()
    p = ring.decode(torch.linspace(0, 11, 12, dtype=torch.float64))
    assert ring.distance(p * 1.0005).max() < 1e-12


def test_the_arc_length_is_a_sum_of_hellinger_distances() -> None:
    ring = _ring()
    u = ring.path(11, 3, 3001)
    steps = manifolds.hellinger(ring.decode(u)[1:], ring.decode(u)[:-1]).sum()
    # 1e-6 relative: what 3000 chords fall short of the arc.
    assert float(ring.arc_length(11, 3)) == pytest.approx(float(steps), rel=1e-6)
    assert float(ring.arc_length(3, 11)) == pytest.approx(float(ring.arc_length(11, 3)), rel=1e-12)


def test_a_line_clamps_and_a_ring_wraps() -> None:
    p, u = _samples()
    line = manifolds.fit_behavior(p, u)
    assert float(line.encode(line.decode(11))) == pytest.approx(11, abs=1e-9)
    assert line.period is None
    ring = _ring()
    assert torch.allclose(ring.decode(-1), ring.decode(11), rtol=0, atol=1e-13)
    wrapped = ring.encode(ring.decode(torch.tensor([-0.25, 12.5], dtype=torch.float64)))
    assert torch.allclose(wrapped, torch.tensor([11.75, 0.5], dtype=torch.float64), atol=1e-9)


def test_coherence_is_the_mass_of_the_concepts() -> None:
    p, _ = _samples()
    assert torch.equal(_ring().coherence(p), 1 - p[:, 12])
    no_other = manifolds.fit_behavior(_means(), range(12), period=12, other=False)
    with pytest.raises(ManifoldError, match=r"13 bins and none is 'other'"):
        no_other.coherence(p)


def test_repr_says_the_sizes() -> None:
    assert repr(_ring()) == "Behavior(12 knots, period 12, 13 bins, the last one other)"
    line = manifolds.fit_behavior(_means(), range(12), other=False)
    assert repr(line) == "Behavior(12 knots, open, 13 bins)"


def test_diagnostics_and_origin_are_those_of_the_fit() -> None:
    p, u = _samples()
    origin: dict[str, object] = {"model": "tiny-llama"}
    ring = manifolds.fit_behavior(p, u, period=12, origin=origin, smoothing="loo")
    assert ring.origin == origin
    assert ring.diagnostics["n_per_class"] == [8] * 12
    assert isinstance(ring.diagnostics["leave_one_class_out"], float)


def test_numpy_and_float32_are_accepted() -> None:
    p, u = _samples()
    assert manifolds.fit_behavior(p.numpy(), u.numpy(), period=12).digest == _ring().digest
    single = manifolds.fit_behavior(p.float(), u, period=12)
    assert single.base.dtype == torch.float32
    fine = torch.linspace(0, 12, 50, dtype=torch.float64)
    # 1e-6: the data are rounded to float32.
    assert torch.allclose(single.decode(fine), _ring().decode(fine), rtol=0, atol=1e-6)


def _bad(**changes: Any) -> dict[str, Any]:
    return {"probabilities": _means(), "u": list(range(12)), "period": 12, **changes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (_bad(probabilities=_means()[:, :12]), r"adds up to 0\.\d+, not to 1.*'other'"),
        (_bad(probabilities=_means().log()), r"not logits or log-probabilities"),
        (_bad(u=[0] * 12), r"1 distinct values modulo 12"),
        (_bad(u=[0, 1, math.inf]), r"12 samples but u has the shape \[3\]"),
        (_bad(probabilities=_means()[0]), r"shape \[13\]"),
        (_bad(probabilities=torch.full((12, 4), 0.25)), r"All 12 rows are equal"),
        (_bad(knots="middle"), r"knots is 'middle'"),
    ],
)
def test_what_no_behaviour_can_be_fitted_to_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifoldError, match=message):
        inspect.unwrap(manifolds.fit_behavior)(**arguments)


def test_an_unknown_metric_and_other_bins_are_refused() -> None:
    with pytest.raises(ManifoldError, match=r"metric is 'kl'.*'bhattacharyya', 'hellinger'"):
        inspect.unwrap(Behavior.distance)(_ring(), _means(), "kl")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ManifoldError, match=r"shape \[3, 4\].*fitted on 13 bins"):
        _ring().encode(torch.full((3, 4), 0.25))


def test_a_spec_whose_base_does_not_belong_is_refused() -> None:
    spec = _ring().spec()
    with pytest.raises(ManifoldError, match=r"base that does not belong"):
        Behavior.from_spec({**spec, "base": torch.ones(5)})
    tangent = _ring().tangent
    assert Behavior.from_spec({**spec, "tangent": tangent}).digest == _ring().digest
