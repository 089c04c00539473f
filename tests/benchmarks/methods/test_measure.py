"""Methods at equal damage: the budget, effects against a slow loop, and all that is reported."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import steer
from benchmarks.methods import calibrating, measure, numbers, plans, questions, states
from benchmarks.methods.asking import ask
from benchmarks.methods.draw import draw_methods
from benchmarks.result import Outcome, Result
from benchmarks.stats import Number
from steer import LM
from steer.evals.measuring.choices import measure_choices
from steer.evals.tasks import Choice
from steer.interventions.plans import Plan, as_items
from tests.benchmarks.methods.made import TEXTS, behaviour


@pytest.fixture(scope="module")
def outcome(tiny: Callable[[str], LM]) -> Outcome:
    """Return one measurement that several tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "N_RANDOM", 2)
        return measure.measured(tiny("tiny-llama"), [behaviour()], TEXTS, 0)


@pytest.fixture
def read(lm: LM) -> states.States:
    """Return the states of the questions to fit on, at one site."""
    return states.read(lm, behaviour().fit, [steer.Site(2)], "chat")


def test_answers_agree_with_a_loop_of_scores_and_with_the_library(lm: LM, read: states.States):
    items = behaviour().held_out
    fitted = plans.methods(read, steer.Site(2), 0)
    arms: dict[str, Plan] = {name: fitted[name] for name in ("mean_difference", "manifold")}
    answers = ask(lm, items, arms, "chat", "Say red.")
    assert answers.arms == ("base", "mean_difference", "manifold", "prompting")
    rows = questions.contexts(lm, items, "chat")
    told = questions.contexts(lm, items, "chat", "Say red.")
    asked = {"base": (rows, []), "prompting": (told, [])}
    asked |= {name: (rows, plan) for name, plan in arms.items()}
    for at, name in enumerate(answers.arms):
        odds, kl = _slow(lm, items, *asked[name], rows)
        np.testing.assert_allclose(answers.log_odds[at], odds, atol=1e-4)
        np.testing.assert_allclose(answers.kl[at], kl, atol=1e-4)
    library = measure_choices(lm, items, arms)
    np.testing.assert_allclose(answers.log_odds[:3], library.log_odds, atol=1e-4)
    assert list(answers.effect("base")) == [0.0] * 5


def _slow(
    lm: LM, items: tuple[Choice, ...], given: list[list[int]], plan: Plan, plain: list[list[int]]
) -> tuple[list[float], list[float]]:
    """Return log-odds and KL by question, one row at a time."""
    odds: dict[str, list[float]] = {}
    damage: dict[str, list[float]] = {}
    for item, row, before in zip(items, given, plain, strict=True):
        scores = [float(lm.score([row], [option], plan)[0]) for option in item.options]
        odds.setdefault(item.key, []).append(scores[item.target] - scores[1 - item.target])
        p = _distribution(lm, before, [])
        q = _distribution(lm, row, plan)
        damage.setdefault(item.key, []).append(float((p * (p.log() - q.log())).sum()))
    return [sum(v) / len(v) for v in odds.values()], [sum(v) / len(v) for v in damage.values()]


def _distribution(lm: LM, row: list[int], plan: Plan) -> Tensor:
    ids = torch.tensor([row])
    if not plan:
        with torch.no_grad():
            return lm.model(input_ids=ids).logits[0, -1].double().softmax(-1)
    with torch.no_grad(), lm.attached(plan):
        return lm.model(input_ids=ids).logits[0, -1].double().softmax(-1)


def test_every_plan_stays_within_its_budget_and_most_reach_it(lm: LM, read: states.States):
    texts = calibrating.texts_of(lm, TEXTS, [behaviour()])
    fitted = plans.methods(read, steer.Site(2), 0)
    found = calibrating.all_calibrated(lm, fitted, texts, kl=0.25)
    for name, one in found.items():
        output = name in plans.OUTPUT_ARMS
        nats = steer.divergence(
            lm,
            list(texts.openings if output else texts.whole),
            [as_items(one.plan)],
            scope=~steer.FIRST,
            max_new_tokens=calibrating.N_NEW if output else 0,
        ).quantile(0.95)
        assert float(nats[0]) <= 0.25 + 1e-4, name
        assert one.suggestion.kl == pytest.approx(float(nats[0]), abs=1e-4), name
        assert one.output == output
        if one.suggestion.reached:
            assert one.suggestion.kl > 0.2, name
        else:
            assert one.suggestion.factor == pytest.approx(plans.AT_MOST[name], rel=1e-6), name
    assert found["mean_difference"].suggestion.reached
    assert found["mean_difference_output"].suggestion.reached


