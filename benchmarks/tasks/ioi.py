"""Indirect objects: patching maps, attribution patching and circuits on a known behaviour."""

from benchmarks.ioi import measure
from benchmarks.task import Late, Task, task


@task(paper="arXiv:2211.00593", cost="smollm2-135m: 12 min on one core")
def ioi() -> Task:
    """Who gave what to whom."""
    return Task(
        "Which states and heads carry an indirect object, and do gradients and circuits find them?",
        measure.measure_ioi,
        measure.CONTROLS,
        Late("benchmarks.ioi.draw:draw_ioi"),
    )
