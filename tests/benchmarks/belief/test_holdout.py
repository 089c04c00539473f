"""Held-out scores: nothing that is predicted was seen, and scores equal their plain formulas."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.belief.collect import Readings
from benchmarks.belief.holdout import (
    Fitted,
    Grid,
    Held,
    error,
    extrapolate,
    grid_of,
    law,
    leave_each_out,
    means,
    resampled,
    within_r,
)

EVIDENCE = np.array([0.0, 1, 2, 4, 8, 16, 32, 64, 128])
STRENGTHS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
A, B, GAMMA, ALPHA = 1.7, -2.3, 1.1, 0.6


def planted():
    g = np.where(EVIDENCE > 0, EVIDENCE ** (1 - ALPHA), 0.0)
    return Grid(EVIDENCE, STRENGTHS, A * STRENGTHS + B + GAMMA * g[:, None])


def readings(n_texts=6, n_cells=4, seed=0):
    rng = np.random.default_rng(seed)
    n = 2 * n_texts * n_cells
    return Readings(
        np.array([-1.0, 1.0]),
        rng.normal(size=(2, n)),
        np.tile(np.arange(n_cells, dtype=float), 2 * n_texts),
        np.tile(np.arange(n_cells), 2 * n_texts),
        np.repeat(np.arange(n_texts), 2 * n_cells),
        np.repeat(np.arange(n_texts), 2 * n_cells),
        np.tile(np.repeat([1, -1], n_cells), n_texts),
    )


def test_a_planted_law_is_predicted_exactly_at_strengths_it_was_not_fitted_on():
    held = leave_each_out(planted(), law(decay=False))
    assert np.allclose(held.predicted, held.observed, atol=1e-4)


def test_a_planted_law_is_predicted_exactly_beyond_the_evidence_it_was_fitted_on():
    held = extrapolate(planted(), law(decay=False), up_to=32)
    assert held.observed.shape == (2, len(STRENGTHS))
    assert np.allclose(held.predicted, held.observed, atol=1e-3)


def test_a_method_never_sees_what_it_is_asked_to_predict():
    seen = []

    def spy(evidence, strength, log_odds):
        seen.append((evidence, strength, log_odds))
        return Fitted(lambda n, _: np.zeros_like(n), (-0.6, 0.6))

    held = leave_each_out(planted(), spy)
    for m, (_, strength, log_odds) in zip(STRENGTHS, seen, strict=True):
        assert m not in strength
        assert len(log_odds) == 4 * len(EVIDENCE)
    assert held.inside.tolist() == [False, True, True, True, False]
    extrapolate(planted(), spy, up_to=16)
    assert seen[-1][0].max() == 16


def test_two_concepts_far_apart_do_not_correlate_by_their_distance_alone():
    rng = np.random.default_rng(0)

    def held(offset):
        noise = rng.normal(size=(2, 40, 25))
        return Held(np.zeros(25), noise[0] + offset, noise[1] + offset, np.ones(25, bool))

    both = [held(-50.0), held(50.0)]
    # 2000 pairs of independent noise: five standard deviations are 0.11.
    assert abs(within_r(both)) < 0.11
    pairs = np.concatenate([[h.observed.ravel(), h.predicted.ravel()] for h in both], axis=1)
    pooled = np.corrcoef(*pairs)
    assert pooled[0, 1] > 0.99


def test_the_correlation_of_one_concept_is_the_plain_one():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 5))
    y = x + rng.normal(size=(7, 5))
    found = within_r([Held(np.zeros(5), x, y, np.ones(5, bool))])
    assert found == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-12)


def test_the_error_counts_only_where_it_is_told_to():
    held = Held(np.zeros(2), np.zeros((3, 2)), np.array([[1.0, 5.0]] * 3), np.array([True, False]))
    assert error([held]) == 3.0
    assert error([held], where=[held.inside]) == 1.0
    assert np.isnan(error([held], where=[np.zeros(2, bool)]))


def test_a_grid_holds_the_plain_means_in_the_concepts_own_sign():
    found = readings()
    grid = grid_of(found, -1, range(4))
    for cell in range(4):
        mine = (found.cell == cell) & (found.concept == -1)
        assert np.allclose(grid.values[cell], -found.values[:, mine].mean(1))
    assert grid.evidence.tolist() == [0, 1, 2, 3]


def test_weighted_means_equal_those_of_readings_written_out_so_often():
    found = readings()
    weights = np.random.default_rng(2).integers(0, 4, size=(1, len(found.evidence))).astype(float)
    again = np.repeat(np.arange(len(found.evidence)), weights[0].astype(int))
    written = found.where(again)
    got = means(found, 1, 4, weights)[0]
    for cell in range(4):
        mine = (written.cell == cell) & (written.concept == 1)
        assert np.allclose(got[cell], written.values[:, mine].mean(1))


def test_a_resample_draws_whole_questions_as_many_as_there_are():
    found = readings()
    weights = resampled(found, 500, seed=0)
    each = np.stack([weights[:, found.question == q] for q in range(6)])
    assert (each == each[..., :1]).all()
    assert (each[..., 0].sum(0) == 6).all()


def test_differences_between_questions_cancel_between_cells_in_every_resample():
    found = readings()
    intercepts = np.random.default_rng(3).normal(size=6)[found.question]
    flat = replace(found, values=np.stack([intercepts, intercepts]))
    got = means(flat, 1, 4, resampled(found, 50, seed=1))
    assert np.allclose(got, got[:, :1])
