"""The simulated benchmark: its simulators, its counts, its names."""

import math

import pytest
import torch

from benchmarks.belief import simulated
from benchmarks.task import Options


def test_the_right_simulator_draws_with_the_laws_probabilities(gen: torch.Generator):
    n, m = torch.zeros(20000).double(), torch.full((20000,), 0.5).double()
    share = simulated.as_assumed(n, m, gen).mean() / simulated.QUESTIONS
    assert float(share) == pytest.approx(1 / (1 + math.exp(1.0)), abs=2e-3)


def test_the_wrong_simulators_are_wrong_in_their_own_way(gen: torch.Generator):
    n, m = torch.full((400,), 128.0).double(), torch.full((400,), 1.0).double()
    right = simulated.as_assumed(n, m, gen)
    assert float(simulated.saturated(n, m, gen).mean()) < 0.93 * float(right.mean())
    n, m = torch.full((400,), 8.0).double(), torch.zeros(400).double()
    variance = float(simulated.as_assumed(n, m, gen).var())
    runs = torch.stack([simulated.questions_differ(n[:1], m[:1], gen) for _ in range(400)])
    # Questions drawn anew each time: no more spread than the law's own, but another mean.
    assert float(runs.var()) == pytest.approx(variance, rel=0.5)


def test_a_few_simulations_have_every_number_and_hold_the_truth_mostly(tiny):
    outcome = simulated.measure_simulated(tiny("tiny-llama"), Options(limit=4))
    assert set(outcome.controls) == set(simulated.CONTROLS)
    for name in simulated.NAMES:
        assert outcome.numbers[f"coverage_{name}"].value in (0.25, 0.5, 0.75, 1.0)
        error = outcome.numbers[f"error_{name}"].value
        assert error is not None
        assert abs(error) < 0.3
    boundary = outcome.numbers["boundary_max_abs"].value
    assert boundary is not None
    assert boundary < 1e-9
