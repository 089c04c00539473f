"""Sources for ablation by patching: zero, mean and resample, against plain arithmetic."""

import torch

import steer

PROMPTS = ["January, February, March,", "Hello there", "one two three four five"]
SITE, HEADS = steer.Site(2, "resid_post"), steer.Site(1, "z")


def patched(lm, source, site=SITE, scope=steer.LAST):
    plan = [steer.Patch(site, source, scope=scope)]
    return lm.capture(PROMPTS, [site], scope=scope, plan=plan)[site]


def test_zero_and_mean_write_one_value_everywhere(lm):
    acts = lm.capture(PROMPTS, [SITE, HEADS])
    assert (patched(lm, steer.zero(acts)) == 0).all()
    expected = acts[SITE].mean(0)
    assert torch.allclose(patched(lm, steer.mean(acts)), expected.expand(3, -1), atol=1e-6)
    heads = patched(lm, steer.mean(acts), site=HEADS)
    assert torch.allclose(heads, acts[HEADS].mean(0).expand(3, -1, -1), atol=1e-6)


def test_a_mean_over_unequal_rows_counts_real_tokens_only(lm):
    acts = lm.capture(PROMPTS, [SITE], scope=steer.ALL)
    every = torch.cat([lm.capture([p], [SITE], scope=steer.ALL)[SITE][0] for p in PROMPTS])
    assert torch.allclose(steer.mean(acts)[SITE], every.mean(0), atol=1e-5)


def test_resampled_tokens_are_others_real_tokens_and_the_seed_decides(lm):
    acts = lm.capture(PROMPTS, [SITE, steer.Site(1, "resid_post")], scope=steer.ALL)
    drawn = steer.resample(acts, seed=3)
    pool = {tuple(t.tolist()) for t in acts.tokens(SITE)}
    assert all(tuple(t.tolist()) in pool for t in drawn.tokens(SITE))
    assert torch.equal(drawn[SITE], steer.resample(acts, seed=3)[SITE])
    assert not torch.equal(drawn[SITE], steer.resample(acts, seed=4)[SITE])
    assert drawn.mask is acts.mask
    written = patched(lm, drawn, scope=steer.ALL)
    assert torch.equal(written[acts.mask], drawn.tokens(SITE))
