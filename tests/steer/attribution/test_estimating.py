"""Attribution patching against hand-written autograd, dense loops and real patches."""

import copy
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import steer
from benchmarks.peers.bare import bare_twin
from steer import LM, PlanError, Site, attribution, patching
from steer.attribution.attention import Block, key_effects, query_effects

CLEAN = [[5, 6, 7, 8, 9, 10], [5, 11, 7, 12, 9, 13], [4, 6, 14, 8]]
CORRUPTED = [[5, 6, 20, 8, 9, 10], [5, 21, 7, 12, 9, 13], [4, 22, 14, 8]]
RIGHT, WRONG = [30, 31, 32], [40, 41, 42]
METRIC = patching.logit_difference(RIGHT, WRONG)


def gradient_by_hand(lm: LM, path: str, row: list[int], number: int) -> Tensor:
    """Return the gradient of one row's metric with respect to a module's output, [pos, d]."""
    kept: list[Tensor] = []

    def hook(_: nn.Module, __: object, out: Tensor | tuple[Tensor, ...]) -> None:
        whole = out if isinstance(out, Tensor) else out[0]
        whole.retain_grad()
        kept.append(whole)

    handle = lm.model.get_submodule(path).register_forward_hook(hook)
    with torch.enable_grad():
        embeds = lm.model.get_input_embeddings()(torch.tensor([row])).detach().requires_grad_()
        logits = lm.model(inputs_embeds=embeds).logits[0, -1]
        (logits[RIGHT[number]] - logits[WRONG[number]]).backward()
    handle.remove()
    lm.model.zero_grad()
    assert kept[0].grad is not None
    return kept[0].grad[0]


def test_the_estimate_is_the_change_times_the_gradient_pair_by_pair(lm: LM):
    site = Site(1, "mlp_out")
    found = attribution.atp(lm, CLEAN, CORRUPTED, [site], METRIC)
    own, other = (lm.capture(rows, [site], scope=steer.ALL)[site] for rows in (CORRUPTED, CLEAN))
    for row in range(3):
        n = len(CLEAN[row])
        slope = gradient_by_hand(lm, "model.layers.1.mlp", CORRUPTED[row], row)
        expected = ((other - own)[row, :n] * slope).sum(-1)
        moved = found.change[0, :n, row]
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-4)
    assert bool(found.values[0, 4:, 2].isnan().all())


def test_a_state_that_is_a_sum_of_two_outputs_has_its_gradient(lm: LM):
    # No module gives resid_mid: it is served as the block's input and what attention adds.
    site = Site(1, "resid_mid")
    found = attribution.atp(lm, CLEAN, CORRUPTED, [site], METRIC)
    own, other = (lm.capture(rows, [site], scope=steer.ALL)[site] for rows in (CORRUPTED, CLEAN))
    slope = gradient_by_hand(lm, "model.layers.1.self_attn", CORRUPTED[0], 0)
    expected = ((other - own)[0] * slope).sum(-1)
    torch.testing.assert_close(found.change[0, :, 0], expected, atol=1e-5, rtol=1e-4)


def test_it_is_exact_where_the_rest_of_the_model_is_linear(any_lm: LM):
    # After the last block only a norm is left: with logits as the site, nothing but the metric.
    estimate = attribution.atp(any_lm, CLEAN, CORRUPTED, [Site.logits()], METRIC, scope=steer.LAST)
    exact = patching.sweep(any_lm, CLEAN, CORRUPTED, [Site.logits()], METRIC, scope=steer.LAST)
    torch.testing.assert_close(estimate.values, exact.values, atol=1e-4, rtol=0)
    torch.testing.assert_close(estimate.effect, torch.ones(1, 1).double(), atol=1e-4, rtol=0)


