"""What the Bayesian predictors do in a setting: their predictions, losses and complexities."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.rational.settings import Batch, Setting
from benchmarks.rational.train import Recipe, chosen
from steer.odds.bits import complexity
from steer.odds.rational import Trained

GRID = 1 / 64
"""To which a memorised task is rounded when its bits are counted."""
CONSTANT = "return constant"
"""The program of the third predictor."""
N_LOSS_ROWS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What is the same for all models of a setting."""

    predicted: Tensor
    """[diversity, predictor, row, position, outcome], on the tests."""
    bits: Tensor
    """[diversity, predictor]."""
    losses: Tensor
    """[diversity, predictor], on sequences like those of training, in nats."""
    context: Tensor | None
    """[diversity, predictor, row, position], the mean loss on the items of a test so far."""


def strategies(
    setting: Setting,
    pool: Mapping[str, Tensor],
    recipe: Recipe,
    tests: Batch,
    draw: torch.Generator,
) -> Seen:
    """Return what the predictors do on tests, and what they cost."""
    tasks = chosen(pool, recipe.diversities, N_LOSS_ROWS, draw)
    like_training = setting.sequences(tasks, draw)
    losses = _losses(setting, asked(setting, pool, recipe, like_training), like_training)
    bits = torch.tensor([_bits(setting, _first(pool, n)) for n in recipe.diversities])
    predicted = asked(setting, pool, recipe, tests)
    return Seen(predicted, bits, losses, _so_far(setting, predicted, tests))


def on(
    seen: Seen, setting: Setting, pool: Mapping[str, Tensor], recipe: Recipe, tests: Batch
) -> Seen:
    """Return the same predictors, asked of other tests."""
    predicted = asked(setting, pool, recipe, tests)
    return replace(seen, predicted=predicted, context=_so_far(setting, predicted, tests))


def trained_data(setting: Setting, seen: Seen, recipe: Recipe, model: Tensor) -> Trained:
    """Return models beside predictors, as the fit takes them."""
    steps = torch.tensor(recipe.steps)
    known = seen.context is not None
    return Trained(
        model,
        seen.predicted,
        steps,
        seen.bits,
        seen.losses,
        setting.readout,
        setting.noise,
        context=seen.context,
        items=torch.arange(seen.predicted.shape[3]) if known else None,
    )


def _first(pool: Mapping[str, Tensor], diversity: int) -> Mapping[str, Tensor]:
    return {name: value[:diversity] for name, value in pool.items()}


def asked(setting: Setting, pool: Mapping[str, Tensor], recipe: Recipe, batch: Batch) -> Tensor:
    """Return [diversity, predictor, row, position, outcome]: what the predictors say of a batch.

    One call for each diversity: their numbers of tasks differ.
    """
    each = [
        setting.predict(_first(pool, n), {name: x[at] for name, x in batch.raw.items()})
        for at, n in enumerate(recipe.diversities)
    ]
    return torch.stack([torch.stack(list(found)) for found in each])


def _losses(setting: Setting, predicted: Tensor, batch: Batch) -> Tensor:
    """Return [diversity, predictor]: mean loss in nats, up to a constant shared by predictors."""
    return _each_loss(setting, predicted, batch).mean((-2, -1))


def _so_far(setting: Setting, predicted: Tensor, batch: Batch) -> Tensor | None:
    """Return [diversity, predictor, row, position]: the mean loss over the positions before.

    None where a sequence holds one prediction: its items are no predictions, so have no losses.
    """
    if predicted.shape[3] == 1:
        return None
    each = _each_loss(setting, predicted, batch)
    items = torch.arange(each.shape[-1]).clamp(min=1)
    return (each.cumsum(-1) - each) / items


def _each_loss(setting: Setting, predicted: Tensor, batch: Batch) -> Tensor:
    """Return [diversity, predictor, row, position]."""
    targets = batch.targets[:, None]
    if setting.readout == "mean":
        return (predicted[..., 0] - targets) ** 2 / (2 * setting.noise**2)
    at = targets[..., None].expand(*predicted.shape[:-1], 1)
    return -predicted.gather(-1, at).clamp(min=1e-9).log()[..., 0]


def _bits(setting: Setting, tasks: Mapping[str, Tensor]) -> list[float]:
    """Return the bits of the predictors, in the order of PREDICTORS; the first remembers tasks."""
    memorised, *others = (inspect.getsource(program) for program in setting.programs)
    whole = torch.cat([value.double().flatten() for value in tasks.values()])
    bare = [complexity(torch.zeros(0), source, step=GRID) for source in (*others, CONSTANT)]
    return [complexity(whole, memorised, step=GRID), *bare]
