"""Erasure: nothing linear is left, at the least change, against scikit-learn and other maps."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import probes
from probes import ProbeError
from probes.erase import Method


def data(n: int = 300, n_classes: int = 3, seed: int = 0) -> tuple[Tensor, list[int]]:
    draw = torch.Generator().manual_seed(seed)
    y = [k % n_classes for k in range(n)]
    mix = torch.randn(8, 8, generator=draw, dtype=torch.float64)
    means = 2 * torch.randn(n_classes, 8, generator=draw, dtype=torch.float64)
    x = torch.randn(n, 8, generator=draw, dtype=torch.float64) @ mix
    return x + means[y] + 3.0, y


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("method", ["leace", "mean"])
def test_after_erasure_nothing_linear_is_left(n_classes: int, method: Method):
    x, y = data(n_classes=n_classes)
    erasure = probes.fit_erasure(x, y, method=method)
    left = erasure.apply(x)
    one_hot = torch.nn.functional.one_hot(torch.tensor(y)).double()
    covariance = (left - left.mean(0)).T @ (one_hot - one_hot.mean(0)) / len(x)
    assert float(covariance.abs().max()) < 1e-8
    before = LogisticRegression(C=1e6, max_iter=5000).fit(x.numpy(), y).score(x.numpy(), y)
    fit = LogisticRegression(C=1e6, max_iter=5000).fit(left.numpy(), y)
    assert before > 0.8
    # No better than guessing: the best linear fit is a constant.
    assert float(np.abs(fit.coef_).max()) < 1e-4
    np.testing.assert_allclose(fit.predict_proba(left.numpy()), 1 / n_classes, atol=1e-3)
    assert erasure.rank == n_classes - 1


def test_no_other_linear_map_does_it_at_a_smaller_change():
    x, y = data()
    leace = probes.fit_erasure(x, y)
    change = (leace.apply(x) - x).square().sum(1).mean()
    at_right_angles = probes.fit_erasure(x, y, method="mean")
    assert float(change) < float((at_right_angles.apply(x) - x).square().sum(1).mean())
    # Other oblique projections with the same null space of columns: what is added must go too.
    draw = torch.Generator().manual_seed(0)
    one_hot = torch.nn.functional.one_hot(torch.tensor(y)).double()
    cross = (x - x.mean(0)).T @ (one_hot - one_hot.mean(0))[:, :-1]
    for _ in range(20):
        right = leace.right + 0.3 * torch.randn(2, 8, generator=draw).double() * leace.right.std()
        left = cross @ torch.linalg.inv(right @ cross)
        other = x - (x - x.mean(0)) @ right.T @ left.T
        covariance = (other - other.mean(0)).T @ (one_hot - one_hot.mean(0)) / len(x)
        assert float(covariance.abs().max()) < 1e-8
        assert float((other - x).square().sum(1).mean()) > float(change) - 1e-9


def test_erasing_twice_is_erasing_once_and_the_mean_stays():
    x, y = data()
    erasure = probes.fit_erasure(x, y)
    once = erasure.apply(x)
    torch.testing.assert_close(erasure.apply(once), once, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(once.mean(0), x.mean(0))


def test_constant_and_repeated_features_are_left_as_they_are():
    x, y = data(n_classes=2)
    wide = torch.cat([x, torch.full((len(x), 1), 5.0).double(), x[:, :1]], 1)
    left = probes.fit_erasure(wide, y).apply(wide)
    assert bool(torch.isfinite(left).all())
    torch.testing.assert_close(left[:, 8], wide[:, 8])
    torch.testing.assert_close(left[:, 9], left[:, 0], atol=1e-7, rtol=1e-7)


def test_more_features_than_samples_are_no_obstacle():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20, 50, generator=draw, dtype=torch.float64)
    y = [0, 1] * 10
    left = probes.fit_erasure(x, y).apply(x)
    difference = left[1::2].mean(0) - left[::2].mean(0)
    assert float(difference.abs().max()) < 1e-7


def test_a_stack_is_the_fits_one_by_one_and_a_spec_round_trip_is_the_same():
    x = torch.stack([data(seed=k)[0] for k in range(3)])
    y = data()[1]
    stack = probes.fit_erasure(x, y)
    for k in range(3):
        one = probes.fit_erasure(x[k], y)
        torch.testing.assert_close(stack[k].apply(x[k]), one.apply(x[k]), atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(stack.apply(x)[k], one.apply(x[k]), atol=1e-8, rtol=1e-8)
    again = probes.Erasure.from_spec(stack.spec())
    assert again.digest == stack.digest
    assert "leace, rank 2" in repr(stack)


def test_bad_input_is_refused():
    x, y = data()
    with pytest.raises(ProbeError, match="One class only"):
        probes.fit_erasure(x, [0] * len(y))
    with pytest.raises(ProbeError, match="fitted at a site of that width"):
        probes.fit_erasure(x, y).apply(x[:, :3])
