"""Numbers: which periods a state holds, and whether a fitted helix can stand in for it."""

from benchmarks.numbers.measure import CONTROLS, measure_helix
from benchmarks.task import Late, Task, task


@task(
    paper="arXiv:2502.00873",
    cost="smollm2-135m: about 2 min on 2 cores; gemma3-270m: about 2 min",
)
def helix() -> Task:
    """A line and circles through the number that is about to be said."""
    return Task(
        question=(
            "Can a line and four circles, fitted to other numbers, replace a state that is about "
            "to say a number, as well as principal components of as many dimensions?"
        ),
        measure=measure_helix,
        controls=CONTROLS,
        draw=Late("benchmarks.numbers.draw:draw_helix"),
    )
