"""The ideal observers against sums over every history, integrals, closed forms and simulation."""

from itertools import pairwise, product
from math import exp, lgamma, log, pi
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from steer.errors import BeliefError
from steer.odds.observers import (
    BetaBernoulli,
    ChangePoint,
    Exact,
    Forgetting,
    NormalInverseGamma,
)

PRIOR = NormalInverseGamma(mean=1.5, kappa=0.7, shape=1.3, rate=2.1)
COIN = BetaBernoulli(positive=1.4, negative=0.6)
OBSERVERS = (Exact, Forgetting, ChangePoint)


def posterior(x: np.ndarray) -> tuple[float, float, float, float]:
    """Return the textbook parameters after x, by sums about the sample mean."""
    n, m0, k0 = len(x), PRIOR.mean, PRIOR.kappa
    if not n:
        return m0, k0, PRIOR.shape, PRIOR.rate
    mean = x.mean()
    k = k0 + n
    rate = PRIOR.rate + ((x - mean) ** 2).sum() / 2 + k0 * n * (mean - m0) ** 2 / (2 * k)
    return (k0 * m0 + x.sum()) / k, k, PRIOR.shape + n / 2, rate


def student(x: np.ndarray) -> Any:
    """Return scipy's predictive distribution after x."""
    m, k, a, b = posterior(x)
    return scipy.stats.t(2 * a, m, np.sqrt(b * (k + 1) / (a * k)))


def log_evidence_of_numbers(x: np.ndarray) -> float:
    """Return the log marginal likelihood of one run, from its normalising constants."""
    _, k, a, b = posterior(x)
    return (
        lgamma(a)
        - lgamma(PRIOR.shape)
        + PRIOR.shape * log(PRIOR.rate)
        - a * log(b)
        + (log(PRIOR.kappa) - log(k)) / 2
        - len(x) / 2 * log(2 * pi)
    )


def log_evidence_of_events(x: np.ndarray) -> float:
    """Return the log marginal likelihood of one run, by Beta functions."""
    p, q, yes = COIN.positive, COIN.negative, x.sum()
    no = len(x) - yes

    def beta(u, v):
        return lgamma(u) + lgamma(v) - lgamma(u + v)

    return beta(p + yes, q + no) - beta(p, q)


def histories(x: np.ndarray, hazard: float, log_evidence):
    """Yield the weight of every placement of changes, and the length of its last run.

    A change may come before each observation but the first, and before the one to come.
    """
    found = []
    for changes in product([False, True], repeat=len(x)):
        before_next = changes[-1]
        cuts = [0, *(i for i, c in enumerate(changes[:-1], 1) if c), len(x)]
        weight = sum(log(hazard if c else 1 - hazard) for c in changes)
        weight += sum(log_evidence(x[i:j]) for i, j in pairwise(cuts))
        found.append((weight, 0 if before_next else len(x) - cuts[-2]))
    top = max(w for w, _ in found)
    total = sum(exp(w - top) for w, _ in found)
    return [(exp(w - top) / total, run) for w, run in found]


def test_the_exact_observer_of_numbers_has_the_textbook_posterior():
    x = np.random.default_rng(0).normal(4, 2, (3, 7))
    seen = Exact(PRIOR).observe(x)
    at = torch.full((3, 8), 2.5, dtype=torch.float64)
    density = seen.log_prob(at)
    for row in range(3):
        for t in range(8):
            oracle = student(x[row, :t])
            assert float(seen.mean()[row, t]) == pytest.approx(oracle.mean(), rel=1e-12)
            assert float(seen.variance()[row, t]) == pytest.approx(oracle.var(), rel=1e-12)
            assert float(density[row, t]) == pytest.approx(oracle.logpdf(2.5), rel=1e-12)


def test_the_forecast_of_numbers_is_the_integral_over_means_and_variances():
    x = np.array([0.3, 2.2, 1.1])
    mean, log_var = np.meshgrid(np.linspace(-30, 32, 2001), np.linspace(-6, 9, 1501))
    var = np.exp(log_var)
    weight = scipy.stats.invgamma.pdf(var, PRIOR.shape, scale=PRIOR.rate) * var
    weight *= scipy.stats.norm.pdf(mean, PRIOR.mean, np.sqrt(var / PRIOR.kappa))
    for one in x:
        weight *= scipy.stats.norm.pdf(one, mean, np.sqrt(var))
    for asked in (-1.0, 1.5, 6.0):
        by_sum = (weight * scipy.stats.norm.pdf(asked, mean, np.sqrt(var))).sum() / weight.sum()
        ours = Exact(PRIOR).observe(x[None]).log_prob(torch.full((1, 4), asked).double())
        # The grid leaves out the far tails of the variance.
        assert float(ours[0, -1].exp()) == pytest.approx(by_sum, rel=1e-3)


