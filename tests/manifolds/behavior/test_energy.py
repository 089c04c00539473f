import math

import numpy as np
import pytest
import torch

import manifolds
from manifolds import Behavior, Curve, ManifoldError
from manifolds.behavior.energy import _pairs


def _log_means(n: int = 12) -> torch.Tensor:
    gap = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    gap = torch.minimum(gap, n - gap).double()
    return torch.cat([-0.5 * gap.square(), torch.full((n, 1), -2.0).double()], 1)


def _behavior() -> Behavior:
    return manifolds.fit_behavior(_log_means().softmax(1), range(12), period=12)


def _circle(n: int = 12) -> Curve:
    angle = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    return manifolds.fit_curve(torch.stack([angle.cos(), angle.sin()], 1), range(n), period=n)


def test_energy_is_the_sum_of_least_distances_by_brute_force() -> None:
    behavior = _behavior()
    generator = torch.Generator().manual_seed(0)
    paths = (2 * torch.randn(2, 3, 7, 13, generator=generator).double()).softmax(-1)
    cloud = behavior.decode(torch.linspace(0, 12, 12_001, dtype=torch.float64))
    overlap = np.einsum("abpi,ci->abpc", np.sqrt(paths.numpy()), np.sqrt(cloud.numpy()))
    bhattacharyya = -np.log(overlap.max(-1))
    # 1e-5: seven waypoints, each within 1e-6 of the best point of the cloud.
    assert np.allclose(
        manifolds.energy(paths, behavior).numpy(), bhattacharyya.sum(-1), rtol=0, atol=1e-5
    )
    hellinger = np.sqrt(1 - overlap.max(-1))
    found = manifolds.energy(paths, behavior, metric="hellinger", reduce="mean")
    assert found.shape == (2, 3)
    assert np.allclose(found.numpy(), hellinger.mean(-1), rtol=0, atol=1e-5)


def test_a_path_along_the_behaviour_has_no_energy_and_a_mixture_has() -> None:
    behavior = _behavior()
    along = behavior.decode(behavior.path(1, 6, 9))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    mixture = (1 - t) * along[0] + t * along[-1]
    assert float(manifolds.energy(along, behavior)) < 1e-12
    assert float(manifolds.energy(mixture, behavior)) > 0.5


def test_a_planted_ring_is_steered_along_the_behaviour_by_its_manifold_not_by_its_chord() -> None:
    # A read-out that is linear in the harmonics of the ring: outputs are bumps at the angle.
    def planted(u: torch.Tensor) -> torch.Tensor:
        angle = u[:, None] * 2 * math.pi / 12
        harmonics = torch.arange(1, 4, dtype=torch.float64)
        return torch.cat([(harmonics * angle).cos(), (harmonics * angle).sin()], 1)

    concepts = planted(torch.arange(12, dtype=torch.float64))
    curve = manifolds.fit_curve(concepts, range(12), period=12)
    behavior = manifolds.fit_behavior(
        (2 * concepts @ concepts.T).softmax(1), range(12), period=12, other=False
    )

    def steered(points: torch.Tensor) -> torch.Tensor:
        return (2 * points @ concepts.T).softmax(1)

    t = torch.linspace(0, 1, 13, dtype=torch.float64)
    along = manifolds.energy(steered(curve.decode(curve.path(1, 6, 13))), behavior)
    straight = manifolds.energy(steered(curve.chord(1, 6).decode(t)), behavior)
    assert float(along) < 0.05
    assert float(straight) > 10 * float(along)


def test_a_single_output_has_no_energy() -> None:
    with pytest.raises(ManifoldError, match=r"shape \[13\].*use behavior\.distance"):
        manifolds.energy(torch.full((13,), 1 / 13), _behavior())
    with pytest.raises(ManifoldError, match=r"fitted on 13 bins"):
        manifolds.energy(torch.full((5, 4), 0.25), _behavior())


def test_on_a_circle_lengths_go_with_behaviour_and_chords_less_so() -> None:
    found = manifolds.isometry(_circle(), _behavior())
    assert found.n_pairs == 66
    # Both rings are symmetric under a turn by one class, so lengths are proportional; 1e-6 is
    # what the two splines leave.
    assert found.manifold == pytest.approx(1, abs=1e-6)
    # Steps 1 to 6 round a circle, (12, 12, 12, 12, 12, 6) pairs, against sin(pi step / 12).
    steps = np.repeat(np.arange(1, 7), [12, 12, 12, 12, 12, 6])
    expected = np.corrcoef(steps, np.sin(np.pi * steps / 12))[0, 1]
    assert found.chord == pytest.approx(expected, abs=1e-6)


def test_pairs_inside_one_interval_are_dropped_unless_they_are_its_ends() -> None:
    for n_knots, closed, interior in ((4, True, 1), (4, False, 1), (5, True, 2), (3, False, 3)):
        m = interior + 1
        n = n_knots * m if closed else (n_knots - 1) * m + 1
        intervals = [
            {(start + step) % n if closed else start + step for step in range(m + 1)}
            for start in range(0, n_knots * m if closed else n - 1, m)
        ]
        expected = {
            (i, j)
            for i in range(n)
            for j in range(i + 1, n)
            if not any({i, j} <= interval for interval in intervals) or (i % m == 0 and j % m == 0)
        }
        first, second = _pairs(n, m, closed=closed)
        assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_a_line_and_points_between_its_knots() -> None:
    x = torch.linspace(0, 3, 6, dtype=torch.float64)
    line = manifolds.fit_curve(torch.stack([x, x.square()], 1), range(6))
    behavior = manifolds.fit_behavior(_log_means().softmax(1), range(12))
    found = manifolds.isometry(line, behavior, interior=1)
    # 11 points, 55 pairs; 5 intervals with 2 dropped pairs each.
    assert found.n_pairs == 45
    assert 0.8 < found.manifold < 1


def test_manifolds_that_do_not_belong_together_are_refused() -> None:
    behavior = _behavior()
    with pytest.raises(ManifoldError, match=r"curve has the period 11 and the behaviour 12"):
        manifolds.isometry(_circle(11), behavior)
    with pytest.raises(ManifoldError, match=r"interior is -1"):
        manifolds.isometry(_circle(), behavior, interior=-1)
    line = manifolds.fit_curve(torch.eye(3), [0, 1, 14])
    with pytest.raises(ManifoldError, match=r"from 0 to 14, but the behaviour only from 0 to 11"):
        manifolds.isometry(line, manifolds.fit_behavior(_log_means().softmax(1), range(12)))
    pair = manifolds.fit_curve(torch.eye(2), [0, 1])
    with pytest.raises(ManifoldError, match=r"1 pairs of knots"):
        manifolds.isometry(pair, manifolds.fit_behavior(_log_means().softmax(1), range(12)))