def linear_model() -> LM:
    """Return GPT-2 without norms, with a linear MLP and the same attention to every token."""
    lm = steer.load("tiny-gpt2")
    model: Any = copy.deepcopy(bare_twin(lm.model))
    for block in model.transformer.h:
        block.ln_1 = block.ln_2 = nn.Identity()
        block.mlp.act = nn.Identity()
        width = model.config.n_embd
        with torch.no_grad():
            block.attn.c_attn.weight[:, : 2 * width] = 0.0
            block.attn.c_attn.bias[: 2 * width] = 0.0
    model.transformer.ln_f = nn.Identity()
    return steer.wrap(model, lm.tokenizer)


def test_it_is_exact_on_a_linear_model():
    lm = linear_model()
    for component in ("resid_pre", "z", "mlp_out"):
        sites = lm.sites(component)
        exact = patching.sweep(lm, CLEAN, CORRUPTED, sites, METRIC)
        estimate = attribution.atp(lm, CLEAN, CORRUPTED, sites, METRIC)
        torch.testing.assert_close(
            estimate.values, exact.values, atol=1e-4, rtol=1e-4, equal_nan=True
        )


@pytest.mark.parametrize("component", ["resid_pre", "z", "v", "q", "k", "mlp_out"])
def test_small_changes_are_estimated_as_they_are_patched(any_lm: LM, component: str):
    # A prompt whose embeddings hardly differ: the model is linear over so little.
    lm = any_lm
    site = lm.sites(component)[-1]
    state = lm.capture(CORRUPTED[:1], [site], scope=steer.LAST)[site]
    nudge = (
        1e-2 * state.std() * torch.randn(state.shape, generator=torch.Generator().manual_seed(0))
    )
    metric = patching.logit_difference(RIGHT[:1], WRONG[:1])
    changed = [steer.Patch(site, state + nudge, scope=steer.LAST)]
    exact = metric(lm.logits(CORRUPTED[:1], changed), _one()) - metric(
        lm.logits(CORRUPTED[:1]), _one()
    )
    estimate = _estimated(lm, site, state + nudge, metric)
    assert float(estimate) == pytest.approx(float(exact), rel=0.1, abs=2e-5)


def _one() -> steer.Batch:
    return steer.Batch(torch.tensor([-1]), torch.tensor([0]))


def _estimated(lm: LM, site: Site, written: Tensor, metric: Callable[..., Tensor]) -> Tensor:
    from steer.attribution.estimating import _effect, _with_attention
    from steer.attribution.slopes import slopes_of
    from steer.patching.columns import Column

    column = Column(
        "last",
        steer.LAST,
        {site: written},
        None,
        torch.tensor([True]),
        torch.tensor([[len(CORRUPTED[0]) - 1]]),
    )
    (part,) = slopes_of(lm, CORRUPTED[:1], _with_attention([site]), metric)
    return _effect(lm, part, column, site).sum()


@pytest.mark.parametrize("tiny", ["tiny-llama", "tiny-gemma3"])
def test_queries_and_keys_go_through_the_softmax_one_position_at_a_time(
    tiny: str, gen: torch.Generator
):
    lm = steer.load(tiny)
    facts = lm.registry.layout.attention
    assert facts is not None
    acts = lm.capture(CLEAN[:2], [Site(1, c) for c in ("q", "k", "v")], scope=steer.ALL)
    q, k, v = (acts[Site(1, c)] for c in ("q", "k", "v"))
    slope = torch.randn(1, *q.shape[:3], v.shape[-1], generator=gen)
    mask = torch.ones(q.shape[:2], dtype=torch.bool)
    block = Block(lm.model, facts, 1, q, k, v, slope, mask)
    # Large changes: a gradient would not do.
    far_q, far_k = (x + 3 * torch.randn(x.shape, generator=gen) for x in (q, k))
    groups = q.shape[2] // k.shape[2]
    shared = v.repeat_interleave(groups, dim=2)

    def read_out(q: Tensor, k: Tensor) -> Tensor:
        """Return [row, head]: z times its gradient, with every pattern made whole."""
        z = torch.einsum("bhij,bjhd->bihd", block.scores(q, k).softmax(-1), shared)
        return (z * slope[0]).sum((1, 3))

    before = read_out(q, k)
    for at in range(q.shape[1]):
        one = q.clone()
        one[:, at] = far_q[:, at]
        expected = read_out(one, k) - before
        found = query_effects(block, far_q)[0, :, at]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        other = k.clone()
        other[:, at] = far_k[:, at]
        moved = (read_out(q, other) - before).unflatten(1, (-1, groups)).sum(-1)
        torch.testing.assert_close(key_effects(block, far_k)[0, :, at], moved, atol=1e-3, rtol=1e-3)