def test_every_number_and_every_control_is_there(outcome: Outcome):
    for side, names in (
        (outcome.numbers, numbers.METHODS + numbers.BESIDE),
        (outcome.controls, measure.CONTROLS),
    ):
        wanted = {
            name + end for name in names for end in ("", "_kl", "_answer_kl", "_anti_steerable")
        }
        assert set(side) == wanted
        unscored = {name for name, number in side.items() if number.value is None}
        assert unscored <= {"prompting_kl"}
    assert outcome.numbers["prompting_kl"].value is None
    assert set(outcome.tables["above_random"]) >= set(numbers.METHODS)
    arms = outcome.tables["behaviours"]["made"]
    assert {"random 0", "random 1", "random_output 1", "random_quarter 1"} <= set(arms)
    effects = outcome.tables["validation"]["made"]
    assert outcome.tables["site"] == max(effects, key=effects.__getitem__)


def test_everything_but_the_opposite_was_brought_to_the_budget(outcome: Outcome):
    for side in (outcome.numbers, outcome.controls):
        for name, number in side.items():
            if name.endswith("_kl") and not name.endswith(("answer_kl", "opposite_kl")):
                budget = 0.25 if "quarter" in name else 1.0
                assert number.hi is None or number.hi <= budget, name
    arms = outcome.tables["behaviours"]["made"]
    for name in ("mean_difference", "shuffled", "random 0", "random_output 1"):
        assert arms[name]["reached"]
        assert arms[name]["kl"] > 0.9


def test_the_value_is_the_mean_effect_and_a_random_one_is_over_all_draws(outcome: Outcome):
    arms = outcome.tables["behaviours"]["made"]
    for name in ("mean_difference", "rotation", "prompting", "opposite"):
        found = {**outcome.numbers, **outcome.controls}[name]
        assert found.value == pytest.approx(arms[name]["value"])
        assert found.lo is not None
        assert found.hi is not None
        assert found.lo <= arms[name]["value"] <= found.hi
    assert arms["opposite"]["value"] != arms["mean_difference"]["value"]
    draws = [arms[f"random {k}"]["value"] for k in range(2)]
    assert outcome.controls["random"].value == pytest.approx(sum(draws) / 2)


def test_a_measurement_with_the_same_seed_gives_the_same_numbers(
    lm: LM, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measure, "N_RANDOM", 2)
    again = measure.measured(lm, [behaviour()], TEXTS, 0)
    assert again.numbers == outcome.numbers
    assert again.controls == outcome.controls
    assert again.tables == outcome.tables


def test_the_interval_of_random_directions_holds_each_of_them():
    lot = np.random.default_rng(0)
    question = lot.normal(size=(1, 40))
    draws = np.array([[-1.0], [-0.3], [0.4], [1.2]]) + 0.1 * question
    one = numbers.averaged([draws], 0)
    assert one.value == pytest.approx(draws.mean())
    assert one.lo is not None
    assert one.hi is not None
    assert one.lo < draws.mean(1).min() + 0.05
    assert one.hi > draws.mean(1).max() - 0.05
    assert numbers.averaged([draws], 0) == one


def test_the_interval_over_questions_is_that_of_the_standard_error():
    lot = np.random.default_rng(1)
    grids = [lot.normal(1.0, 0.5, size=(1, 60)) for _ in range(3)]
    one = numbers.averaged(grids, 0)
    error = np.sqrt(sum(grid.var() / grid.shape[1] for grid in grids)) / 3
    assert one.lo is not None
    assert one.hi is not None
    # 2,000 resamples: the ends wander by some percent.
    assert one.hi - one.lo == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_beyond_random_means_that_intervals_do_not_touch():
    random = Number(0.0, -0.5, 0.5)
    assert numbers.beyond(Number(1.0, 0.6, 1.4), random) == (True, False)
    assert numbers.beyond(Number(-1.0, -1.4, -0.6), random) == (False, True)
    assert numbers.beyond(Number(0.8, 0.4, 1.2), random) == (False, False)


def test_the_result_draws(outcome: Outcome, tmp_path):
    made = Result("methods", "tiny", outcome.numbers, outcome.controls, {}, outcome.tables)
    (picture,) = draw_methods(made, tmp_path / "methods.json")
    assert picture.stat().st_size > 10_000
