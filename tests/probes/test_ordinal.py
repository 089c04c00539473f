"""The proportional odds fit against scikit-learn, a numpy likelihood and planted data."""

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad, minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

import probes
from probes import OrdinalProbe, ProbeError, fit_ordinal


def graded(n=80, d=6, n_classes=4, seed=0):
    """Classes that are slices of a latent along one axis, with noise on it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + 2
    axis = torch.randn(d, generator=generator, dtype=torch.float64)
    latent = 2 * (x - 2) @ axis / axis.norm()
    latent = latent + torch.randn(n, generator=generator, dtype=torch.float64).mul(0.5)
    cuts = torch.linspace(-1.5, 1.5, n_classes - 1, dtype=torch.float64)
    return x, torch.bucketize(latent, cuts), axis / axis.norm()


def negative_log_likelihood(theta, x, y, l2):
    weight, cuts = theta[: x.shape[1]], theta[x.shape[1] :]
    edges = np.concatenate([[-np.inf], cuts, [np.inf]])
    latent = x @ weight
    p = expit(edges[y + 1] - latent) - expit(edges[y] - latent)
    return -np.log(np.maximum(p, 1e-300)).sum() + l2 / 2 * weight @ weight


def test_with_two_classes_it_is_the_logistic_regression_of_scikit_learn():
    x, y, _ = graded(n_classes=2)
    probe = fit_ordinal(x, y, l2=2.0, standardize=False)
    model = LogisticRegression(C=0.5, tol=1e-12, solver="newton-cg").fit(x.numpy(), y.numpy())
    torch.testing.assert_close(probe.weight, torch.from_numpy(model.coef_[0]), rtol=1e-6, atol=1e-6)
    expected = torch.from_numpy(model.predict_proba(x.numpy()))
    torch.testing.assert_close(probe.probabilities(x), expected, rtol=1e-6, atol=1e-6)
    scaled, ours = probes.fit_logistic(x, y), fit_ordinal(x, y)
    torch.testing.assert_close(ours.probabilities(x)[:, 1], scaled.scores(x))


def test_no_lower_value_of_an_independent_likelihood_is_found():
    x, y, _ = graded()
    probe = fit_ordinal(x, y, l2=1.5, standardize=False)
    theta = np.concatenate([probe.weight.numpy(), probe.cuts.numpy()])
    arguments = (x.numpy(), y.numpy(), 1.5)
    value = negative_log_likelihood(theta, *arguments)
    # Central differences are off by their step squared; the gradient claimed here is zero.
    flat = check_grad(
        negative_log_likelihood, lambda t, *_: np.zeros_like(t), theta, *arguments, epsilon=1e-7
    )
    assert flat < 1e-3
    start = theta + np.random.default_rng(0).normal(size=len(theta)) * 0.01
    found = minimize(negative_log_likelihood, start, args=arguments, tol=1e-10)
    assert value <= found.fun + 1e-8
    np.testing.assert_allclose(found.x, theta, atol=1e-3)


def test_on_few_ordered_samples_it_is_no_worse_than_the_multinomial_fit():
    ordered, plain = [], []
    for seed in range(10):
        x, y, _ = graded(300, 10, 5, seed)
        train, test = slice(0, 50), slice(50, None)
        ours, theirs = fit_ordinal(x[train], y[train]), probes.fit_logistic(x[train], y[train])
        ordered.append((ours.predict(x[test]) == y[test]).double().mean())
        plain.append((theirs.predict(x[test]) == y[test]).double().mean())
    assert np.mean(ordered) >= np.mean(plain)


def test_the_direction_points_to_later_classes():
    x, y, axis = graded(300)
    probe = fit_ordinal(x, y)
    assert float(probe.direction @ axis) > 0.95
    flipped = fit_ordinal(x, 3 - y)
    torch.testing.assert_close(flipped.weight, -probe.weight)
    torch.testing.assert_close(flipped.cuts, -probe.cuts.flip(0))


def test_a_stack_is_fitted_as_its_sites_one_by_one():
    x, y, _ = graded()
    sites = torch.stack([x, x.flip(1) ** 3])
    stack = fit_ordinal(sites, y)
    for i in range(2):
        single = fit_ordinal(sites[i], y)
        torch.testing.assert_close(stack[i].weight, single.weight)
        torch.testing.assert_close(stack.probabilities(sites)[i], single.probabilities(sites[i]))


def test_more_features_than_samples_are_fitted():
    x, y, _ = graded(40, 60, 3)
    assert (fit_ordinal(x, y, l2=0.1).predict(x) == y).all()


def test_the_spec_rebuilds_it_and_the_digest_sees_the_cuts():
    x, y, _ = graded()
    probe = fit_ordinal(x, y)
    again = OrdinalProbe.from_spec(probe.spec())
    assert again.digest == probe.digest
    assert OrdinalProbe(probe.weight, probe.cuts + 1, probe.classes).digest != probe.digest
    with pytest.raises(ProbeError, match="ascending: False"):
        OrdinalProbe(probe.weight, probe.cuts.flip(0), probe.classes)


def test_what_cannot_be_fitted_is_refused():
    x, y, _ = graded()
    with pytest.raises(ProbeError, match="One class only"):
        fit_ordinal(x, torch.zeros(80))
    with pytest.raises(ProbeError, match="Give a small l2"):
        fit_ordinal(x, y, l2=0.0)
