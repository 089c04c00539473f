"""Rational in-context learning: which strategy training arrives at, predicted from its costs."""

from pathlib import Path

from benchmarks.rational import measure
from benchmarks.result import Result
from benchmarks.task import Task, task


def _draw(result: Result, path: Path) -> list[Path]:
    # matplotlib is in the extra `plots`: numbers can be had without it.
    from benchmarks.rational.draw import draw_rational

    return draw_rational(result, path)


@task(
    paper="arXiv:2506.17859",
    cost="no model needed (--model tiny-llama): under 20 min on 2 cores, trains 27 transformers",
)
def rational_icl() -> Task:
    """Small transformers over task diversity and training."""
    return Task(
        "Is a trained model the mixture of Bayesian predictors that complexity and loss call for?",
        measure.measure_rational,
        measure.CONTROLS,
        _draw,
    )
