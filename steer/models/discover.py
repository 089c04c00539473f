"""Generic discovery: a layout for a family that no table describes, from structure and names.

It looks for the projections of attention and MLP, for the norms and for what the config says about
multipliers and parallel blocks. It proposes; `verify` decides on the model's own numbers. What it
cannot explain goes to `absent` with the reason, and a block without attention is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from steer.models.frame import Frame, Parts, build, find_frame, join
from steer.models.layout import Columns, Heads, Interleaved, Layout, Scaled, Tap, View, Whole
from steer.models.parts import NO_EXPERT_NEURONS, ROUTER_READ_ONLY, features

_Q = ("q_proj", "query", "wq")
_K = ("k_proj", "key", "wk")
_V = ("v_proj", "value", "wv")
_SIDE_BY_SIDE = ("qkv_proj", "Wqkv", "c_attn", "qkv")
_BY_HEAD = ("query_key_value",)
_LATENT = ("kv_b_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_proj")
_O = ("o_proj", "out_proj", "c_proj", "dense", "wo")
_GATE = ("gate_proj", "w1", "gate")
_GATE_UP = ("gate_up_proj", "input_linear")
_UP = ("fc1", "c_fc", "fc_in", "dense_h_to_4h", "up_proj")
_DOWN = ("down_proj", "w2", "fc2", "c_proj", "fc_out", "dense_4h_to_h", "output_linear")
_ONE_STREAM = (
    "its attention and its MLP both read the block's input, so no state between the two exists; "
    "use attn_out or resid_post"
)


@dataclass(frozen=True, slots=True)
class _Attention:
    """The attention of a block: path of the module, taps inside, what could not be explained."""

    path: str
    taps: Mapping[str, Tap]
    absent: Mapping[str, str]


def discover(model: nn.Module) -> Layout:
    """Return a layout found by structure; `verify_layout` must confirm it.

    Raises:
        UnsupportedModel: no stack of blocks, or blocks that are not attention and MLP.
    """
    frame = _sized(find_frame(model))
    parts = [_explain(frame, layer) for layer in range(len(frame.modules))]
    return build(frame, parts, ln_final=_final_norm(frame))


def _linears(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Return path -> (inputs, outputs) of every linear module that is not inside another one."""
    found: dict[str, tuple[int, int]] = {}
    for path, module in block.named_modules():
        is_linear = hasattr(module, "in_features") or hasattr(module, "nf")
        if is_linear and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = features(module)
    return found


def _named(linears: Mapping[str, tuple[int, int]], parent: str, names: tuple[str, ...]) -> str:
    """Return the path of the first of these names directly under `parent`, or ''."""
    return next((join(parent, name) for name in names if join(parent, name) in linears), "")


def _output_projection(linears: Mapping[str, tuple[int, int]]) -> str:
    """Return the attention's output projection: one whose siblings make q."""
    inner = (*_Q, *_SIDE_BY_SIDE, *_BY_HEAD, *_LATENT)
    found = [
        path
        for path in linears
        if path.rpartition(".")[2] in _O
        and not any(word in path for word in ("cross", "encoder"))
        and _named(linears, path.rpartition(".")[0], inner)
    ]
    return found[0] if len(found) == 1 else ""


