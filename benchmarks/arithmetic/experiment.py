"""Measure the accuracy, refuse a model at chance, then steer as on the rings and lines."""

from dataclasses import asdict, replace

import steer
from benchmarks.arithmetic.accuracy import accuracy_of, require_able
from benchmarks.data.rings import Concepts
from benchmarks.result import Outcome
from benchmarks.rings.experiment import run_ring
from benchmarks.stats import Number
from benchmarks.task import Options

MOST = 300
"""Questions asked for the accuracy: of the weekdays and the months all are fewer."""


def run_sums(lm: steer.LM, concepts: Concepts, options: Options) -> Outcome:
    """Return the accuracy, and what steering between answers does, in questions held out.

    Raises:
        BenchmarkError: the model is at chance, or answers too few of the concepts correctly.
    """
    accuracy = accuracy_of(lm, concepts, most=MOST, seed=options.seed)
    require_able(accuracy, concepts)
    outcome = run_ring(lm, concepts, options)
    return replace(
        outcome,
        numbers={"accuracy": accuracy.number, **outcome.numbers},
        controls={**outcome.controls, "accuracy_constant": Number(accuracy.constant)},
        tables={**outcome.tables, "accuracy": asdict(accuracy)},
    )
