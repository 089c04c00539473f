"""The quick identity of weights: tells models apart, reads packed weights, costs no full pass."""

import torch
from torch import nn

from steer.models.fingerprint import SAMPLE, fingerprint


class Packed(torch.Tensor):
    """A stand-in for torchao's weights: only `dequantize` gives values."""

    def dequantize(self):
        return self.as_subclass(torch.Tensor) * 2

    def reshape(self, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError("packed")


def linear(values: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(values.clone(), requires_grad=False)
    return layer


VALUES = torch.arange(16.0).view(4, 4)


def test_equal_weights_have_one_fingerprint_and_others_another():
    assert fingerprint(linear(VALUES)) == fingerprint(linear(VALUES))
    assert fingerprint(linear(VALUES)) != fingerprint(linear(VALUES + 1))
    assert fingerprint(linear(VALUES)) != fingerprint(nn.Sequential(linear(VALUES)))


def test_packed_weights_count_as_the_dense_values_they_stand_for():
    layer = linear(VALUES)
    layer.weight = nn.Parameter(VALUES.as_subclass(Packed), requires_grad=False)
    assert type(layer.weight.data) is Packed or isinstance(layer.weight, Packed)
    assert fingerprint(layer) == fingerprint(linear(2 * VALUES))


def test_a_bf16_copy_of_bf16_values_keeps_its_fingerprint():
    assert fingerprint(linear(VALUES).bfloat16()) == fingerprint(linear(VALUES))


def test_only_a_sample_is_looked_at_as_the_docstring_says():
    big = torch.zeros(4, SAMPLE * 8)
    touched = big.clone()
    touched[0, 1] = 1.0
    layers = []
    for values in (big, touched):
        layer = nn.Linear(SAMPLE * 8, 4, bias=False)
        layer.weight = nn.Parameter(values)
        layers.append(fingerprint(layer))
    assert layers[0] == layers[1]
