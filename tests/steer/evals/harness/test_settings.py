"""Generation arguments: what they mean, and what is refused by name."""

from typing import Any, cast

import pytest
from lm_eval.models.utils import normalize_gen_kwargs

import steer
from steer.evals import Refused
from steer.evals.harness.settings import Settings, seed_of, settings_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model():
    return steer.load("tiny-llama").model


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"until": "\n"},
        {"until": ["\n", "Q:"], "max_gen_toks": 7},
        {"max_new_tokens": 5, "do_sample": False},
        {"do_sample": False, "temperature": 0.7},
        {"temperature": 0.7},
        {"temperature": 0.0},
        {"do_sample": True, "temperature": 1.5, "max_tokens": 9},
    ],
)
def test_lengths_stops_and_greediness_are_those_of_lm_evals_own_reading(model, given):
    wanted = cast("dict[str, Any]", normalize_gen_kwargs(given, 256))
    found = settings_of(given, model=model, max_gen_toks=256)
    assert found.max_new_tokens == wanted["max_gen_toks"]
    assert list(found.stop) == wanted["until"]
    assert (found.temperature > 0) is wanted["do_sample"]
    if wanted["do_sample"]:
        assert found.temperature == wanted["temperature"]


def test_what_changes_nothing_is_taken(model):
    given = {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True, "top_p": None}
    assert settings_of(given, model=model, max_gen_toks=4) == Settings(4, (), 0.0, 0, 1.0)


@pytest.mark.parametrize(
    ("given", "reason", "said"),
    [
        ({"num_beams": 4}, "unsupported_option", "num_beams=4"),
        ({"repetition_penalty": 1.2}, "unsupported_option", "repetition_penalty=1.2"),
        ({"max_gen_tok": 4}, "unsupported_option", "Did you mean max_gen_toks"),
        ({"max_length": 99}, "unsupported_option", "max_length=99"),
        ({"do_sample": "yes"}, "bad_request", "do_sample is 'yes'"),
        ({"do_sample": True, "temperature": 0.0}, "bad_request", "above 0"),
        ({"max_gen_toks": 4, "max_tokens": 5}, "bad_request", "said once"),
        ({"max_gen_toks": 0}, "bad_request", "above 0"),
        ({"max_gen_toks": 1.5}, "bad_request", "whole number"),
        ({"temperature": "hot"}, "bad_request", "a number"),
        ({"until": 3}, "bad_request", "until is 3"),
        ("until", "bad_request", "a mapping"),
    ],
)
def test_what_would_be_ignored_or_means_nothing_is_refused(model, given, reason, said):
    with pytest.raises(Refused, match=said) as refusal:
        settings_of(given, model=model, max_gen_toks=4)
    assert refusal.value.reason == reason


def test_a_seed_depends_on_the_base_the_context_and_the_repeat_alone():
    assert seed_of(0, "a", 0) == seed_of(0, "a", 0)
    assert len({seed_of(s, c, n) for s in (0, 1) for c in ("a", "b") for n in (0, 1)}) == 8
