"""Steering methods compared at the same damage to the model's predictions."""

from benchmarks.methods import measure
from benchmarks.task import Late, Task, task


@task(paper="arXiv:2312.06681", cost="smollm2-135m: 36 min on one core")
def methods() -> Task:
    """Ways to steer answers, each at the strength whose KL is 1 nat."""
    return Task(
        "At equal damage, which method moves the answer furthest, and does it beat a random one?",
        measure.measure_methods,
        measure.CONTROLS,
        Late("benchmarks.methods.draw:draw_methods"),
    )


@task(paper="arXiv:2312.06681", cost="smollm2-135m: 15 min on one core")
def methods_sentiment() -> Task:
    """The same on a behaviour that small models have: good or bad as the next word."""
    return Task(
        "At equal damage, which method moves the next word most, and does it beat a random one?",
        measure.measure_sentiment,
        measure.CONTROLS,
        Late("benchmarks.methods.draw:draw_methods"),
    )
