"""The tables of the known families, and `resolve`, which picks one for a model.

Each table says, for one block, which module realises which component; `frame.build` adds what all
families share. Unknown model types go to `discover`. Module names are those of transformers 5.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from torch import nn

from steer.errors import UnsupportedModel
from steer.models.attention import attention_facts
from steer.models.discover import discover
from steer.models.frame import REMEDY, Frame, Parts, build, find_frame, model_types
from steer.models.layout import Columns, Heads, Interleaved, Layout, Tap, Unembed
from steer.models.parts import features, gated, moe, separate

LayoutTable = Callable[[nn.Module], Layout]
"""What describes a family: the model in, its layout out."""

PARALLEL = (
    "its attention and its MLP both read the block's input, so no state between the two exists; "
    "use attn_out or resid_post"
)


def resolve(model: nn.Module, extra: Mapping[str, LayoutTable] = MappingProxyType({})) -> Layout:
    """Return the layout of a causal model: from `extra`, the tables, or by discovery.

    `extra` maps a model_type to a table of the caller's own, which goes before the built-in ones.
    A PEFT model keeps its adapters: the paths lead to the adapted modules.

    Raises:
        UnsupportedModel: the model's blocks cannot be explained.
    """
    if type(model).__module__.partition(".")[0] == "peft":
        return _resolve_peft(model, extra)
    for kind in model_types(model):
        table = extra.get(kind) or TABLES.get(kind)
        if table is not None:
            return table(model)
    return discover(model)


def _resolve_peft(model: nn.Module, extra: Mapping[str, LayoutTable]) -> Layout:
    """Return the layout of the adapted model, with the wrapper's prefix on every path."""
    inner = getattr(getattr(model, "base_model", None), "model", None)
    tuner = type(getattr(model, "base_model", None)).__module__
    if not isinstance(inner, nn.Module) or not tuner.startswith("peft.tuners"):
        raise UnsupportedModel(
            f"{type(model).__name__} is a PEFT model that adds virtual tokens, so a position of "
            "its stream is not a position of the prompt. Load LoRA-like adapters instead, or "
            "merge the adapter first."
        )
    return prefixed(resolve(inner, extra), "base_model.model")


def prefixed(layout: Layout, prefix: str) -> Layout:
    """Return the layout of a model that holds this one at `prefix`; logits stay at its root."""

    def path(name: str) -> str:
        return f"{prefix}.{name}" if name else prefix

    def moved(tap: Tap) -> Tap:
        return replace(tap, path=path(tap.path), base=tap.base and path(tap.base))

    def unembed(old: Unembed) -> Unembed:
        return replace(old, path=path(old.path), before=old.before and path(old.before))

    norms, facts = layout.sum_norms, layout.attention
    return replace(
        layout,
        attention=facts
        and replace(
            facts,
            attention=path(facts.attention),
            q_norm=facts.q_norm and path(facts.q_norm),
            k_norm=facts.k_norm and path(facts.k_norm),
            rotary=facts.rotary and path(facts.rotary),
        ),
        stack=path(layout.stack),
        blocks=path(layout.blocks),
        taps={name: tap if name == "logits" else moved(tap) for name, tap in layout.taps.items()},
        special={
            layer: {name: tap if isinstance(tap, str) else moved(tap) for name, tap in own.items()}
            for layer, own in layout.special.items()
        },
        reads={
            name: (stream, norm and path(norm)) for name, (stream, norm) in layout.reads.items()
        },
        sum_norms=norms and (path(norms[0]), path(norms[1])),
        unembed=layout.unembed and unembed(layout.unembed),
    )


def _llama(frame: Frame, block: nn.Module) -> Parts:
    """Llama, Mistral, Qwen2, Qwen3 and, with experts in place of the MLP, Mixtral and Qwen-MoE."""
    is_moe = hasattr(block.get_submodule("mlp"), "experts")
    mlp = moe("mlp.gate") if is_moe else gated(block, "mlp")
    return replace(
        mlp,
        taps={
            **separate(frame, "self_attn"),
            **mlp.taps,
            "attn_out": Tap("self_attn", "output"),
            "mlp_out": Tap("mlp", "output"),
        },
        reads={
            "q": ("resid_pre", "input_layernorm"),
            ("router" if is_moe else "mlp_pre"): ("resid_mid", "post_attention_layernorm"),
        },
    )


def _gemma(frame: Frame, block: nn.Module) -> Parts:
    """Gemma 2 and 3: norms on both sides of attention and MLP."""
    parts = _llama(frame, block)
    return replace(
        parts,
        taps={
            **parts.taps,
            "attn_out": Tap("post_attention_layernorm", "output"),
            "mlp_out": Tap("post_feedforward_layernorm", "output"),
        },
        reads={
            "q": ("resid_pre", "input_layernorm"),
            "mlp_pre": ("resid_mid", "pre_feedforward_layernorm"),
        },
    )


