"""Pictures of the indirect-object task: two maps, estimates beside patches, the circuit."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.result import Json, Result


def draw_ioi(result: Result, path: Path) -> list[Path]:
    """Draw the maps of streams and heads, AtP* against patching, and what the circuit carries."""
    tables = result.tables
    figure = Figure(figsize=(12.0, 9.0), layout="constrained")
    axes = figure.subplots(2, 2)
    _map(axes[0, 0], tables["streams"], "resid_pre, by position", "position")
    _map(axes[0, 1], tables["heads"], "heads (z), all positions", "head")
    circuit = [site.split(".") for site in tables["circuit"]]
    places = [(int(part[1]), int(part[2][2:-1])) for part in circuit]
    axes[0, 1].plot(
        [head for _, head in places],
        [layer for layer, _ in places],
        "ks",
        markersize=7,
        fillstyle="none",
        label="in the circuit",
    )
    axes[0, 1].legend(fontsize=8, loc="upper right")
    exact = np.array(tables["heads"], float).ravel()
    for name, mark in (("atp_plain", "x"), ("atp_drop", "+"), ("atp", "o")):
        guess = np.array(tables["estimates"][name], float).ravel()
        label = f"{name}: r = {result.numbers[f'{name}_pearson'].value:.2f}"
        axes[1, 0].plot(exact, guess, mark, markersize=4, alpha=0.7, label=label)
    ends = [exact.min(), exact.max()]
    axes[1, 0].plot(ends, ends, color="grey", linewidth=0.8)
    axes[1, 0].set(xlabel="patched", ylabel="estimated", title="heads: share of the gap")
    axes[1, 0].legend(fontsize=8)
    _bars(axes[1, 1], result)
    file = path.with_name(f"{path.stem}_maps.png")
    figure.savefig(file, dpi=150)
    return [file]


def _map(axes: Json, values: Json, title: str, across: str) -> None:
    grid = np.array(values, float)
    reach = np.nanmax(np.abs(grid))
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="RdBu_r", vmin=-reach, vmax=reach)
    axes.set(title=f"{title}: share of the gap", xlabel=across, ylabel="block")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _bars(axes: Json, result: Result) -> None:
    shown = {
        "circuit": result.numbers["circuit_faithfulness"],
        "by single patches": result.numbers["threshold_circuit_faithfulness"],
        "all but the circuit": result.numbers["without_circuit_faithfulness"],
        "random heads": result.controls["random_heads_faithfulness"],
        "random, same blocks": result.controls["random_heads_same_blocks_faithfulness"],
    }
    for at, number in enumerate(shown.values()):
        axes.barh(at, number.value, color="#00798c" if at < 3 else "#aaaaaa")
        axes.plot([number.lo, number.hi], [at, at], color="black", linewidth=1.2)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(shown)), list(shown), fontsize=8)
    axes.set(xlabel="faithfulness on pairs with other names", title="what they carry")
