import pytest
import torch

import manifolds
from manifolds import ManifoldError


def _samples(noise: float, n_per_class: int) -> tuple[torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(0)
    angle = torch.arange(10).double() * 2 * torch.pi / 10
    ring = torch.zeros(10, 40).double()
    ring[:, 0], ring[:, 1] = 3 * angle.cos(), 3 * angle.sin()
    labels = torch.arange(10).repeat(n_per_class)
    return ring[labels] + noise * torch.randn(len(labels), 40, generator=generator), labels.tolist()


def test_the_two_components_of_a_noisy_ring_are_chosen():
    x, labels = _samples(0.5, 6)
    assert manifolds.choose_components(x, labels) == 2


def test_without_noise_all_that_the_shape_has_is_kept():
    x, labels = _samples(0.0, 2)
    x[:, 2] = torch.tensor(labels) ** 2 / 100.0
    assert manifolds.choose_components(x, labels) == 3


def test_it_is_the_loop_over_left_out_samples():
    x, labels = _samples(1.0, 3)
    of = torch.tensor(labels)
    errors = torch.zeros(9).double()
    for i in range(len(x)):
        rest = torch.arange(len(x)) != i
        averages = torch.stack([x[rest & (of == c)].mean(0) for c in range(10)])
        for k in range(1, 10):
            space = manifolds.fit_pca(averages, n_components=k, variance=1)
            errors[k - 1] += (x[i] - space.flatten(averages[labels[i]])).square().sum()
    assert manifolds.choose_components(x, labels) == int(errors.argmin()) + 1


def test_a_class_with_one_prompt_cannot_be_left_out():
    x, labels = _samples(0.1, 2)
    with pytest.raises(ManifoldError, match="has one prompt"):
        manifolds.choose_components(x[:-1], labels[:-1])
    with pytest.raises(ManifoldError, match="one label per sample"):
        manifolds.choose_components(x, labels[:-1])
    with pytest.raises(ManifoldError, match="nothing to choose"):
        manifolds.choose_components(x, [i % 2 for i in labels])
