"""The controller's experiment: doses, fixed rival and scores, against plain formulas."""

import json
import math

import numpy as np
import pytest
import torch

import steer
from benchmarks.belief import steering
from benchmarks.belief.data import Design
from benchmarks.belief.draw import draw_controller
from benchmarks.belief.holdout import Grid
from benchmarks.belief.steering import Dosed, Setup, best_fixed, cell_errors, run_controller, split
from benchmarks.errors import BenchmarkError
from benchmarks.result import Result
from benchmarks.task import Options
from tests.benchmarks.belief.words import TINY

TARGETS = (0.25, 0.5, 0.75)
TRAIN = Design(few=(0, 1, 2), many=(5,), groups=3, width=2)
SETUP = Setup(TRAIN, (-8.0, -4.0, 0.0, 4.0, 8.0), TARGETS, ((0, 4), (3, 2)))


def dosed(posteriors, attainable):
    p = np.asarray(posteriors, float)
    return Dosed(
        np.asarray(attainable),
        np.zeros_like(p),
        np.zeros_like(p),
        {"controller": p},
        np.array([0, 0, 4, 4]),
        np.array([0, 1, 0, 1]),
    )


def test_the_error_of_a_cell_is_that_of_the_mean_over_its_questions():
    one = dosed([[0.1, 0.5, 0.9, 0.7]], [[True] * 4])
    found = cell_errors(one, "controller", (0.4,), np.ones((1, 4)))
    assert found[0, 0].tolist() == pytest.approx([0.1, 0.4])


def test_cells_that_cannot_be_reached_count_nowhere():
    one = dosed([[0.1, 0.5, 0.9, 0.7]], [[True, True, False, False]])
    found = cell_errors(one, "controller", (0.4,), np.ones((1, 4)))
    assert found[0, 0, 0] == pytest.approx(0.1)
    assert np.isnan(found[0, 0, 1])


def test_the_best_fixed_strength_is_that_of_a_search_over_all():
    rng = np.random.default_rng(0)
    cells, strengths = (0, 4, 16), np.linspace(-1, 1, 9)
    log_odds = 3 * strengths + rng.normal(size=(3, 1))
    grid = Grid(np.array(cells, float), strengths, log_odds)
    shots = np.array([0, 0, 4, 16])
    found = best_fixed(grid, 0.7, cells, shots)

    def mistake(m):
        rows = [np.interp(m, strengths, row) for row in log_odds]
        return sum(
            w * abs(1 / (1 + math.exp(-x)) - 0.7) for w, x in zip((2, 1, 1), rows, strict=True)
        )

    assert mistake(found) <= min(mistake(m) for m in np.linspace(-1, 1, 401)) + 1e-9


def test_train_and_test_questions_have_nothing_in_common():
    train, test = split(TINY, 5)
    assert not set(train.questions) & set(test.questions)
    assert train.questions + test.questions == TINY.questions
    with pytest.raises(BenchmarkError, match="leaves none to test it on"):
        split(TINY, len(TINY.questions))


def test_a_test_context_holds_its_shots_and_ends_in_a_question():
    _, test = split(TINY, 6)
    for text in steering.asked_texts(test, SETUP, -1, seed=0):
        (shots,), (question,) = text.evidence, text.questions
        assert len(text.items) == shots + 1
        assert text.items[-1][0] == test.questions[question]
        assert {word for _, word in text.items} <= set(TINY.negative)


def test_each_number_of_shots_meets_as_many_questions_as_it_has_contexts():
    _, test = split(TINY, 6)
    texts = steering.asked_texts(test, SETUP, 1, seed=0)
    for shots, n_rows in SETUP.shots:
        asked = [t.questions[0] for t in texts if t.evidence == (shots,)]
        assert len(set(asked)) == len(asked) == n_rows


@pytest.fixture(scope="module")
def outcome(tiny):
    return run_controller(tiny("tiny-llama"), TINY, SETUP, Options())


def test_the_experiment_reports_its_numbers_with_every_control(outcome):
    assert {"mae_posterior", "fixed_mae_posterior", "refused_share"} <= set(outcome.numbers)
    assert set(outcome.controls) == set(steering.CONTROLS)
    for number in (outcome.numbers["mae_posterior"], outcome.controls["random_mae_posterior"]):
        if number.value is not None:
            assert 0 <= number.value <= 1


def test_the_refused_share_is_that_of_cells_that_cannot_be_reached(outcome):
    open_to = [np.array(one["attainable"]) for one in outcome.tables["concepts"].values()]
    rows = [np.array(one["rows"]) for one in outcome.tables["concepts"].values()]
    refused = [
        1 - (o * r).sum() / (o.shape[0] * r.sum()) for o, r in zip(open_to, rows, strict=True)
    ]
    assert outcome.numbers["refused_share"].value == pytest.approx(np.mean(refused))


def test_the_controllers_doses_bring_the_predicted_log_odds_to_the_target(lm):
    belief = steer.belief.Belief(a=2.0, b=-1.0, gamma=0.5, alpha=0.5, valid=(-2.0, 2.0))
    evidence = torch.tensor([0.0, 4.0, 16.0])
    goal = torch.tensor(0.3).double()
    low, high = belief.attainable(evidence)
    site, vector = steer.Site(1), torch.ones(lm.d_model)
    made = steering._control(belief, site, vector, goal, evidence, (low, high))
    doses = steering.doses_of(made, 3)
    expected = [(0.3 + 1.0 - 0.5 * math.sqrt(n)) / 2 for n in evidence.tolist()]
    assert torch.allclose(doses, torch.tensor(expected).double())


def test_the_picture_is_made_of_the_tables_alone(outcome, tmp_path):
    tables = json.loads(json.dumps(outcome.tables))
    found = Result("controller", "tiny-llama", outcome.numbers, outcome.controls, {}, tables)
    (file,) = draw_controller(found, tmp_path / "out.json")
    assert file.name == "out_targets.png"
    assert file.stat().st_size > 10_000
