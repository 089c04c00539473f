"""Draw how a model's distribution over digits follows a switch, beside the observers.

Made from the result alone. Imported only when something is drawn: matplotlib belongs to the extra
`plots`.
"""

from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from benchmarks.result import Result

MODEL = "#22272b"
SHUFFLED = "#8a9096"
STYLES = {
    "exact": ("#c8531c", "exact"),
    "forgetting": ("#0b6e8f", "forgetting"),
    "change_point": ("#7b4fa3", "change-point"),
}
"""Told apart by the colour-blind."""


def draw_gaussian(result: Result, path: Path) -> list[Path]:
    """Draw a result of `belief_gaussian` beside its file; return the file written."""
    file = Path(f"{path.with_suffix('')}_courses.png")
    gaussian_figure(result).savefig(file, dpi=130, facecolor="white")
    return [file]


def gaussian_figure(result: Result) -> matplotlib.figure.Figure:
    """Return two panels: where the mean is on its way, and how wide the distribution is."""
    courses, before = result.tables["courses"], result.tables["before"]
    figure = matplotlib.figure.Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, courses, "progress", before)
    _band(left, courses["shuffled"], SHUFFLED, "model, shuffled text")
    left.axhline(0.5, color="black", lw=0.6, ls=":")
    left.set_ylabel("mean, from mu before (0) to mu after (1)", fontsize=8)
    _panel(right, courses, "spread", before)
    right.set_ylabel("standard deviation (digits)", fontsize=8)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    errors = ", ".join(
        f"{label} {result.numbers[f'kl_{name}']}" for name, (_, label) in STYLES.items()
    )
    figure.suptitle(
        f"{result.task} on {result.model}. KL(observer || model) after the switch, nats:\n{errors}",
        fontsize=8,
    )
    return figure


def _panel(axes: Axes, courses: dict[str, Any], what: str, before: int) -> None:
    axes.axvline(before, color="black", lw=0.6, ls=":")
    _band(axes, courses[what], MODEL, "model")
    for name, (color, label) in STYLES.items():
        course = courses["predicted"][name][what]
        axes.plot(np.arange(1, len(course) + 1), course, color=color, lw=1.2, label=label)
    axes.set_xlabel("digits read", fontsize=8)
    axes.tick_params(labelsize=7)


def _band(axes: Axes, band: dict[str, list[float]], color: str, label: str) -> None:
    at = np.arange(1, len(band["mean"]) + 1)
    axes.fill_between(at, band["lo"], band["hi"], color=color, alpha=0.15, lw=0)
    axes.plot(at, band["mean"], color=color, lw=1.2, label=label)
