"""Bayesian predictors of in-context learning, against loops, scikit-learn and densities."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from steer.odds import predictors


def density(x: NDArray[np.float64], mean: NDArray[np.float64], cov: NDArray[np.float64]) -> float:
    """Return the normal density, by its formula."""
    apart = x - mean
    volume = np.sqrt(np.linalg.det(2 * np.pi * cov))
    return float(np.exp(-0.5 * apart @ np.linalg.solve(cov, apart)) / volume)


def test_memorised_urns_are_weighed_by_the_likelihood_of_the_balls_before(gen: torch.Generator):
    urns = torch.rand(5, 4, generator=gen).double()
    urns = urns / urns.sum(1, keepdim=True)
    balls = torch.randint(4, (3, 6), generator=gen)
    found = predictors.urns_memorised(urns, balls)
    for row in range(3):
        for at in range(6):
            likely = np.array(
                [math.prod(float(urn[b]) for b in balls[row, :at]) for urn in urns], dtype=float
            )
            expected = (likely / likely.sum()) @ urns.numpy()
            np.testing.assert_allclose(found[row, at].numpy(), expected, atol=1e-12)


def test_generalised_urns_are_the_mean_of_many_urns_weighed_by_likelihood(gen: torch.Generator):
    # The closed form against the definition: memorising a great many urns of the prior.
    raw = -torch.rand(400_000, 3, generator=gen).double().log()
    balls = torch.tensor([[0, 0, 2, 0]])
    many = predictors.urns_memorised(raw / raw.sum(1, keepdim=True), balls)
    torch.testing.assert_close(
        predictors.urns_generalised(balls, n_colours=3), many, atol=5e-3, rtol=0
    )


def test_generalised_regression_is_scikit_learns_ridge_of_the_pairs_before(gen: torch.Generator):
    x = torch.randn(2, 6, 3, generator=gen).double()
    y = torch.randn(2, 6, generator=gen).double()
    found = predictors.regression_generalised(x, y, noise=0.5)
    torch.testing.assert_close(found[:, 0], torch.zeros(2).double())
    for row in range(2):
        for at in range(1, 6):
            ridge = Ridge(alpha=0.25, fit_intercept=False).fit(
                x[row, :at].numpy(), y[row, :at].numpy()
            )
            expected = float(ridge.predict(x[row, at : at + 1].numpy())[0])
            assert abs(float(found[row, at]) - expected) < 1e-9


def test_memorised_regression_finds_the_task_and_averages_before_it_has(gen: torch.Generator):
    tasks = torch.randn(4, 3, generator=gen).double()
    x = torch.randn(40, 3, generator=gen).double()
    y = x @ tasks[2]
    found = predictors.regression_memorised(tasks, x, y, noise=0.3)
    assert abs(float(found[0] - x[0] @ tasks.mean(0))) < 1e-12
    assert float((found[-5:] - y[-5:]).abs().max()) < 1e-6


def test_known_classes_are_bayes_over_items_and_classes(gen: torch.Generator):
    noise, n = 0.8, 2
    means = torch.randn(4, n, generator=gen).double()
    labels = torch.tensor([0, 1, 1, 0])
    x, query = torch.randn(3, n, generator=gen).double(), torch.randn(n, generator=gen).double()
    y = torch.tensor([0, 1, 0])
    shrink = (1 + noise**2) ** -0.5
    cov = np.eye(n) * (noise * shrink) ** 2 / n
    chance = np.zeros(2)
    for item in range(3):
        like = np.array(
            [
                density(x[item].numpy(), shrink * means[c].numpy(), cov)
                * (labels[c] == y[item]).item()
                for c in range(4)
            ]
        )
        for c, share in enumerate(like / like.sum()):
            at_query = density(query.numpy(), shrink * means[c].numpy(), cov)
            chance[labels[c]] += share * at_query
    found = predictors.classes_memorised(means, labels, x, y, query, noise=noise)
    np.testing.assert_allclose(found.numpy(), chance / chance.sum(), atol=1e-10)


def test_new_classes_are_bayes_of_two_noisy_copies_of_one_mean(gen: torch.Generator):
    noise, n = 0.8, 3
    x, query = torch.randn(4, n, generator=gen).double(), torch.randn(n, generator=gen).double()
    y = torch.tensor([0.0, 1.0, 1.0, 0.0]).double()
    r = 1 / (1 + noise**2)
    cov = np.block([[np.eye(n), r * np.eye(n)], [r * np.eye(n), np.eye(n)]]) / n
    each = []
    for item in x:
        pair = np.concatenate([item.numpy(), query.numpy()])
        alone = density(item.numpy(), np.zeros(n), np.eye(n) / n)
        each.append(density(pair, np.zeros(2 * n), cov) / alone)
    ones = float((np.array(each) * y.numpy()).sum() / np.sum(each))
    found = predictors.classes_generalised(x, y, query, noise=noise)
    np.testing.assert_allclose(found.numpy(), [1 - ones, ones], atol=1e-10)
