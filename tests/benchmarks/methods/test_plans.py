"""Methods: parts that share no question, states against single passes, plans as they are meant."""

import pytest
import torch

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.methods import plans, questions, states
from steer import LM
from steer.evals.tasks.parsing import rotations
from steer.interventions.plans import Plan, as_items
from tests.benchmarks.methods.made import WORDS, behaviour, keys, made


@pytest.fixture
def read(lm: LM) -> states.States:
    """Return the states of the questions to fit on, at one site."""
    return states.read(lm, behaviour().fit, [steer.Site(2)], "chat")


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


@pytest.mark.real
def test_the_data_has_enough_questions_of_two_options():
    for one in questions.load(None, 0):
        assert len(keys(one.held_out)) == questions.N_HELD_OUT
        assert len(keys(one.fit)) == questions.N_FIT
        assert len(keys(one.validation)) == questions.N_VALIDATE
        assert one.instruction
    assert len(questions.texts(0)) == questions.N_TEXTS


def test_the_sentences_of_our_own_are_split_by_their_keys_and_asked_as_text():
    (one,) = questions.load_sentiment(None, 0)
    parts = [keys(part) for part in (one.fit, one.validation, one.held_out)]
    assert [len(part) for part in parts] == [48, 12, questions.N_HELD_OUT]
    assert not set(parts[0]) & set(parts[1]) | set(parts[1]) & set(parts[2])
    assert one.form == "plain"
    assert {item.options for item in one.fit} == {(" good", " bad")}