def test_numbers_far_from_zero_lose_no_digits():
    x = np.random.default_rng(1).normal(0, 1, (1, 50))
    near = Exact(NormalInverseGamma(0.0, 1.0, 2.0, 1.0)).observe(x)
    far = Exact(NormalInverseGamma(1e6, 1.0, 2.0, 1.0)).observe(x + 1e6)
    assert torch.allclose(far.mean() - 1e6, near.mean(), atol=1e-8)
    assert torch.allclose(far.scale, near.scale, rtol=1e-8)


def test_the_forecasts_of_an_exact_observer_are_calibrated_under_its_own_prior():
    chance = np.random.default_rng(2)
    var = scipy.stats.invgamma(PRIOR.shape, scale=PRIOR.rate).rvs(4000, random_state=chance)
    mean = chance.normal(PRIOR.mean, np.sqrt(var / PRIOR.kappa))
    x = chance.normal(mean[:, None], np.sqrt(var)[:, None], (4000, 4))
    seen = Exact(PRIOR).observe(x[:, :3])
    last = [v[:, -1, 0].numpy() for v in (seen.dof, seen.centre, seen.scale)]
    places = scipy.stats.t(*last).cdf(x[:, 3])
    assert scipy.stats.kstest(places, "uniform").pvalue > 0.01


def test_the_exact_observer_of_events_counts():
    x = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]])
    chance = Exact(COIN).observe(x).probability()
    by_hand = [[1.4 / 2, 2.4 / 3, 3.4 / 4, 3.4 / 5, 4.4 / 6], [1.4 / (2 + n) for n in range(5)]]
    assert torch.allclose(chance, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12)
    odds = Exact(COIN).observe(x).log_odds()
    assert torch.allclose(odds, torch.logit(chance), rtol=1e-12)


@pytest.mark.parametrize("prior", [PRIOR, COIN])
def test_forgetting_nothing_is_exact(prior):
    x = torch.tensor([[1.0, 0, 0, 1, 1], [0, 0, 1, 0, 1]])
    exact, kept = Exact(prior).observe(x), Forgetting(prior, 1.0).observe(x)
    assert torch.allclose(exact.score(x), kept.score(x), rtol=1e-12)


def test_forgetting_is_the_recursion_towards_the_prior():
    x = np.random.default_rng(3).integers(0, 2, (2, 9)).astype(float)
    seen = Forgetting(COIN, 0.8).observe(x).probability()
    yes, no = np.full(2, COIN.positive), np.full(2, COIN.negative)
    for t in range(9):
        yes = COIN.positive + 0.8 * (yes - COIN.positive) + x[:, t]
        no = COIN.negative + 0.8 * (no - COIN.negative) + 1 - x[:, t]
        assert np.allclose(seen[:, t + 1], yes / (yes + no), rtol=1e-12)


def test_a_faded_past_is_a_power_of_the_likelihood():
    x, keep = np.array([0.2, 3.0, 1.0]), 0.6
    weight = keep ** np.arange(2, -1, -1)
    mean, log_var = np.meshgrid(np.linspace(-30, 32, 2001), np.linspace(-6, 9, 1501))
    var = np.exp(log_var)
    density = scipy.stats.invgamma.pdf(var, PRIOR.shape, scale=PRIOR.rate) * var
    density *= scipy.stats.norm.pdf(mean, PRIOR.mean, np.sqrt(var / PRIOR.kappa))
    for one, power in zip(x, weight, strict=True):
        # The normalising constant of a power of the normal density does not depend on the mean.
        density *= np.exp(power * scipy.stats.norm.logpdf(one, mean, np.sqrt(var)))
    by_sum = (density * mean).sum() / density.sum()
    assert float(Forgetting(PRIOR, keep).observe(x[None]).mean()[0, -1]) == pytest.approx(
        by_sum, rel=1e-3
    )


def test_a_forgetful_observer_remembers_one_over_one_minus_keep_events():
    chance = Forgetting(BetaBernoulli(), 0.9).observe(torch.ones(1, 400)).probability()
    assert float(chance[0, -1]) == pytest.approx(11 / 12, rel=1e-12)