def test_dropped_blocks_give_the_mean_size_of_estimates_without_each(lm: LM):
    sites = [Site(0, "mlp_out"), Site(2, "attn_out")]
    plain = attribution.atp(lm, CLEAN[:1], CORRUPTED[:1], sites, METRIC)
    dropped = attribution.atp(lm, CLEAN[:1], CORRUPTED[:1], sites, METRIC, drop_blocks=True)
    own, other = (lm.capture(rows[:1], sites, scope=steer.ALL) for rows in (CORRUPTED, CLEAN))
    sizes = torch.zeros(2, 6)
    for layer in range(lm.n_layers):
        block = lm.model.get_submodule(f"model.layers.{layer}")
        handles = [
            block.get_submodule(name).register_forward_hook(
                lambda _, __, out: (
                    out.detach() if isinstance(out, Tensor) else (out[0].detach(), *out[1:])
                )
            )
            for name in ("self_attn", "mlp")
        ]
        for at, (site, path) in enumerate(
            zip(sites, ("model.layers.0.mlp", "model.layers.2.self_attn"), strict=True)
        ):
            if site.layer == layer:
                continue  # nothing is let out of its own block
            slope = gradient_by_hand(lm, path, CORRUPTED[0], 0)
            sizes[at] += ((other[site] - own[site])[0] * slope).sum(-1).abs()
        for handle in handles:
            handle.remove()
    expected = sizes / (lm.n_layers - 1)
    torch.testing.assert_close(dropped.change[:, :, 0].abs(), expected, atol=1e-5, rtol=1e-3)
    live = plain.change[:, :, 0].abs() > 1e-7
    assert torch.equal(dropped.change[:, :, 0].sign()[live], plain.change[:, :, 0].sign()[live])


def test_steps_average_the_gradient_on_the_way_to_what_is_written(lm: LM):
    site = Site(1, "mlp_out")
    found = attribution.atp(lm, CLEAN[:1], CORRUPTED[:1], [site], METRIC, steps=3)
    own, other = (
        lm.capture(rows[:1], [site], scope=steer.ALL)[site] for rows in (CORRUPTED, CLEAN)
    )
    total = torch.zeros(6, lm.d_model)
    for mix in (1 / 6, 1 / 2, 5 / 6):
        state = ((1 - mix) * own + mix * other).requires_grad_()
        handle = lm.model.get_submodule("model.layers.1.mlp").register_forward_hook(
            lambda *_, state=state: state
        )
        with torch.enable_grad():
            logits = lm.model(torch.tensor(CORRUPTED[:1])).logits[0, -1]
            (slope,) = torch.autograd.grad(logits[RIGHT[0]] - logits[WRONG[0]], [state])
        handle.remove()
        total = total + slope[0] / 3
    expected = ((other - own)[0] * total).sum(-1)
    torch.testing.assert_close(found.change[0, :, 0], expected, atol=1e-5, rtol=1e-3)


