"""Modular addition: does alignment search find the sum, and do Fourier probes name its periods?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import probes
import steer
from benchmarks.result import Outcome
from benchmarks.stats import Number
from benchmarks.task import Options
from benchmarks.toy.modular import Recipe, accuracy, every_sum, output_frequencies, trained
from steer import Site, interchange

CONTROLS = ("random_rotation_accuracy", "arbitrary_answers_accuracy", "operand_accuracy", "chance")
N_SEEDS = 3
N_TRAIN, N_TEST, N_PROBE = 1024, 512, 1500
READ = 0.5
DIMS = (2, 4, 6, 8, 10, 12, 14, 16)
ENOUGH = 0.97
"""Share of the training trials from which on no further direction is added."""
SITE = Site(0, "resid_post")
TRAINING = interchange.Training(epochs=15, batch_size=128, learning_rate=0.05)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one model."""

    accuracy: float
    beside: interchange.Controls
    operand: interchange.Accuracy
    dims: int
    boundless: tuple[int, interchange.Accuracy]
    spoken: dict[int, float]
    named: tuple[int, ...]
    r2: dict[int, float]


def measure_arithmetic(lm: steer.LM, options: Options) -> Outcome:
    """Train the models, look for the sum in each; `--limit` is the number of seeds.

    The model that was loaded is not used.
    """
    del lm
    recipe = Recipe()
    seeds = range(options.seed, options.seed + (options.limit or N_SEEDS))
    found = [_found(trained(recipe, seed), recipe.prime, seed) for seed in seeds]
    right = [set(one.named) == set(one.spoken) for one in found]
    numbers = {
        "das_accuracy": _pooled([one.beside.found for one in found]),
        "das_accuracy_worst_seed": _worst([one.beside.found for one in found]),
        "das_dims": _range([one.dims for one in found]),
        "boundless_accuracy": _pooled([one.boundless[1] for one in found]),
        "boundless_dims": _range([one.boundless[0] for one in found]),
        "whole_state_accuracy": _pooled([one.beside.whole for one in found]),
        "periods_named_right": Number(float(np.mean(right))),
        "frequencies_spoken": _range([len(one.spoken) for one in found]),
        "model_accuracy": _range([one.accuracy for one in found]),
    }
    arbitrary = [one.beside.arbitrary for one in found]
    controls = {
        CONTROLS[0]: _pooled([one.beside.random for one in found]),
        CONTROLS[1]: _pooled([one for one in arbitrary if one is not None]),
        CONTROLS[2]: _pooled([one.operand for one in found]),
        CONTROLS[3]: Number(1 / recipe.prime),
    }
    tables = {
        "seeds": list(seeds),
        "spoken": [{str(k): v for k, v in one.spoken.items()} for one in found],
        "named": [list(one.named) for one in found],
        "r2": [{str(k): v for k, v in one.r2.items()} for one in found],
        "prime": recipe.prime,
    }
    specs = {"recipe": str(recipe), "training": str(TRAINING), "site": str(SITE)}
    return Outcome(numbers, controls, tables, specs)


def _found(lm: steer.LM, prime: int, seed: int) -> Found:
    train, held_out, operand = _trials(lm, prime, seed)
    subspace = None
    for dims in DIMS:
        subspace = interchange.fit_das(lm, train, SITE, dims=dims, within=None, training=TRAINING)
        score = interchange.interchange_accuracy(lm, train, SITE, {"": subspace.basis})[""]
        if score.value >= ENOUGH:
            break
    assert subspace is not None
    beside = interchange.controls(lm, held_out, subspace, train=train, training=TRAINING, seed=seed)
    # The first operand is not in the state that is exchanged: its sum is.
    wrong = interchange.fit_das(
        lm, operand[:N_TRAIN], SITE, dims=subspace.dims, within=None, training=TRAINING
    )
    scored = {"operand": wrong.basis}
    free = interchange.fit_boundless(lm, train, SITE, within=None)
    named, r2 = _named(lm, prime, seed)
    return Found(
        accuracy(lm, prime),
        beside,
        interchange.interchange_accuracy(lm, operand[N_TRAIN:], SITE, scored)["operand"],
        subspace.dims,
        (
            free.dims,
            interchange.interchange_accuracy(lm, held_out, SITE, {"free": free.basis})["free"],
        ),
        output_frequencies(lm, prime),
        named,
        r2,
    )


def _trials(
    lm: steer.LM, prime: int, seed: int
) -> tuple[interchange.Trials, interchange.Trials, interchange.Trials]:
    """Return trials of the sum, to learn from and to score, and of the first operand."""
    rows = every_sum(prime)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    n = N_TRAIN + N_TEST
    base, source = rows[order[:n]], rows[order[-n:]]
    among = list(range(prime))
    sums = (source[:, :2].sum(1) % prime).tolist()
    mixed = ((source[:, 0] + base[:, 1]) % prime).tolist()
    every = interchange.trials(lm, base.tolist(), source.tolist(), sums, among=among)
    operand = interchange.trials(lm, base.tolist(), source.tolist(), mixed, among=among)
    return every[:N_TRAIN], every[N_TRAIN:], operand


def _named(lm: steer.LM, prime: int, seed: int) -> tuple[tuple[int, ...], dict[int, float]]:
    """Return the frequencies at which a Fourier probe reads the sum, and R2 at all of them.

    Periods of which more than half of the variance is read in sums that were held out.
    """
    rows = every_sum(prime)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:N_PROBE]
    states = lm.capture(rows[order].tolist(), [SITE])[SITE]
    sums = (rows[order, :2].sum(1) % prime).tolist()
    frequencies = range(1, (prime - 1) // 2 + 1)
    periods = [prime / k for k in frequencies]
    probe = probes.fit_fourier(states, sums, periods, permutations=99, seed=seed)
    notes: Any = probe.diagnostics
    r2 = dict(zip(frequencies, notes["held_out_r2"], strict=True))
    p = dict(zip(frequencies, notes["p_value"], strict=True))
    return tuple(k for k in frequencies if r2[k] >= READ and p[k] <= 0.01), r2


def _pooled(several: list[interchange.Accuracy]) -> Number:
    """Return the share over all trials of all seeds; the range is over seeds."""
    values = [one.value for one in several]
    return Number(float(np.mean(values)), min(values), max(values))


def _worst(several: list[interchange.Accuracy]) -> Number:
    least = min(several, key=lambda one: one.value)
    return Number(least.value, least.lo, least.hi)


def _range(values: list[float] | list[int]) -> Number:
    return Number(float(np.mean(values)), float(min(values)), float(max(values)))
