"""The figures that the belief benchmark was asked for, on the real model."""

import pytest

import steer
from benchmarks.stats import Number
from benchmarks.task import Options
from benchmarks.tasks.belief import belief_sentiment


def value(number: Number) -> float:
    assert number.value is not None
    return number.value


@pytest.mark.real
@pytest.mark.slow
def test_unseen_strengths_and_longer_contexts_are_predicted_on_smollm2():
    lm = steer.load("smollm2-135m")
    outcome = belief_sentiment.measure(lm, Options(seed=0, limit=None))
    numbers, controls = outcome.numbers, outcome.controls
    assert value(numbers["r_held_strength"]) >= 0.95
    assert value(numbers["r_extrapolate"]) >= 0.95
    assert value(numbers["mae_nats"]) <= 0.5
    assert value(numbers["range_share"]) >= 0.5
    assert value(controls["random_over_direction"]) < 0.5
    assert value(controls["shuffled_strength_mae_nats"]) > 2 * value(numbers["mae_nats"])
