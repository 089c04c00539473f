"""The demo on the real model: the figures that were asked for."""

import pytest

import steer
from benchmarks.stats import Number
from benchmarks.task import Options
from benchmarks.tasks.rings import months, weekdays


def interval(number: Number) -> tuple[float, float, float]:
    assert number.value is not None
    assert number.lo is not None
    assert number.hi is not None
    return number.lo, number.value, number.hi


@pytest.mark.real
@pytest.mark.parametrize(("task", "bound", "energy"), [(months, 1.3, 1.5), (weekdays, 1.5, 1.8)])
def test_moving_along_the_ring_stays_nearer_to_natural_outputs_than_the_chord(task, bound, energy):
    lm = steer.load("smollm2-135m")
    outcome = task.measure(lm, Options(seed=0, limit=None))
    lo, ratio, _ = interval(outcome.numbers["chord_over_manifold"])
    assert ratio >= bound
    assert lo > 1.0
    assert interval(outcome.controls["permuted_over_manifold"])[1] >= 1.3
    along = interval(outcome.numbers["p_passed_manifold"])
    assert along[0] > interval(outcome.numbers["p_passed_chord"])[2]
    lo, ratio, _ = interval(outcome.numbers["energy_chord_over_manifold"])
    assert ratio >= energy
    assert lo > 1.0
    assert interval(outcome.controls["energy_permuted_over_manifold"])[1] >= 1.3
    assert interval(outcome.controls["energy_random_length_over_manifold"])[0] > 1.0
    assert interval(outcome.numbers["isometry_gap"])[0] > 0
    # What is searched for from outputs alone lies along the ring that was fitted to states.
    assert interval(outcome.numbers["pullback_r2_gap"])[0] > 0
    assert interval(outcome.numbers["pullback_loss_over_chord"])[2] < 0.5
    # The targets are claims that hold; those about the mixture are reported as they come.
    assert outcome.tables["claims"][0]["holds"]
