"""Free answers: phrases that decline, and repetition, in closed form."""

import pytest

import steer
from steer.evals.measuring.answers import declines, measure_answers, repetition
from steer.evals.tasks import Prompt
from tests.steer.evals.measuring.conftest import add


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I\u2019m sorry, but no.", True),
        ("I  CANNOT help with that.", True),
        ("As an AI language model", True),
        ("Take two cups of flour.", False),
        ("A sorry sight, he could not know.", False),
    ],
)
def test_declining_phrases_are_found_whatever_the_case_and_the_quotes(text: str, expected: bool):
    assert declines(text) is expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], 0.0),
        ([7] * 13, 0.9),  # ten 4-grams, all the same
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # five, of which the last is the first
        ([1, 2, 3], 0.0),
    ],
)
def test_repetition_is_the_share_of_four_grams_that_came_before(tokens, expected):
    assert repetition(tokens) == pytest.approx(expected)


def test_answers_are_those_of_generate(lm: steer.LM, requests: list[Prompt]):
    arms = {"plan": add(lm, scope=steer.OUTPUT)}
    found = measure_answers(lm, requests, arms)
    chats = [[{"role": "user", "content": one.text}] for one in requests]
    for name, plan in (("base", None), ("plan", arms["plan"])):
        assert list(found.texts[name]) == list(lm.generate(chats, plan, max_new_tokens=32))
    assert found.declined.shape == found.repeated.shape == (2, len(requests))
