"""The belief tasks are declared, each with the controls that it measures."""

import pytest

from benchmarks.belief import gaussian, persona, sentiment, steering, switch
from benchmarks.task import REGISTRY
from benchmarks.tasks import belief

CONTROLS = {
    "belief_sentiment": sentiment.CONTROLS,
    "belief_persona": persona.CONTROLS,
    "belief_switch": switch.CONTROLS,
    "belief_gaussian": gaussian.CONTROLS,
    "controller": steering.CONTROLS,
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_task_declares_the_controls_that_it_measures(name):
    assert REGISTRY.get(name) is getattr(belief, name)
    assert REGISTRY.get(name).controls == CONTROLS[name]
    assert REGISTRY.get(name).draw is not None
