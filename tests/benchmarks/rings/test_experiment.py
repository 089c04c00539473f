"""The whole experiment on a model that knows nothing: what it writes, not what it finds."""

import json
from dataclasses import replace

import pytest

import steer
from benchmarks.data.rings import MONTHS, TEST, TRAIN, WEEKDAYS
from benchmarks.errors import BenchmarkError
from benchmarks.result import Result
from benchmarks.rings import experiment
from benchmarks.rings.draw import draw_ring_result
from benchmarks.rings.experiment import CONTROLS, run_ring
from benchmarks.rings.reading import read
from benchmarks.task import Options

NUMBERS = {
    "best_block",
    "chord_over_manifold",
    "chord_over_manifold_adjacent",
    "full_replace_over_manifold",
    "chord_over_manifold_replaced",
    "additive_over_manifold",
    "natural_floor",
    "p_passed_manifold",
    "p_passed_chord",
    "isometry_manifold",
    "isometry_chord",
}


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


@pytest.fixture
def credulous(monkeypatch):
    """Take every answer for correct: the tiny models know no weekdays."""

    def read_all(*given):
        one = read(*given)
        return replace(one, correct=one.correct | True)

    monkeypatch.setattr(experiment, "read", read_all)
    monkeypatch.setattr(experiment, "N_REFITS", 4)


@pytest.mark.usefixtures("credulous")
def test_a_run_has_every_agreed_number_and_is_repeatable(lm):
    first = run_ring(lm, WEEKDAYS, Options(limit=2))
    assert set(first.numbers) >= NUMBERS
    assert set(first.controls) == set(CONTROLS)
    assert len(first.tables["blocks"]) == lm.n_layers
    assert first.tables["answered"] == {
        "train": {"correct": 14, "of": 14},
        "test": {"correct": 14, "of": 14},
    }
    again = run_ring(lm, WEEKDAYS, Options(limit=2))
    assert again.numbers == first.numbers
    assert again.controls == first.controls


@pytest.mark.usefixtures("credulous")
def test_a_result_is_drawn_into_three_pictures_and_one_page_without_links(lm, tmp_path):
    outcome = run_ring(lm, WEEKDAYS, Options(limit=2))
    result = Result(
        "weekdays",
        "tiny-llama",
        outcome.numbers,
        outcome.controls,
        {"question": "Does it?"},
        outcome.tables,
    )
    json.dumps(result.to_json(), allow_nan=False)
    files = draw_ring_result(result, tmp_path / "out.json")
    assert [file.name for file in files] == [
        "out_ring.png",
        "out_outputs.png",
        "out_blocks.png",
        "out.html",
    ]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files[:3])
    html = files[3].read_text()
    assert "<script src=" not in html
    assert "chord_over_manifold" in html


def test_a_model_that_answers_nothing_correctly_is_told_which_concepts(lm):
    with pytest.raises(BenchmarkError, match="In no train context does the model go on with"):
        run_ring(lm, WEEKDAYS, Options(limit=2))


def test_one_context_is_too_few(lm):
    with pytest.raises(BenchmarkError, match="--limit 1 leaves fewer than 2 contexts"):
        run_ring(lm, WEEKDAYS, Options(limit=1))


def test_train_and_test_contexts_share_nothing():
    assert len(TRAIN) >= 8
    assert len(TEST) >= 8
    introductions = [context.introduction for context in (*TRAIN, *TEST)]
    assert len(set(introductions)) == len(introductions)


def test_a_prompt_shows_the_concepts_before_the_one_to_come():
    context = replace(TRAIN[0], introduction="So: ", n_shown=3)
    assert MONTHS.prompt(context, 1) == "So: November, December, January,"
