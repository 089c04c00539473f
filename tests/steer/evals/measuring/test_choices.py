"""Options in one sweep, against a loop over `lm.score` with each plan attached."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

import steer
from steer.evals.measuring.choices import BASE, measure_choices, summed_up
from steer.evals.measuring.rendering import context, has_template
from steer.evals.tasks import Choice
from tests.steer.evals.measuring.conftest import add


def looped(lm: steer.LM, items: Sequence[Choice], plan: list, form: str, per_token: bool) -> dict:
    """Return {key: [log-odds of each order]}, option by option."""
    found: dict[str, list[float]] = {}
    for item in items:
        row = context(lm, item, form)  # type: ignore[arg-type]
        scores = []
        for option in item.options:
            score = float(lm.score([row], [option], plan)[0])
            n = len(lm.tokenizer(option, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
            scores.append(score / n if per_token else score)
        target = scores.pop(item.target)
        found.setdefault(item.key, []).append(target - float(np.logaddexp.reduce(scores)))
    return found


@pytest.mark.parametrize("kind", ["letters", "endings"])
@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize("per_token", [False, True])
def test_log_odds_are_those_of_a_loop(
    lm: steer.LM, request: pytest.FixtureRequest, kind: str, form: str, per_token: bool
):
    items = request.getfixturevalue(kind)
    arms = {"one": add(lm, 0), "two": add(lm, 1, scope=steer.OUTPUT)}
    found = measure_choices(lm, items, arms, form=form, per_token=per_token)  # type: ignore[arg-type]
    assert found.arms == (BASE, "one", "two")
    for arm, plan in ((BASE, []), *arms.items()):
        wanted = looped(lm, items, plan, form, per_token)
        expected = [np.mean(wanted[key]) for key in found.keys]
        np.testing.assert_allclose(found.of(arm)[0], expected, atol=2e-4)
    assert np.abs(found.of("one")[0] - found.of(BASE)[0]).max() > 0.01


def test_a_preference_for_a_letter_cancels_over_the_orders():
    items = [Choice("k", "q", ("A", "B"), 0), Choice("k", "q turned", ("A", "B"), 1)]
    # The same log-probabilities in both orders: all that is known is the letter.
    found = summed_up(("base",), items, torch.tensor([[[-0.1, -2.4], [-0.1, -2.4]]]))
    np.testing.assert_allclose(found.log_odds, [[0.0]], atol=1e-7)
    np.testing.assert_allclose(found.chosen, [[0.5]])


def test_an_option_that_is_not_there_counts_for_nothing():
    items = [Choice("a", "q", ("A", "B"), 0), Choice("b", "q", ("A", "B", "C"), 2)]
    log_probs = torch.log(torch.tensor([[[0.6, 0.2, 0.0], [0.1, 0.2, 0.6]]]))
    found = summed_up(("base",), items, log_probs)
    np.testing.assert_allclose(found.log_odds, np.log([[3.0, 2.0]]), atol=1e-6)
    np.testing.assert_allclose(found.chosen, [[1.0, 1.0]])


def test_an_instruction_stands_before_the_question(lm: steer.LM, letters: list[Choice]):
    told = str(lm.tokenizer.decode(context(lm, letters[0], "chat", "Be brief.")))
    plain = str(lm.tokenizer.decode(context(lm, letters[0], "plain", "Be brief.")))
    assert has_template(lm)
    assert told.index("Be brief.") < told.index("Do you like")
    assert plain.startswith("Be brief.\n\nDo you like")
    assert plain.endswith("Answer: (")
    assert told.endswith("(")


def test_a_plan_that_never_fires_is_an_error_and_not_an_effect_of_zero(
    lm: steer.LM, letters: list[Choice]
):
    with pytest.raises(steer.NeverFired):
        measure_choices(lm, letters, {"x": add(lm, scope=steer.GENERATED)})


def test_logits_that_overflow_are_no_effect(tiny: Callable, letters: list[Choice]):
    lm = tiny("tiny-gpt2")  # a LayerNorm, whose variance is then infinite
    burst = [steer.Add(steer.Site(1), torch.arange(float(lm.d_model)), 1e37)]
    with pytest.raises(steer.PlanError, match=r"not numbers.*less strength"):
        measure_choices(lm, letters, {"x": burst})
