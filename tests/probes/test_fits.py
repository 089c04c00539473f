"""The fits against scikit-learn, the laws of every probe, and what each fit refuses."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import probes
from probes import ProbeError


def blobs(n=60, d=12, n_classes=2, seed=0, gap=1.0, dtype=torch.float64):
    """Classes with means gap apart, features of very different sizes, a common offset."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    means = gap * torch.randn(n_classes, d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + means[y]
    return (x * torch.logspace(-1, 1, d, dtype=torch.float64) + 3).to(dtype), y


def mean_difference(x, y, **options):
    return probes.fit_mean_difference(x[..., y == 1, :], x[..., y == 0, :], **options)


def pca_difference(x, y, **options):
    return probes.fit_pca_difference(x[..., y == 1, :], x[..., y == 0, :], **options)


FITS = {
    "logistic": probes.fit_logistic,
    "lda": probes.fit_lda,
    "ridge": probes.fit_ridge,
    "mean_difference": mean_difference,
    "pca_difference": pca_difference,
}
LABELLED = ["logistic", "lda", "mean_difference", "pca_difference"]
every_fit = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)

# Both sides solve in float64 to a gradient of 1e-10; the contract asks for 1e-5.
assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def held_out(probe, score="accuracy") -> float:
    value = probe.diagnostics[f"held_out_{score}"]
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("n", "d", "n_classes"), [(60, 12, 2), (30, 50, 2), (90, 10, 4)])
def test_logistic_is_that_of_scikit_learn(n, d, n_classes, l2, standardize):
    x, y = blobs(n, d, n_classes)
    probe = probes.fit_logistic(x, y, l2=l2, standardize=standardize)
    model = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=100_000, solver="newton-cg")
    steps = [StandardScaler(), model] if standardize else [model]
    fitted = make_pipeline(*steps).fit(x.numpy(), y.numpy())
    expected = fitted.predict_proba(x.numpy())
    expected = expected[:, 1] if n_classes == 2 else expected
    assert_close(probe.scores(x), torch.from_numpy(expected))
    scale = x.numpy().std(0) if standardize else 1.0
    weight = torch.from_numpy(model.coef_ / scale)
    ours = probe.weight if n_classes > 2 else probe.weight[None]
    assert_close(ours, weight - (n_classes > 2) * weight.mean(0))


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_lda_is_that_of_scikit_learn(shrinkage, n_classes):
    x, y = blobs(60, 12, n_classes)
    y[:3] = 0  # unequal classes, so that the priors matter
    probe = probes.fit_lda(x, y, shrinkage=shrinkage)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None)
    expected = model.fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    expected = expected[:, 1] if n_classes == 2 else expected
    assert_close(probe.scores(x), torch.from_numpy(expected))


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(("n", "d"), [(60, 12), (20, 50)])
def test_ridge_is_that_of_scikit_learn(n, d, standardize):
    x, _ = blobs(n, d)
    y = x[:, 0] - 2 * x[:, 1] + 5
    probe = probes.fit_ridge(x, y, l2=2.0, standardize=standardize)
    model = Ridge(alpha=2.0)
    fitted = make_pipeline(*([StandardScaler()] * standardize), model).fit(x.numpy(), y.numpy())
    expected = torch.from_numpy(fitted.predict(x.numpy()))
    assert_close(probe.scores(x), expected)


def test_mean_difference_is_the_difference_of_the_means_with_its_zero_between_them():
    x, y = blobs()
    positive, negative = x[y == 1][:20], x[y == 0]
    probe = probes.fit_mean_difference(positive, negative)
    raw = positive.mean(0) - negative.mean(0)
    torch.testing.assert_close(probe.separation * probe.direction, raw)
    middle = (positive.mean(0) + negative.mean(0)) / 2
    assert abs(float(probe.scores(middle))) < 1e-12
    assert math.isclose(float(probe.scores(middle + raw)), float(raw.norm()), rel_tol=1e-12)


@pytest.mark.parametrize("d", [5, 40])
def test_pca_difference_is_the_first_singular_vector_of_the_pairs(d):
    x, y = blobs(40, d)
    positive, negative = x[y == 1], x[y == 0]
    probe = probes.fit_pca_difference(positive, negative)
    axis = np.linalg.svd((positive - negative).numpy())[2][0]
    assert math.isclose(abs(float(probe.direction @ torch.from_numpy(axis))), 1, rel_tol=1e-9)
    assert float(probe.scores(positive).mean()) > 0 > float(probe.scores(negative).mean())


def test_auroc_is_that_of_scikit_learn_with_ties():
    scores = torch.randint(0, 5, (3, 40), generator=torch.Generator().manual_seed(0)).float()
    positive = torch.arange(40) % 3 == 0
    ours = probes.auroc(scores, positive)
    expected = [roc_auc_score(positive.numpy(), row.numpy()) for row in scores]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


@every_fit
def test_the_direction_has_norm_one(fit):
    probe = fit(*blobs())
    assert math.isclose(float(probe.direction.norm()), 1, abs_tol=1e-12)


