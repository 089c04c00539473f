"""The demo on the real model: the figures that the foundation was asked for."""

import pytest

import steer
from benchmarks.task import REGISTRY, Options


@pytest.mark.real
@pytest.mark.parametrize(("name", "bound"), [("months", 1.3), ("weekdays", 1.5)])
def test_moving_along_the_ring_stays_nearer_to_natural_outputs_than_the_chord(name, bound):
    lm = steer.load("smollm2-135m")
    outcome = REGISTRY.get(name).measure(lm, Options(seed=0, limit=None))
    ratio = outcome.numbers["chord_over_manifold"]
    assert ratio.value >= bound
    assert ratio.lo > 1.0
    assert outcome.controls["permuted_over_manifold"].value >= 1.3
    assert outcome.numbers["p_passed_manifold"].lo > outcome.numbers["p_passed_chord"].hi
