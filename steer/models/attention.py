"""Attention patterns from q and k: what must be known of a family, and the arithmetic.

No kernel is switched and nothing is hooked: norms and rotary embedding are the model's own modules
and functions, called again on q and k as the layout's sites give them (before both). Scores, soft
cap, window and softmax are pure.
"""

import inspect
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    """How one model turns q and k into a pattern. Paths hold `{layer}`; tuples go by block."""

    attention: str
    """Path of the attention module, whose source module has `apply_rotary_pos_emb`."""
    scaling: tuple[float, ...]
    windows: tuple[int | None, ...]
    """A query sees the last `window` keys, itself included; None is all of them."""
    softcap: float | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    rotary: str | None = None
    """Path of the module that makes cos and sin, or None where positions are in the embeddings."""
    layer_types: tuple[str, ...] | None = None
    """What the rotary module wants to be told (Gemma 3 has two), or None."""
    alibi: float = 0.0
    """Falcon-RW: this times slope times key position is added before the scaling. It is 1, but 2
    with the eager kernel: transformers 5.23 adds the bias in the mask and in the scores there."""


def rotated(
    model: nn.Module, facts: AttentionFacts, layer: int, q: Tensor, k: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return q and k as the kernel gets them, [batch, head, pos, d_head].

    q and k are [batch, pos, head, d_head] as read at their sites; positions are the position ids
    that the model was given, [batch or 1, pos].
    """
    q = _normed(model, facts.q_norm, layer, q).transpose(1, 2)
    k = _normed(model, facts.k_norm, layer, k).transpose(1, 2)
    if facts.rotary is None:
        return q, k
    rotary = model.get_submodule(facts.rotary)
    told = () if facts.layer_types is None else (facts.layer_types[layer],)
    cos, sin = rotary(q, positions, *told)
    attention = model.get_submodule(facts.attention.format(layer=layer))
    apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    return apply(q, k, cos, sin)


def _normed(model: nn.Module, path: str | None, layer: int, heads: Tensor) -> Tensor:
    """Return q or k through its norm, over each head (Gemma 3, Qwen 3) or over all (OLMo 2)."""
    if path is None:
        return heads
    norm = model.get_submodule(path.format(layer=layer))
    width = norm.get_parameter("weight").shape[0]
    if width == heads.shape[-1]:
        return norm(heads)
    return norm(heads.flatten(-2)).view(heads.shape)


def pattern(
    facts: AttentionFacts,
    layer: int,
    q: Tensor,
    k: Tensor,
    *,
    query_positions: Tensor,
    key_positions: Tensor,
    key_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return softmax(scaling * q k^T + mask) as [batch, head, query, key], in q's dtype.

    Arguments as in `scores_of`. A query that may see no key (padding itself) has the uniform
    pattern that the kernels give it.
    """
    scores = scores_of(
        facts,
        layer,
        q,
        k,
        query_positions=query_positions,
        key_positions=key_positions,
        key_mask=key_mask,
        dtype=dtype,
    )
    return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)


def scores_of(
    facts: AttentionFacts,
    layer: int,
    q: Tensor,
    k: Tensor,
    *,
    query_positions: Tensor,
    key_positions: Tensor,
    key_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return scaling * q k^T + mask as [batch, head, query, key]: what the softmax is taken of.

    q is [batch, head, query, d_head] and k [batch, kv head, key, d_head], both from `rotated` (or,
    for k, from the cache). Positions are [batch or 1, pos] and say who comes before whom;
    `key_mask` is [batch, key], False for padding. Keys that a query may not see score as low as
    the dtype goes.

    Scores are made in `dtype`: the fused kernels use fp32, the eager ones the model's own, which
    moves weights by half where scores reach hundreds (Qwen 2.5 in bfloat16).
    """
    shared = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.to(dtype) @ shared.to(dtype).transpose(-1, -2)
    if facts.alibi:
        scores = scores + facts.alibi * _alibi(q.shape[1], key_positions, scores)
    scores = scores * facts.scaling[layer]
    if facts.softcap is not None:
        scores = facts.softcap * torch.tanh(scores / facts.softcap)
    back = query_positions[:, :, None] - key_positions[:, None, :]
    seen = back >= 0
    window = facts.windows[layer]
    if window is not None:
        seen = seen & (back < window)
    if key_mask is not None:
        seen = seen & key_mask[:, None, :].bool()
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~seen[:, None], lowest)


def _alibi(n_heads: int, key_positions: Tensor, like: Tensor) -> Tensor:
    """Return Falcon's position bias [batch, head, 1, key], rounded through bfloat16 as there.

    Press et al. 2022 (arXiv:2108.12409): slopes are powers of one base for a power of two heads;
    the rest take every second slope of twice as many heads.
    """
    whole = 2 ** (n_heads.bit_length() - 1)
    slopes = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    slopes += [2 ** (-4 * (2 * head + 1) / whole) for head in range(n_heads - whole)]
    values = torch.tensor(slopes, device=like.device).bfloat16()
    bias = values[None, :, None] * key_positions[:, None, :].to(like.device)
    return bias[:, :, None, :].to(like.dtype)


def attention_facts(
    model: nn.Module, config: object, *, stack: str, attention: str, n_layers: int
) -> AttentionFacts:
    """Return the facts of a family whose attention is built as transformers 5 builds it.

    `attention` is the path of a block's attention module, with `{layer}`.
    """
    modules = [model.get_submodule(attention.format(layer=layer)) for layer in range(n_layers)]
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    windows = tuple(
        window or None if not types or types[layer] == "sliding_attention" else None
        for layer in range(n_layers)
    )
    rotary = getattr(model.get_submodule(stack), "rotary_emb", None)
    alibi = 1.0 if getattr(config, "alibi", False) else 0.0
    if getattr(config, "_attn_implementation", "") == "eager":
        alibi *= 2
    told = rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
    first = modules[0]
    return AttentionFacts(
        attention=attention,
        scaling=tuple(float(_scaling(module)) for module in modules),
        windows=windows,
        softcap=getattr(first, "attn_logit_softcapping", None),
        q_norm=f"{attention}.q_norm" if hasattr(first, "q_norm") else None,
        k_norm=f"{attention}.k_norm" if hasattr(first, "k_norm") else None,
        rotary=None if rotary is None or alibi else f"{stack}.rotary_emb".lstrip("."),
        layer_types=tuple(types) if told and types else None,
        alibi=alibi,
    )


def _scaling(attention: nn.Module) -> float:
    """Return what scores are multiplied by; OPT multiplies q by it, Falcon calls it otherwise."""
    own = getattr(attention, "scaling", None)
    return attention.inv_norm_factor if own is None else own  # type: ignore[return-value]
