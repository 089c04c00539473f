"""Recomputed patterns against the attention weights of an eager copy of the model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steer.models.attention import AttentionFacts, pattern, rotated
from steer.models.layout import Layout
from steer.models.layouts import resolve
from steer.sites import Site

Small = Callable[..., Any]
Reader = Callable[[nn.Module, Layout], Callable[..., dict[Site, Tensor]]]

KV: dict[str, Any] = {"num_key_value_heads": 2}
WIDE = {**KV, "head_dim": 16}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", KV),
    "mistral, window 3": ("mistral", {**KV, "sliding_window": 3}),
    "qwen2, two windows": (
        "qwen2",
        {**KV, "use_sliding_window": True, "sliding_window": 3, "layer_types": SLIDING},
    ),
    "qwen2_moe, two windows": (
        "qwen2_moe",
        {
            **KV, "use_sliding_window": True, "sliding_window": 3, "layer_types": SLIDING,
            "num_experts": 4, "moe_intermediate_size": 24,
        },
    ),
    "qwen3, normed heads": ("qwen3", WIDE),
    "gemma2, soft cap": (
        "gemma2",
        {**WIDE, "sliding_window": 3, "layer_types": SLIDING, "attn_logit_softcapping": 1.0,
         "query_pre_attn_scalar": 9},
    ),
    "gemma3, two rotary bases": (
        "gemma3_text",
        {**WIDE, "sliding_window": 3, "layer_types": SLIDING, "query_pre_attn_scalar": 9},
    ),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox, partial rotary": ("gpt_neox", {"rotary_pct": 0.25}),
    "phi3, window 3": ("phi3", {**KV, "sliding_window": 3}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "olmo2, norm over all heads": ("olmo2", KV),
    "falcon": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": ("falcon", {"multi_query": False, "parallel_attn": False, "alibi": True}),
    "falcon, alibi, six heads": (
        "falcon",
        {
            "multi_query": False, "parallel_attn": False, "alibi": True, "hidden_size": 48,
            "num_attention_heads": 6,
        },
    ),
    "mixtral": ("mixtral", {**KV, "num_local_experts": 4}),
}  # fmt: skip
IDS = torch.tensor([[5, 17, 3, 40, 8, 21], [60, 11, 33, 9, 44, 7]])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pattern_is_the_one_of_an_eager_copy(name: str, small: Small, reader: Reader) -> None:
    model_type, config = FAMILIES[name]
    eager = small(model_type, attention="eager", **config)
    # Eager Falcon adds its alibi twice (transformers 5.23), so only an eager one is like it.
    model = eager if "alibi" in name else small(model_type, **config)
    layout = resolve(model)
    facts = layout.attention
    assert facts is not None
    with torch.no_grad():
        wanted = eager(input_ids=IDS, output_attentions=True, use_cache=False).attentions
    positions = torch.arange(6)[None]
    for layer in range(3):
        sites = [Site(layer, "q"), Site(layer, "k")]
        read = reader(model, layout)(sites)
        with torch.no_grad():
            q, k = rotated(model, facts, layer, read[sites[0]], read[sites[1]], positions)
            got = pattern(facts, layer, q, k, query_positions=positions, key_positions=positions)
        # Scores are multiplied in another order than in the model: a few roundings of fp32.
        torch.testing.assert_close(got, wanted[layer], atol=2e-6, rtol=2e-5)


def test_padding_is_never_attended_to(small: Small) -> None:
    model = small("llama", **KV)
    layout = resolve(model)
    facts = layout.attention
    assert facts is not None
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    seen: dict[str, Tensor] = {}
    tap = {name: layout.tap(Site(0, name)) for name in ("q", "k")}
    handles = [
        model.get_submodule(each.path).register_forward_hook(
            lambda _m, _a, out, name=name, view=each.view: seen.update({name: view.get(out)})
        )
        for name, each in tap.items()
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(
            input_ids=IDS, attention_mask=mask, position_ids=positions, output_attentions=True
        )
        for handle in handles:
            handle.remove()
        q, k = rotated(model, facts, 0, seen["q"], seen["k"], positions)
        order = torch.arange(6)[None]
        got = pattern(facts, 0, q, k, query_positions=order, key_positions=order, key_mask=mask)
    real = mask.bool()[:, None, :, None].expand_as(got)
    torch.testing.assert_close(got[real], out.attentions[0][real], atol=2e-6, rtol=2e-5)
    assert float(got[1, :, 2:, :2].abs().max()) == 0.0


def test_a_window_counts_the_query_itself() -> None:
    facts = AttentionFacts("attn", scaling=(1.0,), windows=(2,))
    q = torch.zeros(1, 1, 4, 2)
    order = torch.arange(4)[None]
    got = pattern(facts, 0, q, q, query_positions=order, key_positions=order)
    wanted = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]])
    assert torch.equal(got[0, 0], wanted)
