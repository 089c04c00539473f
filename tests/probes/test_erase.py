"""Erasure: nothing linear is left, at the least change, against scikit-learn and other maps."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
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


@pytest.mark.parametrize(("n", "d"), [(120, 8), (20, 50)])
def test_it_is_the_formula_of_the_paper_computed_densely(n: int, d: int):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(n, d)) @ draw.normal(size=(d, d)) + 3
    y = draw.permutation(np.arange(n) % 3)
    one_hot = np.eye(3)[y]
    centred = x - x.mean(0)
    covariance, cross = centred.T @ centred / n, centred.T @ (one_hot - one_hot.mean(0)) / n
    root = sqrtm_psd(covariance)
    # 1e-6: above the root of an eigenvalue's rounding, below the smallest that is not zero.
    whiten = np.linalg.pinv(root, rcond=1e-6)
    white = whiten @ cross
    onto = white @ np.linalg.pinv(white, rcond=1e-9)
    expected = x - centred @ (np.linalg.pinv(whiten, rcond=1e-9) @ onto @ whiten).T
    got = probes.fit_erasure(x, y.tolist()).apply(torch.from_numpy(x))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-7)


def sqrtm_psd(matrix: np.ndarray) -> np.ndarray:
    sizes, axes = np.linalg.eigh(matrix)
    return (axes * np.sqrt(np.maximum(sizes, 0))) @ axes.T


def test_it_changes_least_also_in_the_norm_of_the_covariance():
    x, y = data()
    centred = x - x.mean(0)
    precision = torch.linalg.inv(centred.T @ centred / len(x))

    def change(left: Tensor, right: Tensor, norm: Tensor) -> float:
        moved = centred @ right.T @ left.T
        return float((moved @ norm * moved).sum(1).mean())

    leace = probes.fit_erasure(x, y)
    means = probes.fit_erasure(x, y, method="mean")
    one_hot = torch.nn.functional.one_hot(torch.tensor(y)).double()
    cross = centred.T @ one_hot[:, :-1] / len(x)
    draw = torch.Generator().manual_seed(1)
    for norm in (precision, torch.eye(8).double(), torch.linalg.inv(precision)):
        least = change(leace.left, leace.right, norm)
        assert least < change(means.left, means.right, norm)
        for _ in range(20):
            # Any right at all gives an oblique projection that leaves no covariance.
            right = torch.randn(2, 8, generator=draw, dtype=torch.float64)
            left = cross @ torch.linalg.inv(right @ cross)
            assert least < change(left, right, norm)


@pytest.mark.parametrize("method", ["leace", "mean"])
def test_with_unequal_classes_a_fresh_probe_is_at_the_majority_rate(method: Method):
    x, _ = data(n_classes=2)
    y = [int(k % 10 < 3) for k in range(len(x))]
    x = x + 6 * torch.tensor(y)[:, None]
    left = probes.fit_erasure(x, y, method=method).apply(x).numpy()
    model = LogisticRegression(C=1e6, max_iter=5000)
    assert model.fit(x.numpy(), y).score(x.numpy(), y) > 0.8
    assert model.fit(left, y).score(left, y) == 0.7


@pytest.mark.parametrize("method", ["leace", "mean"])
def test_where_the_classes_have_one_mean_nothing_is_taken_out(method: Method):
    x, _ = data(100)
    erasure = probes.fit_erasure(torch.cat([x, x]), [0] * 100 + [1] * 100, method=method)
    assert erasure.rank == 0
    assert bool((erasure.apply(x) == x).all())


@pytest.mark.parametrize("size", [1e-4, 1e-7, 1e-9])
def test_a_feature_far_smaller_than_the_others_is_not_overlooked(size: float):
    x, y = data(n_classes=2)
    x = torch.cat([x, size * (x[:, :1] + 3 * torch.tensor(y)[:, None])], 1)
    left = probes.fit_erasure(x, y).apply(x)
    z = StandardScaler().fit_transform(left.numpy())
    fit = LogisticRegression(C=1e6, max_iter=5000).fit(z, y)
    assert float(np.abs(fit.coef_).max()) < 1e-3


def test_rounding_of_float32_states_is_not_taken_for_a_direction():
    # A layer norm's states sum to zero, up to rounding that whitening would blow up.
    wide = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    y = [k % 2 for k in range(300)]
    wide = wide + torch.tensor(y)[:, None] * torch.randn(64, generator=torch.Generator())
    x = torch.nn.functional.layer_norm(wide, (64,))
    erasure = probes.fit_erasure(x, y)
    left = erasure.apply(x)
    # 5e-6: float32 products over 64 entries of size one.
    assert float((left[1::2].mean(0) - left[::2].mean(0)).abs().max()) < 5e-6
    assert float(erasure.right.norm()) < 100


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
