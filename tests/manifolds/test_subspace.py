from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import manifolds
from manifolds import ManifoldError


def _points(n: int = 40, d_model: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(3, 0.1, d_model).double()
    return 7 + torch.randn(n, d_model, generator=generator).double() * scales


def test_components_agree_with_scikit_learn() -> None:
    x = _points()
    ours = manifolds.fit_pca(x, n_components=5, variance=1)
    theirs = PCA(n_components=5, svd_solver="full").fit(x.numpy())
    # 1e-10: two decompositions in float64; the sign of a component is a convention.
    assert np.allclose(ours.mean.numpy(), theirs.mean_, atol=1e-12)
    assert np.allclose(ours.basis.abs().numpy(), np.abs(np.array(theirs.components_)), atol=1e-10)
    assert np.allclose(ours.explained.numpy(), theirs.explained_variance_ratio_, atol=1e-10)
    coordinates = ours.coordinates(x).numpy()
    assert np.allclose(np.abs(coordinates), np.abs(theirs.transform(x.numpy())), atol=1e-9)


def test_rows_are_orthonormal_with_the_largest_loading_positive() -> None:
    basis = manifolds.fit_pca(_points(), variance=1).basis
    assert torch.allclose(basis @ basis.T, torch.eye(9).double(), rtol=0, atol=1e-12)
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_variance_keeps_the_fewest_components_that_hold_it() -> None:
    x = _points()
    shares = manifolds.fit_pca(x, variance=1).explained
    for k in range(1, 9):
        held = float(shares[:k].sum())
        assert manifolds.fit_pca(x, variance=held - 1e-9).k == k
        assert manifolds.fit_pca(x, variance=held + 1e-9).k == k + 1
    assert manifolds.fit_pca(x, variance=1, n_components=3).k == 3
    assert manifolds.fit_pca(x, variance=0.01, n_components=3).k == 1


def test_never_more_components_than_the_rows_support() -> None:
    assert manifolds.fit_pca(_points(n=5), variance=1).k == 4
    plane = _points()[:, :2] @ torch.randn(2, 30).double()
    assert manifolds.fit_pca(plane, variance=1).k == 2


def test_rounding_far_from_the_origin_does_not_pass_for_a_direction() -> None:
    line = torch.arange(8).double()[:, None] * torch.tensor([1.0, 2.0, -1.0]).double() + 1e6
    assert manifolds.fit_pca(line, variance=1).k == 1


def test_flatten_keeps_the_residual_orthogonal_and_is_idempotent() -> None:
    x = _points()
    space = manifolds.fit_pca(x, n_components=4)
    away = _points(seed=1)
    flat = space.flatten(away)
    assert torch.allclose((away - flat) @ space.basis.T, torch.zeros(40, 4).double(), atol=1e-12)
    assert torch.allclose(space.flatten(flat), flat, rtol=0, atol=1e-12)
    expected = space.mean + (away - space.mean) @ space.basis.T @ space.basis
    assert torch.allclose(flat, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    space = manifolds.fit_pca(_points().float(), n_components=4)
    x = _points(seed=2).to(dtype)
    assert space.coordinates(x).dtype == torch.float32
    assert torch.equal(space.flatten(x), space.flatten(x.float()))


def test_autocast_does_not_lower_the_precision() -> None:
    space = manifolds.fit_pca(_points().float(), n_components=4)
    x = _points(seed=2).float()
    plain = space.flatten(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = space.flatten(x)
    assert torch.equal(inside, plain)


def test_a_float64_fit_stays_float64_and_every_other_is_float32() -> None:
    assert manifolds.fit_pca(_points()).basis.dtype == torch.float64
    assert manifolds.fit_pca(_points().numpy()).basis.dtype == torch.float64
    assert manifolds.fit_pca(_points().to(torch.bfloat16)).basis.dtype == torch.float32
    assert manifolds.fit_pca(_points().float().numpy()).basis.dtype == torch.float32
    space = manifolds.fit_pca(_points())
    assert space.coordinates(_points().float()).dtype == torch.float32


def test_repr_says_the_sizes() -> None:
    space = manifolds.fit_pca(_points(), variance=1)
    assert repr(space) == "Subspace(9 components of d_model 9, 100.0% of variance)"


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(1, 4), {}, r"at least 2 rows, and there is 1.*Read more prompts"),
        (torch.full((5, 4), 3.3), {}, r"All 5 rows are equal"),
        (torch.tensor([[0.0, 1], [torch.inf, 0], [1, 1]]), {}, r"1 of 3 rows.*first: row 1"),
        (torch.zeros(3, 4, 5), {}, r"shape \[3, 4, 5\].*\[sample, d_model\]"),
        (torch.eye(4), {"variance": 0}, r"variance is 0.*variance=0\.99"),
        (torch.eye(4), {"variance": 1.5}, r"variance is 1\.5"),
        (torch.eye(4), {"n_components": 4}, r"n_components is 4.*these 4 rows support 1 to 3"),
        (torch.eye(4), {"n_components": 0}, r"n_components is 0"),
    ],
)
def test_data_without_components_are_refused(
    x: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifoldError, match=message):
        manifolds.fit_pca(x, **options)


def test_another_width_is_refused() -> None:
    space = manifolds.fit_pca(_points())
    with pytest.raises(ManifoldError, match=r"shape \[3, 8\].*fitted in 9 dimensions.*Refit"):
        space.coordinates(torch.zeros(3, 8))
