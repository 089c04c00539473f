"""Methods at equal damage: the split, the plans, the budget, and effects against a slow loop."""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.methods import calibrating, measure, numbers, plans, questions, states
from benchmarks.methods.asking import ask
from benchmarks.methods.draw import draw_methods
from benchmarks.methods.questions import Behaviour
from benchmarks.result import Outcome, Result
from benchmarks.stats import Number
from steer import LM
from steer.evals.measuring.choices import measure_choices
from steer.evals.tasks import Choice
from steer.evals.tasks.parsing import rotations
from steer.interventions.plans import Plan, as_items

WORDS = ["red", "blue", "warm", "cold", "tall", "thin", "old", "new", "wet", "dry", "fast", "slow"]
TEXTS = [f"the {a} {b} was {c}" for a, b, c in zip(WORDS, WORDS[3:], WORDS[5:], strict=False)][:4]


def made(n: int) -> list[Choice]:
    lot = Random(0)
    found: list[Choice] = []
    for key in range(n):
        first, second = lot.sample(WORDS, 2)
        found += rotations(str(key), f"q{key}?", [first, second], key % 2)
    return found


def behaviour(name: str = "made", n_held_out: int = 5) -> Behaviour:
    return questions.split(name, "Say red.", made(23), n_held_out, seed=0)


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


def keys(items: tuple[Choice, ...]) -> set[str]:
    return {item.key for item in items}


def test_parts_share_no_question_and_keep_its_orders_together():
    one = behaviour()
    parts = [keys(part) for part in (one.fit, one.validation, one.held_out)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 23
    assert len(one.held_out) == 2 * len(parts[2]) == 10
    # Not by order, and by the seed alone.
    assert parts[2] != {str(k) for k in range(5)}
    assert behaviour() == one
    assert questions.split("made", "", made(23), 5, seed=1).held_out != one.held_out


def test_questions_of_three_options_are_left_out_and_too_few_are_refused():
    more = [*made(23), *rotations("three", "which?", WORDS[:3], 0)]
    one = questions.split("made", "Say red.", more, 5, seed=0)
    assert one == behaviour()
    with pytest.raises(BenchmarkError, match="20 are held out and 3 are left"):
        questions.split("made", "", made(23), 20, seed=0)


def test_states_are_those_of_the_answers_letter_and_of_the_token_before(
    lm: LM, read: states.States
):
    items = behaviour().fit
    site, logits = steer.Site(2), []
    for at, item in enumerate(items[:4]):
        row = questions.contexts(lm, [item], "chat")[0]
        letter = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in "AB"]
        own = lm.capture([[*row, *letter[item.target]]], [site])[site][0]
        other = lm.capture([[*row, *letter[1 - item.target]]], [site])[site][0]
        torch.testing.assert_close(read.positive[0, at], own, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(read.negative[0, at], other, atol=1e-5, rtol=1e-4)
        known = lm.logits([row])[0].log_softmax(-1)
        logits.append(float(known[letter[item.target]] - known[letter[1 - item.target]]))
    wanted = torch.tensor([sum(logits[:2]) / 2, sum(logits[2:]) / 2])
    torch.testing.assert_close(read.log_odds[:2], wanted, atol=1e-4, rtol=1e-4)
    rows = questions.contexts(lm, items[:2], "chat")
    mean = lm.capture(rows, [site])[site].mean(0)
    torch.testing.assert_close(read.before[0, 0], mean, atol=1e-5, rtol=1e-4)


def test_the_mean_difference_is_that_of_the_means_and_shuffled_labels_give_another(
    read: states.States,
):
    wanted = read.positive[0].mean(0) - read.negative[0].mean(0)
    found = plans.mean_difference(read.positive[0], read.negative[0])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    shuffled = plans.shuffled_difference(read, 0)
    assert float(torch.cosine_similarity(found, shuffled, dim=0)) < 0.7
    assert torch.equal(shuffled, plans.shuffled_difference(read, 0))
    assert not torch.equal(shuffled, plans.shuffled_difference(read, 1))


def test_a_rotation_turns_the_mean_state_towards_the_difference(read: states.States):
    found = plans.methods(read, steer.Site(2), 0)
    (turn,) = as_items(found["rotation"])
    assert isinstance(turn, steer.Rotate)
    middle = torch.cat([read.positive[0], read.negative[0]]).mean(0)
    difference = plans.mean_difference(read.positive[0], read.negative[0])
    assert float(turn.plane[0] @ middle) > 0
    assert float(turn.plane[1] @ difference) > 0


def test_the_curve_rises_with_the_log_odds_of_its_questions():
    draw = torch.Generator().manual_seed(0)
    odds = torch.linspace(-2, 2, 36)[torch.randperm(36, generator=draw)]
    axis = torch.nn.functional.normalize(torch.randn(16, generator=draw), dim=0)
    before = odds[:, None] * axis + 0.01 * torch.randn(36, 16, generator=draw)
    nothing = torch.zeros(1, 72, 16)
    read = states.States(nothing, nothing, before[None], odds, torch.arange(36).repeat(2))
    curve = plans.curve_of(read)
    assert len(curve.knots) == plans.N_BINS
    along = curve.decode(curve.knots) @ axis
    torch.testing.assert_close(along, curve.knots, atol=0.05, rtol=0.0)


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
    draws = [arms[f"random {k}"]["value"] for k in range(2)]
    assert outcome.controls["random"].value == pytest.approx(sum(draws) / 2)


def test_fits_with_the_same_seed_are_the_same_plans(lm: LM, read: states.States):
    again = states.read(lm, behaviour().fit, [steer.Site(2)], "chat")
    first, second = (plans.methods(one, steer.Site(2), 3) for one in (read, again))
    other = plans.methods(read, steer.Site(2), 4)
    same = {name for name in first if _digest(first[name]) == _digest(other[name])}
    assert all(_digest(first[name]) == _digest(second[name]) for name in first)
    # The pair and the labels are drawn; nothing else is.
    assert set(first) - same == {"single_pair", "shuffled"}
    assert torch.equal(plans.random_directions(8, 3, 1), plans.random_directions(8, 3, 1))
    assert not torch.equal(plans.random_directions(8, 3, 1), plans.random_directions(8, 3, 2))


def _digest(plan: Plan) -> str:
    return steer.Rows([plan]).digest


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


@pytest.mark.real
def test_the_data_has_enough_questions_of_two_options():
    for one in questions.load(None, 0):
        assert len(keys(one.held_out)) == questions.N_HELD_OUT
        assert len(keys(one.fit)) == questions.N_FIT
        assert len(keys(one.validation)) == questions.N_VALIDATE
        assert one.instruction
    assert len(questions.texts(0)) == questions.N_TEXTS
