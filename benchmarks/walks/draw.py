"""The picture of `graph_walk`: one row for each graph."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.result import Result
from benchmarks.walks.reading import LENGTHS
from benchmarks.walks.steering import ARMS

_NULLS = ("permuted", "random")


def draw_walks(result: Result, path: Path) -> list[Path]:
    """Draw accuracy, likeness, states and steering of each graph; return the file written."""
    names = list(result.tables)
    figure = Figure(figsize=(15, 3.6 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 4, squeeze=False)
    known = {**result.numbers, **result.controls}
    for row, name in zip(grid, names, strict=True):
        table = result.tables[name]
        _accuracy(row[0], table, float(known[f"{name}_legal_chance"].value or 0), name)
        _likeness(row[1], table["likeness"])
        _states(row[2], table)
        for i, arm in enumerate(ARMS):
            number = known[f"{name}_gain_{arm}"]
            row[3].barh(i, number.value, color="#8d99ae" if arm in _NULLS else "#00798c")
            row[3].plot([number.lo, number.hi], [i, i], color="#2b2d42", lw=1.5)
        row[3].set_yticks(range(len(ARMS)), ARMS)
        row[3].invert_yaxis()
        row[3].set(xlabel="mass gained by the target's neighbours", title="moved to another node")
    written = path.with_name(f"{path.stem}_walks.png")
    figure.savefig(written, dpi=110)
    return [written]


def _accuracy(ax, table, chance: float, name: str) -> None:
    for key, colour, label in (
        ("legal", "#00798c", "walk"),
        ("legal_shuffled", "#d1495b", "same nodes, shuffled"),
    ):
        values = np.array(table[key])
        ax.plot(LENGTHS, values.T, color=colour, lw=0.7, alpha=0.5)
        ax.plot(LENGTHS, values.mean(0), ".-", color=colour, label=label)
    ax.axhline(chance, color="#8d99ae", ls=":", label="chance")
    ax.set(xscale="log", ylim=(0, 1), xlabel="nodes of context", ylabel="mass on neighbours")
    ax.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
    ax.minorticks_off()
    ax.set_title(name)
    ax.legend(frameon=False, fontsize=8)


def _likeness(ax, table) -> None:
    colours = ("#30638e", "#00798c", "#edae49")
    for (measure, points), colour in zip(table.items(), colours, strict=True):
        values = [points[str(length)]["value"] for length in LENGTHS]
        edge = "low" if measure == "energy" else "high"
        null = [points[str(length)][edge] for length in LENGTHS]
        scale = max(*map(abs, values), *map(abs, null)) if measure == "energy" else 1.0
        label = measure.replace("_", " ") + (" (of its largest)" if measure == "energy" else "")
        ax.plot(LENGTHS, np.array(values) / scale, ".-", color=colour, label=label)
        ax.plot(LENGTHS, np.array(null) / scale, ":", color=colour)
    ax.set(xscale="log", xlabel="nodes of context", title="likeness to the graph (dotted: null)")
    ax.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)


def _states(ax, table) -> None:
    points = np.array(table["pca"])
    for one, two in table["edges"]:
        ax.plot(*points[[one, two]].T, color="#8d99ae", lw=1)
    ax.scatter(*points.T, color="#2b2d42", s=18, zorder=3)
    for i, (x, y) in enumerate(points):
        ax.annotate(str(i), (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8)
    ax.set(xlabel="PC 1", ylabel="PC 2", title="states of the nodes, one walk")