@pytest.mark.parametrize("hazard", [0.02, 0.3, 0.9])
def test_the_change_point_observer_of_events_is_the_sum_over_every_history(hazard):
    x = np.array([1.0, 1, 1, 0, 1, 0, 0, 0])
    seen = ChangePoint(COIN, hazard).observe(x[None])
    for t in range(1, len(x) + 1):
        chance, runs = 0.0, np.zeros(t + 1)
        for weight, run in histories(x[:t], hazard, log_evidence_of_events):
            last = x[t - run : t]
            chance += weight * (COIN.positive + last.sum()) / (2 + run)
            runs[run] += weight
        assert float(seen.probability()[0, t]) == pytest.approx(chance, rel=1e-10)
        weights = seen.log_weight[0, t].exp().numpy()
        assert np.allclose(weights[: t + 1], runs, atol=1e-12)
        assert (weights[t + 1 :] == 0).all()


def test_the_change_point_observer_of_numbers_is_the_sum_over_every_history():
    x, hazard = np.array([0.1, -0.4, 0.3, 6.0, 5.2, 7.1]), 0.15
    seen = ChangePoint(PRIOR, hazard).observe(x[None])
    density = seen.log_prob(torch.full((1, 7), 5.0).double())
    for t in range(1, len(x) + 1):
        all_of_them = histories(x[:t], hazard, log_evidence_of_numbers)
        mean = sum(w * student(x[t - run : t]).mean() for w, run in all_of_them)
        at_five = sum(w * student(x[t - run : t]).pdf(5.0) for w, run in all_of_them)
        assert float(seen.mean()[0, t]) == pytest.approx(mean, rel=1e-9)
        assert float(density[0, t].exp()) == pytest.approx(at_five, rel=1e-9)


def test_scores_add_up_to_the_evidence_of_the_whole_stream():
    x, hazard = np.array([0.1, -0.4, 6.0, 5.2]), 0.2
    whole = 0.0
    for changes in product([False, True], repeat=3):
        cuts = [0, *(i for i, c in enumerate(changes, 1) if c), 4]
        chance = sum(log(hazard if c else 1 - hazard) for c in changes)
        runs = pairwise(cuts)
        whole += exp(chance + sum(log_evidence_of_numbers(x[i:j]) for i, j in runs))
    score = ChangePoint(PRIOR, hazard).observe(x[None]).score(torch.tensor(x[None]))
    assert float(score.sum()) == pytest.approx(log(whole), rel=1e-10)
    alone = Exact(PRIOR).observe(x[None]).score(torch.tensor(x[None]))
    assert float(alone.sum()) == pytest.approx(log_evidence_of_numbers(x), rel=1e-10)


@pytest.mark.parametrize("prior", [PRIOR, COIN])
def test_without_hazard_nothing_changes_and_with_certain_hazard_nothing_is_learned(prior):
    x = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 1]])
    never, always = ChangePoint(prior, 0.0).observe(x), ChangePoint(prior, 1.0).observe(x)
    assert torch.allclose(never.score(x), Exact(prior).observe(x).score(x), rtol=1e-12)
    fresh = torch.stack([Exact(prior).observe(x[:, [t]]).score(x[:, [t]])[:, 0] for t in range(4)])
    assert torch.allclose(always.score(x), fresh.T, rtol=1e-12)


def test_the_spread_of_a_mixture_counts_the_distance_of_its_parts():
    x = np.array([[0.0, 0.2, -0.1, 0.1, 8.0]])
    seen = ChangePoint(PRIOR, 0.2).observe(x)
    parts = [student(x[0, 5 - run :]) for run in range(6)]
    weights = seen.log_weight[0, -1].exp().numpy()
    mean = sum(w * p.mean() for w, p in zip(weights, parts, strict=True))
    squares = sum(w * (p.var() + p.mean() ** 2) for w, p in zip(weights, parts, strict=True))
    assert float(seen.variance()[0, -1]) == pytest.approx(squares - mean**2, rel=1e-9)


def test_a_prior_without_a_variance_makes_every_mixture_infinite():
    wide = NormalInverseGamma(shape=1.0)
    x = np.zeros((1, 5))
    assert torch.isinf(ChangePoint(wide, 0.1).observe(x).variance()).all()
    assert torch.isfinite(Exact(wide).observe(x).variance()[:, 1:]).all()


def test_after_a_switch_the_change_point_comes_first_and_the_exact_observer_last():
    x = np.concatenate([np.ones((1, 30)), np.zeros((1, 40))], 1)

    def lag(observer):
        odds = observer.observe(x).log_odds()[0, 30:]
        return int((odds <= 1e-9).nonzero()[0, 0])

    coin = BetaBernoulli()
    assert lag(Exact(coin)) == 30
    # 10 (1 - .9^30) keeps 9.6: 9.6 * .9^k falls to 10 (1 - .9^k) at k = 6.4.
    assert lag(Forgetting(coin, 0.9)) == 7
    assert lag(ChangePoint(coin, 0.02)) < 5


