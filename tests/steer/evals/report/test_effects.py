"""Statistics against closed forms, numpy and scipy; nulls beside every effect."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from steer.errors import PlanError
from steer.evals.report.effects import (
    anti_steerable,
    change,
    effect,
    mean,
    means,
    quantile,
    shuffled,
    slopes,
)
from steer.evals.report.roc import roc

FACTORS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def planted(n: int = 400, slope: float = 0.5, spread: float = 1.0, seed: int = 0):
    """Values [factor, item] of items whose own slopes are normal around one."""
    drawn = np.random.default_rng(seed)
    own = slope + spread * drawn.normal(size=n)
    noise = 0.1 * drawn.normal(size=(len(FACTORS), n))
    return np.asarray(FACTORS)[:, None] * own + drawn.normal(size=n) + noise, own


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=1000)
    found = mean(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.lo == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.hi == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_hold_the_truth_as_often_as_they_say():
    drawn = np.random.default_rng(2)
    held = 0
    for at in range(300):
        found = mean(drawn.normal(1.0, 1.0, size=60), seed=at)
        assert found.lo is not None
        assert found.hi is not None
        held += found.lo <= 1.0 <= found.hi
    assert 0.90 <= held / 300 <= 0.98


def test_each_items_slope_is_numpys_least_squares():
    values, own = planted()
    wanted = np.polyfit(FACTORS, values, 1)[0]
    assert slopes(values, FACTORS) == pytest.approx(wanted)
    assert np.corrcoef(wanted, own)[0, 1] > 0.99


def test_the_anti_steerable_share_is_that_of_the_planted_slopes():
    values, _ = planted(n=4000)
    assert anti_steerable(values, FACTORS).value == pytest.approx(stats.norm.cdf(-0.5), abs=0.02)


def test_an_effect_is_paired_by_item():
    values, own = planted(spread=0.01)
    found = effect(values, FACTORS)
    assert found.value == pytest.approx(own.mean(), abs=0.02)
    assert found.hi is not None
    assert found.lo is not None
    # Items differ by 1 among themselves; unpaired, the interval would be ten times as wide.
    assert found.hi - found.lo < 0.05
    assert effect(values, FACTORS, at=2.0).value == pytest.approx(2 * own.mean(), abs=0.02)


def test_shuffled_labels_have_no_effect_and_their_interval_is_that_of_chance():
    values, _ = planted()
    null = shuffled(values, FACTORS)
    moved = change(values, FACTORS)
    assert null.value == pytest.approx(0.0, abs=0.01)
    assert null.hi == pytest.approx(1.96 * np.sqrt((moved**2).sum()) / len(moved), rel=0.1)
    found = effect(values, FACTORS).value
    assert found is not None
    assert null.hi is not None
    assert found > null.hi
    nothing, _ = planted(slope=0.0)
    none, null = effect(nothing, FACTORS).value, shuffled(nothing, FACTORS)
    assert none is not None
    assert null.lo is not None
    assert null.hi is not None
    assert null.lo < none < null.hi


def test_a_curve_has_the_mean_at_each_factor():
    values, _ = planted()
    assert [one.value for one in means(values)] == pytest.approx(values.mean(1).tolist())


def test_a_quantile_is_numpys_with_an_interval_around_it():
    values = np.random.default_rng(3).exponential(size=500)
    found = quantile(values, 0.95)
    assert found.value == pytest.approx(np.quantile(values, 0.95))
    assert found.lo is not None
    assert found.hi is not None
    assert found.lo < -np.log(0.05) < found.hi


def test_a_monitors_roc_is_scikit_learns_and_its_threshold_keeps_its_rate():
    drawn = np.random.default_rng(4)
    positive = np.arange(2000) < 1000
    scores = drawn.normal(size=2000) + 1.5 * positive
    found = roc(scores, positive, most_false=0.05)
    assert found.auc.value == pytest.approx(roc_auc_score(positive, scores))
    assert found.auc.value == pytest.approx(stats.norm.cdf(1.5 / np.sqrt(2)), abs=0.02)
    assert found.auc_shuffled.value == pytest.approx(0.5, abs=0.04)
    # On the half that it was not calibrated on.
    assert found.false_rate.value == pytest.approx(0.05, abs=0.025)
    assert found.true_rate.value == pytest.approx(
        stats.norm.sf(stats.norm.isf(0.05) - 1.5), abs=0.06
    )


@pytest.mark.parametrize(("n", "rate"), [(3, 0.05), (10, 0.0), (10, 1.0)])
def test_a_roc_of_next_to_nothing_is_refused(n, rate):
    with pytest.raises(PlanError, match="says nothing"):
        roc(np.arange(20.0), np.arange(20) < n, most_false=rate)
