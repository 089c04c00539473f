"""The check at load detects every planted fault, family by family, and leaves the model alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steer.errors import UnsupportedModel
from steer.models.layout import Heads, Interleaved, Layout, Tap
from steer.models.layouts import resolve
from steer.models.verify import checked_layers, verify_layout
from steer.sites import Site

Small = Callable[..., Any]
Reader = Callable[[nn.Module, Layout], Callable[..., dict[Site, Tensor]]]

KV: dict[str, Any] = {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": KV,
    "mistral": KV,
    "qwen2": KV,
    "qwen3": {**KV, "head_dim": 16},
    "gemma2": {**KV, "head_dim": 16},
    "gemma3_text": {**KV, "head_dim": 16},
    "gpt2": {},
    "gpt_neox": {},
    "phi3": KV,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "olmo2": KV,
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "mixtral": {**KV, "num_local_experts": 4},
    "qwen2_moe": {**KV, "num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2},
}


def with_tap(layout: Layout, component: str, tap: Tap) -> Layout:
    return replace(layout, taps={**layout.taps, component: tap})


def swapped(layout: Layout, one: str, other: str) -> Layout:
    taps = layout.taps
    return replace(layout, taps={**taps, one: taps[other], other: taps[one]})


def resid_mid_is_resid_pre(layout: Layout) -> Layout:
    if "resid_mid" in layout.taps:
        return swapped(layout, "resid_mid", "resid_pre")
    claimed = replace(layout.taps["attn_out"], base=layout.taps["resid_pre"].path)
    reads = {**layout.reads, "mlp_pre": ("resid_mid", layout.reads["mlp_pre"][1])}
    return replace(with_tap(layout, "resid_mid", claimed), reads=reads)


def attn_out_is_mlp_out(layout: Layout) -> Layout:
    return swapped(layout, "attn_out", "mlp_out")


def resid_post_is_the_block_input(layout: Layout) -> Layout:
    return with_tap(layout, "resid_post", layout.taps["resid_pre"])


def k_is_v(layout: Layout) -> Layout:
    return swapped(layout, "k", "v")


def q_is_k(layout: Layout) -> Layout:
    return swapped(layout, "q", "k")


def heads_are_twice_as_many(layout: Layout) -> Layout:
    return _with_heads(layout, many=2, wide=1)


def heads_are_half_as_many(layout: Layout) -> Layout:
    return _with_heads(layout, many=1, wide=2)


def _with_heads(layout: Layout, *, many: int, wide: int) -> Layout:
    """Return the layout with n_heads * many / wide heads, in its sizes and its views."""
    taps = {}
    for name, tap in layout.taps.items():
        view = tap.view
        if isinstance(view, Heads):
            heads, size = view.n_heads * many // wide, view.d_head * wide // many
            view = replace(view, n_heads=heads, d_head=size)
        elif isinstance(view, Interleaved) and many == 2:
            view = replace(
                view, n_slots=view.n_slots * 2, d_head=view.d_head // 2,
                first=view.first * 2, count=view.count * 2,
            )  # fmt: skip
        elif isinstance(view, Interleaved):
            view = replace(view, n_groups=view.n_groups // 2, d_head=view.d_head * 2)
        taps[name] = replace(tap, view=view)
    return replace(
        layout,
        taps=taps,
        n_heads=layout.n_heads * many // wide,
        n_kv_heads=layout.n_kv_heads * many // wide,
        d_head=layout.d_head * wide // many,
    )


def blocks_are_reversed(layout: Layout) -> Layout:
    special = {
        layer: {
            name: replace(
                tap,
                path=tap.path.format(layer=layout.n_layers - 1 - layer),
                base=tap.base and tap.base.format(layer=layout.n_layers - 1 - layer),
            )
            for name, tap in layout.taps.items()
            if "{layer}" in tap.path
        }
        for layer in range(layout.n_layers)
    }
    return replace(layout, special=special)


def z_is_the_attention_input(layout: Layout) -> Layout:
    q, z = layout.taps["q"], layout.taps["z"]
    return with_tap(layout, "z", replace(z, path=q.path))


def the_final_norm_is_a_block_norm(layout: Layout) -> Layout:
    norm = layout.reads["q"][1] or layout.taps["attn_out"].path
    return with_tap(layout, "ln_final", Tap(norm.format(layer=0), "output"))


def logits_are_scaled(layout: Layout) -> Layout:
    assert layout.unembed is not None
    return replace(layout, unembed=replace(layout.unembed, scale=0.5))


def embed_is_the_second_block_input(layout: Layout) -> Layout:
    return with_tap(layout, "embed", Tap(f"{layout.blocks}.1", "input"))


FAULTS = {
    fault.__name__: fault
    for fault in (
        resid_mid_is_resid_pre,
        attn_out_is_mlp_out,
        resid_post_is_the_block_input,
        k_is_v,
        q_is_k,
        heads_are_twice_as_many,
        heads_are_half_as_many,
        blocks_are_reversed,
        z_is_the_attention_input,
        the_final_norm_is_a_block_norm,
        logits_are_scaled,
        embed_is_the_second_block_input,
    )
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_corrupted_table_is_detected(
    family: str, fault: str, small: Small, reader: Reader
) -> None:
    model = small(family, **FAMILIES[family])
    layout = FAULTS[fault](resolve(model))
    with pytest.raises(UnsupportedModel, match=f"{family}.*add_layout"):
        verify_layout(model, layout, reader(model, layout))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
@pytest.mark.parametrize(("component", "inside"), [("attn_out", "self_attn"), ("mlp_out", "mlp")])
def test_an_output_taken_before_its_post_norm_is_detected(
    family: str, component: str, inside: str, small: Small, reader: Reader
) -> None:
    model = small(family, **FAMILIES[family])
    layout = resolve(model)
    path = f"{layout.blocks}.{{layer}}.{inside}"
    layout = with_tap(layout, component, Tap(path, "output"))
    with pytest.raises(UnsupportedModel, match=r"blocks\.0\.resid_post = resid_pre"):
        verify_layout(model, layout, reader(model, layout))


def test_gate_and_up_of_a_fused_projection_are_told_apart(small: Small, reader: Reader) -> None:
    model = small("phi3", **KV)
    layout = resolve(model)
    tap = layout.taps["mlp_post"]
    layout = with_tap(layout, "mlp_post", replace(tap, path=tap.path.replace("down", "gate_up")))
    with pytest.raises(UnsupportedModel, match=r"mlp_post has shape \(2, 6, 32\)"):
        verify_layout(model, layout, reader(model, layout))


def test_a_dense_block_among_mixtures_is_looked_into(small: Small) -> None:
    layout = resolve(
        small("qwen2_moe", **FAMILIES["qwen2_moe"], num_hidden_layers=9, mlp_only_layers=[5])
    )
    assert checked_layers(layout) == [0, 4, 5, 8]


def test_a_missing_module_is_named(small: Small, reader: Reader) -> None:
    model = small("gpt2")
    layout = with_tap(resolve(model), "mlp_pre", Tap("transformer.h.{layer}.mlp.fc", "output"))
    with pytest.raises(UnsupportedModel, match=r"could not be read.*has no attribute `fc`"):
        verify_layout(model, layout, reader(model, layout))


def test_a_model_whose_numbers_overflow_is_told_to_change_its_dtype(
    small: Small, reader: Reader
) -> None:
    model = small("llama", **KV)
    layout = resolve(model)
    read = reader(model, layout)

    def overflowing(sites: Sequence[Site]) -> dict[Site, Tensor]:
        values = read(sites)
        values[Site(1, "mlp_post")] = values[Site(1, "mlp_post")] * float("inf")
        return values

    with pytest.raises(UnsupportedModel, match=r"blocks\.1\.mlp_post is not finite in torch"):
        verify_layout(model, layout, overflowing)


def test_a_window_is_checked_only_where_the_short_pass_is_longer_than_it(
    small: Small, reader: Reader
) -> None:
    # The pass has 6 tokens, so a window of 6 or more cannot be told from none: that is known.
    model = small("mistral", **KV, sliding_window=16)
    layout = resolve(model)
    assert layout.attention is not None
    for window, seen in ((3, True), (16, False), (6, False)):
        changed = replace(layout, attention=replace(layout.attention, windows=(window,) * 3))
        if seen:
            with pytest.raises(UnsupportedModel, match="pattern of q and k"):
                verify_layout(model, changed, reader(model, changed))
        else:
            verify_layout(model, changed, reader(model, changed))


def test_the_message_has_the_site_and_the_numbers(small: Small, reader: Reader) -> None:
    model = small("llama", **KV)
    layout = logits_are_scaled(resolve(model))
    with pytest.raises(
        UnsupportedModel, match=r"logits = lm_head\(ln_final\).*differ by 0\.5 of their size"
    ):
        verify_layout(model, layout, reader(model, layout))


def test_a_huge_first_token_does_not_hide_a_fault_in_the_others(
    small: Small, reader: Reader
) -> None:
    model = small("llama", **KV)
    layout = resolve(model)
    read = reader(model, layout)

    def with_sink(sites: Sequence[Site]) -> Mapping[Site, Tensor]:
        values = read(sites)
        site = Site(1, "mlp_out")
        values[site] = values[site].clone()
        values[site][:, 3] *= 1.001
        for name in ("resid_pre", "resid_post"):
            values[Site(1, name)][:, 0] += 2.0**14
        return values

    with pytest.raises(UnsupportedModel, match=r"blocks\.1\.resid_post"):
        verify_layout(model, layout, with_sink)


def test_the_check_changes_nothing(small: Small, reader: Reader) -> None:
    model = small("mixtral", **FAMILIES["mixtral"])
    layout = resolve(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    verify_layout(model, layout, reader(model, layout))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
