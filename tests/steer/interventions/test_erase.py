"""Erasure in a pass: nothing linear is left where it acts, and everything where it does not."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

import probes
import steer
from steer import LM, Site

SITE = Site(1, "resid_post")


def prompts() -> tuple[list[list[int]], list[int]]:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(5, 570, (160, 4), generator=draw)
    labels = [k % 2 for k in range(160)]
    # The last token tells the classes apart.
    rows[:, -1] = 20 + 30 * torch.tensor(labels)
    return rows.tolist(), labels


def test_a_fresh_probe_finds_nothing_where_the_concept_was_erased(any_lm: LM):
    rows, y = prompts()
    states = any_lm.capture(rows, [SITE])[SITE]
    erasure = probes.fit_erasure(states, y)
    left = any_lm.capture(rows, [SITE], plan=[steer.Erase(SITE, erasure)])[SITE].double().numpy()
    before = LogisticRegression(C=10, max_iter=3000).fit(states.numpy(), y)
    after = LogisticRegression(C=10, max_iter=3000).fit(left, y)
    assert before.score(states.numpy(), y) > 0.85
    # fp32 leaves crumbs of the states' own size: no probe can use them.
    assert abs(after.predict_proba(left)[:, 1] - 0.5).max() < 0.01


def test_later_blocks_can_write_it_again_and_erasing_there_takes_it_out(lm: LM):
    rows, y = prompts()
    later = Site(3, "resid_post")
    first = steer.Erase(SITE, probes.fit_erasure(lm.capture(rows, [SITE])[SITE], y))
    again = lm.capture(rows, [later], plan=[first])[later]
    found = LogisticRegression(C=10, max_iter=3000).fit(again.numpy(), y)
    assert abs(found.predict_proba(again.numpy())[:, 1] - 0.5).max() > 0.2
    second = steer.Erase(later, probes.fit_erasure(again, y))
    gone = lm.capture(rows, [later], plan=[first, second])[later].double().numpy()
    fit = LogisticRegression(C=10, max_iter=3000).fit(gone, y)
    assert abs(fit.predict_proba(gone)[:, 1] - 0.5).max() < 0.01


def test_it_acts_in_its_scope_only(lm: LM):
    rows, y = prompts()
    erasure = probes.fit_erasure(lm.capture(rows, [SITE])[SITE], y)
    plain = lm.capture(rows, [SITE], scope=steer.ALL)[SITE]
    plan = [steer.Erase(SITE, erasure, scope=steer.LAST)]
    edited = lm.capture(rows, [SITE], scope=steer.ALL, plan=plan)[SITE]
    assert torch.equal(plain[:, :-1], edited[:, :-1])
    torch.testing.assert_close(edited[:, -1], erasure.apply(plain[:, -1]), atol=1e-5, rtol=1e-5)


def test_another_width_is_refused_before_anything_runs(lm: LM):
    x = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    erasure = probes.fit_erasure(x, [0, 1] * 5)
    with (
        pytest.raises(steer.WidthMismatch, match="the eraser"),
        lm.attached([steer.Erase(SITE, erasure)]),
    ):
        pass
