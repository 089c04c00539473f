"""The dual step against what it promises: the other answers' odds stay as they were."""

from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer.errors import WidthMismatch
from steer.interventions.dual import Dual
from steer.kinds import rebuild
from steer.lm import LM
from steer.sites import Site
from steer.step import Step

SITE = Site(1, "resid_post")
D, ANSWERS = 12, 5
G = torch.Generator().manual_seed(0)
W = torch.randn(ANSWERS, D, generator=G, dtype=torch.float64)
B = 0.3 * torch.randn(ANSWERS, generator=G, dtype=torch.float64)
H = 0.5 * torch.randn(3, 4, D, generator=G, dtype=torch.float64)
STEP = Step(torch.arange(4).expand(3, 4), torch.tensor([1, 0, 2]))
REST = Step(torch.arange(4).expand(2, 4), torch.tensor([1, 0]))


def said(h: Tensor) -> Tensor:
    return (h @ W.T + B).softmax(-1)


def dual(target: Any = 2, **options: Any) -> Dual:
    told: dict[str, Any] = {"bias": B, "until": 0.9, "rate": 1e-3, "alpha": 1e-7} | options
    return Dual(SITE, W, target, max_steps=told.pop("max_steps", 20000), **told)


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


def others(p: Tensor, target: int) -> Tensor:
    """Return the distribution among the other answers."""
    rest = torch.cat([p[..., :target], p[..., target + 1 :]], -1)
    return rest / rest.sum(-1, keepdim=True)


def test_the_target_gets_exactly_the_probability_asked_for():
    for rate in (1e-3, 0.05, 0.5):
        p = said(dual(rate=rate).edit(H, STEP))
        torch.testing.assert_close(p[..., 2], full(0.9, 3, 4), atol=1e-9, rtol=0)


def test_the_odds_among_the_other_answers_stay():
    # The mixture (1 - t) p + t e_target keeps them; Euler's steps of a thousandth nearly do.
    after = said(dual().edit(H, STEP))
    torch.testing.assert_close(others(after, 2), others(said(H), 2), atol=5e-3, rtol=0)


def test_a_plain_direction_changes_them_more():
    # The baseline: the same probability along the target's centred row, found by bisection.
    plain = W[2] - W.mean(0)
    low, high = torch.zeros(3, 4, 1).double(), torch.full((3, 4, 1), 100.0).double()
    for _ in range(60):
        middle = (low + high) / 2
        above = said(H + middle * plain)[..., 2:3] >= 0.9
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    before = others(said(H), 2)
    off_plain = (others(said(H + high * plain), 2) - before).abs().amax(-1)
    off_dual = (others(said(dual(rate=0.01).edit(H, STEP)), 2) - before).abs().amax(-1)
    assert bool((off_dual < 0.5 * off_plain).all())
    assert float(off_dual.mean()) < 0.15 * float(off_plain.mean())


def test_one_step_is_the_regularised_inverse_covariance_times_beta():
    # A dense loop over tokens in the whole space, no span and no batch.
    rate, alpha = 0.01, 0.2
    got = dual(rate=rate, alpha=alpha, until=0.999, max_steps=1).edit(H, STEP) - H
    span = min(ANSWERS, D)
    floor = alpha * float((W - W.mean(0)).square().sum(1).mean()) / span
    for row in range(3):
        for token in range(4):
            h, p = H[row, token], said(H[row, token])
            mean = sum(p[k] * W[k] for k in range(ANSWERS))
            cov = sum(p[k] * torch.outer(W[k] - mean, W[k] - mean) for k in range(ANSWERS))
            way = torch.linalg.solve(cov + floor * torch.eye(D).double(), W[2] - mean)
            want = rate * h.norm() * way / way.norm()
            torch.testing.assert_close(got[row, token], want, atol=1e-12, rtol=1e-8)


def test_only_the_span_of_the_rows_changes():
    change = dual(rate=0.05).edit(H, STEP) - H
    across = torch.linalg.svd(W).Vh[ANSWERS:]
    assert float((change @ across.T).abs().max()) < 1e-12
    assert float(change.norm(dim=-1).min()) > 0.1


def test_units_do_not_matter():
    # States ten times as large with rows a tenth as large say the same, and go ten times as far.
    big = Dual(SITE, W / 10, 2, B, rate=0.05, until=0.9).edit(10 * H, STEP)
    torch.testing.assert_close(big / 10, Dual(SITE, W, 2, B, rate=0.05, until=0.9).edit(H, STEP))


def test_tokens_that_are_there_keep_their_bits():
    item = dual(rate=0.05)
    moved = item.edit(H, STEP)
    mixed = torch.cat([moved[:, :2] + 2 * (moved - H)[:, :2], H[:, 2:]], 1)
    there = said(mixed)[..., 2] >= 0.9
    assert there[:, :2].all()
    after = item.edit(mixed, STEP)
    assert torch.equal(after[there], mixed[there])
    assert bool((after[~there] != mixed[~there]).any(-1).all())


