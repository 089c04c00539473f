"""Laws of sites: what is read is what transformers computes there, what is written is what it uses.

The oracle is plain hooks on modules named by hand, and transformers' own eager attention.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import steer
from steer import Site
from tests.laws.exact import sites_of
from tests.laws.interventions import Setting
from tests.laws.running import block, forward, gap, padded, same_bits

LAYER = 1
_LLAMA = {
    "resid_mid": ("post_attention_layernorm", "input"),
    "attn_out": ("self_attn", "output"),
    "mlp_out": ("mlp", "output"),
    "z": ("self_attn.o_proj", "input"),
    "q": ("self_attn.q_proj", "output"),
    "k": ("self_attn.k_proj", "output"),
    "v": ("self_attn.v_proj", "output"),
    "mlp_post": ("mlp.down_proj", "input"),
    "mlp_pre": ("mlp.gate_proj", "output"),
}
_MODULES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mixtral": {n: at for n, at in _LLAMA.items() if n not in ("mlp_pre", "mlp_post")},
    "gemma3_text": {
        **_LLAMA,
        "resid_mid": ("pre_feedforward_layernorm", "input"),
        "attn_out": ("post_attention_layernorm", "output"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
    },
    "gpt2": {
        "resid_mid": ("ln_2", "input"),
        "attn_out": ("attn", "output"),
        "mlp_out": ("mlp", "output"),
        "z": ("attn.c_proj", "input"),
        "mlp_post": ("mlp.c_proj", "input"),
        "mlp_pre": ("mlp.c_fc", "output"),
    },
    "gpt_neox": {
        "attn_out": ("post_attention_dropout", "output"),
        "mlp_out": ("post_mlp_dropout", "output"),
        "z": ("attention.dense", "input"),
        "mlp_post": ("mlp.dense_4h_to_h", "input"),
        "mlp_pre": ("mlp.dense_h_to_4h", "output"),
    },
}
"""Model type -> component -> (module within the block, which side of it), by hand."""


def law_a_site_is_what_transformers_computes_there(setting: Setting) -> None:
    """What is captured has the bits that plain hooks see."""
    lm = setting.lm
    batch = padded(lm, setting.prompts[:4], left=False)
    taps = _taps(setting)
    with torch.no_grad(), _watching(setting, taps) as seen:
        lm.model(**batch.inputs())
    acts = lm.capture(setting.prompts[:4], list(taps), scope=steer.ALL)
    assert acts.mask is not None
    for site in taps:
        found, mask = acts[site], acts.mask.to(acts[site].device)
        wanted = seen[site].unflatten(1, found.shape[1:2]).reshape(found.shape)
        assert same_bits(found[mask], wanted[mask]), f"{site} is not what its module computes"


def law_a_write_reaches_what_reads_the_site(setting: Setting) -> None:
    """A state replaced at a site is what the modules after it are given, and moves the logits."""
    lm = setting.lm
    batch = padded(lm, setting.prompts[:4], left=False)
    taps = _taps(setting)
    plain = forward(lm, batch, [])
    acts = lm.capture(setting.prompts[:1], sites_of(setting, LAYER), scope=steer.FIRST)
    for site in sites_of(setting, LAYER):
        source = setting.scale * setting.draw(f"written {site}", *acts[site].shape[1:])
        plan = [steer.Patch(site, source, scope=~steer.FIRST)]
        with torch.no_grad(), lm.attached(plan), _watching(setting, taps) as seen:
            steered = lm.model(**batch.inputs()).logits
        first = gap(plain[:, 0], steered[:, 0])
        # Rows of a product may round otherwise when other rows of it change (experts do).
        assert first <= 1e-5, f"a write to {site} behind the first token changes the first"
        for real, moved in zip(batch.real(plain), batch.real(steered), strict=True):
            assert gap(real[1:], moved[1:]) > 0.01, f"a write to {site} moves no logits"
        if site in seen:
            found = seen[site][:, 1:4].reshape(4, 3, -1)
            # resid_mid is written as a difference into its last summand: one rounding more.
            limit = 1e-5 * float(source.abs().max()) if site.component == "resid_mid" else 0.0
            assert gap(found, source.flatten().expand_as(found)) <= limit, f"{site} is not written"


def law_the_stream_adds_up(setting: Setting) -> None:
    """resid_post = resid_pre + attn_out + mlp_out; what enters a block is what left the last."""
    names = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    sites = [Site(LAYER, name) for name in names]
    acts = setting.lm.capture(setting.prompts[:4], [*sites, Site(LAYER - 1, "resid_post")])
    pre, attn, mlp, post = (acts[site] for site in sites)
    limit = 1e-5 * float(post.abs().max())  # the sum in another order
    assert gap(pre + attn + mlp, post) <= limit, "the stream is not the sum of its parts"
    assert same_bits(pre, acts[Site(LAYER - 1, "resid_post")]), "a block's input is not what came"


def law_kv_heads_serve_their_own_heads(setting: Setting) -> None:
    """With grouped queries v of kv head g reaches z of its own group of heads and no other."""
    lm = setting.lm
    layout = lm.registry.layout
    group = layout.n_heads // layout.n_kv_heads
    z = Site(LAYER, "z")
    prompts = setting.prompts[:2]
    plain = lm.capture(prompts, [z], scope=steer.FIRST)[z]
    v = lm.capture(prompts, [Site(LAYER, "v")], scope=steer.FIRST)[Site(LAYER, "v")]
    # The first token sees itself alone, so its z is v, each kv head shared by its group.
    assert gap(plain, v.repeat_interleave(group, dim=1)) <= 1e-5, "z of token 0 is not v of it"
    for head in range(layout.n_kv_heads):
        write = steer.Patch(Site(LAYER, "v", head=head), torch.zeros(layout.d_head))
        moved = lm.capture(prompts, [z], scope=steer.FIRST, plan=[write])[z]
        found = (moved != plain).any(-1).any(0).nonzero()[:, 0].tolist()
        wanted = list(range(head * group, (head + 1) * group))
        assert found == wanted, f"kv head {head} reaches the heads {found}, not {wanted}"


def law_one_head_is_its_slice(setting: Setting) -> None:
    """A head read alone is its slice of all heads; written alone, it leaves the others' bits."""
    lm = setting.lm
    for name in ("q", "z", "k", "v"):
        site, one = Site(LAYER, name), Site(LAYER, name, head=1)
        acts = lm.capture(setting.prompts[:3], [site, one])
        assert same_bits(acts[one], acts[site][:, 1]), f"{one} is not head 1 of {site}"
        written = lm.capture(setting.prompts[:3], [site], plan=[steer.Scale(one, 2.0)])[site]
        assert same_bits(written[:, ::2], acts[site][:, ::2]), (
            f"writing {one} changes its neighbours"
        )
        assert gap(written[:, 1], 2 * acts[one]) <= 1e-5, f"writing {one} does not double it"


