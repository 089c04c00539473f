"""Controllers and forecasts as a user calls them: doses, receipts, evidence, mistakes."""

import math
from typing import cast

import pytest
import torch

import steer
from steer import LM, Site
from steer.belief import Belief, Control, Count, Forecast

PROMPTS = [[5, 17, 30, 44, 8], [60, 17, 17, 9, 21, 70, 4, 5], [12, 13]]
SITE = Site(1)


@pytest.fixture
def belief() -> Belief:
    return Belief(a=0.5, b=-1.0, gamma=0.8, alpha=0.4)


@pytest.fixture
def direction(lm: LM) -> torch.Tensor:
    return torch.linspace(-1, 1, lm.d_model)


def closed_form(target: float, evidence: float) -> float:
    """Return (target - b - gamma * N**(1 - alpha)) / a of the fixture's law."""
    return (target + 1.0 - 0.8 * evidence**0.6) / 0.5


def test_the_dose_is_the_closed_form_and_equals_an_add_of_that_strength(lm, belief, direction):
    targets, evidence = [0.0, 2.0, -1.0], [0.0, 3.0, 10.0]
    control = steer.belief.controller(
        belief, SITE, direction, torch.tensor(targets), torch.tensor(evidence)
    )
    doses = [closed_form(t, n) for t, n in zip(targets, evidence, strict=True)]
    torch.testing.assert_close(control.doses, torch.tensor(doses, dtype=torch.float64))
    adds = [[steer.Add(SITE, direction, dose)] for dose in doses]
    mine, theirs = lm.logits(PROMPTS, [control]), lm.logits(PROMPTS, steer.Rows(adds))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_evidence_is_counted_in_each_rows_own_prompt(lm, belief, direction):
    count = Count((17, 5))
    control = Control(belief, SITE, direction, 1.0, count)
    counts = [2, 3, 0]
    adds = [[steer.Add(SITE, direction, closed_form(1.0, n))] for n in counts]
    with lm.attached([control]) as run:
        mine = lm.generate(PROMPTS, max_new_tokens=4)
    theirs = lm.generate(PROMPTS, steer.Rows(adds), max_new_tokens=4)
    assert mine.tokens == theirs.tokens
    wanted = torch.tensor([closed_form(1.0, n) for n in counts])
    torch.testing.assert_close(run.receipt[0].dose, wanted)
    torch.testing.assert_close(run.receipt[0].predicted, torch.ones(3))


def test_generated_tokens_are_no_evidence(lm, belief, direction):
    first = [row[0] for row in lm.generate(PROMPTS, max_new_tokens=1).tokens]
    control = Control(belief, SITE, direction, 1.0, Count(tuple({17, *first})), scope=steer.OUTPUT)
    receipt = lm.generate(PROMPTS, [control], max_new_tokens=6).receipt
    counts = [sum(token in {17, *first} for token in row) for row in PROMPTS]
    wanted = torch.tensor([closed_form(1.0, n) for n in counts])
    torch.testing.assert_close(receipt[0].dose, wanted)


def test_evidence_can_be_read_and_unreachable_rows_are_left_alone(lm, direction):
    class Sums:
        def scores(self, x: torch.Tensor) -> torch.Tensor:
            return 10 * x[..., 0].abs()

    read = steer.Read(Site(0), Sums(), steer.PROMPT)
    read_off = 10 * lm.capture(PROMPTS, [Site(0)])[Site(0)][:, 0].abs()
    doses = torch.tensor([closed_form(1.0, n) for n in read_off.tolist()])
    middle = float(doses.sort().values[1])
    narrow = Belief(a=0.5, b=-1.0, gamma=0.8, alpha=0.4, valid=(middle - 1e-3, middle + 1e-3))
    receipt = lm.generate(
        PROMPTS, [Control(narrow, SITE, direction, 1.0, read, scope=steer.OUTPUT)], max_new_tokens=2
    ).receipt
    wanted = torch.where((doses - middle).abs() <= 1e-3, doses, 0.0)
    torch.testing.assert_close(receipt[0].dose, wanted, rtol=1e-4, atol=1e-4)
    assert (receipt[0].edited > 0).tolist() == (wanted != 0).tolist()