@pytest.mark.parametrize("hazard", [0.02, 0.2])
def test_streams_that_change_are_forecast_best_at_their_own_hazard(hazard):
    chance = np.random.default_rng(4)
    changes = chance.random((300, 60)) < hazard
    changes[:, 0] = True
    var = scipy.stats.invgamma(PRIOR.shape, scale=PRIOR.rate).rvs((300, 60), random_state=chance)
    mean = chance.normal(PRIOR.mean, np.sqrt(var / PRIOR.kappa))
    begun = np.maximum.accumulate(np.where(changes, np.arange(60), 0), 1)
    x = chance.normal(
        np.take_along_axis(mean, begun, 1), np.sqrt(np.take_along_axis(var, begun, 1))
    )

    def score(observer):
        return float(observer.observe(x).score(torch.tensor(x)).sum(1).mean())

    own = score(ChangePoint(PRIOR, hazard))
    others = [ChangePoint(PRIOR, hazard / 8), ChangePoint(PRIOR, min(0.9, 8 * hazard))]
    rivals = [*others, Exact(PRIOR), Forgetting(PRIOR, 0.9), Forgetting(PRIOR, 0.6)]
    assert all(own > score(rival) + 0.1 for rival in rivals)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_batch_is_its_rows_and_the_stream_is_left_alone(observer):
    x = torch.tensor(np.random.default_rng(5).normal(size=(4, 6)))
    before = x.clone()
    together = observer(PRIOR).observe(x).score(x)
    alone = torch.cat([observer(PRIOR).observe(row[None]).score(row[None]) for row in x])
    assert torch.allclose(together, alone, rtol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize("observer", [Forgetting, ChangePoint])
def test_each_sequence_may_have_a_rate_of_its_own(observer):
    x = torch.tensor([[1.0, 1, 0, 0, 1]]).expand(3, -1)
    rates = torch.tensor([0.1, 0.5, 0.9])
    together = observer(COIN, rates).observe(x).log_odds()
    alone = torch.cat([observer(COIN, float(r)).observe(x[:1]).log_odds() for r in rates])
    # The rates were rounded to float32.
    assert torch.allclose(together, alone, atol=1e-6)
    with pytest.raises(BeliefError, match=r"has the shape \[3\] for 2 sequences"):
        observer(COIN, rates).observe(x[:2])


def test_order_matters_to_all_but_the_exact_observer():
    x = torch.tensor([[1.0, 1, 1, 0, 0, 0]])
    turned = x.flip(1)
    last = {o: [o(COIN).observe(s).log_odds()[0, -1] for s in (x, turned)] for o in OBSERVERS}
    assert float(last[Exact][0]) == pytest.approx(float(last[Exact][1]), rel=1e-12)
    assert last[Forgetting][0] < last[Forgetting][1]
    assert last[ChangePoint][0] < last[ChangePoint][1]


def test_impossible_priors_and_rates_are_refused():
    with pytest.raises(BeliefError, match="kappa is 0, but a normal-inverse-gamma prior"):
        NormalInverseGamma(kappa=0.0)
    with pytest.raises(BeliefError, match="negative is -1, but a Beta-Bernoulli prior"):
        BetaBernoulli(negative=-1.0)
    with pytest.raises(BeliefError, match=r"keep is 0, .* above 0 and at most 1"):
        Forgetting(COIN, 0.0)
    with pytest.raises(BeliefError, match=r"hazard is 1\.2, .* at least 0 and at most 1"):
        ChangePoint(COIN, torch.tensor([0.1, 1.2]))
    with pytest.raises(BeliefError, match="hazard is nan"):
        ChangePoint(COIN, float("nan"))


def test_streams_that_no_observer_can_read_are_refused():
    with pytest.raises(BeliefError, match=r"the shape \[4\], and observers take \[batch, time\]"):
        Exact(PRIOR).observe(torch.zeros(4))
    with pytest.raises(BeliefError, match="Observation 2 of sequence 1 is nan"):
        Exact(PRIOR).observe([[0.0, 0, 0], [0, 0, float("nan")]])
    with pytest.raises(BeliefError, match=r"An event is 0\.5, .* counts only yes \(1\) and no"):
        Exact(COIN).observe([[0.5, 1.0]])
