"""Attention knock-outs against the model's own attention with a mask of ours."""

from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from benchmarks.peers.bare import bare_twin
from steer import LM, PlanError, Site, patching
from steer.patching.knock_outs import knock_out_plan

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 11, 7, 12], [4, 6, 14, 8, 3]]
METRIC = patching.logit_difference([30, 31, 32], [40, 41, 42])


def masked_by_hand(lm: LM, row: list[int], layers: list[int], query: int, key: int) -> Tensor:
    """Return the last logits of a Llama whose attention modules were given another mask."""
    model: Any = bare_twin(lm.model)
    n = len(row)
    mask = torch.zeros(1, 1, n, n).masked_fill(~torch.ones(n, n).tril().bool(), -1e9)
    cut = mask.clone()
    cut[0, 0, query, key] = -1e9

    def hook(layer: int) -> Any:
        def pre(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"attention_mask": cut if layer in layers else mask}

        return pre

    handles = [
        block.self_attn.register_forward_pre_hook(hook(k), with_kwargs=True)
        for k, block in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        made = model(torch.tensor([row])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return made


def test_a_cut_is_the_models_own_attention_under_a_mask(lm: LM):
    cuts = {
        "first": patching.Cut([0], steer.LAST, steer.at(1)),
        "several": patching.Cut([1, 2, 3], steer.LAST, steer.at(0)),
        "middle": patching.Cut([0, 1], steer.at(2), steer.at(0)),
    }
    found = patching.knock_out(lm, PROMPTS, cuts, METRIC)
    batch = steer.Batch(torch.full((1,), -1), torch.tensor([0]))
    for row, prompt in enumerate(PROMPTS):
        last = len(prompt) - 1
        for name, where in (("first", (last, 1)), ("several", (last, 0)), ("middle", (2, 0))):
            logits = masked_by_hand(lm, prompt, list(cuts[name].layers), *where)
            one = patching.logit_difference([30 + row], [40 + row])
            expected = one(logits[None], batch)[0]
            got = found.values[list(found.names).index(name), row]
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    assert float((found.values - found.natural).abs().min(1).values.max()) > 1e-4


def test_cutting_nothing_that_is_seen_changes_no_bit(any_lm: LM):
    # A query never sees later keys, so there is nothing to cut.
    later = patching.Cut(range(any_lm.n_layers), steer.FIRST, steer.LAST)
    found = patching.knock_out(any_lm, PROMPTS, {"later": later}, METRIC)
    torch.testing.assert_close(found.values[0], found.natural, atol=1e-5, rtol=1e-5)


def test_recomputed_attention_is_the_models(any_lm: LM):
    # Cut in one head only: the queries of the other heads in that block are as they were.
    cut = patching.Cut([1], steer.LAST, steer.FIRST, heads=[1])
    plan = knock_out_plan(any_lm, PROMPTS, {"one": cut})
    site = Site(1, "z")
    before = any_lm.capture(PROMPTS, [site])[site]
    after = any_lm.capture(PROMPTS, [site], plan=plan)[site]
    same = (before == after).all(-1)
    assert bool(same[:, [0, 2, 3]].all())
    assert not bool(same[:, 1].any())


def test_a_token_with_nothing_left_to_attend_to_gets_zeros(lm: LM):
    cut = patching.Cut([0], steer.FIRST, steer.FIRST)
    plan = knock_out_plan(lm, PROMPTS, {"alone": cut})
    z = lm.capture(PROMPTS, [Site(0, "z")], scope=steer.FIRST, plan=plan)[Site(0, "z")]
    assert float(z.abs().max()) == 0.0


def test_heads_are_cut_by_themselves(lm: LM):
    each = {f"head {k}": patching.Cut([2], steer.LAST, steer.FIRST, heads=[k]) for k in range(4)}
    whole = {"all": patching.Cut([2], steer.LAST, steer.FIRST)}
    found = patching.knock_out(lm, PROMPTS, each | whole, METRIC)
    assert len(set(found.values[:, 0].tolist())) == 5


def test_a_cached_generation_is_refused_as_the_cut_would_miss_its_keys(lm: LM):
    plan = knock_out_plan(lm, PROMPTS[:1], {"one": patching.Cut([0], steer.ALL, steer.FIRST)})
    with pytest.raises(PlanError, match="in a cache that a cut does not see"):
        lm.generate(PROMPTS[:1], plan, max_new_tokens=3)
    assert lm.registry.live == 0


def test_windows_are_cuts_of_neighbouring_blocks(lm: LM):
    cuts = patching.windows(lm, steer.LAST, steer.FIRST, width=3)
    assert list(cuts) == ["blocks 0-2", "blocks 1-3"]
    assert list(cuts["blocks 1-3"].layers) == [1, 2, 3]
    with pytest.raises(PlanError, match="does not fit"):
        patching.windows(lm, steer.LAST, steer.FIRST, width=9)


@pytest.mark.parametrize(
    ("cuts", "said"),
    [
        ({}, "No cut was given"),
        ({"far": patching.Cut([9], steer.LAST, steer.FIRST)}, "has blocks 0 to 3"),
        ({"head": patching.Cut([0], steer.LAST, steer.FIRST, heads=[4])}, "heads 0 to 3"),
        ({"none": patching.Cut([], steer.LAST, steer.FIRST)}, "Name some of those"),
    ],
)
def test_what_cannot_be_cut_is_refused(lm: LM, cuts: dict[str, patching.Cut], said: str):
    with pytest.raises(PlanError, match=said):
        patching.knock_out(lm, PROMPTS, cuts, METRIC)