@every_fit
def test_swapping_the_labels_flips_the_direction(fit):
    x, y = blobs()
    forth, back = fit(x, y), fit(x, 1 - y)
    torch.testing.assert_close(back.direction, -forth.direction, rtol=0, atol=1e-8)


@every_fit
def test_the_order_of_the_rows_does_not_matter(fit):
    x, y = blobs()
    # Pairs stay pairs: the permutation moves two rows at a time.
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    rows = torch.stack([2 * order, 2 * order + 1], 1).flatten()
    # Sums in another order, solved to a gradient of 1e-10.
    torch.testing.assert_close(fit(x[rows], y[rows]).weight, fit(x, y).weight, rtol=0, atol=1e-8)


@every_fit
def test_a_translation_changes_only_the_bias(fit):
    x, y = blobs()
    shift = 10 * torch.randn(x.shape[1], generator=torch.Generator().manual_seed(2)).double()
    here, there = fit(x, y), fit(x + shift, y)
    torch.testing.assert_close(there.weight, here.weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(there.scores(x + shift), here.scores(x), rtol=0, atol=1e-7)


@every_fit
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_inputs_are_fitted_as_the_numbers_they_hold(fit, dtype):
    x, y = blobs(dtype=dtype)
    narrow, wide = fit(x, y), fit(x.double(), y)
    assert narrow.weight.dtype == torch.float32
    assert wide.weight.dtype == torch.float64
    assert torch.equal(narrow.weight, wide.weight.float())


@every_fit
def test_a_stack_is_fitted_as_its_sites_one_by_one(fit):
    x, y = blobs()
    sites = torch.stack([x, x.flip(1) ** 3 / 50, x.roll(3, 1).sin()])
    stack = fit(sites, y)
    assert stack.n_sites == 3
    for i in range(3):
        single = fit(sites[i], y)
        torch.testing.assert_close(stack[i].weight, single.weight, rtol=1e-6, atol=1e-8)
        # Held-out scores are of the same split.
        for key, score in stack[i].diagnostics.items():
            assert score == pytest.approx(single.diagnostics[key], abs=1e-6)


def test_a_stack_of_many_classes_is_fitted_as_its_sites_one_by_one():
    x, y = blobs(90, 10, 3)
    sites = torch.stack([x, x.flip(1) ** 3 / 50])
    stack = probes.fit_logistic(sites, y)
    for i in range(2):
        expected = probes.fit_logistic(sites[i], y).weight
        torch.testing.assert_close(stack[i].weight, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LABELLED)
def test_on_shuffled_labels_the_held_out_score_is_chance(name):
    areas = []
    for seed in range(20):
        x, y = blobs(200, 12, seed=seed)
        shuffled = torch.cat(
            [y[torch.randperm(200, generator=torch.Generator().manual_seed(seed))]]
        )
        areas.append(held_out(FITS[name](x, shuffled, seed=seed), "auroc"))
    # One area has a deviation of 0.09 (40 held-out samples), the mean of 20 of them 0.02.
    assert abs(np.mean(areas) - 0.5) < 0.08


@pytest.mark.parametrize("name", ["logistic", "lda", "mean_difference"])
def test_on_classes_far_apart_the_held_out_score_is_one(name):
    probe = FITS[name](*blobs(gap=10.0))
    assert held_out(probe, "auroc") == held_out(probe) == 1.0


def test_groups_are_never_on_both_sides_of_the_split():
    # Each group is a cloud of its own with a label of its own: leakage would score high.
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(200) // 10
    centres = 20 * torch.randn(20, 40, generator=generator)
    labels = torch.arange(20) % 2
    x = centres[groups] + torch.randn(200, 40, generator=generator)
    y = labels[groups]
    leaking = held_out(probes.fit_logistic(x, y))
    scores = [held_out(probes.fit_logistic(x, y, groups=groups, seed=seed)) for seed in range(10)]
    assert leaking == 1.0
    assert np.mean(scores) < 0.8


def test_the_seed_chooses_the_split_and_nothing_else():
    x, y = blobs(gap=0.2)
    first, again, other = (probes.fit_logistic(x, y, seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest
    assert torch.equal(first.weight, other.weight)
    assert held_out(first, "auroc") != held_out(other, "auroc")


def test_too_few_samples_to_hold_any_out_leave_no_score():
    x, y = blobs(4)
    assert probes.fit_logistic(x, y).diagnostics["held_out_accuracy"] is None
    assert probes.fit_lda(*blobs(15), shrinkage=0.0).diagnostics["held_out_accuracy"] is None


def test_the_later_of_the_sorted_labels_is_the_positive_class():
    x, y = blobs()
    by_number = probes.fit_logistic(x, y)
    assert by_number.classes == (0, 1)
    for labels in (
        [bool(label) for label in y],
        ["yes" if label else "no" for label in y],
        y.numpy(),
        y.double(),
    ):
        assert torch.equal(probes.fit_logistic(x, labels).weight, by_number.weight)


def test_numpy_arrays_are_taken_even_if_read_only():
    x, y = blobs()
    array = x.numpy().copy()
    array.flags.writeable = False
    assert torch.equal(probes.fit_logistic(array, y).weight, probes.fit_logistic(x, y).weight)


def test_the_data_are_not_written_to_and_need_no_gradient():
    x, y = blobs()
    kept = x.clone()
    for fit in FITS.values():
        assert not fit(x.requires_grad_(), y).weight.requires_grad
        assert torch.equal(x.detach(), kept)


def test_a_constant_feature_gets_no_weight():
    x, y = blobs()
    x[:, 4] = 7.3
    assert float(probes.fit_logistic(x, y).weight[4]) == pytest.approx(0, abs=1e-8)


@every_fit
def test_origin_is_kept_and_one_is_given_to_each_site(fit):
    x, y = blobs()
    assert fit(x, y, origin={"site": "embed"}).origin == {"site": "embed"}
    stack = fit(torch.stack([x, x]), y, origin=[{"site": "a"}, {"site": "b"}])
    assert stack[1].origin == {"site": "b"}


X, Y = blobs()


@pytest.mark.parametrize("fit", [probes.fit_logistic, probes.fit_lda])
@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (X, torch.zeros(60), "All 60 labels are 0.0. One class only"),
        (X, torch.arange(60) == 3, "True has only one"),
        (X, torch.linspace(0, 1, 60), "60 classes share 60 samples.*fit_ridge"),
        (X, Y[:-1], "y has 59 entries but x has 60"),
        (X, Y[:, None], "more than one axis"),
        (X, [*["a"] * 30, *[1] * 30], "types int, str"),
        (X.log(), Y, "rows with entries that are not finite, the first of them row"),
        (X[0], Y, r"x is \[12\]"),
        (X[:, :0], Y, r"x is \[60, 0\]"),
        (X[None, None], Y, r"\[1, 1, 60, 12\]"),
    ],
)
def test_data_that_cannot_be_classified_are_refused(fit, x, y, match):
    with pytest.raises(ProbeError, match=match):
        fit(x, y)


def test_features_that_never_vary_are_refused():
    for fit in (probes.fit_logistic, probes.fit_ridge):
        with pytest.raises(ProbeError, match="All 12 features are constant"):
            fit(torch.full((60, 12), 0.1), Y)
    with pytest.raises(ProbeError, match="samples of each class are all equal"):
        probes.fit_lda(torch.ones(60, 12) * Y[:, None], Y)


@pytest.mark.parametrize("l2", [0.0, -1.0, math.inf, math.nan])
def test_penalties_that_are_not_positive_are_refused(l2):
    for fit in (probes.fit_logistic, probes.fit_ridge):
        with pytest.raises(ProbeError, match="Give a small l2"):
            fit(X, Y, l2=l2)


def test_shrinkage_is_a_share_and_needed_where_samples_are_few():
    with pytest.raises(ProbeError, match=r"shrinkage is 1\.5"):
        probes.fit_lda(X, Y, shrinkage=1.5)
    with pytest.raises(ProbeError, match=r"singular.*Give a shrinkage"):
        probes.fit_lda(X[:10], Y[:10], shrinkage=0.0)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (["a"] * 60, "Use fit_logistic"),
        (torch.ones(60), r"from 1\.0 to 1\.0"),
        (torch.full((60,), math.inf), "equal or not finite"),
        (Y[:3], "y has 3 entries"),
    ],
)
def test_targets_that_cannot_be_predicted_are_refused(y, match):
    with pytest.raises(ProbeError, match=match):
        probes.fit_ridge(X, y)


