"""Training all diversities of a setting at once, and reading them on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from tqdm.auto import tqdm

from benchmarks.rational.settings import Batch, Setting
from benchmarks.rational.transformer import Shape, Weights, initial, outputs


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the transformers are trained."""

    diversities: tuple[int, ...] = (4, 8, 16, 32, 48, 64, 96, 128, 256)
    steps: tuple[int, ...] = (25, 50, 100, 200, 350, 600, 1000, 1600, 2400)
    """When the models are read."""
    n_rows: int = 64
    rate: float = 2e-3
    warm_up: int = 50


def chosen(
    pool: Mapping[str, Tensor], diversities: Sequence[int], n_rows: int, draw: torch.Generator
) -> Mapping[str, Tensor]:
    """Return [model, row, ...]: a task for each row of each model, among its first `diversity`."""
    most = torch.tensor(diversities)[:, None]
    at = (torch.rand(len(diversities), n_rows, generator=draw) * most).long()
    return {name: value[at] for name, value in pool.items()}


def loss_of(read: Tensor, batch: Batch, setting: Setting) -> Tensor:
    """Return the loss summed over models, each a mean over rows and positions."""
    n_models = read.shape[0]
    if setting.readout == "mean":
        return n_models * mse_loss(read[..., 0], batch.targets)
    return n_models * cross_entropy(read.flatten(0, 2), batch.targets.flatten())


def predictions(weights: Weights, batch: Batch, setting: Setting, shape: Shape) -> Tensor:
    """Return [model, row, position, outcome]: probabilities, or means."""
    with torch.no_grad():
        read = outputs(weights, batch.inputs, shape)[:, :, setting.read_at]
    return read if setting.readout == "mean" else read.softmax(-1)


def trained(
    setting: Setting,
    pool: Mapping[str, Tensor],
    recipe: Recipe,
    tests: Batch,
    draw: torch.Generator,
) -> Tensor:
    """Return [model, step, row, position, outcome]: predictions on tests, at the recipe's steps.

    Adam with a linear warm-up and a constant rate: with a decaying rate, a model read half-way
    would not be one that was trained for half the time.
    """
    n_inputs, n_outputs, n_tokens = setting.sizes
    shape = Shape(len(recipe.diversities), n_inputs, n_outputs, n_tokens)
    weights = {name: x.requires_grad_() for name, x in initial(shape, draw).items()}
    adam = torch.optim.Adam(list(weights.values()), lr=recipe.rate, betas=(0.9, 0.98))
    ramp = torch.optim.lr_scheduler.LambdaLR(adam, lambda n: min(1.0, (n + 1) / recipe.warm_up))
    seen = []
    bar = tqdm(range(1, max(recipe.steps) + 1), f"training {setting.name}", leave=False)
    for step in bar:
        tasks = chosen(pool, recipe.diversities, recipe.n_rows, draw)
        batch = setting.sequences(tasks, draw)
        read = outputs(weights, batch.inputs, shape)[:, :, setting.read_at]
        loss = loss_of(read, batch, setting)
        adam.zero_grad()
        loss.backward()
        adam.step()
        ramp.step()
        if step in recipe.steps:
            seen.append(predictions(weights, tests, setting, shape))
    return torch.stack(seen, dim=1)
