"""Many small transformers as one: every weight has a leading axis of models.

The task diversities of a setting are trained side by side, as one batched pass instead of a loop:
models share nothing but the program, and Adam acts on each number by itself. Pre-norm blocks,
causal attention, learned positions, no biases.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the transformers."""

    n_models: int
    n_inputs: int
    n_outputs: int
    n_tokens: int
    d_model: int = 64
    n_blocks: int = 2
    n_heads: int = 2


def initial(shape: Shape, draw: torch.Generator) -> dict[str, Tensor]:
    """Return fresh weights, [model, ...]; all models start from the same draw.

    One start for all: differences between models are then the tasks' alone.
    """
    d, blocks = shape.d_model, shape.n_blocks
    sizes = {
        "embed": (shape.n_inputs, d),
        "position": (shape.n_tokens, d),
        "qkv": (blocks, d, 3 * d),
        "out": (blocks, d, d),
        "up": (blocks, d, 4 * d),
        "down": (blocks, 4 * d, d),
        "head": (d, shape.n_outputs),
    }
    # A small head: untrained models then predict the constant, not noise of their own.
    scale = {"position": 0.02, "head": 0.1 * d**-0.5, "embed": shape.n_inputs**-0.5}
    deep = (2 * blocks) ** -0.5
    scale |= {"qkv": d**-0.5, "up": d**-0.5, "out": deep * d**-0.5, "down": deep * (4 * d) ** -0.5}
    made = {name: scale[name] * torch.randn(size, generator=draw) for name, size in sizes.items()}
    made["embed"] = made["embed"] * shape.n_inputs**0.5 * 0.5
    return {name: x.expand(shape.n_models, *x.shape).clone() for name, x in made.items()}


def outputs(weights: Weights, inputs: Tensor, shape: Shape) -> Tensor:
    """Return [model, row, token, output] of inputs [model, row, token, input]."""
    n_models, n_rows, n_tokens, _ = inputs.shape
    d, heads = shape.d_model, shape.n_heads
    flat = inputs.reshape(n_models, n_rows * n_tokens, -1)
    position = weights["position"][:, None, :n_tokens].expand(-1, n_rows, -1, -1)
    h = torch.bmm(flat, weights["embed"]) + position.reshape(n_models, -1, d)
    for block in range(shape.n_blocks):
        qkv = torch.bmm(rms_norm(h, (d,)), weights["qkv"][:, block])
        q, k, v = (
            qkv.reshape(n_models * n_rows, n_tokens, 3, heads, d // heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(n_models, n_rows * n_tokens, d)
        h = h + torch.bmm(mixed, weights["out"][:, block])
        up = gelu(torch.bmm(rms_norm(h, (d,)), weights["up"][:, block]))
        h = h + torch.bmm(up, weights["down"][:, block])
    read = torch.bmm(rms_norm(h, (d,)), weights["head"])
    return read.reshape(n_models, n_rows, n_tokens, -1)
