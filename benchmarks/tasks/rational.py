"""Rational in-context learning: which strategy training arrives at, predicted from its costs."""

from benchmarks.rational import measure
from benchmarks.task import Late, Task, task


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
        Late("benchmarks.rational.draw:draw_rational"),
    )