def test_each_row_has_its_own_target():
    target = torch.tensor([4, 0, 2])
    p = said(dual(target, rate=0.05).edit(H, STEP))
    for row, name in enumerate(STEP.rows.tolist()):
        reached = p[row, :, int(target[name])]
        want = said(H)[row, :, int(target[name])].clamp_min(0.9)  # one is there already
        torch.testing.assert_close(reached, want, atol=1e-9, rtol=0)


def test_too_few_steps_stop_on_the_way():
    one, many = (dual(rate=0.01, max_steps=n).edit(H, STEP) for n in (3, 6))
    away = (one - H).norm(dim=-1)
    torch.testing.assert_close(away, 0.03 * H.norm(dim=-1), atol=0, rtol=0.01)
    assert bool((said(many)[..., 2] > said(one)[..., 2]).all())
    assert bool((said(one)[..., 2] > said(H)[..., 2]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sharp_read_out_in_low_precision_stays_finite(dtype: torch.dtype):
    h = (40 * H).to(dtype)
    item = Dual(SITE, W.to(dtype), 2, until=0.99)
    after = item.edit(h, STEP)
    assert after.dtype == dtype
    assert bool(torch.isfinite(after).all())
    p = (after.double() @ W.to(dtype).double().T).softmax(-1)[..., 2]
    if dtype == torch.float32:
        torch.testing.assert_close(p, p.clamp_min(0.99), atol=1e-4, rtol=0)


def test_strength_0_keeps_the_bits_and_a_half_goes_half_the_way():
    h = H.clone()
    h[0, 0, 3] = -0.0
    still = dual(strength=0.0, rate=0.05).edit(h, STEP)
    assert torch.equal(still, h)
    assert torch.equal(still.signbit(), h.signbit())
    whole, half = (dual(strength=s, rate=0.05).edit(H, STEP) - H for s in (1.0, 0.5))
    torch.testing.assert_close(half, whole / 2)


def test_more_answers_than_dimensions_are_allowed():
    rows = torch.randn(30, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    after = Dual(SITE, rows, 7, rate=0.05, until=0.5, max_steps=2000).edit(H, STEP)
    p = (after @ rows.T).softmax(-1)[..., 7]
    torch.testing.assert_close(p, full(0.5, 3, 4), atol=1e-9, rtol=0)


def test_at_ln_final_it_gives_the_models_own_answer(lm: LM):
    rows, answers = [[5, 6, 7, 8], [9, 10]], [7, 11, 19]
    head = lm.model.lm_head.weight.detach()[answers]
    site = Site.ln_final()
    target = lm.logits(rows)[:, answers].argmin(-1)
    item = Dual(site, head, target, until=0.9, scope=steer.LAST, max_steps=4000)
    p = lm.logits(rows, [item])[:, answers].softmax(-1)
    reached = p.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(reached, torch.full((2,), 0.9), atol=1e-4, rtol=0)


def test_identity_width_and_repr(lm: LM):
    item = dual(torch.tensor([1, 2]))
    assert item.digest == dual(torch.tensor([1, 2])).digest != dual(1).digest
    assert item.row_counts() == {"target": 2}
    assert repr(dual(2)) == "Dual(blocks.1.resid_post, target=2 of 5, until=0.9, scope=OUTPUT)"
    with pytest.raises(WidthMismatch, match="the read-out"), lm.attached([item]):
        pass


def test_its_spec_gives_it_back():
    item = dual(torch.tensor([1, 2]), rate=0.05)
    again = rebuild(item.spec(), kinds={"steer.Dual": Dual, "steer.Scope": steer.Scope})
    assert isinstance(again, Dual)
    assert torch.equal(again.edit(H[:2], REST), item.edit(H[:2], REST))
    assert again.digest == item.digest


BAD = {
    "a vector": ({"readout": W[0]}, r"read-out of Dual has shape \(12,\)"),
    "one answer": ({"readout": W[:1], "target": 0}, "has one answer"),
    "a nan": ({"readout": W * float("nan")}, "not finite"),
    "no such answer": ({"target": 5}, "answer 5, but the read-out has the answers 0 to 4"),
    "a negative answer": ({"target": -1}, "answer -1, but"),
    "a target that is no number": ({"target": torch.tensor([0.5])}, "target of Dual is"),
    "another bias": ({"bias": B[:3]}, "bias of Dual has 3 entries for 5 answers"),
    "certainty": ({"until": 1.0}, "until of Dual is 1.0"),
    "no rate": ({"rate": 0.0}, "rate of Dual is 0.0"),
    "no alpha": ({"alpha": 0.0}, "alpha of Dual is 0.0"),
    "no steps": ({"max_steps": 0}, "max_steps of Dual is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_stepped_is_refused(name: str):
    options, message = BAD[name]
    told: dict[str, Any] = {"readout": W, "target": 2, **options}
    with pytest.raises(ValueError, match=message):
        Dual(SITE, **told)
