"""The pieces that many blocks share: separate projections, a gated MLP, a mixture of experts.

Pure functions from module names to taps; which family uses which is said in `layouts`.
"""

from torch import nn

from steer.models.frame import Frame, Parts, join
from steer.models.layout import Heads, Tap

NO_EXPERT_NEURONS = (
    "each expert has its own hidden width and sees only its own tokens; use router or mlp_out"
)
ROUTER_READ_ONLY = (
    "the router returns its scores and its choice beside the logits, and the experts use only "
    "those, so a write to the logits would do nothing; write to mlp_out"
)


def features(module: nn.Module) -> tuple[int, int]:
    """Return (inputs, outputs) of a linear module; transformers' Conv1D stores them transposed."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if hasattr(module, "nf"):
        return int(module.nx), int(module.nf)  # type: ignore[arg-type]
    raise AttributeError(f"{type(module).__name__} is not a linear module")


def separate(
    frame: Frame,
    attn: str,
    *,
    q: str = "q_proj",
    k: str = "k_proj",
    v: str = "v_proj",
    o: str = "o_proj",
) -> dict[str, Tap]:
    """Return the taps of an attention module with a projection each for q, k and v."""
    heads = Heads(frame.n_heads, frame.d_head)
    kv_heads = Heads(frame.n_kv_heads, frame.d_head)
    return {
        "q": Tap(join(attn, q), "output", heads),
        "k": Tap(join(attn, k), "output", kv_heads),
        "v": Tap(join(attn, v), "output", kv_heads),
        "z": Tap(join(attn, o), "input", heads),
        "pattern": Tap(attn, "output"),
    }


def gated(block: nn.Module, mlp: str, *, gate: str = "gate_proj", down: str = "down_proj") -> Parts:
    """Return the taps inside an MLP: before its nonlinearity and before its last projection."""
    return Parts(
        taps={
            "mlp_pre": Tap(join(mlp, gate), "output"),
            "mlp_post": Tap(join(mlp, down), "input"),
        },
        d_mlp=features(block.get_submodule(join(mlp, down)))[0],
    )


def moe(router: str) -> Parts:
    """Return the taps inside a mixture of experts: only its router has a fixed meaning."""
    return Parts(
        taps={"router": Tap(router, "output", flat=True, read_only=ROUTER_READ_ONLY)},
        absent={"mlp_pre": NO_EXPERT_NEURONS, "mlp_post": NO_EXPERT_NEURONS},
    )
