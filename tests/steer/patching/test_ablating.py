"""Ablations against dense loops, and skipped blocks against the states around them."""

import pytest
import torch
from torch import Tensor

import steer
from steer import LM, PlanError, Site, patching

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 11, 7, 12], [4, 6, 14, 8, 3]]
OTHERS = [[5, 7, 7, 8], [9, 6, 5, 11, 2], [7, 6]]
METRIC = patching.logit_difference([30, 31, 32], [40, 41, 42])


def test_context_aware_means_are_over_the_same_token_elsewhere(lm: LM):
    site = Site(1, "mlp_out")
    found = patching.ablate(lm, PROMPTS, [site], METRIC, reference=OTHERS)
    acts = lm.capture(OTHERS, [site], scope=steer.ALL)[site]
    tokens = [(OTHERS[r][p], acts[r, p]) for r in range(3) for p in range(len(OTHERS[r]))]
    whole = torch.stack([x for _, x in tokens]).mean(0)

    def mean_of(token: int) -> Tensor:
        same = [x for t, x in tokens if t == token]
        return torch.stack(same).mean(0) if same else whole

    for row, prompt in enumerate(PROMPTS):
        source = torch.stack([mean_of(t) for t in prompt])[None]
        logits = lm.logits([prompt], [steer.Patch(site, source)])
        one = patching.logit_difference([30 + row], [40 + row])
        expected = one(logits, steer.Batch(torch.tensor([-1]), torch.tensor([0])))
        torch.testing.assert_close(found.values[0, row], expected[0], atol=1e-5, rtol=1e-4)


def test_zero_ablation_of_a_head_is_a_patch_of_zeros(lm: LM):
    heads = patching.heads(lm)
    found = patching.ablate(lm, PROMPTS, heads, METRIC, baseline="zero")
    for k in (1, 6):
        logits = lm.logits(PROMPTS, [steer.Patch(heads[k], torch.zeros(16))])
        numbers = torch.arange(3)
        expected = METRIC(logits, steer.Batch(-torch.ones(3).long(), numbers))
        torch.testing.assert_close(found.values[k], expected, atol=1e-5, rtol=1e-4)
    assert len(found.names) == len(heads)


def test_a_scope_takes_away_at_its_tokens_only(lm: LM):
    site = Site(2, "resid_post")
    at_last = patching.ablate(
        lm, PROMPTS, [site], METRIC, baseline="mean", reference=OTHERS, scope=steer.LAST
    )
    acts = lm.capture(OTHERS, [site], scope=steer.ALL)
    mean = acts.tokens(site).mean(0)
    logits = lm.logits(PROMPTS, [steer.Patch(site, mean, scope=steer.LAST)])
    expected = METRIC(logits, steer.Batch(-torch.ones(3).long(), torch.arange(3)))
    torch.testing.assert_close(at_last.values[0], expected, atol=1e-5, rtol=1e-4)


def test_a_skipped_block_passes_its_input_on(any_lm: LM):
    before, after = Site(1, "resid_pre"), Site(1, "resid_post")
    acts = any_lm.capture(PROMPTS, [before, after], scope=steer.ALL, plan=patching.skip([1]))
    torch.testing.assert_close(acts[after], acts[before], atol=1e-6, rtol=1e-6)


def test_each_skipped_block_is_an_arm(lm: LM):
    found = patching.skip_each(lm, PROMPTS, METRIC)
    numbers = torch.arange(3)
    batch = steer.Batch(-torch.ones(3).long(), numbers)
    for layer in range(lm.n_layers):
        expected = METRIC(lm.logits(PROMPTS, patching.skip([layer])), batch)
        torch.testing.assert_close(found.values[layer], expected, atol=1e-5, rtol=1e-4)
    lo, hi = found.interval()
    assert bool((lo <= found.change).all())
    assert bool((found.change <= hi).all())
    assert found.top(1)[0][0] in repr(found)
    assert bool((found.p_values() >= 2 / 2**3).all())


def test_a_picture_holds_every_change_and_its_interval(lm: LM):
    found = patching.skip_each(lm, PROMPTS, METRIC)
    drawn = found.plot().data[0]
    assert list(drawn.x) == pytest.approx(found.change.tolist())
    assert list(drawn.y) == list(found.names)
    assert min(drawn.error_x.array) >= 0


def test_baselines_that_need_a_pair_are_refused(lm: LM):
    with pytest.raises(PlanError, match="there are no pairs here"):
        patching.ablate(lm, PROMPTS, [Site(0, "z")], METRIC, baseline="other")
