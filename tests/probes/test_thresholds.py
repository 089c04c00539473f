"""Promised false-positive rates against scipy's binomial and a simulation; scores over tokens."""

import json

import pytest
import torch
from scipy.stats import binom

import probes
from probes import ProbeError
from probes.thresholds import _allowed


@pytest.mark.parametrize("n", [100, 299, 300, 1000, 5000])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_as_many_may_fire_as_the_binomial_tail_allows(n: int, rate: float, confidence: float):
    scores = torch.arange(float(n))
    allowed = [k for k in range(n) if binom.cdf(k, n, rate) <= 1 - confidence]
    if not allowed:
        with pytest.raises(ProbeError, match="It takes"):
            probes.calibrate(scores, rate=rate, confidence=confidence)
        return
    found = probes.calibrate(scores, rate=rate, confidence=confidence)
    assert found.n_above == max(allowed)
    assert found.value == n - 1 - max(allowed)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_promise_is_kept_in_as_many_draws_as_it_says(rate: float):
    # Uniform scores: the true rate above a threshold t is 1 - t.
    draw = torch.Generator().manual_seed(0)
    sets = torch.rand(2000, 200, generator=draw, dtype=torch.float64)
    found = probes.calibrate(sets, rate=rate)
    rates = 1 - torch.tensor(found.value, dtype=torch.float64)
    broken = float((rates > rate).double().mean())
    error = (0.05 * 0.95 / 2000) ** 0.5
    assert broken <= 0.05 + 3 * error
    # Not kept by firing never: the share is the binomial tail itself.
    assert isinstance(found.n_above, tuple)
    assert abs(broken - binom.cdf(found.n_above[0], 200, rate)) <= 3 * error


def test_the_tail_is_exact_for_many_rows_and_where_rounding_decides():
    # A rate rounded to float32 would allow one more here.
    allowed = _allowed(300_000, 0.3, 0.95)
    assert binom.cdf(allowed, 300_000, 0.3) <= 0.05 < binom.cdf(allowed + 1, 300_000, 0.3)
    # 1 - confidence is (1 - rate)^n: refused or granted, but never out of range.
    for n in range(1, 40):
        for rate in (0.5, 0.1, 0.01, 0.0001):
            confidence = 1 - (1 - rate) ** n
            with pytest.raises(ProbeError, match=f"{n - 1} benign rows cannot promise"):
                probes.calibrate(torch.arange(n - 1.0), rate=rate, confidence=confidence)
            found = probes.calibrate(torch.arange(n + 1.0), rate=rate, confidence=confidence)
            assert found.n_above == 0


def test_each_site_has_its_own_threshold_and_rows_are_not_pooled():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 400, generator=draw) * torch.tensor([[1.0], [10.0], [100.0]])
    stack = probes.calibrate(scores, origin=[{"site": k} for k in "abc"])
    fresh = torch.randn(3, 50, 2, generator=draw) * 100
    for i in range(3):
        assert stack[i] == probes.calibrate(scores[i].numpy(), origin={"site": "abc"[i]})
        assert bool((stack.fired(fresh)[i] == stack[i].fired(fresh[i])).all())
    assert len(stack) == 3
    again = probes.Threshold.from_spec(json.loads(json.dumps(stack.spec())))
    assert again == stack
    assert again.digest == stack.digest
    # Two reads of the same 200 rows are not 400 rows.
    with pytest.raises(ProbeError, match=r"200 benign rows cannot .* takes 299"):
        probes.calibrate(scores[:2, :200])
    with pytest.raises(ProbeError, match="a stack of 3 thresholds"):
        stack.fired(fresh[:2])
    with pytest.raises(ProbeError, match="reads a single site"):
        stack[0][0]
    with pytest.raises(ProbeError, match="for scores of tokens use aggregate"):
        probes.calibrate(torch.zeros(2, 3, 400))
    with pytest.raises(ProbeError, match="not a finite number"):
        probes.Threshold(float("nan"), 0.01, 0.95, 400, 0)


def test_scores_in_half_precision_are_compared_with_the_threshold_as_it_is():
    # bfloat16 has no 0.998: rounded to it the threshold would be 1, which 1 is not above.
    scores = torch.tensor([[1.0, 0.99], [1.0, 0.99]], dtype=torch.bfloat16)
    stack = probes.Threshold((0.998, 1.002), 0.01, 0.95, 400, (0, 0))
    assert stack.fired(scores).tolist() == [[True, False], [False, False]]
    assert stack[0].fired(scores[0]).tolist() == [True, False]


def test_ties_and_scores_that_could_not_be_read():
    scores = torch.cat([torch.zeros(300), torch.ones(50)])
    found = probes.calibrate(scores, rate=0.05)
    # Half of a tie cannot fire: none of the fifty does.
    assert found.n_above == 0
    assert found.fired(torch.tensor([1.0, 1.0001, float("nan"), 0.0])).tolist() == [
        False, True, True, False,
    ]  # fmt: skip
    with pytest.raises(ProbeError, match="not finite"):
        probes.calibrate(torch.tensor([float("nan")] * 400))
    with pytest.raises(ProbeError, match="shares between 0 and 1"):
        probes.calibrate(scores, rate=1.5)


def test_it_is_kept_as_it_is():
    found = probes.calibrate(torch.arange(400.0), origin={"site": "blocks.3.resid_post"})
    again = probes.Threshold.from_spec(found.spec())
    assert again == found
    assert again.digest == found.digest
    assert "at most 1.00% of benign rows" in repr(found)


def test_tokens_are_aggregated_as_in_a_loop_over_rows():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 12, generator=draw)
    mask = torch.rand(20, 12, generator=draw) < 0.6
    mask = mask | (torch.arange(12) == 3)
    for window in (1, 3, 20):
        got = {
            how: probes.aggregate(scores, mask, how, window=window)
            for how in ("last", "mean", "max", "rolling")
        }
        for row in range(20):
            own = scores[row][mask[row]]
            short = min(window, len(own))
            means = own.unfold(0, short, 1).mean(1)
            expected = {
                "last": own[-1],
                "mean": own.mean(),
                "max": own.max(),
                "rolling": means.max(),
            }
            for how, value in expected.items():
                torch.testing.assert_close(got[how][row], value, atol=1e-6, rtol=1e-5)


def test_a_row_without_tokens_has_no_score():
    with pytest.raises(ProbeError, match=r"Rows \[1\] have no token"):
        probes.aggregate(torch.zeros(2, 3), torch.tensor([[True] * 3, [False] * 3]))


def test_the_mean_of_a_long_row_does_not_overflow_in_half_precision():
    scores = torch.full((1, 4000), 30.0, dtype=torch.float16)
    assert probes.aggregate(scores, scores > 0, "mean").tolist() == [30.0]


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ProbeError, match="a window of 0"):
        probes.aggregate(torch.zeros(1, 3), torch.ones(1, 3) > 0, "rolling", window=0)