def _sized(frame: Frame) -> Frame:
    """Return the frame with the head sizes that the projections have, whatever the config says."""
    linears = _linears(frame.modules[0])
    output = _output_projection(linears)
    if not output or not frame.n_heads or linears[output][0] % frame.n_heads:
        return frame
    d_head = linears[output][0] // frame.n_heads
    parent = output.rpartition(".")[0]
    key, fused = _named(linears, parent, _K), _named(linears, parent, _SIDE_BY_SIDE)
    n_kv_heads = frame.n_kv_heads
    if key and linears[key][1] % d_head == 0:
        n_kv_heads = linears[key][1] // d_head
    elif fused:
        n_kv_heads = max((linears[fused][1] - linears[output][0]) // (2 * d_head), 1)
    return replace(frame, d_head=d_head, n_kv_heads=n_kv_heads)


def _explain(frame: Frame, layer: int) -> Parts:
    """Explain one block."""
    block = frame.modules[layer]
    linears = _linears(block)
    output = _output_projection(linears)
    if not output:
        raise frame.refuse(
            f"block {layer} ({type(block).__name__}) has no single self-attention with an output "
            f"projection (its linear modules: {', '.join(linears) or 'none'})"
        )
    attention = _attention(frame, block, linears, output)
    mlp, mlp_reads = _mlp(frame, block, linears, attention.path)
    before, after = _norms(block)
    scale = getattr(frame.config, "residual_multiplier", None) or 1.0
    view: View = Whole() if scale == 1.0 else Scaled(float(scale))
    taps, absent = {**attention.taps, **mlp.taps}, {**attention.absent, **mlp.absent}
    taps["attn_out"] = Tap(after.get("attn", output), "output", view)
    if "mlp_out" in taps:
        taps["mlp_out"] = replace(taps["mlp_out"], view=view)
        if "mlp" in after:
            taps["mlp_out"] = Tap(after["mlp"], "output", view)
    parallel = _is_parallel(frame, before, after)
    reads: dict[str, tuple[str, str]] = {}
    if "q" in taps and (before or after):
        reads["q"] = ("resid_pre", before[0] if before else "")
    if mlp_reads == "mlp_out" and "mlp" in after:
        mlp_reads = ""  # the norm after the experts hides what they return
    if mlp_reads in taps and (len(before) == 2 or not before or parallel):
        norm = before[-1] if before else ""
        reads[mlp_reads] = ("resid_pre" if parallel else "resid_mid", norm)
    elif "mlp_out" not in taps:
        # Nothing would prove that this projection's output is what the block adds.
        del taps["attn_out"]
        absent["attn_out"] = "nothing in its block confirms what attention adds to the stream"
    return Parts(
        taps=taps,
        absent=absent,
        reads=reads,
        parallel=_ONE_STREAM if parallel else None,
        d_mlp=mlp.d_mlp,
    )


def _attention(
    frame: Frame, block: nn.Module, linears: Mapping[str, tuple[int, int]], output: str
) -> _Attention:
    """Return the taps inside the attention module that holds this output projection."""
    parent = output.rpartition(".")[0]
    n_heads, n_kv_heads, d_head = frame.n_heads, frame.n_kv_heads, frame.d_head
    width = n_heads * d_head
    between = _between(block.get_submodule(parent))
    taps: dict[str, Tap] = {}
    absent = {
        "pattern": "it is recomputed from q and k, and how this family does that is not known"
    }
    if between:
        absent["z"] = f"{between} lies between the heads' mix of v and the output projection"
    elif width == linears[output][0]:
        taps["z"] = Tap(output, "input", Heads(n_heads, d_head))
    else:
        absent["z"] = (
            f"{output} reads {linears[output][0]} columns, which {n_heads} heads cannot share"
        )
    separate = [_named(linears, parent, names) for names in (_Q, _K, _V)]
    beside, by_head = _named(linears, parent, _SIDE_BY_SIDE), _named(linears, parent, _BY_HEAD)
    kv_width = n_kv_heads * d_head
    if all(separate) and linears[separate[0]][1] == width:
        views = (Heads(n_heads, d_head), Heads(n_kv_heads, d_head), Heads(n_kv_heads, d_head))
        found = dict(zip("qkv", zip(separate, views, strict=True), strict=True))
    elif beside and linears[beside][1] == width + 2 * kv_width:
        starts = ((n_heads, 0), (n_kv_heads, width), (n_kv_heads, width + kv_width))
        found = {
            name: (beside, Heads(heads, d_head, start))
            for name, (heads, start) in zip("qkv", starts, strict=True)
        }
    elif by_head and linears[by_head][1] == 3 * width:
        found = {
            name: (by_head, Interleaved(n_heads, 3, d_head, slot, 1))
            for slot, name in enumerate("qkv")
        }
    else:
        found = {}
        names = ", ".join(path for path in linears if path.startswith(f"{parent}."))
        reason = f"its attention makes it from other modules ({names}), not one projection per head"
        absent |= dict.fromkeys("qkv", reason)
    taps |= {name: Tap(path, "output", view) for name, (path, view) in found.items()}
    return _Attention(parent, taps, absent)


def _between(attention: nn.Module) -> str:
    """Return the name of a gate or norm that could act on the heads' mix, or ''."""
    known = (*_Q, *_K, *_V, *_SIDE_BY_SIDE, *_BY_HEAD, *_LATENT, *_O)
    return next(
        (
            name
            for name, module in attention.named_children()
            if any(True for _ in module.parameters())
            and name not in known
            and not name.startswith(("q_", "k_", "kv_", "query", "key", "qk_", "rotary"))
        ),
        "",
    )


def _mlp(
    frame: Frame, block: nn.Module, linears: Mapping[str, tuple[int, int]], attention: str
) -> tuple[Parts, str]:
    """Return the taps of the MLP or the experts, and which of them reads the stream directly."""
    experts = [
        path.rpartition(".")[0]
        for path, module in block.named_modules()
        if path.rpartition(".")[2] == "experts" or hasattr(module, "output_linear")
    ]
    rest = {path: size for path, size in linears.items() if not path.startswith(f"{attention}.")}
    if experts:
        return _experts(block, next((path for path in experts if path), ""), rest)
    downs = [
        path
        for path, (_, outputs) in rest.items()
        if path.rpartition(".")[2] in _DOWN and outputs == frame.d_model
    ]
    if len(downs) != 1:
        reason = f"its MLP is not one pair of projections (found {', '.join(rest) or 'none'})"
        return Parts(taps={}, absent=dict.fromkeys(("mlp_pre", "mlp_post", "mlp_out"), reason)), ""
    down = downs[0]
    parent, d_mlp = down.rpartition(".")[0], rest[down][0]
    taps = {"mlp_post": Tap(down, "input"), "mlp_out": Tap(down, "output")}
    absent: dict[str, str] = {}
    gate = _named(rest, parent, _GATE) or _named(rest, parent, _UP)
    fused = _named(rest, parent, _GATE_UP)
    if gate and rest[gate][1] == d_mlp:
        taps["mlp_pre"] = Tap(gate, "output")
    elif fused and rest[fused][1] == 2 * d_mlp:
        taps["mlp_pre"] = Tap(fused, "output", Columns(0, d_mlp))
    else:
        absent["mlp_pre"] = "the module that feeds its nonlinearity has no known name"
    return Parts(taps=taps, absent=absent, d_mlp=d_mlp), "mlp_pre"


def _experts(block: nn.Module, path: str, rest: Mapping[str, tuple[int, int]]) -> tuple[Parts, str]:
    """Return the taps of a mixture of experts: its output, and its router if it is a plain one."""
    absent: dict[str, str] = dict.fromkeys(("mlp_pre", "mlp_post"), NO_EXPERT_NEURONS)
    beside = [name for name in rest if not name.startswith(f"{path}.")]
    if not path or beside:
        reason = f"its experts are added to another module ({', '.join(beside) or 'the block'})"
        return Parts(taps={}, absent={**absent, "mlp_out": reason, "router": reason}), ""
    taps = {"mlp_out": Tap(path, "output")}
    module = block.get_submodule(path)
    router = next((name for name in ("gate", "router") if hasattr(module, name)), "")
    if router and type(getattr(module, router)).__name__.endswith("TopKRouter"):
        taps["router"] = Tap(join(path, router), "output", flat=True, read_only=ROUTER_READ_ONLY)
        return Parts(taps=taps, absent=absent), "router"
    absent["router"] = "what its router returns is not known for this family"
    return Parts(taps=taps, absent=absent), "mlp_out"


def _norms(block: nn.Module) -> tuple[list[str], dict[str, str]]:
    """Return the norms before attention and MLP, and those after them ('attn', 'mlp').

    post_attention_layernorm is the norm before the MLP in Llama's naming and the one after
    attention in Gemma's; a norm named after the feed-forward tells which naming it is.
    """
    names = [
        path
        for path, module in block.named_modules()
        if "norm" in type(module).__name__.lower()
        and not any(True for _ in module.children())
        and not any(word in path for word in ("attn.", "attention.", "mlp.", "cross", "encoder"))
    ]
    ends = {path.rpartition(".")[2]: path for path in names}
    after: dict[str, str] = {}
    for name in ("post_feedforward_layernorm", "post_mlp_layernorm"):
        if name in ends:
            after["mlp"] = ends[name]
    if after:
        for name in ("post_self_attn_layernorm", "post_attention_layernorm"):
            if name in ends and "attn" not in after:
                after["attn"] = ends[name]
    return [path for path in names if path not in after.values()], after


def _is_parallel(frame: Frame, before: list[str], after: Mapping[str, str]) -> bool:
    for entry in ("use_parallel_residual", "parallel_attn", "parallel_residual"):
        stated = getattr(frame.config, entry, None)
        if isinstance(stated, bool):
            return stated
    return len(before) == 1 and not after


def _final_norm(frame: Frame) -> str | None:
    """Return the one norm that the stack has after its blocks."""
    children = list(frame.model.get_submodule(frame.stack).named_children())
    start = [name for name, _ in children].index(frame.blocks.rpartition(".")[2])
    names = [name for name, module in children[start:] if "norm" in type(module).__name__.lower()]
    if len(names) > 1:
        names = [name for name in names if "emb" not in name]
    return names[0] if len(names) == 1 else None
