"""Steering round a ring of concepts: the months and the weekdays.

Does a path along the fitted ring keep the outputs natural where the straight way does not?
"""

from functools import partial

import steer
from benchmarks.data.rings import MONTHS, WEEKDAYS, Ring
from benchmarks.result import Outcome
from benchmarks.rings.experiment import CONTROLS, run_ring
from benchmarks.task import Late, Options, Task, task

PAPER = "arXiv:2605.05115"
COST = "smollm2-135m: about 1 min on 2 cores; gemma3-270m: about 2 min"


def _measure(lm: steer.LM, options: Options, *, ring: Ring) -> Outcome:
    return run_ring(lm, ring, options)


def _ring_task(ring: Ring) -> Task:
    return Task(
        question=(
            f"Steered half-way round the ring of the {ring.name}, does the output stay closer to "
            "natural outputs along the ring than along the chord?"
        ),
        measure=partial(_measure, ring=ring),
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
