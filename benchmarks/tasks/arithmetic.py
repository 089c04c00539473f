"""Steering between the answers of sums: weekdays, months and ages, for models that can add.

The published prompts of the manifold paper. A model at chance is refused, with its accuracy.
"""

from functools import partial

import steer
from benchmarks.arithmetic.experiment import run_sums
from benchmarks.arithmetic.sums import AGES, MONTH_SUMS, WEEKDAY_SUMS
from benchmarks.data.rings import Concepts
from benchmarks.result import Outcome
from benchmarks.rings.experiment import CONTROLS
from benchmarks.task import Late, Options, Task, task

PAPER = "arXiv:2605.05115"
COST = "for models that can add; refuses the embedded ones within a minute on 2 cores"


def _measure(lm: steer.LM, options: Options, *, concepts: Concepts) -> Outcome:
    return run_sums(lm, concepts, options)


def _sums_task(concepts: Concepts) -> Task:
    shape = "ring" if concepts.closed else "line"
    return Task(
        question=(
            f"Where a model adds to {concepts.name}, does steering from answer to answer along the "
            f"{shape} keep the output closer to natural outputs than the straight way does?"
        ),
        measure=partial(_measure, concepts=concepts),
        controls=(*CONTROLS, "accuracy_constant"),
        draw=Late("benchmarks.rings.draw:draw_ring_result"),
    )


@task(paper=PAPER, cost=COST)
def weekday_math() -> Task:
    """What day is some days after a day: 49 questions."""
    return _sums_task(WEEKDAY_SUMS)


@task(paper=PAPER, cost=COST)
def month_math() -> Task:
    """What month is some months after a month: 84 questions."""
    return _sums_task(MONTH_SUMS)


@task(paper=PAPER, cost=COST)
def ages() -> Task:
    """How old is who is some years older: answers from 10 to 100."""
    return _sums_task(AGES)
