"""Patch: sources of every shape, whole and within a subspace, and where sources come from."""

import pytest
import torch
from torch import Tensor

import steer
from steer.activations import Activations
from steer.interventions import Patch, mean, resample, zero
from steer.sites import Site
from steer.step import Step

SITE = Site(1, "resid_post")
D = 6


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


H = draw(3, 4, D, seed=0)
ROWS = [2, 0, 1]
STEP = Step(torch.arange(4).expand(3, 4), torch.tensor(ROWS), rank=torch.arange(4).expand(3, 4))


def test_one_vector_replaces_every_token():
    source = draw(D, seed=1)
    assert torch.equal(Patch(SITE, source).edit(H, STEP), source.expand_as(H))


def test_one_vector_for_each_row():
    source = draw(3, D, seed=1)
    found = Patch(SITE, source).edit(H, STEP)
    assert torch.equal(found, source[ROWS][:, None].expand_as(H))


def test_one_vector_for_each_token_of_each_row_by_its_rank_in_scope():
    source = draw(3, 4, D, seed=1)
    assert torch.equal(Patch(SITE, source).edit(H, STEP), source[ROWS])
    later = Step(STEP.positions, STEP.rows, rank=torch.tensor([[-1, 0, 0, 1]] * 3))
    found = Patch(SITE, source).edit(H, later)
    assert torch.equal(found[:, 1:], source[ROWS][:, [0, 0, 1]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_whole_replacement_has_the_bits_of_the_source(dtype):
    source = draw(3, 4, D, seed=1).to(dtype)
    source[0, 0, 0] = -0.0
    found = Patch(SITE, source).edit(H.to(dtype), STEP)
    bits = {2: torch.int16, 4: torch.int32}[source.element_size()]
    assert torch.equal(found.view(bits), source[ROWS].view(bits))


def test_within_a_subspace_only_the_part_inside_is_exchanged():
    source, basis = draw(3, D, seed=1), draw(2, D, seed=2)
    inside = torch.linalg.pinv(basis) @ basis
    found = Patch(SITE, source, subspace=basis).edit(H, STEP)
    expected = H + (source[ROWS][:, None] - H) @ inside
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    outside = torch.eye(D, dtype=torch.float64) - inside
    torch.testing.assert_close(found @ outside, H @ outside, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_patch_of_what_is_there_changes_no_bit(dtype):
    h = H.to(dtype)
    h[0, 0, 0] = -0.0
    bits = {2: torch.int16, 4: torch.int32}[h.element_size()]
    back = torch.empty_like(h)
    back[ROWS] = h
    for subspace in (None, draw(2, D, seed=2, dtype=torch.float32)):
        found = Patch(SITE, back, subspace=subspace).edit(h, STEP)
        assert torch.equal(found.view(bits), h.view(bits))


def test_heads_take_a_source_for_all_of_them_or_one_head_its_own():
    site = Site(1, "z")
    h = draw(3, 4, 2, D, seed=3)
    one = draw(2, D, seed=4)
    assert torch.equal(Patch(site, one).edit(h, STEP), one.expand_as(h))
    rows = draw(3, 2, D, seed=5)
    assert torch.equal(Patch(site, rows).edit(h, STEP), rows[ROWS][:, None].expand_as(h))
    every = draw(3, 4, 2, D, seed=6)
    assert torch.equal(Patch(site, every).edit(h, STEP), every[ROWS])


def test_a_source_is_kept_apart_from_its_graph_and_not_written_to():
    source = draw(D, seed=1).requires_grad_()
    item = Patch(SITE, source)
    assert isinstance(item.source, Tensor)
    assert not item.source.requires_grad
    item.edit(H, STEP)
    assert torch.equal(item.source, source)


# -- in a model --------------------------------------------------------------------------------

CLEAN = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]
CORRUPTED = [[20, 6, 7, 8, 9], [21, 11, 12], [22, 14, 15, 16]]


def test_a_run_patched_from_itself_is_the_same_run(any_lm):
    site = Site(2)
    acts = any_lm.capture(CLEAN, [site], scope=steer.ALL)
    torch.testing.assert_close(
        any_lm.logits(CLEAN, [Patch(site, acts)]), any_lm.logits(CLEAN), rtol=1e-5, atol=1e-5
    )


def test_patching_every_token_of_a_block_makes_the_rest_of_the_run_clean(any_lm):
    site = Site(1)
    acts = any_lm.capture(CLEAN, [site], scope=steer.ALL)
    patched = any_lm.logits(CORRUPTED, [Patch(site, acts)])
    clean, corrupted = any_lm.logits(CLEAN), any_lm.logits(CORRUPTED)
    torch.testing.assert_close(patched, clean, rtol=1e-4, atol=1e-5)
    assert float((corrupted - clean).abs().max()) > 0.1


def test_a_source_of_unequal_rows_meets_its_own_tokens_while_generating(lm):
    site = Site(1)
    acts = lm.capture(CLEAN, [site], scope=steer.PROMPT)
    item = Patch(site, acts, scope=steer.PROMPT)
    found = lm.generate(CORRUPTED, [item], max_new_tokens=4)
    for row, prompt in enumerate(CORRUPTED):
        single = lm.capture([CLEAN[row]], [site], scope=steer.PROMPT)
        alone = lm.generate([prompt], [Patch(site, single, scope=steer.PROMPT)], max_new_tokens=4)
        assert found.tokens[row] == alone.tokens[0]
    chunked = lm.generate(CORRUPTED, [item], max_new_tokens=4, prefill_chunk_size=2)
    assert chunked.tokens == found.tokens
    assert chunked.receipt[0].eligible.tolist() == [5, 3, 4]


def test_a_source_captured_while_generating_replays_the_generation(lm):
    site = Site(2)
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    steered = [steer.Add(Site(1), v, 3.0)]
    acts = lm.capture(CLEAN, [site], scope=steer.ALL, plan=steered, max_new_tokens=4)
    moved = lm.generate(CLEAN, steered, max_new_tokens=4)
    found = lm.generate(CLEAN, [Patch(site, acts)], max_new_tokens=4)
    assert found.tokens == moved.tokens


# -- sources -----------------------------------------------------------------------------------


def some_activations() -> Activations:
    values = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    return Activations({SITE: values}, mask, torch.where(mask, torch.arange(3), -1))


def test_mean_ablation_is_over_real_tokens_only():
    acts = some_activations()
    expected = acts[SITE][acts.mask].mean(0)
    assert torch.equal(mean(acts)[SITE], expected)
    one = Activations({SITE: torch.arange(8.0).reshape(2, 4)}, None, torch.zeros(2).long())
    assert mean(one)[SITE].tolist() == [2.0, 3.0, 4.0, 5.0]


def test_resampling_draws_real_tokens_and_repeats_with_its_seed():
    acts = some_activations()
    real = {tuple(row) for row in acts[SITE][acts.mask].tolist()}
    draws = [resample(acts, seed=seed) for seed in range(20)]
    assert all(found[SITE].shape == acts[SITE].shape for found in draws)
    seen = {tuple(row) for found in draws for row in found[SITE][acts.mask].tolist()}
    assert seen == real
    assert torch.equal(draws[1][SITE], resample(acts, seed=1)[SITE])
    assert not torch.equal(draws[1][SITE], draws[2][SITE])
    assert acts.mask is not None
    padding = ~acts.mask
    assert torch.equal(draws[1][SITE][padding], acts[SITE][padding])


@pytest.mark.parametrize("make", [zero, mean, resample])
def test_a_source_from_nothing_is_refused(make):
    empty = Activations(
        {SITE: torch.zeros(1, 2, 4)}, torch.zeros(1, 2, dtype=torch.bool), torch.full((1, 2), -1)
    )
    with pytest.raises(steer.PlanError, match=r"no tokens to make a source from.*Capture"):
        make(empty)


def test_zero_ablation_writes_zeros(lm):
    source = zero(lm.capture(CLEAN, [SITE]))
    acts = lm.capture(CLEAN, [SITE], scope=steer.ALL, plan=[Patch(SITE, source)])
    assert not bool(acts[SITE].any())


def test_a_source_of_too_many_axes_is_refused():
    with pytest.raises(steer.WidthMismatch, match=r"has shape \(1, 2, 3, 4\).*Select the site"):
        Patch(SITE, torch.zeros(1, 2, 3, 4))
    assert "source=[1, 2, 3, 4]" in repr(Patch(Site(1, "z"), torch.zeros(1, 2, 3, 4)))


def test_activations_without_the_site_are_refused():
    with pytest.raises(steer.SiteNotFound, match=r"blocks\.2\.resid_post was not captured"):
        Patch(Site(2), some_activations())


def test_the_repr_says_shape_and_subspace():
    assert repr(Patch(SITE, torch.zeros(3, D), torch.eye(D)[:2])) == (
        "Patch(blocks.1.resid_post, source=[3, 6], scope=ALL, subspace k=2)"
    )