def _olmo2(frame: Frame, block: nn.Module) -> Parts:
    """OLMo 2: norms only after attention and MLP, which read the bare stream."""
    parts = _gemma(frame, block)
    return replace(parts, reads={"q": ("resid_pre", ""), "mlp_pre": ("resid_mid", "")})


def _gpt2(frame: Frame, block: nn.Module) -> Parts:
    """GPT-2: q, k and v side by side in one Conv1D."""
    n_heads, d_head, fused = frame.n_heads, frame.d_head, "attn.c_attn"
    view = partial(Heads, n_heads, d_head)
    return Parts(
        taps={
            "q": Tap(fused, "output", view()),
            "k": Tap(fused, "output", view(start=frame.d_model)),
            "v": Tap(fused, "output", view(start=2 * frame.d_model)),
            "z": Tap("attn.c_proj", "input", view()),
            "pattern": Tap("attn", "output"),
            "attn_out": Tap("attn", "output"),
            "mlp_pre": Tap("mlp.c_fc", "output"),
            "mlp_post": Tap("mlp.c_proj", "input"),
            "mlp_out": Tap("mlp", "output"),
        },
        reads={"q": ("resid_pre", "ln_1"), "mlp_pre": ("resid_mid", "ln_2")},
        d_mlp=features(block.get_submodule("mlp.c_fc"))[1],
    )


def _gpt_neox(frame: Frame, block: nn.Module) -> Parts:
    """GPT-NeoX and Pythia: [head, (q, k, v)] fused; parallel residual unless the config says no."""
    parallel = getattr(frame.config, "use_parallel_residual", True)
    slot = partial(Interleaved, frame.n_heads, 3, frame.d_head, count=1)
    fused = "attention.query_key_value"
    return Parts(
        taps={
            "q": Tap(fused, "output", slot(first=0)),
            "k": Tap(fused, "output", slot(first=1)),
            "v": Tap(fused, "output", slot(first=2)),
            "z": Tap("attention.dense", "input", Heads(frame.n_heads, frame.d_head)),
            "pattern": Tap("attention", "output"),
            "attn_out": Tap("post_attention_dropout", "output"),
            "mlp_pre": Tap("mlp.dense_h_to_4h", "output"),
            "mlp_post": Tap("mlp.dense_4h_to_h", "input"),
            "mlp_out": Tap("post_mlp_dropout", "output"),
        },
        reads={
            "q": ("resid_pre", "input_layernorm"),
            "mlp_pre": ("resid_pre" if parallel else "resid_mid", "post_attention_layernorm"),
        },
        parallel=PARALLEL if parallel else None,
        d_mlp=features(block.get_submodule("mlp.dense_h_to_4h"))[1],
    )


def _phi3(frame: Frame, block: nn.Module) -> Parts:
    """Phi-3: q, k and v side by side, gate and up side by side."""
    d_head, d_q = frame.d_head, frame.n_heads * frame.d_head
    kv = partial(Heads, frame.n_kv_heads, d_head)
    fused, d_mlp = "self_attn.qkv_proj", features(block.get_submodule("mlp.down_proj"))[0]
    return Parts(
        taps={
            "q": Tap(fused, "output", Heads(frame.n_heads, d_head)),
            "k": Tap(fused, "output", kv(start=d_q)),
            "v": Tap(fused, "output", kv(start=d_q + frame.n_kv_heads * d_head)),
            "z": Tap("self_attn.o_proj", "input", Heads(frame.n_heads, d_head)),
            "pattern": Tap("self_attn", "output"),
            "attn_out": Tap("resid_attn_dropout", "output"),
            "mlp_pre": Tap("mlp.gate_up_proj", "output", Columns(0, d_mlp)),
            "mlp_post": Tap("mlp.down_proj", "input"),
            "mlp_out": Tap("resid_mlp_dropout", "output"),
        },
        reads={
            "q": ("resid_pre", "input_layernorm"),
            "mlp_pre": ("resid_mid", "post_attention_layernorm"),
        },
        d_mlp=d_mlp,
    )


