"""Pictures of believed normal laws: the plane of mean and spread, blocks, M_h, and a change."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.result import Result

_SHOWN = {
    "manifold": "#1f77b4",
    "transport": "#17becf",
    "field": "#2ca02c",
    "vector": "#d62728",
    "chord": "#ff7f0e",
    "mixture": "#7f7f7f",
    "permuted": "#bcbd22",
}


def draw_normals(result: Result, path: Path) -> list[Path]:
    """Draw four panels beside the result's file."""
    tables: dict[str, Any] = dict(result.tables)
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    (plane, blocks), (shape, change) = figure.subplots(2, 2)
    _plane(plane, tables)
    for (name, values), colour in zip(tables["lfp"].items(), ("#1f77b4", "#2ca02c"), strict=True):
        blocks.plot(values, color=colour, label=f"accuracy of probes: {name}")
        blocks.plot(tables["r2"][name], ":", color=colour, label=f"R2 read off M_h: {name}")
        chance = 1 / len(tables["means" if name == "mean" else "sigmas"])
        blocks.axhline(chance, color=colour, linewidth=0.6, linestyle="--")
    blocks.set(title="held-out texts (dashed: guessing)", xlabel="block", ylabel="accuracy, R2")
    blocks.set_ylim(0, 1)
    blocks.legend(fontsize=7)
    columns = list(zip(*tables["curve"], strict=True))
    shape.plot(columns[0], columns[1], color="#1f77b4")
    knots = list(zip(*tables["knots"], strict=True))
    shape.scatter(knots[0], knots[1], c=tables["means"], cmap="viridis", zorder=3)
    for x, y, mean in zip(knots[0], knots[1], tables["means"], strict=True):
        shape.annotate(f"{mean:g}", (x, y), fontsize=7, xytext=(4, 4), textcoords="offset points")
    shape.set(title="M_h over the mean", xlabel="component 1", ylabel="component 2")
    _change(change, tables["switch"])
    file = path.with_name(f"{path.stem}_beliefs.png")
    figure.savefig(file, dpi=130)
    return [file]


def _plane(axes: Axes, tables: dict[str, Any]) -> None:
    own = tables["natural_curve"]
    axes.plot(own["mean"], own["spread"], color="black", linewidth=3, alpha=0.35, label="natural")
    for arm, colour in _SHOWN.items():
        way = tables["plane"][arm]
        style = "--" if arm in ("mixture", "permuted") else "-"
        axes.plot(way["mean"], way["spread"], style, marker=".", color=colour, label=arm)
    axes.set(
        title="steered from the lowest mean to the highest",
        xlabel="mean of the next digit",
        ylabel="its standard deviation",
    )
    axes.legend(fontsize=7)


def _change(axes: Axes, table: dict[str, Any]) -> None:
    first, before = table["first"], table["before"]
    time = [first + k - before for k in range(len(table["off"]))]
    axes.plot(time, table["mean"], color="#22272b", label="model: mean")
    axes.plot(time, table["spread"], color="#22272b", linestyle="--", label="model: spread")
    for name, values in table["observers"].items():
        axes.plot(time, values, linewidth=1, label=f"{name.replace('_', '-')}: mean")
    axes.plot(time, table["off"], color="#d62728", label="off M_h (steady = 1)")
    axes.plot(time, table["off_plane"], color="#9467bd", label="off M_h of mean and spread")
    axes.plot(time, table["off_plane_wide"], ":", color="#9467bd", label="... texts of a wide law")
    axes.plot(time, table["off_steady"], ":", color="#d62728", label="... without a change")
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set(title="the mean changes", xlabel="digits since the change", ylabel="digit, or ratio")
    axes.legend(fontsize=7)
