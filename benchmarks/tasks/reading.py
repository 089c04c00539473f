"""Probes and circuits: reading concepts, promises of monitors, known truths, successor heads."""

from benchmarks.reading import layers
from benchmarks.reading import monitor as monitor_measure
from benchmarks.successor import measure as successor_measure
from benchmarks.task import Late, Task, task
from benchmarks.toy import arithmetic
from benchmarks.toy import illusion as illusion_measure


@task(paper="arXiv:2404.07066", cost="smollm2-135m: 15 min on one core")
def probe_layers() -> Task:
    """Reading behaviours, subjects and right answers."""
    return Task(
        "At which block can a concept be read, is that the probe's own doing, does it carry over?",
        layers.measure_probe_layers,
        layers.CONTROLS,
        Late("benchmarks.reading.draw:draw_layers"),
    )


@task(paper="arXiv:1209.2673", cost="smollm2-135m: 13 min on 2 cores; alone on the machine")
def monitor() -> Task:
    """A monitor with a promised false-positive rate."""
    return Task(
        "Is the promised false-positive rate kept on held-out benign text, and what does it cost?",
        monitor_measure.measure_monitor,
        monitor_measure.CONTROLS,
        Late("benchmarks.reading.draw:draw_monitor"),
    )


@task(
    paper="arXiv:2303.02536",
    cost="no model needed (--model tiny-llama): 5 min on one core, trains three transformers",
)
def arithmetic_toy() -> Task:
    """Modular addition, whose answer is known inside."""
    return Task(
        "Does alignment search find the sum, and do Fourier probes name the periods of its code?",
        arithmetic.measure_arithmetic,
        arithmetic.CONTROLS,
        Late("benchmarks.toy.draw:draw_arithmetic"),
    )


@task(
    paper="arXiv:2311.17030",
    cost="no model needed (--model tiny-llama): 1 min on one core, trains three transformers",
)
def illusion() -> Task:
    """A planted dormant pathway."""
    return Task(
        "Is plain subspace patching fooled by a pathway that is never used, and do the checks see?",
        illusion_measure.measure_illusion,
        illusion_measure.CONTROLS,
        Late("benchmarks.toy.draw:draw_illusion"),
    )


@task(paper="arXiv:2312.09230", cost="smollm2-135m: 10 min on one core")
def successor() -> Task:
    """Heads that increment."""
    return Task(
        "Which heads say what comes next in days, months, letters, numbers, and by what feature?",
        successor_measure.measure_successor,
        successor_measure.CONTROLS,
        Late("benchmarks.successor.draw:draw_successor"),
    )
