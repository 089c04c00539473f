"""Beliefs about a normal law: their manifold, its directions, and steering along it."""

from benchmarks.normals import measure
from benchmarks.task import Late, Task, task


@task(
    paper="arXiv:2602.02315",
    cost="smollm2-135m: about 5 min on 2 cores; gemma3-270m: about 8",
)
def beliefs_gaussian() -> Task:
    """Digits of normal laws: the manifold of mean and spread, steered, and after a change."""
    return Task(
        "Does a way along the manifold of believed means keep the spread that a straight one adds?",
        measure.measure_normals,
        measure.CONTROLS,
        Late("benchmarks.normals.draw:draw_normals"),
    )
