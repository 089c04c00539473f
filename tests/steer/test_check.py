"""steer.check: passes on what holds, and must be able to fail."""

import pytest
import torch

import probes
import steer
from steer.check import for_row

PROMPTS = ["January, February, March,", "Hello there", "one two three four five"]
SITE = steer.Site(2, "resid_post")


def mixed_plan(lm, gen):
    vector = torch.randn(lm.d_model, generator=gen)
    x = torch.randn(20, lm.d_model, generator=gen)
    read = steer.Read(steer.Site(1, "resid_post"), probes.fit_logistic(x, [0, 1] * 10))
    gated = steer.When(read, steer.Add(SITE, vector, 4.0), above=0.0)
    return steer.Rows([[steer.Add(SITE, vector, 2.0)], [steer.Ablate(SITE, vector)], [gated]])


def test_every_guarantee_holds_for_a_plan_that_differs_by_row(any_lm, gen):
    report = steer.check(any_lm, mixed_plan(any_lm, gen), PROMPTS)
    assert report, repr(report)
    assert {c.name for c in report.checks} == {
        "cached = uncached",
        "padded = single",
        "batch = rows",
        "strength 0 = baseline",
        "detached = before",
    }
    assert report["strength 0 = baseline"].difference == 0.0
    assert report.receipt.fired


def test_row_wise_strengths_are_checked_row_by_row(lm, gen):
    vector = torch.randn(lm.d_model, generator=gen)
    plan = [steer.Add(SITE, vector, torch.tensor([1.0, 0.0, -2.0]))]
    own = for_row(plan, 2)[0]
    assert isinstance(own, steer.Add)
    assert torch.equal(torch.as_tensor(own.strength), torch.tensor([-2.0]))
    assert steer.check(lm, plan, PROMPTS)


def test_an_edit_that_depends_on_its_batch_mates_fails(lm):
    leak = steer.Custom(SITE, lambda h, _: h + h.mean(0, keepdim=True))
    report = steer.check(lm, [leak], PROMPTS)
    assert not report
    assert not report["padded = single"].passed
    assert "FAIL" in repr(report)


def test_an_edit_that_counts_passes_fails_cached_against_uncached(lm):
    seen = []

    def drifting(h, _):
        seen.append(1)
        return h * (1.0 + 0.2 * len(seen))

    report = steer.check(lm, [steer.Custom(SITE, drifting)], PROMPTS)
    assert not report["cached = uncached"].passed


def test_interventions_without_a_strength_are_named(lm):
    site_values = lm.capture(PROMPTS, [SITE])
    report = steer.check(lm, [steer.Patch(SITE, site_values, scope=steer.LAST)], PROMPTS)
    assert report
    assert "left out" in report["strength 0 = baseline"].note


def test_a_plan_that_does_not_fit_is_refused_before_any_pass(lm):
    with pytest.raises(steer.WidthMismatch, match="the direction has 7 entries"):
        steer.check(lm, [steer.Add(SITE, torch.ones(7))], PROMPTS)
    assert lm.registry.live == 0
