"""What the speed tasks run on: token ids, directions, blocks, and the check of equality.

Speed does not depend on what the tokens mean, but equality does: on random ids smollm2-135m in fp32
is 1e-3 away from itself in fp64, on text 4e-5.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import steer
from benchmarks.stats import Number

N_BLOCKS = 30
"""Blocks of smollm2-135m, by which the tasks name theirs."""
TEXT = """
The committee met on Tuesday to discuss the new budget. After several hours of debate the members
agreed that the schools should receive more money than the roads this year. The mayor thanked them
and promised to publish the figures within a week. Outside, a small crowd had gathered in the rain,
waiting for news about the library, which had been closed since the flood. One of the teachers read
a letter from her pupils, who had collected two hundred books in their own street. Nobody had
expected an answer, but the door opened and the mayor came out to speak. She said that the building
would be repaired before the winter, and that the children were invited to choose the first books.
"""
DECODED = 64
"""Tokens that the decoding tasks generate."""


def token_rows(lm: steer.LM, n_rows: int, n_tokens: int, *, seed: int) -> list[list[int]]:
    """Return rows of token ids of a text, each from another word on and as long as asked for."""
    words = TEXT.split()
    whole = [words[start:] + words[:start] for start in range(len(words))]
    starts = [(seed * 17 + row * len(words) // n_rows) % len(words) for row in range(n_rows)]
    # A word has at least one token, so n_tokens words are enough.
    repeats = 1 + n_tokens // len(words)
    texts = [" ".join(whole[start] * repeats) for start in starts]
    return [row[:n_tokens] for row in lm.rows(texts)]


def token_batch(lm: steer.LM, n_rows: int, n_tokens: int, *, seed: int) -> Tensor:
    """Return `token_rows` as [row, token] on the model's device."""
    return torch.tensor(token_rows(lm, n_rows, n_tokens, seed=seed), device=lm.device)


def block(lm: steer.LM, of_thirty: int) -> int:
    """Return the block at the same share of the depth as block `of_thirty` of thirty."""
    return of_thirty * lm.n_layers // N_BLOCKS


def block_path(lm: steer.LM, layer: int) -> str:
    """Return the path of a block's module."""
    return lm.registry.layout.tap(steer.Site(layer, "resid_post")).path


def directions(lm: steer.LM, n: int, *, length: float, seed: int) -> Tensor:
    """Return [n, d_model] random vectors of the given length."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, lm.d_model, generator=generator)
    return (length * drawn / drawn.norm(dim=1, keepdim=True)).to(lm.device, lm.dtype)


def largest(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a.float() - b.float()).abs().max())


def worst(equality: dict[str, float]) -> Number:
    """Return the largest of some differences, as a number without an interval: it has none."""
    return Number(max(equality.values()))


def same_tokens(a: Tensor, b: Tensor) -> float:
    """Return the share of equal tokens in two generations of one length."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a == b).float().mean())


def forward(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    """Return a pass of a HuggingFace model, all logits and no cache."""

    def run() -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    return run


def decoding(lm: steer.LM) -> dict[str, object]:
    """Return the settings of a greedy cached generation that no end token cuts short."""
    return {
        "max_new_tokens": DECODED,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": lm.tokenizer.pad_token_id or 0,
    }


def decode(lm: steer.LM, model: PreTrainedModel, ids: Tensor) -> Callable[[], Tensor]:
    """Return a generation with HuggingFace's settings, its new tokens only."""
    asked = decoding(lm)

    def run() -> Tensor:
        out = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), **asked
        )
        assert isinstance(out, Tensor)
        return out[:, ids.shape[1] :]

    return run
