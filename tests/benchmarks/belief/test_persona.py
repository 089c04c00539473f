"""Contrast sets and personas, on made-up questions and a tiny model."""

import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import steer
from benchmarks.belief import contrast, persona
from benchmarks.belief.contrast import Choice
from benchmarks.belief.draw import draw_persona
from benchmarks.belief.persona import Setup, auroc, separable
from benchmarks.errors import BenchmarkError
from benchmarks.result import Result
from benchmarks.stats import Number

SETUP = Setup(
    strengths=(-1.0, -0.5, 0.0, 0.5, 1.0),
    bins=(0, 1, 2, 3),
    n_long=2,
    n_short=3,
    shots=4,
    few=1,
    up_to=2,
    n_fit=4,
    n_zero=6,
    longest=200,
    n_refits=1,
)


def pair(question, matching, *, before="\n ("):
    other = "BA"["AB".index(matching)]
    return {"positive": f"{question}{before}{matching})", "negative": f"{question}{before}{other})"}


def choices(n):
    words = [" ".join(w) for w in itertools.product(("one", "two", "red", "blue"), repeat=3)]
    return [Choice(f"{w}? (A) Yes (B) No", "AB"[at % 2]) for at, w in enumerate(words)][:n]


def test_endings_are_cut_off_and_letters_kept():
    asked = "Stay?\n\nChoices:\n (A) Yes\n (B) No"
    found = contrast.parse(
        [pair(asked, "B"), pair(f"{asked}!", "A", before="\n\nAnswer:\n ("), pair(asked, "A")]
    )
    assert found == [Choice(asked, "B"), Choice(f"{asked}!", "A")]


def test_what_is_no_question_of_two_choices_is_left_out():
    three = "Stay?\n (A) Yes\n (B) No\n (C) Perhaps"
    plain = {"positive": "I helped him.", "negative": "I robbed him."}
    assert contrast.parse([pair(three, "A"), plain]) == []


def test_drawn_questions_alternate_between_the_letters(lm):
    drawn = contrast.draw(lm, choices(40), 20, longest=200, seed=0)
    assert [one.matching for one in drawn] == ["A", "B"] * 10
    assert len({one.question for one in drawn}) == 20


def test_too_few_questions_of_a_letter_are_refused(lm):
    with pytest.raises(BenchmarkError, match="questions of at most 200 tokens are needed"):
        contrast.draw(lm, choices(10), 20, longest=200, seed=0)


def test_an_unknown_persona_is_refused():
    with pytest.raises(BenchmarkError, match="no persona 'kind'"):
        contrast.fetch("kind")


def test_a_text_is_read_where_each_letter_is_due(lm):
    asked = choices(3)
    row, places = contrast.told(lm, asked, ["A", "B", "A"])
    letter = {x: lm.tokenizer(x)["input_ids"][0] for x in "AB"}
    assert [row[place + 1] for place in places[:-1]] == [letter["A"], letter["B"]]
    assert places[-1] == len(row) - 1
    for place, choice in zip(places, asked, strict=True):
        said = lm.tokenizer.decode(row[: place + 1])
        assert said.endswith(f"{choice.question}{contrast.MARK}")


def test_the_area_under_the_curve_equals_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 60).astype(float), rng.integers(0, 2, 60)
    found = auroc(scores, labels, seed=0)
    assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.lo is not None
    assert found.hi is not None
    assert found.value is not None
    assert found.lo < found.value < found.hi


def test_a_persona_is_told_apart_only_where_an_interval_lies_above_one_half():
    assert separable([Number(0.6, 0.4, 0.8), Number(0.7, 0.55, 0.9)])
    assert not separable([Number(0.6, 0.49, 0.8), Number(0.5, 0.3, 0.7)])


@pytest.fixture(scope="module")
def asked(tiny):
    return persona.ask(tiny("tiny-llama"), "made up", choices(40), SETUP, seed=0)


def test_a_reading_equals_a_prompt_of_its_own_in_the_personas_sign(tiny, asked):
    lm = tiny("tiny-llama")
    drawn = contrast.draw(
        lm, choices(40), SETUP.n_fit + SETUP.n_zero + SETUP.n_questions, longest=200, seed=0
    )
    fit, told = drawn[: SETUP.n_fit], drawn[SETUP.n_fit + SETUP.n_zero :][: SETUP.shots + 1]
    site = persona.site_of(lm)
    states = [
        torch.cat(
            [
                lm.capture([contrast.answered(lm, c, c.letter(sign))], [site], scope=steer.LAST)[
                    site
                ]
                for c in fit
            ]
        ).mean(0)
        for sign in (1, -1)
    ]
    plan = [steer.Add(site, states[0] - states[1], SETUP.strengths[0])]
    row, places = contrast.told(lm, told, [c.letter(-1) for c in told])
    a, b = (lm.tokenizer(x)["input_ids"][0] for x in "AB")
    mine = asked.readings.where((asked.readings.order == 0) & (asked.readings.concept == -1))
    for at, (place, choice) in enumerate(zip(places, told, strict=True)):
        logits = lm.logits([row[: place + 1]], plan).reshape(-1)
        expected = float(logits[a] - logits[b]) * choice.sign
        assert mine.values[0, at] == pytest.approx(expected, abs=1e-4)


def test_the_report_says_per_persona_whether_it_can_be_told_at_all(asked):
    outcome = persona.outcome_of([asked], SETUP, steer.Site(1), seed=0)
    assert set(outcome.controls) == set(persona.CONTROLS)
    assert {"r_held_strength_made up", "auroc_zero_shot_made up"} <= set(outcome.numbers)
    row = outcome.tables["personas"][0]
    assert (row["persona"] in outcome.tables["cannot_separate"]) != row["separable"]


def test_the_picture_is_made_of_the_tables_alone(asked, tmp_path):
    made = persona.outcome_of([asked], SETUP, steer.Site(1), seed=0)
    tables = json.loads(json.dumps(made.tables))
    found = Result("belief_persona", "tiny-llama", made.numbers, made.controls, {}, tables)
    (file,) = draw_persona(found, tmp_path / "out.json")
    assert file.stat().st_size > 10_000
