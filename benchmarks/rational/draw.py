"""Pictures of rational in-context learning: who the models follow, and where that turns."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.result import Json, Result


def draw_rational(result: Result, path: Path) -> list[Path]:
    """Draw, for each setting, the share of memorising: as seen, as the law says, and the turn."""
    steps = result.provenance["specs"]["steps"]
    diversities = result.provenance["specs"]["diversities"]
    figure = Figure(figsize=(9.6, 2.6 * len(result.tables)), layout="constrained")
    rows = figure.subplots(len(result.tables), 3, squeeze=False)
    for axes, (name, table) in zip(rows, result.tables.items(), strict=True):
        own, weights = np.array(table["own_weights"]), np.array(table["weights"])
        seen, said = (x[..., 0] / np.maximum(x[..., 0] + x[..., 1], 1e-12) for x in (own, weights))
        for at, (grid, title) in enumerate(
            [(seen, "memorising over both (nearest mixture)"), (said, "memorising over both (law)")]
        ):
            image = axes[at].imshow(
                grid, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="PuOr"
            )
            axes[at].set_xticks(range(len(steps)), steps, rotation=60, fontsize=7)
            axes[at].set_yticks(range(len(diversities)), diversities, fontsize=7)
            axes[at].set_title(f"{name}: {title}", fontsize=8)
            axes[at].set_xlabel("training steps", fontsize=8)
            axes[at].set_ylabel("task diversity", fontsize=8)
            figure.colorbar(image, ax=axes[at], shrink=0.8)
        _turn(axes[2], table, diversities, steps)
    file = path.with_name(f"{path.stem}_strategies.png")
    figure.savefig(file, dpi=150)
    return [file]


def _turn(axes: Json, table: Json, diversities: Json, steps: Json) -> None:
    for key, mark in (("transition_measured", "o"), ("transition_predicted", "x--")):
        found = [(d, n) for d, n in zip(diversities, table[key], strict=True) if n and n > 1]
        if found:
            axes.plot(*zip(*found, strict=True), mark, label=key.split("_")[1])
    axes.axhspan(max(steps), 100 * max(steps), color="#eeeeee", label="after training ended")
    axes.set(xscale="log", yscale="log", ylim=(min(steps) / 4, 10 * max(steps)))
    axes.set_xlabel("task diversity", fontsize=8)
    axes.set_ylabel("steps", fontsize=8)
    axes.set_title("memorising overtakes", fontsize=8)
    axes.legend(fontsize=7)
