"""How a sweep's time grows with arms, tokens and the block of the edit, against what it should be.

The prediction has no free parameter: token-blocks as `cost()` states them, times the time of a
token-block in a plain pass of the bare model. A token-block is one token through one block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

import steer
from benchmarks.peers.bare import bare_twin
from benchmarks.result import Json, Outcome
from benchmarks.speed.harness import Pair, Timing, near, settle_of, time_pairs, time_rounds
from benchmarks.speed.inputs import block, directions, forward, token_batch, token_rows
from benchmarks.speed.memory import peak_over_budget
from benchmarks.stats import N_RESAMPLES, Number, percentiles
from benchmarks.task import Options

CONTROLS = ("bare_over_bare",)
ARMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 32, 64, 128, 256, 512)
N_ROUNDS = 3
"""Times that each point is measured."""

Seconds = NDArray[np.float64]
"""[round, point]"""


@dataclass(frozen=True, slots=True)
class Point:
    """One sweep over one prompt: so many arms, so many tokens, edited at half of the tokens."""

    arms: int
    tokens: int
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One line of sweeps in which one thing varies."""

    x: tuple[int, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of the bare model's work."""

    token_block: float
    """Of one token through one block; norms, embeddings and one row of logits are spread over."""
    logits: float
    """Of one row of logits."""


@torch.no_grad()
def measure_scaling(lm: steer.LM, options: Options) -> Outcome:
    """Time sweeps along three lines; the numbers are measured over predicted, 1 where they agree.

    slope_arms, slope_tokens and slope_block are the slopes of straight lines through the measured
    and through the predicted times. wall_over_predicted is the time of all sweeps over the
    predicted one; wall_over_predicted_with_logits adds one row of logits for each arm, which is no
    token-block but costs as much as several. budget_peak_ratio: see `memory`.
    """
    curves = _curves(lm)
    twin, second = bare_twin(lm.model), bare_twin(lm.model)
    rates, control = _rates(lm, twin, second, options)
    numbers: dict[str, Number] = {}
    tables: dict[str, Json] = {}
    walls, predictions, with_logits = [], [], []
    for name, curve in curves.items():
        seconds = _timed(lm, curve, options)
        costs = [_sweep(lm, point).cost() for point in curve.points]
        blocks = np.array([cost.token_blocks + cost.base_token_blocks for cost in costs], float)
        predicted = blocks * rates.token_block
        arms = np.array([point.arms for point in curve.points], float)
        numbers[f"slope_{name}"] = _slope_ratio(curve.x, seconds, predicted, options.seed)
        walls.append(seconds)
        predictions.append(predicted)
        with_logits.append(predicted + arms * rates.logits)
        tables[name] = {
            "x": list(curve.x),
            "seconds": np.median(seconds, axis=0).tolist(),
            "predicted": predicted.tolist(),
            "predicted_with_logits": with_logits[-1].tolist(),
            "token_blocks": blocks.tolist(),
        }
    wall = np.concatenate(walls, axis=1)
    for name, parts in (("", predictions), ("_with_logits", with_logits)):
        total = float(np.concatenate(parts).sum())
        numbers[f"wall_over_predicted{name}"] = _total_ratio(wall, total, options.seed)
    ratio, memory = peak_over_budget(lm)
    numbers["budget_peak_ratio"] = Number(ratio)
    return Outcome(
        numbers,
        {"bare_over_bare": control.ratio(seed=options.seed)},
        {**tables, "memory": memory, "rates": {"token_block": rates.token_block}},
        {"rounds": _rounds(options), "arm": "one Add at half of the tokens of one prompt"},
    )


def _curves(lm: steer.LM) -> dict[str, Curve]:
    middle = block(lm, 15)
    layers = tuple(range(lm.n_layers))
    return {
        "arms": Curve(ARMS, tuple(Point(n, 32, middle) for n in ARMS)),
        "tokens": Curve(TOKENS, tuple(Point(16, n, middle) for n in TOKENS)),
        "block": Curve(layers, tuple(Point(16, 64, layer) for layer in layers)),
    }


def _sweep(lm: steer.LM, point: Point) -> steer.Sweep:
    rows = token_rows(lm, 1, point.tokens, seed=5)
    site = steer.Site(point.layer, "resid_post")
    scope = steer.at(point.tokens // 2)
    vectors = directions(lm, point.arms, length=10.0, seed=6)
    arms = [[steer.Add(site, vector, scope=scope)] for vector in vectors]
    return steer.sweep(lm, rows, arms, lambda logits, _: logits[:, 0], scope=steer.LAST)


def _timed(lm: steer.LM, curve: Curve, options: Options) -> Seconds:
    def run(point: Point) -> Callable[[], Tensor]:
        return lambda: _sweep(lm, point).values

    return time_rounds(
        [run(point) for point in curve.points], _rounds(options), settle=settle_of(lm.device)
    )


def _rounds(options: Options) -> int:
    return N_ROUNDS if options.limit is None else min(N_ROUNDS, max(1, options.limit))


def _rates(
    lm: steer.LM, twin: PreTrainedModel, second: PreTrainedModel, options: Options
) -> tuple[Rates, Timing]:
    ids = token_batch(lm, 8, 64, seed=0)

    def last_only() -> object:
        return twin(input_ids=ids, use_cache=False, logits_to_keep=1)

    whole, n = forward(twin, ids), near(options)
    pairs = {
        "logits": Pair(whole, last_only, n),
        "bare_over_bare": Pair(forward(second, ids), whole, n),
    }
    timings = time_pairs(pairs, settle=settle_of(lm.device))
    with_all, without = timings["logits"].top, timings["logits"].bottom
    per_row = max(float(np.median(with_all - without)), 0.0) / (ids.numel() - len(ids))
    per_block = float(np.median(without)) / (ids.numel() * lm.n_layers)
    return Rates(per_block, per_row), timings["bare_over_bare"]


def _slope_ratio(
    x: Sequence[int], seconds: Seconds, predicted: NDArray[np.float64], seed: int
) -> Number:
    """Return slope over predicted slope, with an interval over rounds drawn with replacement."""
    expected = _slope(x, predicted)
    values = [_slope(x, row) / expected for row in _resampled(seconds, seed)]
    return percentiles(_slope(x, np.median(seconds, axis=0)) / expected, np.array(values))


def _total_ratio(seconds: Seconds, predicted: float, seed: int) -> Number:
    totals = _resampled(seconds, seed).sum(axis=1) / predicted
    return percentiles(float(np.median(seconds, axis=0).sum()) / predicted, totals)


def _resampled(seconds: Seconds, seed: int) -> NDArray[np.float64]:
    """Return [resample, point]: medians over rounds drawn with replacement."""
    n = len(seconds)
    drawn = np.random.default_rng(seed).integers(n, size=(N_RESAMPLES, n))
    return np.median(seconds[drawn], axis=1)


def _slope(x: Sequence[int], y: NDArray[np.float64]) -> float:
    centred = np.asarray(x, float) - np.mean(x)
    return float(centred @ y / (centred @ centred))
