"""How a sweep's time grows with arms, tokens and the block of the edit, against what it should be.

The prediction has no free parameter: the tokens that each block runs on, times the time of a
token-block in a plain pass of the bare model with as many tokens. A token-block is one token
through one block; in a small batch it takes longer than in a large one, for the sweep and for the
bare model alike, so the rate is measured at several sizes and interpolated between them.
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
SIZES = ((1, 1), (1, 4), (1, 16), (2, 16), (4, 16), (4, 32), (8, 32), (16, 32), (32, 32), (128, 32))
"""(rows, tokens) of the plain passes at which the time of a block is measured."""
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

    tokens: NDArray[np.float64]
    """[size]: tokens of a plain pass."""
    block: NDArray[np.float64]
    """[size]: of one block on so many tokens; norms, embeddings and logits are spread over."""
    logits: float
    """Of one row of logits."""

    def of(self, tokens: float) -> float:
        """Return the seconds of one block on so many tokens: linear between the sizes measured."""
        if tokens > self.tokens[-1]:
            return float(self.block[-1] * tokens / self.tokens[-1])
        return float(np.interp(tokens, self.tokens, self.block))


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
        predicted = np.array([_predicted(lm, point, rates) for point in curve.points])
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
        {**tables, "memory": memory, "rates": _table(rates)},
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


def _predicted(lm: steer.LM, point: Point, rates: Rates) -> float:
    """Return the seconds of the prompt once, then of the arms in the blocks above their edit."""
    above = lm.n_layers - 1 - point.layer
    suffix = point.tokens - point.tokens // 2
    below = (point.layer + 1) * rates.of(1)
    return lm.n_layers * rates.of(point.tokens) + below + above * rates.of(point.arms * suffix)


def _table(rates: Rates) -> dict[str, Json]:
    return {
        "tokens": rates.tokens.tolist(),
        "seconds_of_a_block": rates.block.tolist(),
        "seconds_of_a_row_of_logits": rates.logits,
    }


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
    plain = [_plain(lm, twin, rows, tokens) for rows, tokens in SIZES]
    seconds = time_rounds(plain, 3 * _rounds(options), settle=settle_of(lm.device))
    sizes = np.array([rows * tokens for rows, tokens in SIZES], float)
    return Rates(sizes, np.median(seconds, axis=0) / lm.n_layers, per_row), timings[
        "bare_over_bare"
    ]


def _plain(lm: steer.LM, twin: PreTrainedModel, rows: int, tokens: int) -> Callable[[], object]:
    ids = token_batch(lm, rows, tokens, seed=0)

    def run() -> object:
        return twin(input_ids=ids, use_cache=False, logits_to_keep=1)

    return run


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
