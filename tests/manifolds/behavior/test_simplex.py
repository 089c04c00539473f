import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from manifolds import ManifoldError, bhattacharyya, exp_map, fisher_rao, hellinger, log_map
from manifolds.behavior.simplex import check_distributions, exp_map_jet
from manifolds.spline import Jet


def _distributions(n: int, n_bins: int = 6, seed: int = 0, sharpness: float = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(n, n_bins, generator=generator).double()).softmax(1)


def test_distances_agree_with_their_definitions() -> None:
    p, q = _distributions(200), _distributions(200, seed=1)
    overlap = np.sqrt(p.numpy() * q.numpy()).sum(1)
    # 1e-12: the definitions in float64, away from equal arguments.
    assert np.allclose(hellinger(p, q).numpy(), np.sqrt(1 - overlap), rtol=0, atol=1e-12)
    assert np.allclose(bhattacharyya(p, q).numpy(), -np.log(overlap), rtol=0, atol=1e-12)
    assert np.allclose(fisher_rao(p, q).numpy(), 2 * np.arccos(overlap), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", [hellinger, bhattacharyya, fisher_rao])
def test_distances_are_zero_on_the_diagonal_symmetric_and_broadcast(
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    p, q = _distributions(5), _distributions(7, seed=1)
    assert torch.equal(distance(p, p), torch.zeros(5).double())
    table = distance(p[:, None], q)
    assert table.shape == (5, 7)
    assert torch.equal(table, distance(q, p[:, None]))
    assert torch.equal(table[2, 3], distance(p[2], q[3]))
    assert distance(p.to(torch.bfloat16), q[:5].to(torch.bfloat16)).dtype == torch.float32


def test_opposite_corners_are_as_far_as_can_be() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert float(hellinger(p, q)) == pytest.approx(1)
    assert float(bhattacharyya(p, q)) == math.inf
    assert float(fisher_rao(p, q)) == pytest.approx(math.pi)


def test_small_distances_keep_their_digits_in_float32() -> None:
    p = _distributions(1)[0]
    step = torch.tensor([1.0, -1, 1, -1, 1, -1]).double() * 1e-5 * p.amin()
    exact = float(hellinger(p, p + step))
    assert float(hellinger(p.float(), (p + step).float())) == pytest.approx(exact, rel=0.05)
    assert float(fisher_rao(p, p + step)) == pytest.approx(2 * 2**0.5 * exact, rel=1e-6)
    assert float(bhattacharyya(p, p + step)) == pytest.approx(exact**2, rel=1e-6)


def test_large_bhattacharyya_distances_keep_their_digits_in_float32() -> None:
    p, q = torch.tensor([1 - 1e-8, 1e-8]).double(), torch.tensor([1e-8, 1 - 1e-8]).double()
    exact = -math.log(2 * math.sqrt(1e-8 * (1 - 1e-8)))
    assert float(bhattacharyya(p.float(), q.float())) == pytest.approx(exact, rel=1e-6)


def test_exp_undoes_log() -> None:
    psi = _distributions(100).sqrt()
    base = psi.mean(0) / psi.mean(0).norm()
    tangent = log_map(base, psi)
    assert torch.allclose(exp_map(base, tangent), psi, rtol=0, atol=1e-14)
    assert torch.allclose(log_map(base, exp_map(base, tangent)), tangent, rtol=0, atol=1e-13)


def test_log_is_tangent_and_as_long_as_the_angle() -> None:
    psi = _distributions(100).sqrt()
    base = psi[0]
    tangent = log_map(base, psi)
    assert (tangent @ base).abs().max() < 1e-14
    assert torch.equal(tangent[0], torch.zeros(6).double())
    angle = torch.arccos((psi[1:] @ base).clamp(-1, 1))
    assert torch.allclose(tangent[1:].norm(dim=1), angle, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.3, 0.7, 0.71, 1.5, 3.0])
def test_the_jet_of_exp_agrees_with_automatic_differentiation(size: float) -> None:
    generator = torch.Generator().manual_seed(int(100 * size))
    base = _distributions(1)[0].sqrt()
    parts = torch.randn(3, 6, generator=generator).double()
    start, along, bend = parts - (parts @ base)[:, None] * base
    start = size * start / start.norm()

    def moving(time: torch.Tensor) -> torch.Tensor:
        return exp_map(base, start + time * along + time**2 / 2 * bend)

    def velocity(time: torch.Tensor) -> torch.Tensor:
        slope = torch.autograd.functional.jacobian(moving, time, create_graph=True)
        assert isinstance(slope, torch.Tensor)
        return slope

    jet = exp_map_jet(base, Jet(start, along, bend))
    # At zero |t| has no derivative, so compare a hair away from there.
    now = torch.tensor(1e-7 if size == 0 else 0.0, dtype=torch.float64)
    acceleration = torch.autograd.functional.jacobian(velocity, now)
    assert isinstance(acceleration, torch.Tensor)
    tolerance = 1e-5 if size < 1e-3 else 1e-10
    assert torch.allclose(jet.value, moving(now), rtol=0, atol=tolerance)
    assert torch.allclose(jet.first, velocity(now), rtol=0, atol=tolerance)
    assert torch.allclose(jet.second, acceleration, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.tensor([[0.5, 0.6]]), r"adds up to 1\.1, not to 1.*'other'"),
        (torch.tensor([[0.5, 0.5], [0.2, 0.2]]), r"adds up to 0\.4"),
        (torch.tensor([[1.5, -0.5]]), r"go from -0\.5 to 1\.5.*not logits"),
        (torch.tensor([[0.5, torch.nan]]), r"non-finite"),
        (torch.tensor([[0.2, 0.3, 0.5]]), r"shape \[1, 3\].*fitted on 2 bins"),
    ],
)
def test_rows_that_are_no_distributions_are_refused(p: torch.Tensor, message: str) -> None:
    with pytest.raises(ManifoldError, match=message):
        check_distributions(p, 2)


def test_distributions_rounded_to_half_precision_pass() -> None:
    check_distributions(_distributions(20).half())
    check_distributions(_distributions(20)[:0])
