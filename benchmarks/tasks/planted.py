"""A ring, a line and a torus that are known, because they were planted."""

from benchmarks.planted import measure
from benchmarks.task import Late, Task, task


@task(
    paper="arXiv:2605.05115",
    cost="no model needed (--model tiny-llama): minutes on two cores, trains nine transformers",
)
def planted() -> Task:
    """A known ring, line and torus inside small transformers."""
    return Task(
        "Are planted coordinates recovered, and does a path along the shape stay natural?",
        measure.measure_planted,
        measure.CONTROLS,
        Late("benchmarks.planted.draw:draw_planted"),
    )
