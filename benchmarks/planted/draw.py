"""Pictures of planted shapes: held-out states by their true place, and energies along the paths."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.result import Result


def draw_planted(result: Result, path: Path) -> list[Path]:
    """Draw for each shape the states of the first model, and how natural its paths are."""
    names = result.tables["shapes"]
    figure = Figure(figsize=(4 * len(names), 7), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False)
    for (above, below), name in zip(grid.T, names, strict=True):
        table = result.tables[name]
        columns = list(zip(*table["plane"], strict=True))
        # The ends of a line are far apart, and get colours that are.
        colours = "viridis" if name == "line" else "twilight"
        dots = above.scatter(columns[0], columns[1], c=columns[3], cmap=colours, s=10)
        figure.colorbar(dots, ax=above, label="true place (first axis)")
        told = f"{name}: unlabelled, a {table['topology'][0]}"
        above.set(title=told, xlabel="component 1", ylabel="component 2")
        above.set_aspect("equal", "datalim")
        for arm, values in table["profile"].items():
            share = [k / (len(values) - 1) for k in range(len(values))]
            below.plot(share, values, label=arm, linestyle="--" if arm == "mixture" else "-")
        below.set(xlabel="share of the path", ylabel="distance to natural outputs (nats)")
        below.set_yscale("symlog", linthresh=1e-3)
    handles, labels = grid[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    file = path.with_name(f"{path.stem}_planted.png")
    figure.savefig(file, dpi=130)
    return [file]
