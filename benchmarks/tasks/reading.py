"""Probes and circuits: reading concepts, promises of monitors, known truths, successor heads."""

from pathlib import Path

from benchmarks.reading import layers, speed
from benchmarks.reading import monitor as monitor_measure
from benchmarks.result import Result
from benchmarks.successor import measure as successor_measure
from benchmarks.task import Task, task
from benchmarks.toy import arithmetic
from benchmarks.toy import illusion as illusion_measure


def _draw_layers(result: Result, path: Path) -> list[Path]:
    # matplotlib is in the extra `plots`: numbers can be had without it. So in all of these.
    from benchmarks.reading.draw import draw_layers

    return draw_layers(result, path)


def _draw_monitor(result: Result, path: Path) -> list[Path]:
    from benchmarks.reading.draw import draw_monitor

    return draw_monitor(result, path)


def _draw_arithmetic(result: Result, path: Path) -> list[Path]:
    from benchmarks.toy.draw import draw_arithmetic

    return draw_arithmetic(result, path)


def _draw_illusion(result: Result, path: Path) -> list[Path]:
    from benchmarks.toy.draw import draw_illusion

    return draw_illusion(result, path)


def _draw_successor(result: Result, path: Path) -> list[Path]:
    from benchmarks.successor.draw import draw_successor

    return draw_successor(result, path)


@task(paper="arXiv:2404.07066", cost="smollm2-135m: 15 min on one core")
def probe_layers() -> Task:
    """Reading behaviours, subjects and right answers."""
    return Task(
        "At which block can a concept be read, is that the probe's own doing, does it carry over?",
        layers.measure_probe_layers,
        layers.CONTROLS,
        _draw_layers,
    )


@task(paper="arXiv:1209.2673", cost="smollm2-135m: 5 min on one core; alone on the machine")
def monitor() -> Task:
    """A monitor with a promised false-positive rate."""
    return Task(
        "Is the promised false-positive rate kept on held-out benign text, and what does it cost?",
        monitor_measure.measure_monitor,
        monitor_measure.CONTROLS,
        _draw_monitor,
    )


@task(paper="no paper: engineering", cost="smollm2-135m: 5 min on 2 cores; alone on the machine")
def speed_probes() -> Task:
    """All blocks fitted at once."""
    return Task(
        "How much faster is one stacked fit than a loop over scikit-learn, at the same optimum?",
        speed.measure_speed_probes,
        speed.CONTROLS,
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
        _draw_arithmetic,
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
        _draw_illusion,
    )


@task(paper="arXiv:2312.09230", cost="smollm2-135m: 10 min on one core")
def successor() -> Task:
    """Heads that increment."""
    return Task(
        "Which heads say what comes next in days, months, letters, numbers, and by what feature?",
        successor_measure.measure_successor,
        successor_measure.CONTROLS,
        _draw_successor,
    )
