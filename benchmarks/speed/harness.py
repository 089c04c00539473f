"""Interleaved timing: bottom, top; top, bottom; ...; ratios of neighbours; their median.

Two neighbours see the same machine, so drift and other people's load divide out; who goes first
alternates, because the second finds warmer caches (4 % on a tiny model). What a ratio cannot lose
is said by a control of the same kind in the same run: something against itself.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.result import Json, Outcome
from benchmarks.stats import N_RESAMPLES, Number, percentiles
from benchmarks.task import Options

Timed = Callable[[], object]
Clock = Callable[[], float]

N_NEAR = 30
"""Pairs for ratios near 1, where a few per cent matter."""
N_FAR = 5
"""Pairs for ratios far from 1, of things that take long."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two things to time in turn; the number is the time of `top` over the time of `bottom`."""

    top: Timed
    bottom: Timed
    n_pairs: int = N_NEAR


@dataclass(frozen=True, slots=True, eq=False)
class Timing:
    """Seconds [pair] of both sides of a Pair, in the order in which they ran."""

    top: NDArray[np.float64]
    bottom: NDArray[np.float64]

    def ratio(self, *, seed: int, n_resamples: int = N_RESAMPLES) -> Number:
        """Return the median of the pairs' ratios, with a bootstrap interval over pairs.

        A median of ratios and not a ratio of medians: each ratio is of neighbours in time.
        """
        ratios = self.top / self.bottom
        drawn = np.random.default_rng(seed).integers(len(ratios), size=(n_resamples, len(ratios)))
        return percentiles(float(np.median(ratios)), np.median(ratios[drawn], axis=1))


def near(options: Options) -> int:
    """Return how many pairs to time for a ratio near 1; `--limit` lowers it."""
    return N_NEAR if options.limit is None else min(N_NEAR, max(1, options.limit))


def far(options: Options) -> int:
    """Return how many pairs to time for a ratio far from 1; `--limit` lowers it."""
    return N_FAR if options.limit is None else min(N_FAR, max(1, options.limit))


def time_pairs(
    pairs: Mapping[str, Pair],
    *,
    clock: Clock = time.perf_counter,
    settle: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Run everything once to warm up, then time all pairs in turn, round after round.

    The pairs themselves take turns too, so that a control sees the same minutes as what it
    controls. Threads are left as the user set them.

    Args:
        pairs: by name.
        clock: returns seconds.
        settle: called before the clock is read; waits for a device that works on its own.
    """
    for timed in {id(t): t for pair in pairs.values() for t in (pair.bottom, pair.top)}.values():
        timed()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    with _only_own_garbage():
        for turn in range(max(pair.n_pairs for pair in pairs.values())):
            for name, pair in pairs.items():
                if turn < pair.n_pairs:
                    gc.collect()
                    seconds[name].append(_one(pair, turn, clock, settle))
    return {name: Timing(*np.array(found).T) for name, found in seconds.items()}


def time_rounds(
    timed: Sequence[Timed],
    n_rounds: int,
    *,
    clock: Clock = time.perf_counter,
    settle: Callable[[], object] = lambda: None,
) -> NDArray[np.float64]:
    """Return seconds [round, thing]: each thing once to warm up, then all in turn, again and again.

    For curves, where no thing is the other's denominator; rounds keep drift off the slope.
    """
    for run in timed:
        run()
    with _only_own_garbage():
        rounds = []
        for _ in range(n_rounds):
            gc.collect()
            rounds.append([_seconds(run, clock, settle) for run in timed])
    return np.array(rounds)


def timed_outcome(
    pairs: Mapping[str, Pair],
    options: Options,
    *,
    device: torch.device,
    controls: Sequence[str],
    facts: Mapping[str, Number],
    tables: Mapping[str, Json],
    specs: Mapping[str, Json],
) -> Outcome:
    """Time the pairs and return the outcome of a task.

    Args:
        pairs: by the name of their number.
        options: of the run.
        device: the model's.
        controls: which of the pairs are controls.
        facts: further numbers: counts, and differences from the peers.
        tables: further tables; the median seconds of both sides of every pair are added.
        specs: what was run.
    """
    timings = time_pairs(pairs, settle=settle_of(device))
    ratios = {name: timing.ratio(seed=options.seed) for name, timing in timings.items()}
    seconds = {
        name: {
            "top": float(np.median(timing.top)),
            "bottom": float(np.median(timing.bottom)),
            "pairs": len(timing.top),
        }
        for name, timing in timings.items()
    }
    return Outcome(
        {**{name: n for name, n in ratios.items() if name not in controls}, **facts},
        {name: ratios[name] for name in controls},
        {"median_seconds": seconds, **tables},
        specs,
    )


def settle_of(device: torch.device) -> Callable[[], object]:
    """Return what waits until a device has done what it was given: CUDA works on its own."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@contextmanager
def _only_own_garbage() -> Iterator[None]:
    """Let garbage be collected when asked for only, and only what was made since.

    A collection over all of the loaded modules takes 0.2 s and empties the processor's caches: the
    first of a pair would run on a cold machine (25 % slower on a tiny model). What is there already
    is set aside, so that a collection between pairs is short.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _one(pair: Pair, turn: int, clock: Clock, settle: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of (top, bottom) of one pair; the bottom first in even turns."""
    if turn % 2 == 0:
        bottom = _seconds(pair.bottom, clock, settle)
        return _seconds(pair.top, clock, settle), bottom
    return _seconds(pair.top, clock, settle), _seconds(pair.bottom, clock, settle)


def _seconds(timed: Timed, clock: Clock, settle: Callable[[], object]) -> float:
    settle()
    start = clock()
    made = timed()
    settle()
    seconds = clock() - start
    del made  # freed outside of the measured time, as a caller would who keeps it
    return seconds
