"""A transformer that adds modulo a prime, trained in half a minute, and the truth inside it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

import steer
from benchmarks.toy.training import small_llama, train
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
    model = small_llama(recipe.prime + 1, width=recipe.width, n_layers=1, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    rows = every_sum(recipe.prime)
    right = rows[:, :2].sum(1) % recipe.prime
    adam = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98)
    )
    rates = torch.optim.lr_scheduler.OneCycleLR(
        adam, recipe.rate, total_steps=recipe.steps, pct_start=0.1
    )
    steps = tqdm(range(recipe.steps), f"training, seed {seed}", leave=False)
    orders = (torch.randperm(len(rows), generator=draw)[: recipe.batch_size] for _ in steps)
    train(model, ((rows[at], right[at]) for at in orders), adam, rates)
    return steer.wrap(model, words([*map(str, range(recipe.prime)), "="]))


def every_sum(prime: int) -> Tensor:
    """Return [prime ** 2, 3] token ids: a, b and the sign of equality."""
    a, b = torch.meshgrid(torch.arange(prime), torch.arange(prime), indexing="ij")
    return torch.stack([a.flatten(), b.flatten(), torch.full((prime**2,), prime)], 1)


def accuracy(lm: steer.LM, prime: int) -> float:
    """Return the share of all sums that the model gets right."""
    rows = every_sum(prime)
    return float((lm.logits(rows.tolist()).argmax(-1) == rows[:, :2].sum(1) % prime).float().mean())


def output_frequencies(lm: steer.LM, prime: int, *, share: float = 1e-3) -> dict[int, float]:
    """Return the frequencies of the sum in what the model says, and their share of its power.

    From the outputs alone, with none of the methods that are tested: the mean logit of each number
    by its distance from the right one, and the discrete Fourier transform of that.
    """
    rows = every_sum(prime)
    logits = lm.logits(rows.tolist())[:, :prime].double().cpu()
    sums = rows[:, :2].sum(1) % prime
    at = (torch.arange(prime) + sums[:, None]) % prime
    curve = logits.gather(1, at).mean(0)
    power = torch.fft.rfft(curve - curve.mean()).abs().square()
    parts = (power / power.sum()).tolist()
    return {k: part for k, part in enumerate(parts) if part > share}
