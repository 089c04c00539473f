"""Pictures of successor heads: effects of patches and what heads write, sequence by sequence."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.result import Result


def draw_successor(result: Result, path: Path) -> list[Path]:
    """Draw effects and successor scores of all heads, and R2 by period."""
    effects, scores = result.tables["effects"], result.tables["scores"]
    figure = Figure(figsize=(13, 6), layout="constrained")
    grid = figure.subplots(2, len(effects) + 1)
    for at, name in enumerate(effects):
        shape = np.array(effects[name]).shape
        reach = np.abs(effects[name]).max()
        top = grid[0, at].imshow(
            effects[name], cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", origin="lower"
        )
        low = grid[1, at].imshow(
            np.array(scores[name]).reshape(shape), vmin=0, vmax=1, aspect="auto", origin="lower"
        )
        grid[0, at].set_title(f"{name}: effect of a patch", fontsize=9)
        grid[1, at].set_title(f"{name}: says the next word", fontsize=9)
        figure.colorbar(top, ax=grid[0, at])
        figure.colorbar(low, ax=grid[1, at])
        for axes in grid[:, at]:
            axes.set(xlabel="head", ylabel="block")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    table = result.tables["features"]
    for axes, key, title in (
        (grid[0, -1], "within", "other places"),
        (grid[1, -1], "carried", "other sequences"),
    ):
        sure = np.array(table[f"{key}_p"]) < 0.05
        axes.bar(range(len(sure)), table[f"{key}_r2"], color=["C0" if s else "0.75" for s in sure])
        axes.set_xticks(range(len(sure)), table["periods"], fontsize=8)
        axes.set(xlabel="period", ylim=(-0.5, 0.5))
        axes.set_title(f"R2, {title}; p < .05 blue", fontsize=8)
    file = path.with_name(f"{path.stem}_heads.png")
    figure.savefig(file, dpi=150)
    return [file]
