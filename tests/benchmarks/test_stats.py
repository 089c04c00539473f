import numpy as np
import pytest

from benchmarks.stats import UNSCORED, Number, mean, percentiles, ratio


def _grid(seed, rows=12, columns=8):
    return np.random.default_rng(seed).gamma(4.0, size=(rows, columns))


def test_the_value_is_the_ratio_of_the_means_of_common_cells():
    top, bottom = _grid(0), _grid(1)
    top[3, 2], bottom[5, 1] = np.nan, np.nan
    both = np.isfinite(top) & np.isfinite(bottom)
    assert ratio(top, bottom, seed=0).value == pytest.approx(top[both].mean() / bottom[both].mean())


def test_a_paired_multiple_has_an_interval_of_no_width():
    # Were numerator and denominator resampled apart, the interval would be wide.
    found = ratio(3 * _grid(0), _grid(0), seed=0)
    assert found.lo == pytest.approx(3, rel=1e-12)
    assert found.hi == pytest.approx(3, rel=1e-12)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others():
    top, bottom = _grid(0), _grid(1)
    assert ratio(top, bottom, seed=4) == ratio(top, bottom, seed=4)
    assert ratio(top, bottom, seed=4) != ratio(top, bottom, seed=5)


def test_the_interval_of_a_mean_agrees_with_a_looped_bootstrap():
    grid, n = _grid(2, 6, 5), 4000
    rng = np.random.default_rng(0)
    looped = []
    for _ in range(n):
        rows, columns = rng.integers(6, size=6), rng.integers(5, size=5)
        looped.append(grid[np.ix_(rows, columns)].mean())
    found = mean(grid, seed=0, n_resamples=n)
    lo, hi = np.quantile(looped, [0.025, 0.975])
    # Two bootstraps of 4000 differ by about 3 % of the width at the ends.
    assert found.lo == pytest.approx(lo, abs=0.08 * (hi - lo))
    assert found.hi == pytest.approx(hi, abs=0.08 * (hi - lo))


def test_whole_contexts_are_resampled_so_cells_of_one_context_count_once():
    # All variation is between contexts: 200 starts of 4 contexts are 4 measurements, not 800.
    grid = np.repeat(np.array([[0.0, 1.0, 2.0, 3.0]]), 200, axis=0)
    found = mean(grid, seed=0)
    assert found.lo is not None
    assert found.hi is not None
    # Standard error of the mean of 4 draws of {0,1,2,3}: sqrt(1.25 / 4) = 0.56, so +-1.1.
    assert found.lo < 0.8
    assert found.hi > 2.2


def test_nothing_measured_is_unscored_and_not_zero():
    empty = np.full((3, 2), np.nan)
    assert mean(empty, seed=0) == UNSCORED
    assert ratio(empty, _grid(0, 3, 2), seed=0) == UNSCORED
    assert UNSCORED.to_json() == {"value": None, "lo": None, "hi": None}
    assert str(UNSCORED) == "unscored"


def test_a_single_replicate_gives_a_value_without_an_interval():
    assert percentiles(2.0, np.array([1.0])) == Number(2.0)
    assert percentiles(float("nan"), np.array([1.0, 2.0])) == UNSCORED
