"""Promised false-positive rates against scipy's binomial and a simulation; scores over tokens."""

import pytest
import torch
from scipy.stats import binom

import probes
from probes import ProbeError


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


def test_the_promise_is_kept_in_as_many_draws_as_it_says():
    # Uniform scores: the true rate above a threshold t is 1 - t.
    draw = torch.Generator().manual_seed(0)
    rates = torch.tensor(
        [1 - probes.calibrate(row, rate=0.05).value for row in
         torch.rand(1500, 200, generator=draw, dtype=torch.float64)]
    )  # fmt: skip
    broken = float((rates > 0.05).double().mean())
    assert broken <= 0.05 + 3 * (0.05 * 0.95 / 1500) ** 0.5
    assert broken > 0.01  # and it is not kept by firing never
    assert float(rates.mean()) > 0.015


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
