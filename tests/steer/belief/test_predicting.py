"""The pre-flight check against what the controllers and the formula say."""

import pytest
import torch

import steer
from steer import LM, Site
from steer.belief import Belief, Control, Count, Forecast, predict

PROMPTS = [[5, 17, 30, 44, 8], [60, 17, 17, 9, 21, 70, 4, 5], [12, 13]]
SITE = Site(1)


@pytest.fixture
def direction(lm: LM) -> torch.Tensor:
    return torch.linspace(-1, 1, lm.d_model)


@pytest.fixture
def belief(direction: torch.Tensor) -> Belief:
    known = steer.belief.identity(SITE, direction)
    return Belief(a=2.0, b=-1.0, gamma=0.5, alpha=0.5, valid=(-1.0, 1.0), intervention=known)


def test_the_adds_that_it_knows_are_added_up_per_row(lm, belief, direction):
    plan = [
        steer.Add(SITE, direction, torch.tensor([0.1, 0.2, 0.3])),
        steer.Add(SITE, direction, 0.5),
        steer.Add(Site(2), direction, 9.0),
    ]
    found = predict(lm, belief, plan, PROMPTS, evidence=torch.tensor([0.0, 4.0, 16.0]))
    strength = torch.tensor([0.6, 0.7, 0.8], dtype=torch.float64)
    torch.testing.assert_close(found.strength, strength)
    expected = 2 * strength - 1 + 0.5 * torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(found.log_odds, expected)
    torch.testing.assert_close(found.posterior, expected.sigmoid())
    assert found.near.tolist() == (expected.abs() <= 1).tolist()
    assert len(found.uncovered) == 1
    assert "blocks.2" in found.uncovered[0]
    assert "not covered" in repr(found)


def test_a_controller_predicts_its_target_from_what_the_prompts_hold(lm, belief, direction):
    plan = [Control(belief, SITE, direction, 0.5, torch.tensor([1.0, 4.0, 0.0]))]
    found = predict(lm, belief, plan, PROMPTS)
    torch.testing.assert_close(found.log_odds, torch.full((3,), 0.5, dtype=torch.float64))
    assert not found.extrapolated.any()


def test_strengths_beyond_the_valid_ones_are_marked(lm, belief, direction):
    plan = steer.Rows([[steer.Add(SITE, direction, s)] for s in (0.5, 1.5, -2.0)])
    found = predict(lm, belief, plan, PROMPTS, evidence=Count((17,)))
    assert found.evidence.tolist() == [1, 2, 0]
    assert found.extrapolated.tolist() == [False, True, True]
    assert repr(found).count("extrapolated") == 2


def test_evidence_must_be_known_beforehand(lm, belief, direction):
    with pytest.raises(steer.BeliefError, match="Give evidence="):
        predict(lm, belief, [steer.Add(SITE, direction)], PROMPTS)
    found = predict(lm, belief, [Forecast(belief, 4.0)], PROMPTS)
    torch.testing.assert_close(found.log_odds, torch.zeros(3, dtype=torch.float64))