def test_groups_of_another_length_are_refused():
    with pytest.raises(ProbeError, match="groups has 5 entries"):
        probes.fit_logistic(X, Y, groups=Y[:5])


@pytest.mark.parametrize("fit", [probes.fit_mean_difference, probes.fit_pca_difference])
@pytest.mark.parametrize(
    ("positive", "negative", "match"),
    [
        (X, X[:, :5], "Only the number of samples may differ"),
        (X[None], X, "Only the number of samples may differ"),
        (X[:1], X[:1], "1 positive and 1 negative.*at least 2"),
        (X, X.clone(), "coincide"),
        (X.log(), X, "not finite"),
        (X[0], X[0], "Only the number"),
    ],
)
def test_sets_that_cannot_be_contrasted_are_refused(fit, positive, negative, match):
    with pytest.raises(ProbeError, match=match):
        fit(positive, negative)


def test_pairs_need_sets_of_one_size():
    with pytest.raises(ProbeError, match=r"pair by pair.*fit_mean_difference"):
        probes.fit_pca_difference(X[:10], X[10:])


def test_importing_probes_loads_no_heavy_package():
    code = "import probes, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"sklearn", "scipy", "transformers", "steer", "manifolds", "matplotlib", "plotly"}
    assert not heavy & set(loaded)


@pytest.mark.gpu
@every_fit
def test_a_fit_on_the_gpu_is_that_on_the_cpu(fit):
    x, y = blobs()
    sites = torch.stack([x, x.flip(1)])
    there = fit(sites.cuda(), y)
    assert there.weight.is_cuda
    # Sums in another order, solved to a gradient of 1e-10.
    torch.testing.assert_close(there.weight.cpu(), fit(sites, y).weight, rtol=1e-6, atol=1e-8)
