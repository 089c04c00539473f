"""Contrast-consistent search on planted pairs."""

import pytest
import torch

from probes import ProbeError, fit_consistent


def pairs(n=200, d=8, seed=0):
    """Opposite statements: their truth is along one axis, which set they are of along another."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 2, (n,), generator=generator) == 1
    axis = torch.nn.functional.normalize(
        torch.randn(d, generator=generator, dtype=torch.float64), dim=0
    )
    side = torch.randn(d, generator=generator, dtype=torch.float64)
    shift = 3 * (truth.double() * 2 - 1)[:, None] * axis
    first, second = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    # Noise as wide as this: with less, every direction that tells the pairs apart is consistent.
    return first + shift + side, second - shift - side, truth, axis


def loss(positive, negative, weight, bias):
    p, q = (torch.sigmoid((side - side.mean(0)) @ weight + bias) for side in (positive, negative))
    return float(((p - (1 - q)) ** 2 + torch.minimum(p, q) ** 2).mean())


def test_the_planted_direction_is_found_and_labels_turn_its_sign():
    positive, negative, truth, axis = pairs()
    blind = fit_consistent(positive, negative)
    assert abs(float(blind.direction @ axis)) > 0.9
    assert blind.diagnostics["sign_known"] is False
    for labels, sign in ((truth, 1), (~truth, -1)):
        probe = fit_consistent(positive, negative, labels=labels)
        assert sign * float(probe.direction @ axis) > 0.9
        accuracy = probe.diagnostics["held_out_accuracy"]
        assert isinstance(accuracy, float)
        assert accuracy > 0.95


def test_its_loss_is_below_that_of_random_directions_and_as_told():
    positive, negative, _, _ = pairs()
    probe = fit_consistent(positive, negative)
    middle = (positive.mean(0) + negative.mean(0)) / 2
    found = loss(positive, negative, probe.weight, probe.bias + probe.weight @ middle)
    assert found == pytest.approx(probe.diagnostics["loss"], abs=1e-9)
    generator = torch.Generator().manual_seed(1)
    norm = probe.weight.norm()
    for other in torch.randn(50, 8, generator=generator, dtype=torch.float64):
        assert found < loss(positive, negative, norm * other / other.norm(), 0.0)


def test_the_folded_midpoint_moves_each_set_by_half_the_difference_of_the_means():
    positive, negative, _, _ = pairs()
    probe = fit_consistent(positive, negative)
    half = probe.weight @ (positive.mean(0) - negative.mean(0)) / 2
    bias = probe.bias + probe.weight @ (positive.mean(0) + negative.mean(0)) / 2
    for side, sign in ((positive, 1), (negative, -1)):
        own = (side - side.mean(0)) @ probe.weight + bias
        torch.testing.assert_close(probe.logits(side), own + sign * half)


def test_a_stack_is_fitted_as_its_sites_one_by_one():
    positive, negative, truth, _ = pairs(60)
    sites = [torch.stack([side, side.flip(1)]) for side in (positive, negative)]
    stack = fit_consistent(*sites, labels=truth, n_iterations=50)
    single = fit_consistent(sites[0][1], sites[1][1], labels=truth, n_iterations=50)
    torch.testing.assert_close(stack[1].weight, single.weight, rtol=1e-6, atol=1e-8)


def test_sets_that_are_no_pairs_are_refused():
    positive, negative, _, _ = pairs(20)
    with pytest.raises(ProbeError, match="pairs in the same order"):
        fit_consistent(positive, negative[:-1])
    with pytest.raises(ProbeError, match="n_starts is 0"):
        fit_consistent(positive, negative, n_starts=0)
    with pytest.raises(ProbeError, match="constant within each set"):
        fit_consistent(torch.ones(20, 8), torch.zeros(20, 8))
