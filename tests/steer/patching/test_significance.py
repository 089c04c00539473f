"""Intervals and p-values of maps, against scipy and closed forms."""

import jaxtyping
import numpy as np
import pytest
from scipy import stats

from steer.errors import PlanError
from steer.patching.significance import interval, p_values, quotients


def changes(n_cells: int = 4, n_rows: int = 9, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(0).normal(shift, 1.0, (n_cells, n_rows))


def test_exact_p_values_are_those_of_scipy():
    change = changes(shift=0.6)
    found = p_values(change, correction="none")
    for cell, p in zip(change, found, strict=True):
        theirs = stats.permutation_test(
            (cell,),
            lambda x, axis: np.abs(x.mean(axis)),
            permutation_type="samples",
            vectorized=True,
            alternative="greater",
            n_resamples=2**20,
        )
        assert p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_p_values_of_nothing_are_uniform_and_the_largest_of_many_is_as_rare_as_said():
    rng = np.random.default_rng(1)
    one = [p_values(rng.normal(size=(1, 8)), correction="none")[0] for _ in range(400)]
    assert stats.kstest(one, "uniform").pvalue > 0.001
    family = [p_values(rng.normal(size=(20, 8)), correction="max").min() for _ in range(300)]
    assert np.mean(np.array(family) <= 0.1) < 0.1 + 3 * np.sqrt(0.09 / 300)


def test_corrections_are_the_textbook_ones():
    change = changes(6, 10, 0.5)
    raw = p_values(change, correction="none")
    order = np.sort(raw)
    holm = p_values(change, correction="holm")
    assert np.sort(holm)[0] == pytest.approx(min(1, 6 * order[0]))
    assert np.sort(holm)[1] == pytest.approx(min(1, max(6 * order[0], 5 * order[1])))
    fdr = p_values(change, correction="fdr")
    by_hand = [min(order[j] * 6 / (j + 1) for j in range(k, 6)) for k in range(6)]
    np.testing.assert_allclose(np.sort(fdr), np.minimum(by_hand, 1))
    assert (p_values(change, correction="max") >= raw - 1e-12).all()


def test_a_cell_that_moves_every_row_the_same_way_is_found_among_many_that_do_not():
    change = changes(200, 16)
    change[7] = 3.0 + 0.1 * change[7]
    found = p_values(change)
    assert found[7] < 0.01
    assert (np.delete(found, 7) > 0.01).all()


def test_rows_that_lack_a_cell_do_not_count():
    change = changes(2, 10)
    change[0, 4:] = np.nan
    alone = p_values(change[:1, :4], correction="none")
    # Absent rows turn their signs in vain: the same distribution, each pattern many times.
    assert p_values(change, correction="none")[0] == pytest.approx(alone[0])
    share = quotients(change, np.full(10, 2.0), np.ones((1, 10)))[0]
    assert share[0] == pytest.approx(change[0, :4].sum() / 8)


def test_intervals_are_those_of_scipy_for_a_mean():
    change = changes(1, 30, 1.0)
    lo, hi = interval(change, np.ones(30), n_resamples=8000)
    theirs = stats.bootstrap(
        (change[0],), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert lo[0] == pytest.approx(theirs.low, abs=0.02)
    assert hi[0] == pytest.approx(theirs.high, abs=0.02)


def test_too_few_pairs_and_unknown_corrections_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    with pytest.raises(PlanError, match="several"):
        p_values(changes(3, 1))
    with pytest.raises(PlanError, match="bonferroni"):
        p_values(changes(), correction="bonferroni")  # type: ignore[arg-type]