def law_the_pattern_is_the_eager_one(setting: Setting) -> None:
    """Patterns recomputed from q and k equal the weights that an eager copy returns."""
    eager = copy.deepcopy(setting.lm.model)
    eager.set_attn_implementation("eager")
    prompts = setting.prompts[:4]
    layers = range(setting.lm.n_layers)
    sites = [Site(layer, "pattern") for layer in layers]
    acts = setting.lm.capture(prompts, sites, scope=steer.ALL)
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        with torch.no_grad():
            ids = torch.tensor([prompt], device=setting.lm.device)
            weights = eager(input_ids=ids, output_attentions=True).attentions
        for layer, site in zip(layers, sites, strict=True):
            found = acts[site][row, :, :n, :n]
            apart = gap(found, weights[layer][0])
            assert apart <= 1e-5, f"{site} of row {row} differs from the eager one by {apart:.1e}"


SITE_LAWS = (
    law_a_site_is_what_transformers_computes_there,
    law_a_write_reaches_what_reads_the_site,
    law_the_stream_adds_up,
    law_kv_heads_serve_their_own_heads,
    law_one_head_is_its_slice,
    law_the_pattern_is_the_eager_one,
)
"""Each takes a setting, of a model in fp32."""


def _taps(setting: Setting) -> dict[Site, tuple[str, str]]:
    named = _MODULES[setting.lm.model.config.model_type]
    stream = {"resid_pre": ("", "input"), "resid_post": ("", "output")}
    return {Site(LAYER, name): at for name, at in {**stream, **named}.items()}


@contextmanager
def _watching(
    setting: Setting, taps: Mapping[Site, tuple[str, str]]
) -> Iterator[dict[Site, Tensor]]:
    """Collect what plain hooks see at the modules of one block; entered after a plan."""
    seen: dict[Site, Tensor] = {}
    handles = []

    def note(site: Site, value: Any) -> None:
        first = value if isinstance(value, Tensor) else value[0]
        seen[site] = first.detach().clone()

    for site, (path, side) in taps.items():
        module = block(setting.lm, LAYER).get_submodule(path)
        if side == "output":
            handles.append(module.register_forward_hook(lambda _, __, out, at=site: note(at, out)))
        else:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, at=site: note(at, args or kwargs["hidden_states"]),
                    with_kwargs=True,
                )
            )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
