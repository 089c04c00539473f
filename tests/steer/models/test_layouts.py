"""Tables against oracles of transformers: hidden_states, and what its attention receives."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Gemma3Config, Gemma3ForConditionalGeneration

from steer.errors import UnsupportedModel
from steer.models.frame import Parts, build, find_frame
from steer.models.layout import Layout, Tap
from steer.models.layouts import TABLES, resolve
from steer.models.parts import features
from steer.models.verify import verify_layout
from steer.sites import Site

KV: dict[str, Any] = {"num_key_value_heads": 2}
WIDE = {**KV, "head_dim": 16}
EXPERTS = {**KV, "num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", KV),
    "mistral": ("mistral", KV),
    "qwen2": ("qwen2", KV),
    "qwen3": ("qwen3", WIDE),
    "gemma2": ("gemma2", {**WIDE, "final_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", WIDE),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox serial": ("gpt_neox", {"use_parallel_residual": False}),
    "phi3": ("phi3", KV),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt 350m": (
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "olmo2": ("olmo2", KV),
    "falcon 7b": ("falcon", {"multi_query": True}),
    "falcon 40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon 11b": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon rw": ("falcon", {"multi_query": False, "parallel_attn": False, "alibi": True}),
    "mixtral": ("mixtral", {**KV, "num_local_experts": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        {**EXPERTS, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2},
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 16}),
}
Small = Callable[..., Any]
Reader = Callable[[nn.Module, Layout], Callable[..., dict[Site, Tensor]]]
BY_PEFT = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
"""peft 0.21 reads an attribute that transformers 5 deprecates."""
IDS = torch.tensor([[5, 17, 3, 40, 8, 21], [60, 11, 33, 9, 44, 7]])


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, small: Small) -> tuple[nn.Module, Layout]:
    model_type, config = FAMILIES[request.param]
    model = small(model_type, **config)
    return model, resolve(model)


def test_every_table_has_a_small_model_here() -> None:
    assert {kind for kind, _ in FAMILIES.values()} == set(TABLES)


def test_every_table_passes_the_check(made: tuple[nn.Module, Layout], reader: Reader) -> None:
    model, layout = made
    verify_layout(model, layout, reader(model, layout))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_neox", "falcon 40b", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_check_passes_in_half_precision(
    name: str, dtype: torch.dtype, small: Small, reader: Reader
) -> None:
    model_type, config = FAMILIES[name]
    model = small(model_type, dtype=dtype, **config)
    layout = resolve(model)
    verify_layout(model, layout, reader(model, layout))


def test_streams_are_the_hidden_states_of_transformers(
    made: tuple[nn.Module, Layout], reader: Reader
) -> None:
    model, layout = made
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    sites = [Site(layer, "resid_post") for layer in range(layout.n_layers - 1)]
    read = reader(model, layout)([Site.embed(), *sites])
    assert torch.equal(read[Site.embed()], states[0])
    for layer, site in enumerate(sites):
        assert torch.equal(read[site], states[layer + 1])


def test_final_norm_and_logits_are_those_of_transformers(
    made: tuple[nn.Module, Layout], reader: Reader
) -> None:
    model, layout = made
    with torch.no_grad():
        out = model(input_ids=IDS, output_hidden_states=True)
    read = reader(model, layout)([Site.logits(), Site(2)])
    assert torch.equal(read[Site.logits()], out.logits)
    if "ln_final" in layout.taps:
        norm = reader(model, layout)([Site.ln_final()])[Site.ln_final()]
        assert torch.equal(norm, out.hidden_states[-1])
    else:
        # OPT-350m ends without a norm, and its hidden_states end after project_out.
        projected = model.get_submodule("model.decoder.project_out")(read[Site(2)])
        assert torch.equal(projected, out.hidden_states[-1])


@pytest.fixture
def spied() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Record the query, key and value of every attention call of models set to 'spy'."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    kernel = AttentionInterface()["sdpa"]

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any):
        calls.append((query, key, value))
        kw.pop("softcap", None)  # sdpa refuses Gemma 2's; only what goes in is of interest here
        return kernel(module, query, key, value, *args, **kw)

    AttentionInterface.register("spy", spy)
    yield calls
    AttentionInterface._global_mapping.pop("spy")


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("falcon")])
def test_q_k_and_v_are_what_the_attention_function_sees(
    name: str, small: Small, reader: Reader, spied: list[tuple[Tensor, Tensor, Tensor]]
) -> None:
    model_type, config = FAMILIES[name]
    model = small(model_type, **config)
    layout = resolve(model)
    sites = [Site(0, component) for component in ("q", "k", "v")]
    read = reader(model, layout)(sites)
    model.set_attn_implementation("spy")
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    query, key, value = (tensor.transpose(1, 2) for tensor in spied[0])
    assert torch.equal(read[sites[2]], value)
    # Rotary embedding turns token 0 by nothing, so q and k can be compared there; norms of q and
    # k are the model's own modules, and OPT scales q before the attention function.
    attention = model.get_submodule(layout.tap(Site(0, "pattern")).path)
    for site, seen in zip(sites, (query, key), strict=False):
        own = read[site]
        norm = getattr(attention, f"{site.component}_norm", None)
        if norm is not None:
            by_head = own.shape[-1] == norm.weight.shape[0]
            with torch.no_grad():
                own = norm(own) if by_head else norm(own.flatten(-2)).view(own.shape)
        if model_type == "opt" and site.component == "q":
            own = own * attention.scaling
        assert torch.equal(own[:, 0], seen[:, 0])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("falcon")])
def test_falcon_heads_are_split_as_falcon_splits_them(name: str, small: Small) -> None:
    model_type, config = FAMILIES[name]
    model = small(model_type, **config)
    layout = resolve(model)
    tap = layout.tap(Site(1, "q"))
    attention = model.get_submodule("transformer.h.1.self_attention")
    fused = torch.randn(
        2, 6, attention.query_key_value.out_features, generator=torch.Generator().manual_seed(0)
    )
    q, k, v = attention._split_heads(fused)
    assert torch.equal(tap.view.get(fused), q)
    shared = q.shape[-2] // layout.n_kv_heads
    for component, whole in (("k", k), ("v", v)):
        own = layout.tap(Site(1, component)).view.get(fused)
        repeated = own.repeat_interleave(shared, dim=-2)
        assert torch.equal(repeated, whole.expand(repeated.shape))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma2"])
def test_the_check_passes_with_either_kernel(
    name: str, attention: str, small: Small, reader: Reader
) -> None:
    model_type, config = FAMILIES[name]
    model = small(model_type, attention=attention, **config)
    layout = resolve(model)
    verify_layout(model, layout, reader(model, layout))


def test_views_write_what_they_read_and_nothing_else(made: tuple[nn.Module, Layout]) -> None:
    model, layout = made
    for component in ("q", "k", "v", "z", "mlp_pre"):
        if component not in layout.taps:
            continue
        tap = layout.tap(Site(0, component))
        module = model.get_submodule(tap.path)
        width = features(module)[tap.side == "output"]
        whole = torch.arange(2.0 * width).view(1, 2, width)
        part = tap.view.get(whole)
        assert torch.equal(tap.view.put(whole, part), whole)
        changed = tap.view.put(whole, -part - 1)
        assert torch.equal(tap.view.get(changed), -part - 1)
        assert int((changed != whole).sum()) == part.numel()


def test_parallel_blocks_say_why_they_have_no_state_between(small: Small) -> None:
    layout = resolve(small("gpt_neox"))
    assert "both read the block's input" in layout.absent["resid_mid"]
    assert "resid_mid" in resolve(small("gpt_neox", use_parallel_residual=False)).taps


def test_heads_may_be_wider_than_the_stream_divided_by_their_number(small: Small) -> None:
    layout = resolve(small("gemma3_text", **WIDE))
    assert (layout.n_heads, layout.n_kv_heads, layout.d_head, layout.d_model) == (4, 2, 16, 32)


def test_dense_blocks_among_mixtures_keep_their_own_sites(small: Small) -> None:
    model_type, config = FAMILIES["qwen2_moe"]
    layout = resolve(small(model_type, **config))
    assert layout.tap(Site(0, "mlp_pre")).path == "model.layers.0.mlp.gate_proj"
    assert layout.tap(Site(1, "router")).path == "model.layers.1.mlp.gate"
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp_pre: each expert has its own"):
        layout.tap(Site(1, "mlp_pre"))
    with pytest.raises(ValueError, match=r"blocks\.0\.router: its MLP is not a mixture"):
        layout.tap(Site(0, "router"))


def test_router_logits_are_read_only_with_the_reason(small: Small) -> None:
    layout = resolve(small("mixtral", **FAMILIES["mixtral"][1]))
    assert "a write to the logits would do nothing" in str(layout.tap(Site(0, "router")).read_only)


def test_the_text_model_inside_a_multimodal_wrapper_is_found(reader: Reader) -> None:
    text = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=95)
    model = Gemma3ForConditionalGeneration(config).eval()
    layout = resolve(model)
    assert layout.blocks == "model.language_model.layers"
    verify_layout(model, layout, reader(model, layout))


@BY_PEFT
def test_lora_adapters_stay_in_and_their_paths_are_prefixed(small: Small, reader: Reader) -> None:
    peft = importlib.import_module("peft")
    adapted = peft.get_peft_model(
        small("llama", **KV),
        peft.LoraConfig(
            r=2, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False
        ),
    ).eval()
    layout = resolve(adapted)
    assert layout.blocks == "base_model.model.model.layers"
    assert layout.tap(Site.logits()).path == ""
    verify_layout(adapted, layout, reader(adapted, layout))


@BY_PEFT
def test_prompt_tuning_is_refused_because_it_shifts_positions(small: Small) -> None:
    peft = importlib.import_module("peft")
    tuned = peft.get_peft_model(
        small("llama", **KV),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    )
    with pytest.raises(UnsupportedModel, match="adds virtual tokens"):
        resolve(tuned)


def test_a_table_of_ones_own_goes_before_the_built_in_one(small: Small) -> None:
    model = small("llama", **KV)
    mine = resolve(model)

    def table(_model: nn.Module) -> Layout:
        return replace(mine, family="mine")

    assert resolve(model, {"llama": table}).family == "mine"
    assert resolve(model).family == "llama"


def test_a_family_of_ones_own_is_built_from_a_frame(small: Small, reader: Reader) -> None:
    model = small("gpt2")
    frame = find_frame(model)
    parts = Parts(taps={"attn_out": Tap("attn", "output"), "mlp_out": Tap("mlp", "output")})
    layout = build(frame, [parts] * 3, ln_final="ln_f")
    verify_layout(model, layout, reader(model, layout))
    assert "does not say" in layout.absent["q"]


def test_a_model_that_is_not_built_as_its_family_is_refused(small: Small) -> None:
    model = small("gpt2")
    model.config.model_type = "llama"
    with pytest.raises(UnsupportedModel, match="says it is llama, but its blocks are not built"):
        resolve(model)


def test_a_backbone_without_an_unembedding_lacks_only_logits(small: Small) -> None:
    layout = resolve(small("llama", **KV).model)
    assert layout.blocks == "layers"
    assert "without an output embedding" in layout.absent["logits"]
