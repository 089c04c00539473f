"""The whole experiment on a tiny model: its numbers, its controls, its pictures."""

import json

import pytest

from benchmarks.belief import sentiment
from benchmarks.belief.draw import draw_sentiment
from benchmarks.belief.predictions import Setup
from benchmarks.belief.sentiment import measure_sentiment, run_sentiment
from benchmarks.errors import BenchmarkError
from benchmarks.result import Result
from benchmarks.task import Options
from tests.benchmarks.belief.words import SMALL, TINY

NUMBERS = {
    *("r_held_strength", "r_extrapolate", "mae_nats", "best_baseline_mae_nats", "range_share"),
    *("decay_over_plain", "additivity_p", "grid_seconds"),
}


@pytest.fixture(scope="module")
def result(tiny):
    lm = tiny("tiny-llama")
    setup = Setup(SMALL, (-8.0, -4.0, 0.0, 4.0, 8.0), (-16.0, 16.0), (2,), 8, 2)
    outcome = run_sentiment(lm, TINY, setup, Options())
    found = Result(
        "belief_sentiment", "tiny-llama", outcome.numbers, outcome.controls, {}, outcome.tables
    )
    return json.loads(json.dumps(found.to_json())), found


@pytest.mark.slow
def test_the_experiment_reports_its_numbers_with_every_control(result):
    content, _ = result
    assert set(content["numbers"]) >= NUMBERS
    assert set(content["controls"]) == set(sentiment.CONTROLS)


@pytest.mark.slow
def test_a_random_model_shows_no_more_effect_of_judgements_than_of_other_sentences(result):
    # A seeded random model: its steering is large, its evidence is noise, and it says so.
    _, found = result
    assert found.controls["neutral_over_evidence"].value > 0.2


@pytest.mark.slow
def test_the_pictures_are_made_of_the_file_alone(result, tmp_path):
    _, found = result
    files = draw_sentiment(found, tmp_path / "out.json")
    assert [file.name for file in files] == ["out_phase.png", "out_curves.png", "out_errors.png"]
    assert all(file.stat().st_size > 10_000 for file in files)


def test_a_limit_that_leaves_no_long_context_is_refused(lm):
    with pytest.raises(BenchmarkError, match="leaves no long context"):
        measure_sentiment(lm, Options(limit=8))
