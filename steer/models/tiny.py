"""Seeded random models of six families that need no download and are built in milliseconds.

Each differs from the others where families differ (grouped queries, head width, biases, parallel
residual, sliding window, experts). They know nothing, but every edit moves their logits: see
`fill`. Their tokenizer is in `tiny_tokenizer`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from steer.errors import ModelNotFound, did_you_mean
from steer.models.tiny_tokenizer import tiny_tokenizer

N_LAYERS = 4
N_POSITIONS = 1024


# The vocabulary size and the special tokens: what a config takes from the tokenizer.
Shared = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """One model class and the config that makes it small."""

    build: Callable[..., PreTrainedModel]
    config: Callable[[Shared], PreTrainedConfig]


def _llama(shared: Shared) -> PreTrainedConfig:
    return LlamaConfig(
        **shared,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=N_POSITIONS,
        tie_word_embeddings=False,
    )


def _gpt2(shared: Shared) -> PreTrainedConfig:
    return GPT2Config(**shared, n_embd=48, n_layer=N_LAYERS, n_head=4, n_positions=N_POSITIONS)


def _gemma3(shared: Shared) -> PreTrainedConfig:
    # head_dim 16 is not 48 / 4, the scale 24 is not head_dim: both as in larger Gemmas.
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3TextConfig(
        **shared,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=16,
        layer_types=kinds,
        # Tied, greedy text repeats one token: its scaled embedding outweighs what blocks write.
        tie_word_embeddings=False,
        max_position_embeddings=N_POSITIONS,
    )


def _qwen2(shared: Shared) -> PreTrainedConfig:
    return Qwen2Config(
        **shared,
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=N_POSITIONS,
        tie_word_embeddings=True,
    )


def _neox(shared: Shared) -> PreTrainedConfig:
    return GPTNeoXConfig(
        **shared,
        hidden_size=64,
        intermediate_size=144,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=N_POSITIONS,
        use_parallel_residual=True,
    )


def _mixtral(shared: Shared) -> PreTrainedConfig:
    return MixtralConfig(
        **shared,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=N_POSITIONS,
    )


TINY: Mapping[str, Family] = {
    "tiny-llama": Family(LlamaForCausalLM, _llama),
    "tiny-gpt2": Family(GPT2LMHeadModel, _gpt2),
    "tiny-gemma3": Family(Gemma3ForCausalLM, _gemma3),
    "tiny-qwen2": Family(Qwen2ForCausalLM, _qwen2),
    "tiny-neox": Family(GPTNeoXForCausalLM, _neox),
    "tiny-mixtral": Family(MixtralForCausalLM, _mixtral),
}


def tiny(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a fresh model (fp32, CPU, eval mode) and its tokenizer; the same bits on each call.

    It has no end token, so that generation runs to max_new_tokens; give eos_token_id to `generate`
    where a test needs rows that stop.

    Raises:
        ModelNotFound: there is no tiny model of this name.

    >>> model, tokenizer = tiny("tiny-llama")
    >>> len(tokenizer(" March").input_ids), model.config.num_hidden_layers
    (1, 4)
    """
    family = TINY.get(name)
    if family is None:
        raise ModelNotFound(
            f"There is no model {name!r}. The tiny models are {', '.join(TINY)}."
            f"{did_you_mean(name, TINY)}"
        )
    tokenizer = tiny_tokenizer()
    shared = {"vocab_size": len(tokenizer), "eos_token_id": None}
    shared |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = family.config(shared)
    config.name_or_path = name
    # Building draws from the global generator; what it drew is overwritten, its state put back.
    with torch.random.fork_rng(devices=[]):
        model = family.build(config)
    fill(model, name)
    return model.eval(), tokenizer


@torch.no_grad()
def fill(model: nn.Module, seed: str) -> None:
    """Overwrite every weight with uniform noise, seeded by `seed` and the weight's own name.

    Matrices get the standard deviation GAIN / sqrt(fan_in), so that each block writes about as
    much as is in the stream and attention is far from uniform; norms and biases move by up to
    SPREAD from what they start at, so that none is a no-op. transformers' own 0.02 would make
    blocks that hardly write and edits that hardly show.

    Uniform, because torch.rand is the same on every CPU to the bit and torch.randn is not.
    """
    done: set[int] = set()
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in done:  # tied to an embedding that came before it
                continue
            done.add(id(weight))
            key = hashlib.sha256(f"{seed} {path}.{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            noise = torch.rand(weight.shape, generator=generator, dtype=torch.float32) * 2 - 1
            if weight.ndim == 1:
                weight.add_(noise * SPREAD)
            else:
                weight.copy_(noise * (3**0.5 * _std(module, weight)))


GAIN = 1.5
SPREAD = 0.2
EMBEDDING_STD = 0.2


def _std(module: nn.Module, weight: Tensor) -> float:
    """Return the standard deviation of a matrix: by its fan-in, or fixed for embeddings."""
    if isinstance(module, nn.Embedding):
        # Tied (gpt2, qwen2), it is the unembedding too: logits with a standard deviation of 1.5.
        return EMBEDDING_STD
    fan_in = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[-1]
    return GAIN / fan_in**0.5
