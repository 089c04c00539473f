"""Attention patterns against HuggingFace's own eager copy."""

import copy

import pytest
import torch

import steer

PROMPTS = ["January, February, March,", "Hello", "one two three four five six seven eight nine"]


def eager_patterns(lm, row):
    model = copy.deepcopy(lm.model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(torch.tensor([row]), output_attentions=True).attentions


def test_patterns_equal_an_eager_copy_in_every_family_and_block(any_lm):
    sites = [steer.Site(layer, "pattern") for layer in range(any_lm.n_layers)]
    acts = any_lm.capture(PROMPTS, sites, scope=steer.ALL)
    for at, row in enumerate(any_lm.rows(PROMPTS)):
        n = len(row)
        for site, expected in zip(sites, eager_patterns(any_lm, row), strict=True):
            # fp32 softmax of the same scores in another order of summation
            assert torch.allclose(acts[site][at, :, :n, :n], expected[0], atol=1e-5)
            assert (acts[site][at, :, :n, n:] == 0).all()


def test_last_token_and_one_head_are_slices_of_the_whole(lm):
    whole, one = steer.Site(1, "pattern"), steer.Site(1, "pattern", head=2)
    everything = lm.capture(PROMPTS, [whole], scope=steer.ALL)
    last = lm.capture(PROMPTS, [whole, one])
    lengths = [len(row) for row in lm.rows(PROMPTS)]
    for at, n in enumerate(lengths):
        assert torch.allclose(last[whole][at], everything[whole][at, :, n - 1], atol=1e-6)
    assert torch.equal(last[one], last[whole][:, 2])


def test_a_pattern_shows_the_steered_stream(lm):
    site, shift = steer.Site(2, "pattern"), torch.randn(lm.d_model)
    plan = [steer.Add(steer.Site(0, "resid_post"), shift, 3.0)]
    plain = lm.capture(PROMPTS[:1], [site], scope=steer.ALL)[site]
    steered = lm.capture(PROMPTS[:1], [site], scope=steer.ALL, plan=plan)[site]
    assert not torch.allclose(plain, steered, atol=1e-3)
    assert torch.allclose(steered.sum(-1), torch.ones(steered.shape[:-1]), atol=1e-5)


def test_values_and_patterns_of_one_block_are_captured_together(any_lm):
    pattern, values = steer.Site(1, "pattern"), steer.Site(1, "v")
    acts = any_lm.capture(PROMPTS[:1], [values, pattern], scope=steer.ALL)
    assert torch.equal(acts[values], any_lm.capture(PROMPTS[:1], [values], scope=steer.ALL)[values])


def test_writing_a_pattern_is_refused_at_attach(lm):
    plan = [steer.Scale(steer.Site(1, "pattern"), 0.0)]
    with pytest.raises(steer.PlanError, match=r"can be read by lm\.capture but not written"):
        lm.attached(plan)
    assert lm.registry.live == 0


def test_writing_a_router_is_refused_because_experts_do_not_read_it(tiny):
    lm = tiny("tiny-mixtral")
    site = steer.Site(1, "router")
    assert lm.capture(PROMPTS, [site])[site].shape[0] == len(PROMPTS)
    with pytest.raises(steer.PlanError, match="can be read but not written"):
        lm.attached([steer.Scale(site, 0.0)])
