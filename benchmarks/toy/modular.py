"""A transformer that adds modulo a prime, trained in half a minute, and the truth inside it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import steer
from benchmarks.toy.words import words


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one is trained. Weight decay is what makes it a Fourier solution (arXiv:2301.05217)."""

    prime: int = 59
    width: int = 64
    steps: int = 1000
    batch_size: int = 1024
    rate: float = 5e-3
    decay: float = 1.0


def trained(recipe: Recipe, seed: int) -> steer.LM:
    """Return a one-block transformer that says (a + b) mod prime after `a b =`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config(recipe))
    draw = torch.Generator().manual_seed(seed)
    rows = every_sum(recipe.prime)
    answers = rows[:, :2].sum(1) % recipe.prime
    adam = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98)
    )
    rates = torch.optim.lr_scheduler.OneCycleLR(
        adam, recipe.rate, total_steps=recipe.steps, pct_start=0.1
    )
    with torch.enable_grad():
        for _ in tqdm(range(recipe.steps), f"training, seed {seed}", leave=False):
            at = torch.randperm(len(rows), generator=draw)[: recipe.batch_size]
            logits = model(input_ids=rows[at], logits_to_keep=1).logits[:, -1]
            loss = cross_entropy(logits, answers[at])
            adam.zero_grad()
            loss.backward()
            adam.step()
            rates.step()
    return steer.wrap(model.eval().requires_grad_(False), words([*map(str, range(recipe.prime)), "="]))


def _config(recipe: Recipe) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=recipe.prime + 1,
        hidden_size=recipe.width,
        intermediate_size=2 * recipe.width,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def every_sum(prime: int) -> Tensor:
    """Return [prime ** 2, 3] token ids: a, b and the sign of equality."""
    a, b = torch.meshgrid(torch.arange(prime), torch.arange(prime), indexing="ij")
    return torch.stack([a.flatten(), b.flatten(), torch.full((prime**2,), prime)], 1)


def accuracy(lm: steer.LM, prime: int) -> float:
    """Return the share of all sums that the model gets right."""
    rows = every_sum(prime)
    return float((lm.logits(rows.tolist()).argmax(-1) == rows[:, :2].sum(1) % prime).float().mean())


def needed_frequencies(lm: steer.LM, prime: int, *, drop: float = 0.02) -> dict[int, float]:
    """Return the frequencies that the model needs, and the accuracy that it loses without each.

    By surgery on the weights, with none of the methods that are tested: the embeddings' part at one
    frequency is removed from a copy and the sums are done again.
    """
    weight = lm.model.get_input_embeddings().weight.detach()
    numbers = torch.arange(prime, dtype=weight.dtype)
    rows = every_sum(prime)
    right = rows[:, :2].sum(1) % prime
    before = accuracy(lm, prime)
    found = {}
    for k in range(1, (prime - 1) // 2 + 1):
        turns = 2 * torch.pi * k * numbers / prime
        waves = torch.stack([turns.cos(), turns.sin()])
        waves = waves / waves.norm(dim=1, keepdim=True)
        part = torch.cat([waves.mT @ (waves @ weight[:prime]), torch.zeros_like(weight[prime:])])
        with torch.no_grad():
            embeds = (weight - part)[rows]
            logits = lm.model(inputs_embeds=embeds, logits_to_keep=1).logits[:, -1]
        lost = before - float((logits.argmax(-1) == right).float().mean())
        if lost > drop:
            found[k] = lost
    return found
