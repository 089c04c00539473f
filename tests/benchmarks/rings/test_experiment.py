"""The whole experiment on a model that knows nothing: what it writes, not what it finds."""

import json
from dataclasses import replace

import pytest
import torch

import steer
from benchmarks.data.rings import CLOCK, LETTERS, MONTHS, TEST, TRAIN, WEEKDAYS
from benchmarks.errors import BenchmarkError
from benchmarks.result import Result
from benchmarks.rings import experiment
from benchmarks.rings.draw import draw_ring_result
from benchmarks.rings.experiment import CONTROLS, run_ring
from benchmarks.rings.paths import N_POINTS
from benchmarks.rings.reading import Reading, known_concepts, read
from benchmarks.task import Options

LINE = replace(WEEKDAYS, closed=False, before=("one", "two"))
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
    "energy_manifold",
    "energy_chord",
    "energy_chord_over_manifold",
    "energy_chord_over_manifold_adjacent",
    "energy_chord_over_manifold_replaced",
    "energy_chord_over_manifold_replaced_adjacent",
    "energy_floor",
}


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


@pytest.fixture(scope="module")
def credulous():
    """Take every answer for correct: the tiny models know no weekdays."""

    def read_all(*given):
        one = read(*given)
        return replace(one, correct=one.correct | True)

    def run(lm, concepts):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(experiment, "read", read_all)
            patched.setattr(experiment, "N_REFITS", 4)
            return run_ring(lm, concepts, Options(limit=2))

    return run


@pytest.fixture(scope="module")
def week(lm, credulous):
    """The outcome of one run, which several tests look at."""
    return credulous(lm, WEEKDAYS)


def test_a_run_has_every_agreed_number_and_is_repeatable(lm, credulous, week):
    first = week
    assert set(first.numbers) >= NUMBERS
    assert set(first.controls) == set(CONTROLS)
    assert len(first.tables["blocks"]) == lm.n_layers
    assert first.tables["answered"] == {
        "train": {"correct": 14, "of": 14},
        "test": {"correct": 14, "of": 14},
        "known": list(WEEKDAYS.concepts),
    }
    again = credulous(lm, WEEKDAYS)
    assert again.numbers == first.numbers
    assert again.controls == first.controls


def test_a_result_is_drawn_into_four_pictures_and_one_page_without_links(week, tmp_path):
    outcome = week
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
        "out_energies.png",
        "out.html",
    ]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files[:4])
    html = files[4].read_text()
    assert "<script src=" not in html
    assert "chord_over_manifold" in html
    assert "does not hold" in html


def test_energies_are_sums_over_the_path_and_ratios_are_of_their_means(lm, credulous):
    found = credulous(lm, LINE)
    energies, numbers = found.tables["energies"], found.numbers
    for kind, ending in (("distant", ""), ("adjacent", "_adjacent")):
        over = energies[kind]["chord"]["value"] / energies[kind]["manifold"]["value"]
        assert numbers[f"energy_chord_over_manifold{ending}"].value == pytest.approx(over)
    assert numbers["energy_manifold"].value == pytest.approx(
        energies["distant"]["manifold"]["value"]
    )
    floor = N_POINTS * found.tables["natural_bhattacharyya"]
    assert numbers["energy_floor"].value == pytest.approx(floor)
    assert found.tables["lengths"]["distant"]["random_length"] == pytest.approx(1, abs=1e-3)
    assert found.tables["heat_names"][-2:] == ["elsewhere", "other"]


def test_a_model_that_knows_nothing_meets_no_target(week):
    """The null of the whole task: random weights."""
    claims = week.tables["claims"]
    assert not claims[0]["holds"]
    assert "at least 1.8" in claims[0]["claim"]


def test_a_model_that_answers_nothing_correctly_is_told_which_concepts(lm):
    with pytest.raises(BenchmarkError, match="In no train context does the model go on with"):
        run_ring(lm, WEEKDAYS, Options(limit=2))


def test_a_concept_that_is_never_answered_is_passed_over_if_enough_are_left(reading_of):
    asked = reading_of([0, 1, 2, 4, 5, 6])
    assert known_concepts(asked, WEEKDAYS, "train").tolist() == [0, 1, 2, 4, 5, 6]


def test_with_too_few_concepts_left_the_refusal_says_which_and_the_accuracy(reading_of):
    asked = reading_of([0, 1, 2, 4, 5])
    with pytest.raises(BenchmarkError, match=r"Thursday, Sunday: .* 10 of 14 prompts .*\(71%\)"):
        known_concepts(asked, WEEKDAYS, "train")


@pytest.fixture
def reading_of():
    """Return a reading of seven concepts in two contexts, of which some are answered correctly."""

    def made(answered):
        concept = torch.arange(7).repeat(2)
        correct = torch.isin(concept, torch.tensor(answered))
        context = torch.arange(2).repeat_interleave(7)
        return Reading([[1]] * 14, context, concept, {}, torch.full((14, 8), 1 / 8), correct)

    return made


@pytest.mark.usefixtures("forgetful")
def test_a_ring_is_drawn_past_a_concept_that_the_model_does_not_know(lm):
    found = run_ring(lm, WEEKDAYS, Options(limit=2))
    assert found.tables["answered"]["known"] == [d for d in WEEKDAYS.concepts if d != "Tuesday"]
    assert found.tables["ring"]["known"] == [0, 2, 3, 4, 5, 6]
    # Starts whose path would end on Tuesday are left out: one concept of the six, twice.
    assert found.specs["cases_steered"] == 10
    assert found.numbers["energy_chord_over_manifold"].value is not None


@pytest.fixture
def forgetful(monkeypatch):
    """Take every answer for correct but Tuesday."""

    def read_most(*given):
        one = read(*given)
        return replace(one, correct=one.concept != 1)

    monkeypatch.setattr(experiment, "read", read_most)
    monkeypatch.setattr(experiment, "N_REFITS", 4)


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
    assert context.prompt(MONTHS, 1) == "So: November, December, January,"
    assert context.prompt(CLOCK, 0) == "So: ten o'clock, eleven o'clock, twelve o'clock,"


def test_a_line_begins_with_what_comes_before_its_first_concept():
    context = replace(TRAIN[0], introduction="So: ", n_shown=3)
    assert context.prompt(LETTERS, 0) == "So: a, b,"
    assert context.prompt(LETTERS, 23) == "So: w, x, y,"
