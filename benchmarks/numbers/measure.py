"""Read periods, then patch the number: what does a fitted helix carry of the state?

After Kantamneni and Tegmark 2025 (arXiv:2502.00873): a state is replaced by the fitted helix of
another number, and the logit of that number's answer is watched, against principal components of
as many dimensions. They patch operands of sums; models as small as ours count, and cannot add, so
we patch the number that is about to be said. Every point is predicted from other numbers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import probes
import steer
from benchmarks import stats
from benchmarks.errors import BenchmarkError
from benchmarks.numbers.counting import NUMBERS, TEST, TRAIN, Counting, read
from benchmarks.numbers.shapes import PERIODS, averages, left_out_points
from benchmarks.result import Outcome
from benchmarks.stats import Number
from benchmarks.task import Options

PROBED = (2, 3, 4, 5, 7, 9, 10, 11, 13, 20, 50, 100)
"""Periods that are read; those that ten does not explain are controls."""
CONTROLS = ("permuted_effect", "permuted_share", "r2_null_worst", "random_effect")
ARMS = ("helix", "components", "polynomial", "circle", "line", "permuted")
N_PAIRS = 4
"""Target numbers for each test prompt."""
CHANCE = 0.1


def measure_helix(lm: steer.LM, options: Options) -> Outcome:
    """Return Fourier R2 by period and what patching each shape does; --limit is how many numbers.

    Raises:
        BenchmarkError: a model that cannot count, or fewer than 40 numbers.
    """
    numbers = NUMBERS[: options.limit]
    if len(numbers) < 40:
        raise BenchmarkError(
            f"--limit {options.limit} leaves {len(numbers)} numbers, and ten folds of a helix with "
            "nine columns take 40. Leave it out for all 87."
        )
    train, test = read(lm, TRAIN, numbers), read(lm, TEST, numbers)
    accuracy = float(train.correct.float().mean())
    if accuracy < 2 * CHANCE:
        raise BenchmarkError(
            f"This model goes on counting correctly in {accuracy:.0%} of {len(train.rows)} prompts "
            f"(chance {CHANCE:.0%}), so there is no number to patch. Use a model that can count."
        )
    whole = torch.tensor(numbers)
    block, by_block = _best_block(lm, train, whole)
    site = lm.sites("resid_post")[block]
    centroids = averages(train.states[block], train.number, whole)
    points = left_out_points(centroids, whole, options.seed)
    points["centroid"] = centroids
    points["random"] = centroids[torch.randperm(len(whole), generator=_seeded(options.seed))]
    target = _targets(test, whole, options.seed)
    every = _effects(lm, [(site, at) for at in points.values()], test, target)
    effects = dict(zip(points, every, strict=True))
    known, table = _periods(train, block, options.seed)
    shape = (len(TEST) * len(whole), N_PAIRS)
    numbers_found = {
        "best_block": Number(float(block)),
        "accuracy_train": Number(accuracy),
        "accuracy_test": Number(float(test.correct.float().mean())),
        **{f"{n}_effect": _mean(effects[n], shape, options) for n in (*ARMS[:-1], "centroid")},
        "helix_over_components": _ratio(effects, "helix", "components", shape, options),
        **{f"{n}_share": _share(effects, n, shape, options) for n in ARMS[:-1]},
        **known,
    }
    controls = {
        "permuted_effect": _mean(effects["permuted"], shape, options),
        "permuted_share": _share(effects, "permuted", shape, options),
        "random_effect": _mean(effects["random"], shape, options),
        "r2_null_worst": Number(max(table["null_r2"])),
    }
    tables: dict[str, Any] = {
        "periods": table,
        "blocks": by_block,
        "effects": {name: float(e.mean()) for name, e in effects.items()},
    }
    specs = {
        "site": str(site),
        "periods": list(PERIODS),
        "train": list(TRAIN),
        "test": list(TEST),
        "numbers": [int(whole[0]), int(whole[-1])],
        "effect": "logit of the target's last digit less that of the prompt's own, steered less "
        "unsteered",
        "interval": f"{stats.LEVEL:.0%} bootstrap over prompts and pairs",
    }
    return Outcome(numbers_found, controls, tables, specs)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _targets(test: Counting, whole: Tensor, seed: int) -> Tensor:
    """Return [row, pair]: places in `whole` of numbers with another last digit."""
    chooser = _seeded(seed)
    drawn = torch.rand(len(test.number), len(whole), generator=chooser)
    same = whole[None] % 10 == test.number[:, None] % 10
    return drawn.masked_fill(same, -1.0).topk(N_PAIRS).indices


def _effects(
    lm: steer.LM, arms: Sequence[tuple[steer.Site, Tensor]], rows: Counting, target: Tensor
) -> Tensor:
    """Return [arm, row, pair]: by how much patching moves the answer to the target's digit.

    The whole state at the last token is replaced by the target's point, as in the paper. What is
    watched is the logit of the target's digit less that of the prompt's own.
    """
    digits, own = rows.digits, rows.number % 10
    plans = [
        [steer.Patch(site, points[of], scope=steer.LAST)]
        for site, points in arms
        for of in target.T
    ]
    swept = steer.sweep(lm, rows.rows, plans, lambda logits, _: logits[:, digits].float())
    moved = (swept.values - swept.natural).unflatten(0, (len(arms), target.shape[1]))
    wanted = torch.tensor(NUMBERS)[target].T % 10
    up = moved.gather(-1, wanted.expand(len(arms), -1, -1)[..., None])
    down = moved.gather(-1, own.expand(len(arms), target.shape[1], -1)[..., None])
    return (up - down)[..., 0].mT


def _best_block(lm: steer.LM, train: Counting, whole: Tensor) -> tuple[int, list[float]]:
    """Return the block at which other introductions' average state carries most of the answer.

    On the train prompts alone: averages of the first half of the introductions, patched into the
    prompts of the last one.
    """
    n = len(whole)
    half = len(TRAIN) // 2 * n
    last = slice(len(train.rows) - n, len(train.rows))
    part = Counting(
        train.rows[last],
        train.number[last],
        train.digits,
        train.states[:, last],
        train.logits[last],
    )
    target = _targets(part, whole, 0)[:, :1]
    arms = [
        (site, averages(states[:half], train.number[:half], whole))
        for site, states in zip(lm.sites("resid_post"), train.states, strict=True)
    ]
    moved = _effects(lm, arms, part, target).mean((1, 2)).tolist()
    # The earliest block that does nearly as much: later ones hold the answer, not the number.
    block = next(k for k, value in enumerate(moved) if value >= 0.9 * max(moved))
    return block, [round(value, 3) for value in moved]


def _periods(train: Counting, block: int, seed: int) -> tuple[dict[str, Number], dict[str, Any]]:
    probe = probes.fit_fourier(train.states[block], train.number, PROBED, seed=seed)
    notes: Any = probe.diagnostics
    table = {
        "periods": list(PROBED),
        "r2": notes["held_out_r2"],
        "null_r2": notes["null_r2"],
        "p": notes["p_value"],
    }
    numbers = {
        f"r2_period_{t}": Number(float(notes["held_out_r2"][i])) for i, t in enumerate(PROBED)
    }
    return numbers, table


def _mean(effect: Tensor, shape: tuple[int, int], options: Options) -> Number:
    return stats.mean(_grid(effect, shape), seed=options.seed)


def _share(
    effects: dict[str, Tensor], name: str, shape: tuple[int, int], options: Options
) -> Number:
    """Return how much of what the target's average state does beyond a random number's is done.

    Any foreign state moves the answer away from the prompt's own digit.
    """
    base = effects["random"]
    top, whole = (_grid(effects[n] - base, shape) for n in (name, "centroid"))
    return stats.ratio(top, whole, seed=options.seed)


def _ratio(
    effects: dict[str, Tensor], top: str, bottom: str, shape: tuple[int, int], options: Options
) -> Number:
    return stats.ratio(_grid(effects[top], shape), _grid(effects[bottom], shape), seed=options.seed)


def _grid(effect: Tensor, shape: tuple[int, int]) -> np.ndarray:
    return effect.double().reshape(shape).numpy()
