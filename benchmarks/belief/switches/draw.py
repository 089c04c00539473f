"""Draw the course of a belief over a switch: log-odds against item, with every predictor.

Made from the result alone. Imported only when something is drawn: matplotlib belongs to the extra
`plots`.
"""

from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from benchmarks.result import Result

MODEL = "#22272b"
STYLES = {
    "exact": ("#c8531c", "-", "exact observer"),
    "forgetting": ("#0b6e8f", "-", "forgetting observer"),
    "change_point": ("#7b4fa3", "-", "change-point observer"),
    "law": ("#8a9096", "--", "belief law, blind to order"),
}
"""Told apart by the colour-blind; the law, which is no observer, is broken."""


def draw_switch(result: Result, path: Path) -> list[Path]:
    """Draw a result of `belief_switch` beside its file; return the file written."""
    file = Path(f"{path.with_suffix('')}_courses.png")
    courses_figure(result).savefig(file, dpi=130, facecolor="white")
    return [file]


def courses_figure(result: Result) -> matplotlib.figure.Figure:
    """Return a panel for each switch, and below them the controls."""
    courses = result.tables["courses"]
    switches = [c for c in courses if c["kind"] == "switch"]
    controls = [c for c in courses if c["kind"] != "switch"]
    columns = len({c["before"] for c in switches})
    ordered = [c for first in (1, 0) for c in switches if c["first"] == first]
    rows = 2 + -(-len(controls) // columns)
    figure = matplotlib.figure.Figure(
        figsize=(3.1 * max(columns, 2), 2.5 * rows + 0.6), layout="constrained"
    )
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, course in zip(panels, [*ordered, *controls], strict=False):
        _course(axes, course)
    for axes in panels[len(courses) :]:
        axes.set_axis_off()
    for axes in panels[: len(courses) : columns]:
        axes.set_ylabel("log-odds, positive\nover negative (nats)", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    errors = ", ".join(
        f"{label} {result.numbers[f'error_{name}']}" for name, (_, _, label) in STYLES.items()
    )
    floor = f"floor (mean of the other contexts) {result.numbers['error_floor']}"
    figure.suptitle(
        f"{result.task} on {result.model}. Fitted before the switch; mean absolute error "
        f"after it in nats:\n{errors};\n{floor}",
        fontsize=8,
    )
    return figure


def _course(axes: Axes, course: dict[str, Any]) -> None:
    item = np.arange(len(course["mean"]))
    axes.axhline(0, color="black", lw=0.6)
    axes.axvline(course["before"], color="black", lw=0.6, ls=":")
    axes.fill_between(item, course["lo"], course["hi"], color=MODEL, alpha=0.15, lw=0)
    axes.plot(item, course["mean"], color=MODEL, lw=1.0, marker=".", ms=3, label="model")
    for name, (color, style, label) in STYLES.items():
        axes.plot(item, course["predicted"][name], color=color, ls=style, lw=1.3, label=label)
    axes.set_title(_title(course), fontsize=8)
    axes.set_xlabel("items read", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


def _title(course: dict[str, Any]) -> str:
    words = {1: "positive", 0: "negative"}
    first, second = words[course["first"]], words[1 - course["first"]]
    before, after = course["before"], course["after"]
    titles = {
        "switch": f"{before} {first}, then {after} {second}",
        "no_switch": f"{before + after} {first} (control)",
        "other_words": f"{first}, other words after {before} (control)",
        "shuffled": f"{before} {first} and {after} {second}, shuffled (control)",
    }
    return titles[course["kind"]]
