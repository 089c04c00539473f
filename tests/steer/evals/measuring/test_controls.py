"""Arms: factors of a plan, and the control that moves every token exactly as far."""

import pytest
import torch

import manifolds
import steer
from steer.errors import PlanError
from steer.evals.measuring.controls import PLAN, RANDOM, plans_of, redirected, takes_strength
from tests.steer.evals.measuring.conftest import Dot, add, vector

ROWS = [[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]]


def moved(lm: steer.LM, plan: list) -> torch.Tensor:
    site = steer.Site(1)
    before = lm.capture(ROWS, [site], scope=steer.ALL)[site]
    return lm.capture(ROWS, [site], scope=steer.ALL, plan=plan)[site] - before


def plans(lm: steer.LM) -> dict[str, list]:
    site = steer.Site(1)
    acts = lm.capture([[20 + i, 40 + i] for i in range(12)], [site], scope=steer.LAST)
    ring = manifolds.fit_curve(acts[site], torch.arange(12.0), period=12.0)
    return {
        "add": add(lm),
        "relative": [steer.Add(site, vector(lm), steer.Relative(0.3))],
        "ablate": [steer.Ablate(site, vector(lm))],
        "along": [steer.MoveAlong(site, ring, 3.0)],
    }


@pytest.mark.parametrize("name", ["add", "relative", "ablate", "along"])
def test_the_random_control_moves_every_token_exactly_as_far(lm: steer.LM, name: str):
    plan = plans(lm)[name]
    arms = plans_of(lm, plan, [-1.0, 0.0, 1.0], seed=0)
    assert set(arms) == {(PLAN, -1.0), (RANDOM, -1.0), (PLAN, 1.0), (RANDOM, 1.0)}
    own, away, back = (moved(lm, arms[arm]) for arm in ((PLAN, 1.0), (RANDOM, 1.0), (RANDOM, -1.0)))
    torch.testing.assert_close(away.norm(dim=-1), own.norm(dim=-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back, -away, rtol=1e-4, atol=1e-4)
    cosines = torch.cosine_similarity(own, away, dim=-1)
    assert cosines.abs().max() < 0.6  # 64 dimensions; the same way would be 1
    others = redirected(lm, plan, seed=1)
    assert torch.cosine_similarity(moved(lm, others), away, dim=-1).abs().max() < 0.6


def test_a_user_who_drew_with_the_same_seed_meets_another_direction(lm: steer.LM):
    drawn = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    plan = [steer.Add(steer.Site(1), drawn)]
    away = plans_of(lm, plan, [1.0], seed=0)[RANDOM, 1.0]
    assert torch.cosine_similarity(moved(lm, plan), moved(lm, away), dim=-1).abs().max() < 0.6


def test_what_only_reads_has_no_effect_to_measure(lm: steer.LM):
    watch = steer.Monitor(steer.Read(steer.Site(1), Dot(vector(lm))))
    with pytest.raises(PlanError, match="only reads"):
        plans_of(lm, [watch], [1.0], seed=0)
    arms = plans_of(lm, [*add(lm), watch], [1.0], seed=0)
    assert len(arms[RANDOM, 1.0]) == 1


def test_a_plan_without_strength_is_done_or_not(lm: steer.LM):
    assert takes_strength(add(lm))
    assert not takes_strength([steer.Patch(steer.Site(1), torch.zeros(lm.d_model))])


def test_a_site_without_a_width_has_no_control(lm: steer.LM):
    item = steer.Scale(steer.Site(1, "pattern"), 0.5)
    with pytest.raises(PlanError, match="no fixed width"):
        redirected(lm, [item], seed=0)
