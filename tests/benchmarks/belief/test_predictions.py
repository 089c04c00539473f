"""The report on a grid, where the truth is planted."""

import numpy as np
import pytest

from benchmarks.belief.collect import Readings
from benchmarks.belief.data import Design
from benchmarks.belief.predictions import Setup, predictions_of, shuffled

DESIGN = Design(few=(0, 1, 2, 4, 8), many=(16, 64), groups=5, width=3)
INNER, OUTER = (-1.0, -0.5, 0.0, 0.5, 1.0), (-2.0, 2.0)
SETUP = Setup(DESIGN, INNER, OUTER, (4,), 16, 3)

pytestmark = pytest.mark.slow


def planted(*, interaction=0.0, noise=0.2, seed=0):
    """Return readings of a grid of the design whose truth is additive but for an interaction."""
    rng = np.random.default_rng(seed)
    long, short = DESIGN.placed()
    evidence, question, order, concept = [], [], [], []
    for sign in (1, -1):
        for at, asked in enumerate([*long, *short]):
            places = DESIGN.long_evidence if at < len(long) else DESIGN.few
            evidence += list(places)
            question += asked
            order += [at] * len(places)
            concept += [sign] * len(places)
    n, sign = np.array(evidence, float), np.array(concept)
    m = np.array(SETUP.strengths)[:, None]
    g = np.where(n > 0, n**0.4, 0.0)
    own = 1.2 * g - 2.0
    intercepts = 0.7 * rng.normal(size=DESIGN.n_questions)[question]
    values = 1.8 * m + sign * own + intercepts + interaction * m * g
    return Readings(
        np.array(SETUP.strengths),
        values + noise * rng.normal(size=values.shape),
        n,
        np.array([DESIGN.cell_of(int(x)) for x in evidence]),
        np.array(question),
        np.array(order),
        sign,
    )


@pytest.fixture(scope="module")
def additive():
    return predictions_of(planted(), SETUP, seed=0)


@pytest.mark.slow
def test_a_planted_law_is_predicted_better_than_without_discount_or_in_probability(additive):
    numbers, tables = additive
    assert numbers["r_held_strength"].value > 0.99
    assert numbers["mae_nats"].value < 0.15
    errors = tables["errors"]
    assert errors["law"] < 0.8 * min(errors["no_discount"], errors["additive_in_probability"])


@pytest.mark.slow
def test_more_evidence_is_predicted_from_less(additive):
    numbers, _ = additive
    assert numbers["r_extrapolate"].value > 0.95


@pytest.mark.slow
def test_intervals_hold_their_values(additive):
    numbers, _ = additive
    found = numbers["r_held_strength"]
    assert found.lo <= found.value + 0.01
    assert found.hi >= found.value - 0.01
    assert found.lo > 0.9


@pytest.mark.slow
def test_an_interaction_is_found_and_none_where_none_is(additive):
    mixed, _ = predictions_of(planted(interaction=0.4), SETUP, seed=0)
    p = mixed["additivity_p"].value
    assert p is not None
    assert p < 1e-3
    assert additive[0]["additivity_p"].value > 1e-3


@pytest.mark.slow
def test_shuffled_strengths_leave_only_the_evidence_to_predict(additive):
    control = shuffled(planted(), SETUP, seed=0)
    assert control["shuffled_strength_mae_nats"].value > 3 * additive[0]["mae_nats"].value
    assert control["shuffled_strength_r"].value < additive[0]["r_held_strength"].value - 0.02
