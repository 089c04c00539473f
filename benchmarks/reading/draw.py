"""Pictures of probes: layer curves, transfer, and the rates that a monitor's promise led to."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.result import Result


def draw_layers(result: Result, path: Path) -> list[Path]:
    """Draw each set's curve: linear, hidden layer, shuffled labels, and what words alone give."""
    tables = result.tables
    names = list(tables["curves"])
    figure = Figure(figsize=(12.8, 6.4), layout="constrained")
    grid = figure.subplots(2, 4)
    for axes, name in zip(grid.flat, names, strict=False):
        for key, colour, label in (
            ("curves", "C0", "linear"),
            ("hidden", "C1", "hidden layer"),
            ("shuffled", "0.6", "shuffled labels"),
        ):
            value, lo, hi = np.array(tables[key][name]).T
            blocks = np.arange(len(value))
            axes.plot(blocks, value, color=colour, label=label)
            axes.fill_between(blocks, lo, hi, color=colour, alpha=0.15, linewidth=0)
        words = result.controls[f"{name}_bag_of_words"].value
        axes.axhline(words, color="C2", linestyle=":", label="words alone")
        depth = tables["depth"][name][0]
        if depth is not None:
            axes.axvline(depth, color="C0", linestyle="--", linewidth=0.8)
        axes.set(title=name, xlabel="block", ylabel="AUROC, held out", ylim=(0.3, 1.02))
    grid.flat[0].legend(fontsize=7, loc="lower right")
    axes = grid.flat[len(names)]
    table = tables["transfer"]
    image = axes.imshow(table["auroc"], vmin=0, vmax=1, cmap="RdBu_r")
    ticks = range(len(table["names"]))
    axes.set_xticks(ticks, table["names"], rotation=30, ha="right", fontsize=8)
    axes.set_yticks(ticks, table["names"], fontsize=8)
    axes.set(title="transfer, AUROC", xlabel="scored on", ylabel="fitted on")
    for i, row in enumerate(table["auroc"]):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8)
    for axes in grid.flat[len(names) + 1 :]:
        axes.set_visible(False)
    figure.suptitle(f"{result.model}: what can be read at the last token, block by block")
    file = path.with_name(f"{path.stem}_curves.png")
    figure.savefig(file, dpi=150)
    return [file]


def draw_monitor(result: Result, path: Path) -> list[Path]:
    """Draw the false-positive rates of all splits, calibrated and by the quantile alone."""
    ways = result.tables["ways"]
    rate = result.provenance["specs"]["rate"]
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    every = [x for table in ways.values() for key in ("rates", "naive") for x in table[key]]
    bins = np.linspace(0, max(every), 30)
    for axes, (how, table) in zip(figure.subplots(1, len(ways)), ways.items(), strict=True):
        axes.hist(table["naive"], bins=bins, color="0.75", label="quantile alone")
        axes.hist(table["rates"], bins=bins, color="C0", alpha=0.8, label="calibrated")
        axes.axvline(rate, color="C3", label="promised at most")
        axes.set(title=how, xlabel="false-positive rate")
    figure.axes[0].set_ylabel("splits")
    figure.axes[0].legend(fontsize=7)
    file = path.with_name(f"{path.stem}_rates.png")
    figure.savefig(file, dpi=150)
    return [file]
