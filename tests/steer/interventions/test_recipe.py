"""What interventions share: parts, widths, devices; identity through them."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor

import steer
from steer.interventions import Add, PreserveNorm, Read, When
from steer.interventions.recipe import on_device, row_counts_of, walk, widths_of
from steer.sites import Site

SITE = Site(1, "resid_post")
CPU, META = torch.device("cpu"), torch.device("meta")


class Weights:
    """A probe that can move."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def scores(self, x: Tensor) -> Tensor:
        """Return the dot product."""
        return x @ self.weight

    def to(self, device: torch.device) -> "Weights":
        """Return a moved copy."""
        return Weights(self.weight.to(device))


def test_every_part_is_walked_outermost_first():
    add = Add(SITE, torch.ones(4), torch.ones(2))
    gate = When(Read(SITE, Weights(torch.ones(4))), add)
    outer = PreserveNorm(gate)
    assert list(walk(outer)) == [outer, gate, add]
    assert list(widths_of(outer, SITE)) == [("the direction", 4)]
    assert list(row_counts_of(outer)) == [("strength", 2)]


def test_values_move_and_shared_parts_stay_shared():
    # No second device here: what moves to "meta" has moved.
    read = Read(SITE, Weights(torch.ones(4)))
    first = When(read, steer.Scale(SITE, 2.0))
    second = PreserveNorm(When(read, steer.Scale(SITE, 3.0)))
    seen: dict[int, object] = {}
    one, two = on_device(first, META, seen), on_device(second, META, seen)
    assert isinstance(two.inner, When)
    assert one.read is two.inner.read
    assert isinstance(one.read.probe, Weights)
    assert one.read.probe.weight.device == META
    assert one.inner is first.inner
    assert isinstance(read.probe, Weights)
    assert read.probe.weight.device == CPU


def test_what_is_there_already_is_not_copied():
    add = Add(SITE, torch.ones(4))
    assert on_device(add, CPU, {}) is add
    wrapped = PreserveNorm(add)
    assert on_device(wrapped, CPU, {}) is wrapped


def test_interventions_are_frozen_and_compare_by_identity():
    add = Add(SITE, torch.ones(4))
    with pytest.raises(FrozenInstanceError):
        add.strength = 2.0  # type: ignore[misc]
    assert add == add
    assert add != replace(add)
    assert len({add, replace(add)}) == 2


def test_the_digest_follows_tensor_site_scope_and_strength():
    add = Add(SITE, torch.ones(4))
    same = Add(SITE, torch.ones(4))
    others = [
        replace(add, direction=2 * torch.ones(4)),
        replace(add, strength=2.0),
        replace(add, scope=steer.LAST),
        replace(add, site=Site(2)),
    ]
    assert add.digest == same.digest
    assert len({add.digest, *(other.digest for other in others)}) == 5
