"""Caches of a TransformerLens bridge against lm.capture on the same weights and prompts."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

import steer
from steer import interop
from steer.interop.hook_names import site_of_hook

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]
TOLERANCE = 1e-4  # the bridge computes attention and norms by its own code


@pytest.fixture(scope="module")
def cached(tiny: Callable) -> tuple:
    """Return (lm, cache of ROWS padded on the left, mask)."""
    lm = tiny("tiny-llama")
    bridge = interop.bridge_of(lm)
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    for at, row in enumerate(ROWS):
        ids[at, 7 - len(row) :], mask[at, 7 - len(row) :] = torch.tensor(row), 1
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids, attention_mask=mask)
    return lm, cache, mask


def sites() -> list["steer.Site"]:
    inside = ["resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_pre", "mlp_post"]
    return [
        *(steer.Site(2, name) for name in [*inside, "mlp_out", "resid_post"]),
        steer.Site.ln_final(),
        steer.Site.logits(),
    ]


@pytest.mark.parametrize("scope", [steer.ALL, steer.LAST, ~steer.FIRST], ids=repr)
def test_a_padded_cache_equals_capture_site_by_site(cached: tuple, scope: "steer.Scope") -> None:
    lm, cache, mask = cached
    ours = interop.from_cache(cache, sites(), mask=mask, scope=scope)
    native = lm.capture(ROWS, sites(), scope=scope)
    assert ours.sites == native.sites
    assert ours.scope == native.scope
    assert torch.equal(ours.positions, native.positions)
    assert (ours.mask is None) == (native.mask is None)
    assert ours.mask is None or torch.equal(ours.mask, native.mask)
    for site in sites():
        assert ours[site].shape == native[site].shape
        assert (ours[site] - native[site]).abs().max() < TOLERANCE, site


def test_without_a_choice_every_known_site_comes_once_and_in_order(cached: tuple) -> None:
    lm, cache, mask = cached
    acts = interop.from_cache(cache, mask=mask, model={"model": "mine"})
    named = [site for site in acts if isinstance(site, steer.Site)]
    assert named == sorted(named)
    assert len(named) == len(acts)
    assert {str(s) for s in lm.sites("resid_post")} <= {str(s) for s in acts}
    assert acts.origin(steer.Site(1))["model"] == "mine"


def test_a_cache_is_a_source_of_patches(cached: tuple) -> None:
    lm, cache, mask = cached
    site = steer.Site(2)
    native = lm.capture(ROWS, [site], scope=steer.LAST)
    other = interop.from_cache(cache, [site], mask=mask, scope=steer.LAST)
    plans = [[steer.Patch(site, acts, scope=steer.LAST)] for acts in (native, other)]
    swapped = [ROWS[1], ROWS[2], ROWS[0]]
    a, b = (lm.logits(swapped, plan) for plan in plans)
    assert (a - b).abs().max() < TOLERANCE
    assert (a - lm.logits(swapped)).abs().max() > 0.1


def test_a_cache_without_batch_dimension_is_one_row(tiny: Callable) -> None:
    lm = tiny("tiny-llama")
    site = steer.Site(1)
    h = torch.arange(6.0).reshape(3, 2)

    class Cache:
        cache_dict: Mapping[str, Tensor] = {"blocks.1.hook_resid_post": h}
        has_batch_dim = False

    acts = interop.from_cache(Cache(), scope=steer.LAST)
    assert torch.equal(acts[site], h[-1:])
    assert torch.equal(interop.from_cache({"blocks.1.hook_out": h[None]})[site], h[None])
    assert lm.n_layers > 1


def test_what_a_cache_does_not_tell_is_refused_by_name() -> None:
    h = torch.zeros(2, 3, 4)
    cache = {"blocks.1.hook_resid_post": h, "blocks.1.attn.hook_pattern": torch.zeros(2, 1, 3, 3)}
    with pytest.raises(steer.SiteNotFound, match=r"blocks\.0\.resid_post was not cached.*Did you"):
        interop.from_cache(cache, [steer.Site(0)])
    with pytest.raises(steer.SiteNotFound, match="none is the hook of a site"):
        interop.from_cache({"blocks.1.attn.hook_pattern": h})
    with pytest.raises(steer.PlanError, match=r"mask has shape \(2, 2\)"):
        interop.from_cache(cache, mask=torch.ones(2, 2))
    with pytest.raises(steer.PlanError, match=r"blocks\.1\.z has shape \(2, 3, 4\)"):
        interop.from_cache({"blocks.0.hook_out": h, "blocks.1.attn.hook_z": h})


@pytest.mark.parametrize(
    "name", ["hook_embed", "hook_pos_embed", "blocks.1.attn.hook_rot_q", "blocks.1.mlp.hook_out"]
)
def test_hooks_whose_meaning_varies_are_no_sites(name: str) -> None:
    assert site_of_hook(name) is None
