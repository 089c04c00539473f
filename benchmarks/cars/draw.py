"""Pictures of the world model: its states, one way through the plane, energies along the ways."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.result import Result

_SHOWN = ("manifold", "geodesic", "physical", "chord", "pulled", "pulled_from_manifold")


def draw_cars(result: Result, path: Path) -> list[Path]:
    """Draw the first network: states by place, the course of one pair by arm, energies."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    states, course, energy = figure.subplots(1, 3)
    columns = list(zip(*result.tables["cloud"], strict=True))
    dots = states.scatter(columns[0], columns[1], c=columns[3], cmap="viridis", s=10)
    figure.colorbar(dots, ax=states, label="true position (share of the road)")
    states.set(title="held-out states", xlabel="component 1", ylabel="component 2")
    ways = result.tables["course"]
    for arm in _SHOWN:
        x, y = zip(*ways[arm], strict=True)
        course.plot(x, y, marker=".", label=arm)
    x, y = zip(*ways["car"], strict=True)
    course.plot(x, y, color="black", linestyle=":", label="where the car was")
    course.set(
        title="what it expects next along the longest ways",
        xlabel="position (share of the road)",
        ylabel="velocity (share of its range)",
    )
    for arm, values in result.tables["profile"].items():
        share = [k / (len(values) - 1) for k in range(len(values))]
        style = "--" if arm in ("mixture", "states", "floor") else "-"
        energy.plot(share, values, label=arm, linestyle=style)
    energy.set(
        title="mean over pairs",
        xlabel="share of the way",
        ylabel="distance to natural outputs (nats)",
        yscale="log",
    )
    for axes in (course, energy):
        axes.legend(fontsize=7)
    file = path.with_name(f"{path.stem}_ways.png")
    figure.savefig(file, dpi=130)
    return [file]
