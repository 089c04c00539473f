"""Many-shot sentiment: are unseen strengths and longer contexts predicted before they are run?

Log-odds of positive over negative words after N judgements and with m times the mean difference
added, in contexts of both signs (Bigelow et al. 2025, arXiv:2511.00617; they use personas and
Llama-3.1-8B, we use statements of our own and a small model). One law per concept. Every number is
of cells that the fit had not seen.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

import steer
from benchmarks.belief.collect import (
    Readings,
    collect,
    fit_direction,
    joined,
    neutral_shift,
    random_like,
    site_of,
)
from benchmarks.belief.data import Design, SentimentItems, Text, choose_items, texts_of
from benchmarks.belief.predictions import Setup, grids_of, predictions_of, shuffled
from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome
from benchmarks.stats import Number, percentiles
from benchmarks.task import Options

CONTROLS = (
    "random_over_direction",
    "shuffled_strength_r",
    "shuffled_strength_mae_nats",
    "neutral_over_evidence",
)
N_RANDOM = 3


def measure_sentiment(lm: steer.LM, options: Options) -> Outcome:
    """Measure the grid and predict it; `--limit` is the largest evidence.

    Raises:
        BenchmarkError: too small a limit, or a tokenizer that splits the words.
    """
    setup = Setup()
    if options.limit is not None:
        many = tuple(n for n in setup.design.many if n <= options.limit)
        if not many:
            raise BenchmarkError(
                f"--limit {options.limit} leaves no long context: it is the largest number of "
                f"statements in one. Give {setup.design.many[0]} or more, or leave it out for "
                f"{setup.design.many[-1]}."
            )
        setup = Setup(Design(many=many))
    return run_sentiment(lm, choose_items(lm, seed=options.seed), setup, options)


def run_sentiment(lm: steer.LM, items: SentimentItems, setup: Setup, options: Options) -> Outcome:
    """Measure one grid of given size with given words."""
    seed, design, site = options.seed, setup.design, site_of(lm)
    direction = fit_direction(lm, items, site, seed=seed)
    long, short = texts_of(items, design, seed=seed)
    begun = time.perf_counter()
    readings = joined(
        [
            collect(lm, items, texts, design, site, direction, setup.strengths)
            for texts in (long, short)
        ]
    )
    seconds = time.perf_counter() - begun
    numbers, tables = predictions_of(readings, setup, seed=seed)
    numbers["grid_seconds"] = Number(seconds)
    controls = {
        **_random(lm, items, short, setup, direction, seed),
        **shuffled(readings, setup, seed=seed),
        "neutral_over_evidence": _neutral(lm, items, readings, setup, seed),
    }
    tables["grid_seconds"] = seconds
    tables["threads"] = torch.get_num_threads()
    specs = {
        "site": str(site),
        "scope": "ALL: the vector is added at every token, those of the evidence included",
        "unit": "raw mean difference of contexts, positive minus negative",
        "norm": float(direction.norm()),
        "intervention": steer.belief.identity(site, direction),
        "design": {**asdict(design), "questions": design.n_questions},
        "strengths": list(setup.strengths),
        "items": asdict(items),
        "refits": setup.n_refits,
    }
    return Outcome(numbers, controls, tables, specs)


def _random(
    lm: steer.LM,
    items: SentimentItems,
    texts: Sequence[Text],
    setup: Setup,
    direction: torch.Tensor,
    seed: int,
) -> dict[str, Number]:
    """Return the effect of random directions of the same norm over that of the direction.

    The effect is half the difference between strengths 1 and -1, over all short texts.
    """
    site, ends = site_of(lm), (-1.0, 1.0)

    def effect(vector: torch.Tensor) -> float:
        found = collect(lm, items, texts, setup.design, site, vector, ends)
        return float((found.values[1] - found.values[0]).mean()) / 2

    mine = effect(direction)
    drawn = [effect(random_like(direction, seed=seed + 1 + at)) for at in range(N_RANDOM)]
    ratios = np.abs(np.array(drawn) / mine)
    return {
        "random_over_direction": Number(
            float(ratios.mean()), float(ratios.min()), float(ratios.max())
        )
    }


def _neutral(
    lm: steer.LM, items: SentimentItems, readings: Readings, setup: Setup, seed: int
) -> Number:
    """Return how far unrelated sentences move the answer, over how far as many judgements do."""
    found = neutral_shift(lm, items, (0, *setup.neutral), seed=seed)
    moved = (found[1:] - found[0]).T
    zero = int(np.flatnonzero(readings.strengths == 0.0)[0])
    grids = grids_of(readings, setup)
    at = [list(setup.design.evidence).index(n) for n in setup.neutral]
    told = np.stack([grid.values[at, zero] - grid.values[0, zero] for grid in grids])
    bottom = float(np.abs(told).mean())
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(moved), size=(2000, len(moved)))
    again = np.abs(moved[draws].mean(1)).mean(1) / bottom
    return percentiles(float(np.abs(moved.mean(0)).mean()) / bottom, again)