def test_predicted_and_realised_log_odds_stand_in_the_receipt(lm, belief, direction):
    outcome = steer.belief.outcome([7, 9], [11])
    plan = [
        Control(belief, SITE, direction, 0.3, 2.0, outcome),
        Forecast(belief, 4.0, 0.5, outcome),
    ]
    with lm.attached(plan) as run:
        logits = lm.logits(PROMPTS).double()
    p = logits.softmax(-1)
    realised = (p[:, 7] + p[:, 9]).log() - p[:, 11].log()
    for line, predicted in zip(run.receipt, (0.3, 0.5 * 0.5 - 1 + 0.8 * 4**0.6), strict=True):
        torch.testing.assert_close(line.predicted, torch.full((3,), predicted))
        torch.testing.assert_close(line.realised.double(), realised, rtol=0, atol=1e-4)
        assert "predicted log-odds" in repr(line)


def test_a_forecast_changes_no_bit(lm, belief):
    plan = [Forecast(belief, 3.0, outcome=steer.belief.outcome([7], [11]))]
    assert torch.equal(lm.logits(PROMPTS), lm.logits(PROMPTS, plan))


def test_controllers_are_arms_of_sweeps(any_lm, belief):
    direction = torch.linspace(-1, 1, any_lm.d_model)
    arms: list[list[Control | Forecast]] = [
        [Control(belief, SITE, direction, t, Count((17, 5)))] for t in (-1.0, 0.0, 1.0)
    ]
    arms.append([*arms[0], Forecast(belief, 1.0, outcome=steer.belief.outcome([7], [11]))])
    sweep = steer.sweep(any_lm, PROMPTS, arms, lambda logits, _: logits)
    for at, plan in enumerate(arms):
        wanted = any_lm.logits(PROMPTS, plan)
        torch.testing.assert_close(sweep.values[at], wanted, rtol=0, atol=2e-5)
    assert sweep.receipts[3][1].realised is not None
    assert bool(sweep.receipts[3][1].realised.isfinite().all())


def test_an_unattainable_target_is_refused_with_what_is_attainable(direction):
    narrow = Belief(a=0.5, b=-1.0, gamma=0.8, alpha=0.4, valid=(-1.0, 1.0))
    with pytest.raises(steer.BeliefError, match=r"-1\.5.*-0\.5"):
        Control(narrow, SITE, direction, 3.0, 0.0)
    told = Control(narrow, SITE, direction, 3.0, 0.0, extrapolate=True)
    assert told.doses is not None
    assert math.isclose(float(told.doses), 8.0)


def test_another_direction_site_scope_or_unit_is_refused(direction):
    known = steer.belief.identity(SITE, direction)
    belief = Belief(a=0.5, b=-1.0, gamma=0.8, alpha=0.4, intervention=known)
    Control(belief, SITE, direction, 0.0, 1.0)
    for site, vector, scope in (
        (SITE, -direction, steer.ALL),
        (Site(2), direction, steer.ALL),
        (SITE, 2 * direction, steer.ALL),
        (SITE, direction, steer.OUTPUT),
    ):
        with pytest.raises(steer.BeliefError, match="was fitted on the intervention"):
            Control(belief, site, vector, 0.0, 1.0, scope=scope)


def test_evidence_read_after_the_edit_is_refused_at_attach(lm, belief, direction):
    class Zero:
        def scores(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., 0]

    late = steer.Read(Site(2), Zero(), steer.PROMPT)
    with (
        pytest.raises(steer.PlanError, match="computes after"),
        lm.attached([Control(belief, SITE, direction, 0.0, late)]),
    ):
        pass
    assert lm.registry.live == 0 if isinstance(lm.registry.live, int) else not lm.registry.live


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda b, d: Control(b, SITE, d, 0.0, -1.0), "negative"),
        (lambda b, d: Control(b, SITE, d, float("nan"), 1.0), "not finite"),
        (lambda b, d: Control(b, SITE, d, torch.zeros(2, 2), 1.0), "one for each row"),
        (lambda b, d: Control(b, SITE, d, 0.0, Count(())), "at least one"),
        (lambda b, d: steer.belief.outcome([3], [3]), "none on both"),  # noqa: ARG005
    ],
)
def test_malformed_values_are_refused_at_construction(make, says, belief, direction):
    with pytest.raises(steer.SteerError, match=says):
        make(belief, direction)


def test_controllers_are_saved_with_the_law_that_they_follow(tmp_path, lm, belief, direction):
    outcome = steer.belief.outcome([7], [11])
    plan = [Control(belief, SITE, direction, 0.5, Count((17,)), outcome), Forecast(belief, 2.0)]
    steer.save(plan, tmp_path / "plan.safetensors")
    again = cast("list[Control]", steer.load_artifact(tmp_path / "plan.safetensors"))
    assert [item.digest for item in again] == [item.digest for item in plan]
    assert torch.equal(lm.logits(PROMPTS, plan), lm.logits(PROMPTS, again))
