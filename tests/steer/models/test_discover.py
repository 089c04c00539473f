"""Architectures without a table: discovered and confirmed, or refused with a reason."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from steer.errors import UnsupportedModel
from steer.models.discover import discover
from steer.models.frame import find_frame
from steer.models.layout import Layout, Scaled
from steer.models.layouts import TABLES, resolve
from steer.models.verify import verify_layout
from steer.sites import Site

Small = Callable[..., Any]
Reader = Callable[[nn.Module, Layout], Callable[..., dict[Site, Tensor]]]

KV: dict[str, Any] = {"num_key_value_heads": 2}
HEAD = {**KV, "head_dim": 8}
EXPERTS = {
    **KV, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
}  # fmt: skip
LATENT = {
    **EXPERTS, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
FOUND: dict[str, tuple[dict[str, Any], set[str]]] = {
    # model_type: (config, what it lacks besides pattern and a router)
    "apertus": (KV, set()),
    "arcee": (KV, set()),
    "biogpt": ({}, set()),
    "bitnet": (KV, {"z"}),
    "bloom": ({}, set()),
    "cohere": (KV, {"resid_mid"}),
    "cohere2": (KV, {"resid_mid"}),
    "deepseek_v2": (LATENT, {"q", "k", "v", "mlp_pre", "mlp_post"}),
    "deepseek_v3": (LATENT, {"q", "k", "v", "mlp_pre", "mlp_post"}),
    "ernie4_5": (HEAD, set()),
    "exaone4": (KV, set()),
    "flex_olmo": (EXPERTS, {"mlp_pre", "mlp_post"}),
    "gemma": (HEAD, set()),
    "glm": (HEAD, set()),
    "glm4": (HEAD, set()),
    "gpt_bigcode": ({}, set()),
    "gpt_neo": ({"attention_types": [[["global"], 3]], "num_layers": 3}, set()),
    "gpt_oss": (
        {**HEAD, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"mlp_pre", "mlp_post"},
    ),
    "gptj": ({"rotary_dim": 8}, {"resid_mid"}),
    "granite": ({**KV, "residual_multiplier": 0.3, "logits_scaling": 2.0}, set()),
    "granitemoe": ({**EXPERTS, "residual_multiplier": 0.3}, {"mlp_pre", "mlp_post"}),
    "granitemoeshared": (
        {**EXPERTS, "shared_intermediate_size": 24},
        {"mlp_pre", "mlp_post", "mlp_out", "attn_out", "resid_mid"},
    ),
    "helium": (HEAD, set()),
    "hunyuan_v1_dense": (HEAD, set()),
    "ministral": (HEAD, set()),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 3}, set()),
    "nanochat": (KV, set()),
    "nemotron": (KV, set()),
    "olmo": (KV, set()),
    "olmo3": (KV, set()),
    "olmoe": (EXPERTS, {"mlp_pre", "mlp_post"}),
    "persimmon": ({}, set()),
    "phi": ({}, {"resid_mid"}),
    "phimoe": (EXPERTS, {"mlp_pre", "mlp_post"}),
    "seed_oss": (HEAD, set()),
    "smollm3": (KV, set()),
    "stablelm": (KV, set()),
    "starcoder2": (KV, set()),
    "vaultgemma": (HEAD, set()),
    "xglm": ({"d_model": 32, "attention_heads": 4, "num_layers": 3, "ffn_dim": 48}, set()),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # no attention with an output projection
    "mamba": ({}, r"block 0 \(MambaBlock\) has no single self-attention"),
    "rwkv": ({}, r"block 0 \(RwkvBlock\) has no single self-attention"),
    "jetmoe": ({**EXPERTS, "kv_channels": 8}, "has no single self-attention"),
    "recurrent_gemma": ({}, r"block 0 \(RecurrentGemmaDecoderLayer\) has no single"),
    # the norms come after the sums, and names do not tell
    "bart": (
        {
            "d_model": 32, "decoder_layers": 3, "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48, "encoder_layers": 3, "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
        },
        "resid_post = resid_pre",
    ),
    "openai-gpt": ({}, "resid_post = resid_pre"),
    # q, k and v are fused in an order of its own
    "codegen": ({"rotary_dim": 8}, "z is not a mix of v"),
    # heads are differences of two attentions
    "diffllama": (KV, "z is not a mix of v"),
    # what is added to the stream is scaled by weights of the block
    "doge": (KV, "resid_post = resid_pre"),
    # the last block adds a bias outside its projection
    "gpt_neox_japanese": ({}, r"blocks\.2\.resid_post = resid_pre"),
}  # fmt: skip


def explain_and_check(model: nn.Module, reader: Reader) -> None:
    layout = resolve(model)
    verify_layout(model, layout, reader(model, layout))


@pytest.mark.parametrize("model_type", FOUND)
def test_an_architecture_without_a_table_is_found_and_confirmed(
    model_type: str, small: Small, reader: Reader
) -> None:
    config, lacks = FOUND[model_type]
    assert model_type not in TABLES
    model = small(model_type, **config)
    layout = resolve(model)
    verify_layout(model, layout, reader(model, layout))
    assert set(layout.absent) - {"router", "pattern"} == lacks


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_be_explained_is_refused_not_guessed(
    model_type: str, small: Small, reader: Reader
) -> None:
    config, reason = REFUSED[model_type]
    model = small(model_type, **config)
    with pytest.raises(UnsupportedModel, match=reason):
        explain_and_check(model, reader)


TABLED: dict[str, dict[str, Any]] = {
    "llama": KV, "mistral": KV, "qwen2": KV, "qwen3": {**KV, "head_dim": 16},
    "gemma2": {**KV, "head_dim": 16}, "gemma3_text": {**KV, "head_dim": 16}, "gpt2": {},
    "gpt_neox": {}, "phi3": KV, "olmo2": KV, "mixtral": {**KV, "num_local_experts": 4},
}  # fmt: skip


@pytest.mark.parametrize("model_type", TABLED)
def test_discovery_reads_the_same_values_as_the_table(
    model_type: str, small: Small, reader: Reader
) -> None:
    model = small(model_type, **TABLED[model_type])
    table, found = resolve(model), discover(model)
    verify_layout(model, found, reader(model, found))
    sites = [
        Site(1, component)
        for component in table.taps
        if component in found.taps and component not in ("embed", "ln_final", "logits", "pattern")
    ]
    assert {site.component for site in sites} >= {"q", "k", "v", "z", "attn_out", "mlp_out"}
    one, other = reader(model, table)(sites), reader(model, found)(sites)
    for site in sites:
        assert torch.equal(one[site], other[site]), site


def test_a_residual_multiplier_is_part_of_what_is_added(small: Small, reader: Reader) -> None:
    model = small("granite", **FOUND["granite"][0])
    layout = resolve(model)
    tap = layout.tap(Site(1, "attn_out"))
    assert tap.view == Scaled(0.3)
    value = reader(model, layout)([Site(1, "attn_out")])[Site(1, "attn_out")]
    torch.testing.assert_close(tap.view.get(tap.view.put(value, value)), value)


def test_an_encoder_decoder_is_refused_with_the_reason() -> None:

    config = T5Config(vocab_size=32, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModel, match="is an encoder-decoder"):
        find_frame(T5ForConditionalGeneration(config))


def test_a_module_without_a_config_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedModel, match=r"Linear has no config.*ModuleSite.*add_layout"):
        resolve(nn.Linear(2, 2))


def test_a_config_that_counts_other_blocks_is_refused(small: Small) -> None:
    model = small("starcoder2", **KV)
    model.config.num_hidden_layers = 5
    with pytest.raises(UnsupportedModel, match=r"no list of 5 blocks.*model\.layers has 3"):
        resolve(model)


def test_projections_that_are_not_nn_linear_are_found_by_their_sizes(
    small: Small, reader: Reader
) -> None:
    class Packed(nn.Module):
        """Weights in int8, as quantised linear modules keep them."""

        def __init__(self, dense: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = dense.in_features, dense.out_features
            scale = dense.weight.detach().abs().amax(1, keepdim=True) / 127
            self.register_buffer("scale", scale)
            self.register_buffer("packed", (dense.weight.detach() / scale).round().to(torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.get_buffer("packed") * self.get_buffer("scale"))

    model = small("starcoder2", **KV, use_bias=False)
    for block in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(block.self_attn, name, Packed(getattr(block.self_attn, name)))
    layout = resolve(model)
    verify_layout(model, layout, reader(model, layout))
    assert "z" in layout.taps
