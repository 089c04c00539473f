"""Pictures of toy models: which periods a probe reads and which are spoken; who is fooled."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.result import Result


def draw_arithmetic(result: Result, path: Path) -> list[Path]:
    """Draw R2 by frequency for each seed, those that the outputs have marked."""
    tables = result.tables
    figure = Figure(figsize=(10, 2 * len(tables["r2"])), layout="constrained")
    for axes, seed, r2, spoken in zip(
        np.atleast_1d(figure.subplots(len(tables["r2"]), 1)),
        tables["seeds"],
        tables["r2"],
        tables["spoken"],
        strict=True,
    ):
        at = [int(k) for k in r2]
        colours = ["C0" if k in spoken else "0.75" for k in r2]
        axes.bar(at, [max(0.0, value) for value in r2.values()], color=colours)
        axes.set(ylabel="R2, held out", ylim=(0, 1), title=f"seed {seed}: in the outputs in blue")
    figure.axes[-1].set_xlabel(f"frequency k: period {tables['prime']} / k")
    file = path.with_name(f"{path.stem}_periods.png")
    figure.savefig(file, dpi=150)
    return [file]


def draw_illusion(result: Result, path: Path) -> list[Path]:
    """Draw each direction's effect and that of its parts, a dot for each seed."""
    effects = result.tables["effects"]
    names = list(effects[0])
    parts = list(effects[0][names[0]])
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        for one in effects:
            axes.plot(range(len(parts)), [one[name][part][0] for part in parts], "o", alpha=0.6)
        axes.axhline(0, color="0.8", linewidth=0.8)
        axes.set_xticks(range(len(parts)), parts, rotation=40, ha="right", fontsize=8)
        axes.set_title(name)
    figure.axes[0].set_ylabel("share of the gap")
    file = path.with_name(f"{path.stem}_parts.png")
    figure.savefig(file, dpi=150)
    return [file]
