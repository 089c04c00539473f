"""Draw speed results: ratios with their intervals and targets, and scaling curves.

Made from the result alone. Imported only when something is drawn: matplotlib belongs to the extra
`plots`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.lines
import numpy as np
from matplotlib.axes import Axes

from benchmarks.result import Result
from benchmarks.stats import Number

OURS, TARGET, GREY = "#0b6e8f", "#c8531c", "#8a9096"
"""Told apart in grey and by the colour-blind as well."""
LOG_ABOVE = 3.0
"""A panel whose ratios go above it is logarithmic."""
AXES = {
    "arms": "number of arms",
    "tokens": "tokens of the prompt",
    "block": "block of the edit",
}


def draw_ratios(result: Result, path: Path, targets: Mapping[str, float]) -> list[Path]:
    """Draw the ratios of a result beside its file; return the file written."""
    return [_save(ratios_figure(result, targets), path, "ratios")]


def draw_scaling(result: Result, path: Path, targets: Mapping[str, float]) -> list[Path]:
    """Draw the curves of `speed_scaling` beside its file; return the files written."""
    return [
        _save(scaling_figure(result), path, "curves"),
        _save(ratios_figure(result, targets), path, "ratios"),
    ]


def ratios_figure(result: Result, targets: Mapping[str, float]) -> matplotlib.figure.Figure:
    """Return one panel for what should be small and one for what should be large, where there are.

    A bar goes from 1, where both sides take as long, to the median of the ratios.
    """
    ratios = {
        name: number
        for name, number in {**result.numbers, **result.controls}.items()
        if ("_over_" in name or name.startswith(("over_", "slope_"))) and number.value is not None
    }
    ours_below = [name for name in ratios if "over_ours" in name]
    panels = {
        "time over what it is compared with (1: equally fast; less is better)": [
            name for name in ratios if name not in ours_below
        ],
        "time of others over ours (1: equally fast; more is better)": ours_below,
    }
    shown = {title: names for title, names in panels.items() if names}
    heights = [len(names) for names in shown.values()]
    figure = matplotlib.figure.Figure(
        figsize=(8.4, 1.6 + 0.42 * sum(heights) + 0.6 * len(heights)), layout="constrained"
    )
    grid = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (title, names) in zip(grid, shown.items(), strict=True):
        _bars(axes, {name: ratios[name] for name in names}, result, targets)
        axes.set_xlabel(title, fontsize=9)
    figure.suptitle(f"{result.task} on {result.model}", fontsize=11)
    figure.supxlabel(ratios_caption(result), fontsize=8)
    return figure


def ratios_caption(result: Result) -> str:
    """Say what the intervals are, and the numbers that are no ratios."""
    rest = [
        f"{name} {number}"
        for name, number in result.numbers.items()
        if "over_" not in name and not name.startswith("slope_")
    ]
    machine = result.provenance.get("hardware", {})
    threads = f"{machine.get('threads', '?')} threads, {machine.get('device', '?')}"
    first = f"Medians of ratios of neighbours in time; lines: 95 % bootstrap intervals; {threads}."
    return first + ("\n" + "; ".join(rest) + "." if rest else "")


def scaling_figure(result: Result) -> matplotlib.figure.Figure:
    """Return three panels: time against arms, tokens and block, with the predictions."""
    figure = matplotlib.figure.Figure(figsize=(10.4, 4.0), layout="constrained")
    grid = figure.subplots(1, 3)
    for axes, (name, label) in zip(grid, AXES.items(), strict=True):
        table = result.tables[name]
        axes.plot(table["x"], table["predicted"], color=GREY, lw=1.6)
        axes.plot(table["x"], table["predicted_with_logits"], color=GREY, lw=1.2, ls="--")
        axes.plot(table["x"], table["seconds"], color=OURS, ls="", marker="o", ms=4)
        if name == "block":
            axes.set_ylim(bottom=0)
            axes.xaxis.get_major_locator().set_params(integer=True)
        else:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(table["x"], [str(x) for x in table["x"]], fontsize=7)
            axes.minorticks_off()
        axes.set_xlabel(label, fontsize=9)
        axes.set_title(f"slope over predicted: {result.numbers[f'slope_{name}']}", fontsize=9)
    grid[0].set_ylabel("seconds of one sweep", fontsize=9)
    line = matplotlib.lines.Line2D
    figure.legend(
        handles=[
            line([], [], color=OURS, ls="", marker="o", ms=4, label="measured"),
            line([], [], color=GREY, lw=1.6, label="token-blocks x time of one"),
            line([], [], color=GREY, lw=1.2, ls="--", label="and one row of logits for each arm"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(
        f"{result.task} on {result.model}: all sweeps took "
        f"{result.numbers['wall_over_predicted']} of the predicted time",
        fontsize=10,
    )
    return figure


def _bars(
    axes: Axes, ratios: Mapping[str, Number], result: Result, targets: Mapping[str, float]
) -> None:
    names = list(ratios)
    values = [float(ratios[name].value or 0.0) for name in names]
    colors = [GREY if name in result.controls else OURS for name in names]
    places = np.arange(len(names))
    axes.barh(places, [v - 1 for v in values], left=1, color=colors, height=0.5, alpha=0.75)
    for at, name in enumerate(names):
        number = ratios[name]
        if number.lo is not None and number.hi is not None:
            axes.plot([number.lo, number.hi], [at, at], color="black", lw=1.6)
        if name in targets:
            axes.plot([targets[name]] * 2, [at - 0.38, at + 0.38], color=TARGET, lw=2.4)
            axes.annotate(
                f"target {targets[name]:g}",
                (targets[name], at - 0.38),
                xytext=(0, 1),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                color=TARGET,
            )
    axes.axvline(1, color="black", lw=0.9)
    ends = [end for n in ratios.values() for end in (n.lo, n.hi) if end is not None]
    _widen(axes, [*values, *ends, *(targets[name] for name in names if name in targets), 1.0])
    labels = [f"{name} (control)" if name in result.controls else name for name in names]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.75)
    for at, name in enumerate(names):
        axes.annotate(
            str(ratios[name]),
            (1.01, at),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )


def _widen(axes: Axes, values: list[float]) -> None:
    if max(values) > LOG_ABOVE:
        axes.set_xscale("log")
        # A decade has room for three of its minor ticks' names.
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "235" else "")
        axes.tick_params(axis="x", which="both", labelsize=8)
        axes.set_xlim(min([*values, 0.8]) / 1.15, max(values) * 1.3)
        return
    reach = max(0.05, *(abs(value - 1) for value in values)) * 1.25
    axes.set_xlim(min(1 - reach / 3, min(values) - reach / 5), 1 + reach)


def _save(figure: Any, path: Path, what: str) -> Path:
    file = Path(f"{path.with_suffix('')}_{what}.png")
    figure.savefig(file, dpi=130, facecolor="white")
    return file