# Not tiny-mixtral: on the way other experts are chosen, and no gradient sees such a jump.
@pytest.mark.parametrize(
    "tiny", ["tiny-llama", "tiny-gpt2", "tiny-gemma3", "tiny-qwen2", "tiny-neox"]
)
def test_over_many_steps_the_heads_of_a_block_add_up_to_exchanging_all_of_them(tiny: str):
    lm = steer.load(tiny)
    sites = lm.sites("z")
    exact = patching.sweep(lm, CLEAN, CORRUPTED, sites, METRIC, scope=steer.ALL)
    heads = attribution.atp(
        lm, CLEAN, CORRUPTED, patching.heads(lm), METRIC, scope=steer.ALL, steps=16
    )
    summed = heads.change[:, 0].unflatten(0, (lm.n_layers, -1)).sum(1)
    plain = attribution.atp(lm, CLEAN, CORRUPTED, sites, METRIC, scope=steer.ALL)
    off, before = ((x - exact.change[:, 0]).abs().mean() for x in (summed, plain.change[:, 0]))
    assert float(off) < 0.02 * float(exact.change.abs().mean())
    assert float(off) < float(before)


def test_steps_follow_pairs_that_align_at_their_ends_and_named_scopes(lm: LM):
    clean, corrupted = [[5, 6, 7, 8, 9]], [[5, 6, 20, 21, 8, 9]]
    metric = patching.logit_difference(RIGHT[:1], WRONG[:1])
    found = attribution.atp(lm, clean, corrupted, [Site(1)], metric, align="ends", steps=2)
    assert [name.split()[0] for name in found.columns] == ["0", "1", "4", "5"]
    assert bool(found.values.isfinite().all())
    last = attribution.atp(
        lm, clean, corrupted, [Site(1)], metric, scope=steer.span(-2, None), steps=16
    )
    exact = patching.sweep(lm, clean, corrupted, [Site(1)], metric, scope=steer.span(-2, None))
    gap = float(exact.change.abs().max())
    assert float((last.change - exact.change).abs().max()) < 0.02 * gap
    with pytest.raises(PlanError, match="Choose one"):
        attribution.atp(lm, clean, corrupted, [Site(1)], metric, steps=2, drop_blocks=True)


def test_single_heads_add_up_to_all_of_them_and_tokens_to_a_scope(any_lm: LM):
    lm = any_lm
    whole = attribution.atp(lm, CLEAN, CORRUPTED, lm.sites("z"), METRIC, scope=steer.ALL)
    heads = attribution.atp(lm, CLEAN, CORRUPTED, patching.heads(lm), METRIC)
    summed = heads.change.nan_to_num(0.0).unflatten(0, (lm.n_layers, -1)).sum((1, 2))
    torch.testing.assert_close(whole.change[:, 0], summed, atol=1e-5, rtol=1e-3)


def test_the_largest_estimates_are_patched_for_real(lm: LM):
    sites = lm.sites("mlp_out")
    guess = attribution.atp(lm, CLEAN, CORRUPTED, sites, METRIC)
    found = attribution.verify(lm, guess, CLEAN, CORRUPTED, METRIC, n=8)
    exact = patching.sweep(lm, CLEAN, CORRUPTED, sites, METRIC)
    for (place, column), patched in zip(found.cells, found.patched, strict=True):
        row, col = exact.places.index(place), exact.columns.index(column)
        assert float(patched) == pytest.approx(float(exact.effect[row, col]), abs=1e-4)
    sizes = found.estimated.abs().tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert f"{found.rank_correlation:.2f}" in repr(found)
    with pytest.raises(PlanError, match="with which it was made"):
        attribution.verify(lm, guess, CLEAN, CORRUPTED, METRIC, scope=steer.LAST)


def test_what_has_no_gradient_is_refused(lm: LM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    site = Site(1)
    with pytest.raises(PlanError, match="no gradient"):
        attribution.atp(lm, CLEAN, CORRUPTED, [site], lambda x, b: METRIC(x, b).detach())
    with torch.inference_mode(), pytest.raises(PlanError, match="inference_mode"):
        attribution.atp(lm, CLEAN, CORRUPTED, [site], METRIC)
    with torch.no_grad():
        attribution.atp(lm, CLEAN, CORRUPTED, [site], METRIC)
    with pytest.raises(PlanError, match="cannot be written"):
        attribution.atp(lm, CLEAN, CORRUPTED, [Site(1, "pattern")], METRIC)
    assert lm.registry.live == 0
    assert all(weight.grad is None for weight in lm.model.parameters())
