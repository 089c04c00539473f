"""Fits: recovery, independent optimisers and formulas, invariances, refusals."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit, minimize
from scipy.stats import chi2
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss

import steer
from steer.belief import Belief, Decay, additivity, bootstrap, compare, data_of, fit, profile
from steer.errors import BeliefError
from steer.odds.fit import fitted

fits = importlib.import_module("steer.odds.fit")  # the name `steer.odds.fit` is the function
EVIDENCE = torch.tensor([0.0, 1, 2, 4, 8, 16, 32, 64, 128]).double()
STRENGTH = torch.linspace(-1, 1, 9).double()
TRUE = Belief(a=2.0, b=-2.0, gamma=0.8, alpha=0.6)


def cells(questions: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grid = torch.meshgrid(EVIDENCE, STRENGTH, torch.arange(questions).double(), indexing="ij")
    n, m, q = (x.flatten() for x in grid)
    return n, m, q


def parameters(belief: Belief) -> list[float]:
    return [float(belief.slopes[0]), belief.b, belief.gamma, belief.alpha]


@pytest.fixture
def noisy(gen: torch.Generator):
    n, m, q = cells(10)
    noise = torch.randn(len(n), generator=gen, dtype=torch.float64)
    return n, m, TRUE.log_odds(n, m) + 0.3 * noise, q


@pytest.fixture
def counts(gen: torch.Generator):
    n, m, q = cells(10)
    p = TRUE.posterior(n, m)
    drawn = torch.rand(len(n), 20, generator=gen, dtype=torch.float64)
    return n, m, (drawn < p[:, None]).sum(1), q


def test_exact_data_give_back_the_law():
    n, m, _ = cells()
    p = TRUE.posterior(n, m)
    for found in (
        fit(n, m, TRUE.log_odds(n, m)),
        fit(n, m, p, outcome_is="probability", smoothing=1e-9),
    ):
        assert parameters(found) == pytest.approx([2.0, -2.0, 0.8, 0.6], abs=2e-3)


def test_log_odds_are_fitted_as_by_scipys_curve_fit(noisy):
    n, m, y, _ = noisy

    def law(x, a, b, gamma, alpha):
        return a * x[1] + b + gamma * np.where(x[0] > 0, x[0], 1.0) ** (1 - alpha) * (x[0] > 0)

    wanted, _ = curve_fit(law, np.stack([n, m]), y.numpy(), p0=[1, 0, 1, 0.5])
    assert parameters(fit(n, m, y)) == pytest.approx(wanted.tolist(), abs=2e-3)


def test_counts_are_fitted_as_by_a_plain_minimiser_of_their_likelihood(counts):
    n, m, k, _ = counts

    def loss(theta):
        a, b, gamma, alpha = theta
        z = a * m.numpy() + b + gamma * np.where(n > 0, n.clamp(min=1) ** (1 - alpha), 0.0)
        return float(np.sum(20 * np.logaddexp(0, z) - k.numpy() * z))

    wanted = minimize(
        loss, [1, 0, 1, 0.5], method="L-BFGS-B", bounds=[(None, None)] * 2 + [(0.01, 9), (-1, 0.95)]
    ).x
    found = fit(n, m, k, trials=20, outcome_is="counts")
    assert parameters(found) == pytest.approx(wanted.tolist(), abs=3e-3)


def test_with_the_discount_known_it_is_scikit_learns_logistic_regression(counts):
    n, m, k, _ = counts
    found = fit(n, m, k, trials=20, outcome_is="counts")
    x = torch.stack([m, torch.where(n > 0, n ** (1 - found.alpha), 0.0)], dim=1).numpy()
    rows = np.concatenate([x, x])
    labels = np.repeat([1, 0], len(x))
    weights = np.concatenate([k.numpy(), 20 - k.numpy()])
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(rows, labels, sample_weight=weights)
    wanted = [*model.coef_[0], *np.ravel(model.intercept_)]
    assert [*parameters(found)[:1], found.gamma, found.b] == pytest.approx(wanted, abs=2e-3)


def test_the_order_of_rows_changes_no_bit(noisy, gen: torch.Generator):
    n, m, y, q = noisy
    order = torch.randperm(len(n), generator=gen)
    one = fit(n, m, y, question=q)
    two = fit(n[order], m[order], y[order], question=q[order])
    assert one.digest == two.digest


@pytest.mark.parametrize("unit", [1e-3, 10.0, 1e4])
@pytest.mark.parametrize("decay", [False, True])
def test_another_unit_of_strength_rescales_a_and_nothing_else(counts, unit, decay):
    n, m, k, _ = counts
    one = fit(n, m, k, trials=20, outcome_is="counts", decay=decay)
    two = fit(n, unit * m, k, trials=20, outcome_is="counts", decay=decay)
    assert unit * float(two.slopes[0]) == pytest.approx(float(one.slopes[0]), rel=1e-6)
    assert one.valid is not None
    assert two.valid is not None
    assert [x / unit for x in two.valid] == pytest.approx(one.valid, rel=1e-6)
    torch.testing.assert_close(two.log_odds(n, unit * m), one.log_odds(n, m), rtol=0, atol=1e-6)


def test_fading_steering_is_recovered_with_where_it_is_valid():
    n, m, _ = cells()
    true = Belief(a=2.0, b=-2.0, gamma=0.8, alpha=0.6, decay=Decay(2.0, 3.0))
    found = fit(n, 3 * m, true.log_odds(n, 3 * m), decay=True)
    assert found.decay is not None
    assert (found.decay.below, found.decay.above) == pytest.approx((2.0, 3.0), rel=1e-2)
    share = found.decay(torch.tensor(found.valid).double())
    torch.testing.assert_close(share, torch.full((2,), 0.9).double())


def test_floor_and_ceiling_are_recovered():
    n, m, _ = cells()
    true = Belief(a=4.0, b=-2.0, gamma=0.8, alpha=0.5, floor=0.1, ceiling=0.85)
    found = fit(n, m, true.posterior(n, m), outcome_is="probability", bounded=True)
    assert (found.floor, found.ceiling) == pytest.approx((0.1, 0.85), abs=5e-3)


def test_intercepts_of_questions_are_told_from_noise(gen: torch.Generator):
    n, m, q = cells(40)
    own = torch.randn(40, generator=gen, dtype=torch.float64)
    noise = 0.3 * torch.randn(len(n), generator=gen, dtype=torch.float64)
    y = TRUE.log_odds(n, m) + own[q.long()] + noise
    assert fit(n, m, y, question=q).spread == pytest.approx(float(own.std()), rel=0.05)
    p = torch.sigmoid(TRUE.log_odds(n, m) + own[q.long()])
    drawn = torch.rand(len(n), generator=gen, dtype=torch.float64)
    counted = fit(n, m, drawn < p, trials=1, outcome_is="counts", question=q)
    assert counted.spread == pytest.approx(float(own.std()), rel=0.25)
    marginal = fit(n, m, drawn < p, trials=1, outcome_is="counts")
    # Averaging over questions flattens the curve; the intercepts undo it.
    assert float(counted.slopes[0]) > 1.05 * float(marginal.slopes[0])


def test_several_vectors_are_fitted_together(gen: torch.Generator):
    n, m, _ = cells()
    other = m[torch.randperm(len(m), generator=gen)]
    y = TRUE.log_odds(n, m) - 1.5 * other
    found = fit(n, torch.stack([m, other], dim=1), y)
    assert found.slopes.tolist() == pytest.approx([2.0, -1.5], abs=2e-3)


# -- intervals ---------------------------------------------------------------------------------


def test_a_profile_is_the_likelihood_ratio_interval_of_a_brute_force_grid(noisy):
    n, m, y, _ = noisy
    found = profile(data_of(n, m, y), "a")
    g = torch.where(n > 0, n, 1.0)[:, None] ** (1 - torch.linspace(0.4, 0.8, 81)) * (n > 0)[:, None]
    sizes = torch.linspace(float(found.lo) - 0.05, float(found.hi) + 0.05, 101).double()

    def least(a: float) -> float:
        rest = (y - a * m).numpy()
        errors = []
        for column in g.T:
            x = column.numpy()[:, None]
            left = rest - LinearRegression().fit(x, rest).predict(x)
            errors.append(float((left**2).sum()))
        return min(errors)

    curve = np.array([least(float(a)) for a in sizes])
    inside = sizes[curve - curve.min() <= 3.8415 * curve.min() / (len(n) - 4)]
    assert found.lo == pytest.approx(float(inside.min()), abs=2e-3)
    assert found.hi == pytest.approx(float(inside.max()), abs=2e-3)


@pytest.mark.parametrize("amounts", [[0.0, 1, 2, 4], [2.0, 3, 4]], ids=["narrow", "no zero"])
def test_a_profile_of_a_design_that_hardly_tells_is_as_wide_as_brute_force(amounts, gen):
    grid = torch.meshgrid(torch.tensor(amounts), torch.linspace(-1, 1, 5), indexing="ij")
    n, m = (x.flatten().double() for x in grid)
    drawn = torch.rand(400, len(n), generator=gen, dtype=torch.float64) < TRUE.posterior(n, m)
    k = drawn.sum(0).double()
    alphas = np.linspace(-2.95, 0.99, 60)
    deviance = []
    for alpha in alphas:  # sklearn on scaled columns: at a fixed alpha the likelihood is convex
        g = torch.where(n > 0, n.clamp(min=1e-9) ** (1 - float(alpha)), 0.0).numpy()
        x = np.stack([m.numpy(), (g - g.mean()) / g.std()], axis=1)
        labels, weights = np.repeat([1, 0], len(x)), np.concatenate([k, 400 - k])
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        z = model.fit(np.concatenate([x, x]), labels, sample_weight=weights).decision_function(x)
        positive = model.coef_[0, 1] > 0
        loss = 2 * float(np.sum(400 * np.logaddexp(0, z) - k.numpy() * z))
        deviance.append(loss if positive else math.inf)
    inside = alphas[np.array(deviance) <= min(deviance) + 3.8415]
    found = profile(data_of(n, m, k, trials=400, outcome_is="counts"), "alpha")
    step = float(alphas[1] - alphas[0])
    for ours, theirs, limit in (
        (found.lo, inside.min(), alphas[0]),
        (found.hi, inside.max(), 0.99),
    ):
        if theirs == limit:
            assert abs(ours) >= abs(limit)
        else:
            assert abs(ours - float(theirs)) <= 1.1 * step


def test_a_ridge_gives_no_false_certainty(gen: torch.Generator):
    grid = torch.meshgrid(torch.tensor([2.0, 3, 4]), torch.linspace(-1, 1, 5), indexing="ij")
    n, m = (x.flatten().double() for x in grid)
    drawn = torch.rand(10, len(n), generator=gen, dtype=torch.float64) < TRUE.posterior(n, m)
    data = data_of(n, m, drawn.sum(0), trials=10, outcome_is="counts")
    b, alpha = profile(data, "b"), profile(data, "alpha")
    assert b.hi - b.lo > 10
    assert alpha.hi - alpha.lo > 1
    assert profile(data, "a").holds(2.0)


def test_intervals_hold_the_truth_and_have_a_width(counts):
    n, m, k, q = counts
    data = data_of(n, m, k, trials=20, outcome_is="counts", question=q)
    wide = bootstrap(data, resamples=100)
    for name, truth in zip(("a", "b", "gamma", "alpha"), (2.0, -2.0, 0.8, 0.6), strict=True):
        narrow = profile(data, name)
        assert narrow.lo - 0.2 <= truth <= narrow.hi + 0.2
        assert wide[name].lo < wide[name].value < wide[name].hi


def test_a_bootstrap_draws_questions_not_readings(gen: torch.Generator):
    n, m, q = cells(20)
    own = 1.5 * torch.randn(20, generator=gen, dtype=torch.float64)
    y = TRUE.log_odds(n, m) + own[q.long()]
    by_question = bootstrap(data_of(n, m, y, question=q), resamples=200)["b"]
    by_reading = bootstrap(data_of(n, m, y), resamples=200)["b"]
    standard_error = float(own.std()) / math.sqrt(20)
    assert by_question.hi - by_question.lo == pytest.approx(2 * 1.96 * standard_error, rel=0.35)
    assert by_reading.hi - by_reading.lo < 0.5 * (by_question.hi - by_question.lo)


# -- tests and rivals --------------------------------------------------------------------------


def test_additivity_is_kept_where_it_holds_and_refused_where_not(gen: torch.Generator):
    n, m, _ = cells(5)
    noise = 0.2 * torch.randn(len(n), generator=gen, dtype=torch.float64)
    y = TRUE.log_odds(n, m) + noise
    assert additivity(data_of(n, m, y)).p > 0.01
    crossed = additivity(data_of(n, m, y + 0.3 * m * n**0.4))
    assert crossed.p < 1e-6
    assert crossed.interaction == pytest.approx(0.3, rel=0.1)


def test_the_test_of_additivity_is_the_gaussian_closed_form(noisy):
    n, m, y, _ = noisy

    def law(x, a, b, gamma, alpha):
        return a * x[1] + b + gamma * np.where(x[0] > 0, x[0], 1.0) ** (1 - alpha) * (x[0] > 0)

    (*_, alpha), _ = curve_fit(law, np.stack([n, m]), y.numpy(), p0=[1, 0, 1, 0.5])
    g = np.where(n > 0, n, 1.0) ** (1 - alpha) * (n.numpy() > 0)
    bend = g * np.log(np.maximum(n.numpy(), 1.0))
    columns = [m.numpy(), np.ones_like(g), g, bend, m.numpy() * g]

    def squares(x):
        return float(np.linalg.lstsq(np.stack(x, axis=1), y.numpy(), rcond=None)[1][0])

    wanted = len(n) * math.log(squares(columns[:4]) / squares(columns))
    found = additivity(data_of(n, m, y))
    assert found.statistic == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert found.p == pytest.approx(chi2.sf(wanted, 1), abs=1e-3)


def test_the_additivity_test_rejects_about_as_often_as_it_says(gen: torch.Generator):
    n, m, _ = cells()
    p = []
    for _ in range(200):
        noise = torch.randn(len(n), generator=gen, dtype=torch.float64)
        p.append(additivity(data_of(n, m, TRUE.log_odds(n, m) + noise)).p)
    assert 0.01 <= float(np.mean(np.array(p) < 0.05)) <= 0.11


def test_readings_of_one_question_do_not_count_as_many(gen: torch.Generator):
    # Each question has an interaction of its own, none on average: no evidence against the law.
    n, m, q = cells(12)
    rejected = []
    for _ in range(60):
        own = 0.2 * torch.randn(12, generator=gen, dtype=torch.float64)
        y = TRUE.log_odds(n, m) + own[q.long()] * m * n**0.4
        y = y + 0.2 * torch.randn(len(n), generator=gen, dtype=torch.float64)
        rejected.append(additivity(data_of(n, m, y, question=q)).p < 0.05)
    assert float(np.mean(rejected)) <= 0.15


def test_the_law_wins_where_it_holds_and_loses_where_a_rival_does(noisy):
    n, m, y, _ = noisy
    data = data_of(n, m, y)
    seen = data.evidence <= 32
    table = compare(data.take(seen), data.take(~seen))
    rivals = {name: error for name, error in table.errors.items() if name != "free_interaction"}
    assert min(rivals, key=lambda name: rivals[name]) == "law"
    assert table.errors["no_discount"] > 2 * table.errors["law"]
    linear = data_of(n, m, 2 * m - 2 + 0.05 * n)
    table = compare(linear.take(seen), linear.take(~seen))
    assert table.errors["no_discount"] < 1e-9
    crossed = data_of(n, m, y + 0.5 * m * n**0.4)
    assert compare(crossed.take(seen), crossed.take(~seen)).best == "free_interaction"
    assert "Least held-out error" in repr(table)


def test_the_held_out_log_loss_is_scikit_learns(counts):
    n, m, k, _ = counts
    data = data_of(n, m, k, trials=20, outcome_is="counts")
    seen = data.evidence <= 32
    train, held_out = data.take(seen), data.take(~seen)
    table = compare(train, held_out)
    p = fitted(train).posterior(held_out.evidence, held_out.strength[:, 0]).numpy()
    labels = np.repeat([1, 0], len(p))
    share = held_out.outcome.numpy()
    wanted = log_loss(labels, np.concatenate([p, p]), sample_weight=[*share, *(1 - share)])
    assert table.log_loss["law"] == pytest.approx(wanted, rel=1e-9)
    p = fitted(train).posterior(train.evidence, train.strength[:, 0]).numpy()
    y = train.outcome.numpy()
    deviance = -2 * 20 * float(np.sum(y * np.log(p) + (1 - y) * np.log1p(-p)))
    assert table.aic["law"] == pytest.approx(deviance + 8, rel=1e-9)


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "says"),
    [
        ([0.0, 1, 2, 4, 8], [1.0] * 5, "a is not identified: there is one strength"),
        ([0.0, 1, 0, 1], [0.0, 0, 1, 1], "gamma and alpha are not identified"),
        ([0.0, 1, 4, 9, 16], [0.0, 1, 2, 3, 4], "Cross them"),
    ],
)
def test_designs_that_cannot_tell_are_refused_with_the_cells_to_add(n, m, says):
    with pytest.raises(steer.BeliefError, match=says):
        fit(n, m, [0.1 * i for i in range(len(n))])


def test_a_narrow_range_of_evidence_is_pointed_out():
    said = repr(steer.belief.identified([4.0, 6, 8], [0.0, 1, 2]))
    assert "trade against each other" in said or "told apart" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"outcome": [0.5, 1.5], "outcome_is": "probability"}, "counts with"),
        ({"outcome": [3, 4], "outcome_is": "counts"}, "need trials"),
        ({"outcome": [0.1, float("nan")]}, "not finite"),
        ({"outcome": [0.1, 0.2, 0.3]}, "do not fit"),
        ({"outcome": [], "evidence": [], "strength": []}, "No observations"),
        ({"outcome": [0.1, 0.2], "evidence": [-1.0, 0.0]}, "cannot be negative"),
        ({"outcome": [0.1, 0.2], "question": [1]}, "question ids"),
    ],
)
def test_malformed_data_are_refused(given, says):
    full = {"evidence": [0.0, 1.0], "strength": [0.0, 1.0], **given}
    with pytest.raises(steer.BeliefError, match=says):
        data_of(**full)


def test_probabilities_of_zero_and_one_are_smoothed_as_stated():
    data = data_of([0.0, 1.0], [0.0, 1.0], [0.0, 1.0], outcome_is="probability", smoothing=1e-3)
    torch.testing.assert_close(
        data.log_odds, torch.logit(torch.tensor([1e-3, 1 - 1e-3], dtype=torch.float64))
    )
    counted = data_of([0.0, 1.0], [0.0, 1.0], [0, 4], trials=4, outcome_is="counts")
    torch.testing.assert_close(
        counted.log_odds.exp(), torch.tensor([0.5 / 4.5, 4.5 / 0.5], dtype=torch.float64)
    )


def test_evidence_that_lowers_its_own_concept_is_refused_and_not_hidden(gen: torch.Generator):
    n, m, _ = cells()
    falling = -TRUE.log_odds(n, m) + 0.1 * torch.randn(len(n), generator=gen).double()
    with pytest.raises(BeliefError, match=r"fall with evidence: by 1\.\d+ nats.*Swap the sides"):
        fit(n, m, falling)
    assert fitted(data_of(n, m, falling)).gamma < 1e-3  # what would have been reported
    # Noise about no effect is no evidence against: it is fitted.
    flat = 2 * m + 0.1 * torch.randn(len(n), generator=gen).double()
    assert fit(n, m, flat).gamma < 0.1


def test_a_search_that_stopped_too_early_is_begun_again(monkeypatch):
    n, m, _ = cells()
    data = data_of(n, m, TRUE.log_odds(n, m))
    minimised, starts = fits._minimised, []

    def once_lame(model, start):
        starts.append(start)
        found = minimised(model, start)
        if len(starts) == 1:  # as after an abnormal line search: where it began, slope and all
            found.x = torch.tensor(start).double().numpy() + 0.3
            found.fun, found.jac = model(found.x)
        return found

    monkeypatch.setattr(fits, "_minimised", once_lame)
    assert parameters(fitted(data)) == pytest.approx([2.0, -2.0, 0.8, 0.6], abs=2e-3)
    assert len(starts) == 4
