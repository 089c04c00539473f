"""TransformerLens 4.3, its `TransformerBridge`: hooks for an edit, `patching` for maps.

The bridge keeps the model's attention kernel and its unfolded weights (see
`steer.interop.bridge_of`), which is its fastest setting.
"""

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def forward_added(
    bridge: "TransformerBridge", ids: Tensor, layer: int, delta: Tensor
) -> Callable[[], Tensor]:
    """Return a pass in which a vector is added after a block."""

    def edit(h: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - its name is theirs
        return h + delta

    name = f"blocks.{layer}.hook_resid_post"
    return lambda: bridge.run_with_hooks(ids, fwd_hooks=[(name, edit)], use_cache=False)


def decode_added(
    bridge: "TransformerBridge", ids: Tensor, layer: int, delta: Tensor, n_tokens: int
) -> Callable[[], Tensor]:
    """Return a greedy cached generation by its own loop, a vector added at every token."""

    def edit(h: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - its name is theirs
        return h + delta

    def run() -> Tensor:
        with bridge.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", edit)]):
            out = bridge.generate(
                ids, max_new_tokens=n_tokens, do_sample=False, stop_at_eos=False, verbose=False
            )
        assert isinstance(out, Tensor)
        return out[:, ids.shape[1] :]

    return run


def keeps_cache(bridge: "TransformerBridge", ids: Tensor) -> bool:
    """Whether cached generation in a bridge sees the prompt.

    TransformerLens 4.3 does not find the cache under the name that transformers gives it from 5.24
    on, and answers to the last token alone.
    """
    asked = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is deprecated", FutureWarning)
        cached = bridge.hf_generate(ids, use_past_kv_cache=True, **asked)
        whole = bridge.hf_generate(ids, use_past_kv_cache=False, use_cache=False, **asked)
    assert isinstance(cached, Tensor)
    assert isinstance(whole, Tensor)
    return bool((cached == whole).all())


def patched_streams(
    bridge: "TransformerBridge",
    clean: Tensor,
    corrupted: Tensor,
    metric: Callable[[Tensor], Tensor],
) -> Callable[[], Tensor]:
    """Return the map [layer, pos] of patching resid_pre, its pass over the clean prompt included.

    The cache holds the one hook that is needed; by default it would hold all of them.
    """
    # Heavy, and the benchmarks can be listed without it.
    from transformer_lens.patching import get_act_patch_resid_pre

    def run() -> Tensor:
        with redirect_stderr(io.StringIO()):  # its bar
            _, cache = bridge.run_with_cache(clean, names_filter=_ending("hook_resid_pre"))
            found = get_act_patch_resid_pre(bridge, corrupted, cache, metric)
        assert isinstance(found, torch.Tensor)
        return found

    return run


def patched_heads(
    bridge: "TransformerBridge",
    clean: Tensor,
    corrupted: Tensor,
    metric: Callable[[Tensor], Tensor],
) -> Callable[[], Tensor]:
    """Return the map [layer, head] of patching z at all positions, the clean pass included."""
    # Heavy, and the benchmarks can be listed without it.
    from transformer_lens.patching import get_act_patch_attn_head_out_all_pos

    def run() -> Tensor:
        with redirect_stderr(io.StringIO()):  # its bar
            _, cache = bridge.run_with_cache(clean, names_filter=_ending("attn.hook_z"))
            found = get_act_patch_attn_head_out_all_pos(bridge, corrupted, cache, metric)
        assert isinstance(found, torch.Tensor)
        return found

    return run


def _ending(name: str) -> Callable[[str], bool]:
    return lambda hook: hook.endswith(name)
