"""Small Llamas, trained here on tokens that a task draws."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(n_tokens: int, *, width: int, n_layers: int, seed: int) -> LlamaForCausalLM:
    """Return a seeded Llama with four heads and MLPs of twice the width, in fp32."""
    config = LlamaConfig(
        vocab_size=n_tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    rates: LRScheduler | None = None,
) -> LlamaForCausalLM:
    """Train on (rows [row, token], the next token [row]), and return the model for good, frozen."""
    with torch.enable_grad():
        for rows, answers in batches:
            logits = model(input_ids=rows, logits_to_keep=1).logits[:, -1]
            loss = cross_entropy(logits, answers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if rates is not None:
                rates.step()
    return model.eval().requires_grad_(False)
