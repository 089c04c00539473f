"""Steering round rings and along lines of concepts: months, weekdays, letters, numbers, hours.

Does a path along the fitted ring or line keep the outputs natural where the straight way does not?
"""

from functools import partial

import steer
from benchmarks.data.rings import CLOCK, LETTERS, MONTHS, NUMBERS, WEEKDAYS, Concepts
from benchmarks.result import Outcome
from benchmarks.rings.experiment import CONTROLS, run_ring
from benchmarks.task import Late, Options, Task, task

PAPER = "arXiv:2605.05115"
COST = "smollm2-135m: about 2 min on 2 cores; gemma3-270m: about 5 min"


def _measure(lm: steer.LM, options: Options, *, concepts: Concepts) -> Outcome:
    return run_ring(lm, concepts, options)


def _ring_task(concepts: Concepts) -> Task:
    way, shape = ("half-way round", "ring") if concepts.closed else ("half-way along", "line")
    return Task(
        question=(
            f"Steered {way} the {shape} of the {concepts.name}, does the output stay closer to "
            f"natural outputs along the {shape} than along the chord?"
        ),
        measure=partial(_measure, concepts=concepts),
        controls=CONTROLS,
        draw=Late("benchmarks.rings.draw:draw_ring_result"),
    )


@task(paper=PAPER, cost=COST)
def months() -> Task:
    """Twelve months, half-way round: six."""
    return _ring_task(MONTHS)


@task(paper=PAPER, cost=COST)
def weekdays() -> Task:
    """Seven weekdays, half-way round: three."""
    return _ring_task(WEEKDAYS)


@task(paper=PAPER, cost=COST)
def letters() -> Task:
    """The letters from c to z on a line, half of it: twelve."""
    return _ring_task(LETTERS)


@task(paper=PAPER, cost=COST)
def numbers() -> Task:
    """Counting from three to fourteen on a line, half of it: six."""
    return _ring_task(NUMBERS)


@task(paper=PAPER, cost=COST)
def clock() -> Task:
    """Twelve hours, half-way round: six."""
    return _ring_task(CLOCK)
