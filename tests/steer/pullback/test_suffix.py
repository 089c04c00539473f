"""Running the blocks above a site with gradients, against whole passes and finite differences."""

import pytest
import torch
from torch import Tensor

import steer
from steer.lm import LM
from steer.pullback.suffix import Suffix, suffix_of
from steer.sites import Site

ROWS = [[5, 6, 7, 8, 9], [10, 11, 12], [7, 5, 9, 100, 3, 4]]
PROMPTS = torch.tensor([0, 2, 1, 1, 2])
SITES = (
    Site(0, "resid_pre"),
    Site(0, "resid_post"),
    Site(1, "attn_out"),
    Site(3, "resid_post"),
    Site.ln_final(),
)


def shift(lm: LM, gen: torch.Generator) -> Tensor:
    return torch.randn(len(PROMPTS), lm.d_model, generator=gen)


def half_moved(x: Tensor):
    return lambda h: 0.5 * h + x


@pytest.mark.parametrize("site", SITES, ids=str)
def test_the_logits_are_those_of_whole_prompts_with_a_patch(
    any_lm: LM, site: Site, gen: torch.Generator
):
    x = shift(any_lm, gen)
    got = suffix_of(any_lm, ROWS, site).logits(PROMPTS, half_moved(x))
    for row, prompt in enumerate(PROMPTS.tolist()):
        h = any_lm.capture([ROWS[prompt]], [site])[site][0]
        plan = [steer.Patch(site, 0.5 * h + x[row], scope=steer.LAST)]
        want = any_lm.logits([ROWS[prompt]], plan)[0]
        torch.testing.assert_close(got[row].detach(), want, atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_whole_passes(any_lm: LM, gen: torch.Generator):
    site = Site(1, "resid_post")
    x = shift(any_lm, gen).requires_grad_()
    suffix = suffix_of(any_lm, ROWS, site)
    whole = Suffix(any_lm, site, suffix.base, "because we say so", None, one_token=True)
    slopes = []
    for each in (suffix, whole):
        out = each.logits(PROMPTS, half_moved(x)).log_softmax(-1)[:, 7].sum()
        slopes.append(torch.autograd.grad(out, x)[0])
    assert float(slopes[0].norm()) > 1e-4
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-6, rtol=1e-4)


def test_the_gradient_agrees_with_finite_differences(gen: torch.Generator):
    # The shared ones are read-only; Llama norms in fp32 whatever the weights are.
    own = steer.load("tiny-gpt2")
    own.model.double()
    suffix = suffix_of(own, ROWS, Site(2, "resid_post"))
    x = shift(own, gen).double().requires_grad_()

    def read(x: Tensor) -> Tensor:
        return suffix.logits(PROMPTS, half_moved(x)).logsumexp(-1)

    (slope,) = torch.autograd.grad(read(x).sum(), x)
    way = torch.randn(x.shape, generator=gen, dtype=torch.float64)
    with torch.no_grad():
        rise = (read(x + 1e-5 * way) - read(x - 1e-5 * way)) / 2e-5
    # Rows do not touch each other, so each row's own rise is its own slope along the way.
    torch.testing.assert_close((slope * way).sum(-1), rise, atol=1e-9, rtol=1e-6)


def test_the_model_is_left_as_it_was(lm: LM, gen: torch.Generator):
    before = lm.logits(ROWS)
    asked = [p.requires_grad for p in lm.model.parameters()]
    x = shift(lm, gen).requires_grad_()
    out = suffix_of(lm, ROWS, Site(1, "resid_post")).logits(PROMPTS, half_moved(x))
    torch.autograd.grad(out.sum(), x)
    assert all(p.grad is None for p in lm.model.parameters())
    assert asked == [p.requires_grad for p in lm.model.parameters()]
    assert torch.equal(lm.logits(ROWS), before)