def _opt(frame: Frame, block: nn.Module) -> Parts:
    """OPT: the MLP works on [batch * pos, ...]; the 350m has its norms after the sums."""
    pre_norm = getattr(frame.config, "do_layer_norm_before", True)
    norms = ("self_attn_layer_norm", "final_layer_norm")
    return Parts(
        taps={
            **separate(frame, "self_attn", o="out_proj"),
            "attn_out": Tap("self_attn", "output"),
            "mlp_pre": Tap("fc1", "output", flat=True),
            "mlp_post": Tap("fc2", "input", flat=True),
            "mlp_out": Tap("fc2", "output", flat=True),
        },
        reads={
            "q": ("resid_pre", norms[0] if pre_norm else ""),
            "mlp_pre": ("resid_mid", norms[1] if pre_norm else ""),
        },
        sum_norms=None if pre_norm else norms,
        d_mlp=features(block.get_submodule("fc1"))[1],
    )


def _falcon(frame: Frame, block: nn.Module) -> Parts:
    """Falcon: three ways to fuse q, k and v, and parallel or serial blocks.

    Its block adds in place into the MLP's output, after the hooks of the MLP have run.
    """
    config, n_heads, d_head = frame.config, frame.n_heads, frame.d_head
    n_kv_heads = frame.n_kv_heads
    per_group = n_heads // n_kv_heads
    if config.new_decoder_architecture or not config.multi_query:
        slot = partial(Interleaved, n_kv_heads, per_group + 2, d_head)
        q, k, v = slot(0, per_group), slot(per_group, 1), slot(per_group + 1, 1)
    else:
        end = n_heads * d_head
        q = Heads(n_heads, d_head)
        k, v = Heads(1, d_head, end), Heads(1, d_head, end + d_head)
    parallel = config.new_decoder_architecture or config.parallel_attn
    two_norms = hasattr(block, "ln_mlp")
    mlp_norm = "ln_mlp" if two_norms else "input_layernorm"
    fused = "self_attention.query_key_value"
    return Parts(
        taps={
            "q": Tap(fused, "output", q),
            "k": Tap(fused, "output", k),
            "v": Tap(fused, "output", v),
            "z": Tap("self_attention.dense", "input", Heads(n_heads, d_head)),
            "pattern": Tap("self_attention", "output"),
            "attn_out": Tap("self_attention", "output"),
            "mlp_pre": Tap("mlp.dense_h_to_4h", "output"),
            "mlp_post": Tap("mlp.dense_4h_to_h", "input"),
            "mlp_out": Tap("mlp", "output"),
        },
        reads={
            "q": ("resid_pre", "ln_attn" if two_norms else "input_layernorm"),
            "mlp_pre": ("resid_pre", mlp_norm)
            if parallel
            else ("resid_mid", "post_attention_layernorm"),
        },
        parallel=PARALLEL if parallel else None,
        d_mlp=features(block.get_submodule("mlp.dense_h_to_4h"))[1],
    )


def _falcon_frame(frame: Frame) -> Frame:
    """Return the frame with the kv heads that the three variants really have."""
    config = frame.config
    if config.new_decoder_architecture:
        return replace(frame, n_kv_heads=config.num_kv_heads)
    return replace(frame, n_kv_heads=1 if config.multi_query else frame.n_heads)


def _table(
    explain: Callable[[Frame, nn.Module], Parts],
    ln_final: str,
    model: nn.Module,
    *,
    adjust: Callable[[Frame], Frame] = lambda frame: frame,
) -> Layout:
    """Explain every block of a model of a known family."""
    frame = adjust(find_frame(model))
    has_norm = getattr(model.get_submodule(frame.stack), ln_final, None) is not None
    try:
        parts = [explain(frame, block) for block in frame.modules]
    except AttributeError as error:
        raise UnsupportedModel(
            f"{frame.name} says it is {frame.family}, but its blocks are not built like that "
            f"({error}). It was probably made by another version of transformers. {REMEDY}"
        ) from None
    layout = build(frame, parts, ln_final=ln_final if has_norm else None)
    facts = attention_facts(
        model,
        frame.config,
        stack=layout.stack,
        attention=layout.taps["pattern"].path,
        n_layers=layout.n_layers,
    )
    return replace(layout, attention=facts)


TABLES: Mapping[str, LayoutTable] = MappingProxyType(
    {
        **{
            kind: partial(_table, _llama, "norm")
            for kind in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe")
        },
        **{kind: partial(_table, _gemma, "norm") for kind in ("gemma2", "gemma3_text")},
        "olmo2": partial(_table, _olmo2, "norm"),
        "gpt2": partial(_table, _gpt2, "ln_f"),
        "gpt_neox": partial(_table, _gpt_neox, "final_layer_norm"),
        "phi3": partial(_table, _phi3, "norm"),
        "opt": partial(_table, _opt, "final_layer_norm"),
        "falcon": partial(_table, _falcon, "ln_f", adjust=_falcon_frame),
    }
)
"""Tables by model_type. A multimodal wrapper is looked up by its text config's model_type."""
