"""Beliefs: what evidence in context and steering do to log-odds, predicted before it is done.

`--limit` is named in each measure: the largest evidence, the number of personas, and so on.
"""

from benchmarks.belief import gaussian, persona, sentiment, simulated, steering, switch
from benchmarks.task import Late, Task, task

PAPER = "arXiv:2511.00617"


@task(paper=PAPER, cost="no model needed (--model tiny-llama): about 3 min on 2 cores")
def belief_simulated() -> Task:
    """Planted truth."""
    return Task(
        "Does the fit recover a planted belief, and do its intervals hold what they promise?",
        simulated.measure_simulated,
        simulated.CONTROLS,
        Late("benchmarks.belief.simulated:draw_simulated"),
    )


@task(paper=PAPER, cost="smollm2-135m: about 7 min on 2 cores for the grid, 13 in all")
def belief_sentiment() -> Task:
    """Many-shot judgements of both signs, and a mean-difference vector."""
    return Task(
        "Are unseen steering strengths and longer contexts predicted by one additive law?",
        sentiment.measure_sentiment,
        sentiment.CONTROLS,
        Late("benchmarks.belief.draw:draw_sentiment"),
    )


@task(paper=PAPER, cost="qwen2.5-0.5b: about 35 min on 2 cores; smollm2-135m: a quarter of that")
def belief_persona() -> Task:
    """Contrast sets of two choices each."""
    return Task(
        "Does the law hold for personas, and which of them can the model not tell at all?",
        persona.measure_persona,
        persona.CONTROLS,
        Late("benchmarks.belief.draw:draw_persona"),
    )


@task(paper=PAPER, cost="smollm2-135m: about 5 min on 2 cores")
def belief_switch() -> Task:
    """Evidence for one side, then for the other."""
    return Task(
        "Evidence for c, then for its opposite: does belief follow as an ideal observer's would?",
        switch.measure_switch,
        switch.CONTROLS,
        Late("benchmarks.belief.switches.draw:draw_switch"),
    )


@task(paper="arXiv:2602.02315", cost="smollm2-135m: about 2 min on 1 core")
def belief_gaussian() -> Task:
    """Digits of a Gaussian whose mean switches."""
    return Task(
        "The mean of a list of digits switches: which ideal observer does the model resemble?",
        gaussian.measure_gaussian,
        gaussian.CONTROLS,
        Late("benchmarks.belief.gaussian_draw:draw_gaussian"),
    )


@task(paper=PAPER, cost="smollm2-135m: about 10 min on 2 cores")
def controller() -> Task:
    """The strength that the context calls for."""
    return Task(
        "Is a posterior that is asked for reached, whatever the context holds?",
        steering.measure_controller,
        steering.CONTROLS,
        Late("benchmarks.belief.draw:draw_controller"),
    )
