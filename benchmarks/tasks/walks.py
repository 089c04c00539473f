"""Geometry in context: graphs that a model learns from a walk, and steering on them."""

from benchmarks.task import Late, Task, task
from benchmarks.walks.measure import CONTROLS, measure_walks


@task(
    paper="arXiv:2501.00070",
    cost="gemma3-270m: about 6 min on 2 cores; smollm2-135m does not follow walks",
)
def graph_walk() -> Task:
    """A ring, a grid and a cylinder, walked in the context alone."""
    return Task(
        question=(
            "Do the states of a walk's nodes take the shape of its graph, and does moving a state "
            "along that shape move the next step to the neighbours of the place moved to?"
        ),
        measure=measure_walks,
        controls=CONTROLS,
        draw=Late("benchmarks.walks.draw:draw_walks"),
    )
