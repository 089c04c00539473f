"""Edges against hand-written autograd, against the paths themselves, and as parts of a sum."""

from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from benchmarks.peers.bare import bare_twin
from steer import LM, PlanError, Site, attribution, patching
from tests.steer.attribution.test_estimating import linear_model

CLEAN = [[5, 6, 7, 8, 9, 10], [5, 11, 7, 12, 9, 13], [4, 6, 14, 8]]
CORRUPTED = [[5, 6, 20, 8, 9, 10], [5, 21, 7, 12, 9, 13], [4, 22, 14, 8]]
METRIC = patching.logit_difference([30, 31, 32], [40, 41, 42])


def test_what_a_component_says_to_all_others_is_what_attribution_says_of_it(any_lm: LM):
    found = attribution.edges(any_lm, CLEAN, CORRUPTED, METRIC, steps=0)
    senders = [site for site in found.senders if site.component in ("z", "mlp_out")]
    nodes = attribution.atp(
        any_lm, CLEAN, CORRUPTED, senders, METRIC, scope=steer.ALL, direction="noise"
    )
    assert [s for s in found.senders if s in senders] == senders
    sums = found.change.nansum(1)[[s in senders for s in found.senders]]
    torch.testing.assert_close(sums, nodes.change[:, 0], atol=2e-5, rtol=1e-3)


def test_edges_are_exact_in_a_linear_model():
    lm = linear_model()
    found = attribution.edges(lm, CLEAN, CORRUPTED, METRIC, steps=0)
    senders = [Site(0, "z", 1), Site(1, "mlp_out")]
    receivers = [Site(2, "v", 0), Site(3, "v", 2), Site.logits()]
    exact = patching.paths(lm, CLEAN, CORRUPTED, senders, receivers, METRIC)
    rows = [found.senders.index(site) for site in senders]
    columns = [found.receivers.index(site) for site in receivers]
    got = found.change[rows][:, columns]
    torch.testing.assert_close(got, exact.change, atol=1e-3, rtol=1e-3)


def test_a_query_edge_is_the_gradient_by_hand(lm: LM):
    found = attribution.edges(lm, CLEAN[:1], CORRUPTED[:1], metric_of_first(), steps=0)
    model: Any = bare_twin(lm.model)
    block = model.model.layers[1]
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
            out.retain_grad()
            kept[name], kept[f"{name} in"] = out, args[0].detach()

        return hook

    handles = [
        block.self_attn.q_proj.register_forward_hook(keep("q")),
        block.input_layernorm.register_forward_hook(keep("norm")),
    ]
    with torch.enable_grad():
        embeds = model.get_input_embeddings()(torch.tensor(CLEAN[:1])).detach().requires_grad_()
        logits = model(inputs_embeds=embeds).logits[0, -1]
        (logits[30] - logits[40]).backward()
        for handle in handles:
            handle.remove()
        stream = kept["norm in"].requires_grad_()
        slope = kept["q"].grad
        assert slope is not None
        size = slope.shape[-1] // model.config.num_attention_heads
        q = block.self_attn.q_proj(block.input_layernorm(stream))
        (q * slope)[..., size : 2 * size].sum().backward()
    model.zero_grad()
    site = Site(0, "mlp_out")
    own, other = (
        lm.capture(rows[:1], [site], scope=steer.ALL)[site] for rows in (CLEAN, CORRUPTED)
    )
    assert stream.grad is not None
    expected = ((other - own) * stream.grad).sum()
    got = found.change[found.senders.index(site), found.receivers.index(Site(1, "q", 1)), 0]
    torch.testing.assert_close(got, expected.detach(), atol=1e-6, rtol=1e-3)


def metric_of_first() -> Any:
    return patching.logit_difference([30], [40])


def test_averaged_on_the_way_edges_from_the_embeddings_make_up_the_whole_gap(lm: LM):
    # Completeness: all edges out of the embeddings together are the exchange of the prompt.
    found = attribution.edges(lm, CLEAN, CORRUPTED, METRIC, steps=16)
    plain = attribution.edges(lm, CLEAN, CORRUPTED, METRIC, steps=0)
    gap = (found.out_of - found.into).double()
    error = (found.change[0].nansum(0).double() - gap).abs().max()
    assert float(error) < 0.02 * float(gap.abs().max())
    assert float(error) < float((plain.change[0].nansum(0).double() - gap).abs().max())
    assert float(found.sender_effect[0]) == pytest.approx(1.0, abs=0.05)


def test_there_are_edges_to_later_readers_only_and_the_map_says_which(lm: LM):
    found = attribution.edges(lm, CLEAN, CORRUPTED, METRIC, steps=0)
    edge = {
        (str(s), str(r)): not bool(found.change[i, j].isnan().any())
        for i, s in enumerate(found.senders)
        for j, r in enumerate(found.receivers)
    }
    assert edge["blocks.0.z[1]", "blocks.0.mlp_out"]
    assert edge["blocks.0.mlp_out", "blocks.1.k[0]"]
    assert not edge["blocks.0.mlp_out", "blocks.0.mlp_out"]
    assert not edge["blocks.1.z[0]", "blocks.1.v[0]"]
    assert edge["blocks.3.mlp_out", "logits"]
    sender, receiver, effect = found.top(1)[0]
    assert f"{sender} -> {receiver}" in repr(found)
    assert abs(effect) == float(found.effect.nan_to_num(0.0).abs().max())


def test_inference_mode_is_refused(lm: LM):
    with torch.inference_mode(), pytest.raises(PlanError, match="keeps no gradients"):
        attribution.edges(lm, CLEAN, CORRUPTED, METRIC)


def test_verified_edges_are_as_estimated_in_a_linear_model():
    lm = linear_model()
    found = attribution.edges(lm, CLEAN, CORRUPTED, METRIC, steps=0)
    checked = attribution.verify_edges(lm, found, CLEAN, CORRUPTED, METRIC, n=12)
    torch.testing.assert_close(checked.patched, checked.estimated, atol=1e-3, rtol=1e-2)
    assert checked.rank_correlation > 0.99
    assert any("resid_pre" in sender for sender, _ in checked.cells)
    assert any("mlp_out" in receiver for _, receiver in checked.cells)


def test_verified_edges_are_the_paths_themselves(lm: LM):
    found = attribution.edges(lm, CLEAN, CORRUPTED, METRIC)
    checked = attribution.verify_edges(lm, found, CLEAN, CORRUPTED, METRIC, n=6)
    for (sender, receiver), value in zip(checked.cells, checked.patched, strict=True):
        s, r = Site.parse(sender), Site.parse(receiver)
        r = Site(r.layer, "mlp_post") if r.component == "mlp_out" else r
        alone = patching.paths(lm, CLEAN, CORRUPTED, [s], [r], METRIC)
        gap = (alone.out_of - alone.into).double().mean()
        expected = alone.change[0, 0].double().mean() / gap
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
