"""Activations: a frozen mapping with its tokens and its origin."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

import steer
from steer.activations import Activations
from steer.sites import AnySite, Site

A, B = Site(0), Site(1)
MASK = torch.tensor([[True, True, True], [True, False, False]])


def some(*, single: bool = False) -> Activations:
    shape = (2, 4) if single else (2, 3, 4)
    values: dict[AnySite, Tensor] = {
        A: torch.zeros(shape),
        B: torch.arange(float(torch.Size(shape).numel())).view(shape),
    }
    mask = None if single else MASK
    return Activations(values, mask, torch.zeros(shape[:-1]).long(), {"model": "m"}, "ALL")


def test_it_is_a_mapping_from_sites_in_the_order_asked_for():
    acts = some()
    assert list(acts) == [A, B]
    assert acts.sites == (A, B)
    assert len(acts) == 2
    assert A in acts
    assert Site(2) not in acts
    assert torch.equal(acts.stack(), torch.stack([acts[A], acts[B]]))


def test_a_site_that_was_not_captured_is_an_error_with_the_nearest():
    match = r"blocks\.2\.resid_post was not captured.*hold blocks\.0\.resid_post.*Did you mean"
    with pytest.raises(steer.SiteNotFound, match=match):
        some()[Site(2)]


def test_flat_tokens_leave_padding_out():
    acts = some()
    assert torch.equal(acts.tokens(B), acts[B][MASK])
    counts = acts.counts()
    assert counts is not None
    assert counts.tolist() == [3, 1]
    assert some(single=True).counts() is None
    assert some(single=True).tokens(B).shape == (2, 4)


def test_the_origin_names_model_site_and_scope():
    assert some().origin(B) == {"model": "m", "site": "blocks.1.resid_post", "scope": "ALL"}


def test_it_cannot_be_changed_and_prints_shapes_only():
    acts = some()
    with pytest.raises(FrozenInstanceError):
        acts.scope = "LAST"  # type: ignore[misc]
    assert "each [2, 3, 4] float32" in repr(acts)
    assert "scope=ALL" in repr(acts)


def test_a_capture_does_not_hold_the_model_or_a_growing_cache(lm):
    acts = lm.capture([[5, 6, 7]], [A, B])
    again = lm.capture([[5, 6, 7]], [A, B])
    assert acts[A].data_ptr() != again[A].data_ptr()
    assert torch.equal(acts[A], again[A])
    assert acts[A].untyped_storage().nbytes() == acts[A].numel() * 4
