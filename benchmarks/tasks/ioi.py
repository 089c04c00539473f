"""Indirect objects: patching maps, attribution patching and circuits on a known behaviour."""

from pathlib import Path

from benchmarks.ioi import measure
from benchmarks.result import Result
from benchmarks.task import Task, task


def _draw(result: Result, path: Path) -> list[Path]:
    # matplotlib is in the extra `plots`: numbers can be had without it.
    from benchmarks.ioi.draw import draw_ioi

    return draw_ioi(result, path)


@task(paper="arXiv:2211.00593", cost="smollm2-135m: 12 min on one core")
def ioi() -> Task:
    """Who gave what to whom."""
    return Task(
        "Which states and heads carry an indirect object, and do gradients and circuits find them?",
        measure.measure_ioi,
        measure.CONTROLS,
        _draw,
    )
