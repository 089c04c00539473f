"""Draw the result of a ring or line: still pictures beside the JSON, and a page that can be turned.

Made from the result alone. Imported only when something is drawn: matplotlib and plotly belong to
the extra `plots`.
"""

from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.lines
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from mpl_toolkits.mplot3d import proj3d

from benchmarks.report import numbers_html, page, provenance_html
from benchmarks.result import Result
from benchmarks.rings.draw_energies import ARMS, CHORD, GREY, MANIFOLD, claims_html, energies_figure
from benchmarks.run import write_text

SCALE = "viridis"


def draw_ring_result(result: Result, path: Path) -> list[Path]:
    """Draw a result of a ring task beside its file; return the files written."""
    stem = path.with_suffix("")
    made = {
        Path(f"{stem}_ring.png"): ring_figure(result),
        Path(f"{stem}_outputs.png"): outputs_figure(result),
        Path(f"{stem}_blocks.png"): blocks_figure(result),
    }
    if "energies" in result.tables:
        made[Path(f"{stem}_energies.png")] = energies_figure(result)
    for file, figure in made.items():
        figure.savefig(file, dpi=130, facecolor="white")
    html = path.with_suffix(".html")
    write_text(ring_page(result), html)
    return [*made, html]


def ring_figure(result: Result) -> matplotlib.figure.Figure:
    """Return the ring in its first three components, with one path of each kind."""
    ring, concepts = result.tables["ring"], result.tables["concepts"]
    figure = matplotlib.figure.Figure(figsize=(7.2, 6.8))
    axes: Any = figure.add_axes((0.0, 0.1, 0.94, 0.86), projection="3d")
    curve, centroids = _three(ring["curve"]), _three(ring["centroids"])
    axes.plot(*curve.T, color=GREY, lw=1.4)
    # Twenty points a concept; the path drawn is the first one, half-way on.
    half, names = 20 * (len(concepts) // 2), _known(result)
    axes.plot(*curve[: half + 1].T, color=MANIFOLD, lw=2.2)
    axes.scatter(*_three(ring["manifold_path"]).T, color=MANIFOLD, s=14, depthshade=False)
    axes.plot(*_three(ring["chord_path"]).T, color=CHORD, lw=2.2, marker="o", ms=3.5)
    axes.scatter(*centroids.T, color="black", s=16, depthshade=False)
    for axis, share, n in zip("xyz", _variance(ring), (1, 2, 3), strict=False):
        getattr(axes, f"set_{axis}label")(f"component {n} ({share:.0%})", fontsize=9)
        getattr(axes, f"set_{axis}ticklabels")([])
    # Nearly from above: the ring lies mainly in the first two components.
    axes.view_init(elev=52, azim=-68)
    _label(axes, centroids, names)
    figure.legend(
        handles=[
            matplotlib.lines.Line2D(
                [], [], color=MANIFOLD, lw=2.2, label=f"along the {shape_of(result)}"
            ),
            matplotlib.lines.Line2D([], [], color=CHORD, lw=2.2, label="along the chord"),
            matplotlib.lines.Line2D(
                [], [], color=GREY, lw=1.4, label=f"the fitted {shape_of(result)}"
            ),
        ],
        loc="upper left",
        frameon=False,
        fontsize=9,
    )
    figure.text(0.5, 0.02, ring_caption(result), ha="center", va="bottom", fontsize=9)
    return figure


def outputs_figure(result: Result) -> matplotlib.figure.Figure:
    """Return the outputs along both paths as heat maps on one scale, with their distances below."""
    maps = {name: np.array(v) for name, v in result.tables["heat_maps"].items()}
    top = max(float(values.max()) for values in maps.values())
    figure = matplotlib.figure.Figure(figsize=(10.4, 6.6), layout="constrained")
    grid = figure.subplots(2, 2, height_ratios=(3, 1), sharex=True)
    images = []
    for column, (name, title) in enumerate((("manifold", shape_of(result)), ("chord", "chord"))):
        axes = grid[0][column]
        image = axes.imshow(
            maps[name], aspect="auto", vmin=0, vmax=top, cmap=SCALE, interpolation="nearest"
        )
        axes.set_yticks(range(len(maps[name])), _bin_names(result), fontsize=8)
        axes.set_title(f"outputs, steered along the {title}", fontsize=11)
        images.append(image)
        _profile(grid[1][column], result, name)
    figure.colorbar(images[0], ax=grid[0], label="mean probability", fraction=0.03, pad=0.01)
    limit = max(axes.get_ylim()[1] for axes in grid[1])
    for axes in grid[1]:
        axes.set_ylim(0, limit)
    grid[1][0].set_ylabel("Hellinger distance\nto natural outputs", fontsize=9)
    figure.supxlabel(outputs_caption(result), fontsize=9)
    return figure


def blocks_figure(result: Result) -> matplotlib.figure.Figure:
    """Return what steering does at each block in train contexts, and all arms in test contexts."""
    figure = matplotlib.figure.Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    shape = shape_of(result)
    blocks = result.tables["blocks"]
    layers = [block["layer"] for block in blocks]
    for key, color, style, label in (
        ("p_passed_manifold", MANIFOLD, "-", f"{shape}: probability of the concept aimed at"),
        ("p_passed_chord", CHORD, "-", "chord: the same"),
        ("manifold", MANIFOLD, ":", f"{shape}: distance to natural outputs"),
        ("chord", CHORD, ":", "chord: the same"),
    ):
        left.plot(layers, [block[key] for block in blocks], color=color, ls=style, label=label)
    best = int(result.numbers["best_block"].value or 0)
    left.axvline(best, color="black", lw=0.8)
    left.text(best, left.get_ylim()[1], f"chosen: {best} ", fontsize=8, va="bottom", ha="center")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_xlabel("block (train contexts, each held out in turn)", fontsize=9)
    left.set_ylabel("probability, or Hellinger distance", fontsize=9)
    left.set_ylim(bottom=0)
    left.legend(fontsize=8, frameon=False, loc="upper left")
    _bars(right, result)
    return figure


def ring_caption(result: Result) -> str:
    """Say what the picture of the ring shows, with its numbers."""
    ring, best = result.tables["ring"], int(result.numbers["best_block"].value or 0)
    shown = sum(_variance(ring))
    return (
        f"Centroids of the {result.task} at the last token, {result.model}, block {best}:\n"
        f"{shown:.0%} of the variance between centroids is shown, of {ring['k']} components in "
        f"use.\nLengths against behaviour lengths: r = {result.numbers['isometry_manifold']} along "
        f"the {shape_of(result)}, {result.numbers['isometry_chord']} straight."
    )


def outputs_caption(result: Result) -> str:
    """Say what the heat maps show, with their numbers."""
    numbers = result.numbers
    return (
        f"Path position. Held-out contexts, {result.model}, block "
        f"{int(numbers['best_block'].value or 0)}, mean over all starts; rows count from the "
        f"start.\nProbability of the concept passed: {numbers['p_passed_manifold']} along the "
        f"{shape_of(result)}, {numbers['p_passed_chord']} along the chord.\nDistance to natural "
        f"outputs, chord over {shape_of(result)}: {numbers['chord_over_manifold']}."
    )


def ring_page(result: Result) -> str:
    """Return one self-contained page: the ring to turn, the outputs, the blocks, the numbers."""
    figures = [_plotly_ring(result), _plotly_outputs(result), _plotly_blocks(result)]
    captions = [ring_caption(result), outputs_caption(result), ""]
    parts = [f'<p class="note">{result.provenance["question"]}</p>', claims_html(result)]
    parts.append(numbers_html([result]))
    for i, (figure, caption) in enumerate(zip(figures, captions, strict=True)):
        # The library is written into the page once, so that it needs no network.
        parts.append(figure.to_html(full_html=False, include_plotlyjs=i == 0))
        parts.append(f'<p class="note">{caption}</p>')
    parts.append(provenance_html(result))
    return page(f"{result.task} on {result.model}", "\n".join(parts))


def _label(axes: Any, points: np.ndarray, names: list[str]) -> None:
    """Write names beside points, outwards from the middle, lower where two would collide."""
    x, y, _ = proj3d.proj_transform(points[:, 0], points[:, 1], points[:, 2], axes.get_proj())
    seen = np.stack([np.asarray(x), np.asarray(y)], 1)
    away = seen - seen.mean(0)
    size = np.ptp(seen, axis=0).max()
    away = away / np.linalg.norm(away, axis=1, keepdims=True).clip(1e-9)
    for i, name in enumerate(names):
        near = np.linalg.norm(seen[:i] - seen[i], axis=1) < 0.05 * size
        side = "left" if away[i, 0] > 0.7 else "right" if away[i, 0] < -0.7 else "center"
        reach = (9, 13) if side == "center" else (9, 6)
        axes.annotate(
            name,
            seen[i],
            xytext=(reach[0] * away[i, 0], reach[1] * away[i, 1] - 13 * int(near.sum())),
            textcoords="offset points",
            fontsize=9,
            ha=side,
            va="center",
        )


def _profile(axes: Axes, result: Result, name: str) -> None:
    """Draw the distance at each waypoint, with the unsteered outputs' own as the floor."""
    values = result.tables["profiles"]["distant"][name]
    floor = result.numbers["natural_floor"].value or 0.0
    color = MANIFOLD if name == "manifold" else CHORD
    axes.plot(values, color=color, marker="o", ms=3)
    axes.axhline(floor, color=GREY, lw=1, ls="--")
    axes.text(len(values) - 1, floor, "unsteered", fontsize=8, color=GREY, ha="right", va="bottom")
    n = len(values) - 1
    axes.set_xticks([0, n / 2, n], ["start", "half of the way", "end"], fontsize=8)
    axes.margins(x=0.04)


def _bars(axes: Axes, result: Result) -> None:
    table = result.tables["distant"]
    names = [name for name in ARMS if name in table]
    values = [table[name]["hellinger"] for name in names]
    colors = [
        MANIFOLD if n.startswith("manifold") else CHORD if n.startswith("chord") else GREY
        for n in names
    ]
    axes.barh(range(len(names)), values, color=colors, height=0.66)
    for at, value in enumerate(values):
        axes.text(value, at, f" {value:.3f}", va="center", fontsize=8)
    axes.axvline(result.numbers["natural_floor"].value or 0.0, color="black", lw=0.8, ls="--")
    axes.set_yticks(range(len(names)), [ARMS[name] for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.15)
    axes.set_xlabel(
        "mean Hellinger distance to natural outputs\n(test contexts; dashed: unsteered)", fontsize=9
    )


def _plotly_ring(result: Result) -> go.Figure:
    ring, shape = result.tables["ring"], shape_of(result)
    figure = go.Figure()
    for key, color, label in (
        ("curve", GREY, f"the fitted {shape}"),
        ("manifold_path", MANIFOLD, f"along the {shape}"),
        ("chord_path", CHORD, "along the chord"),
    ):
        x, y, z = _three(ring[key]).T
        mode = "lines" if key == "curve" else "lines+markers"
        line = {"color": color, "width": 3 if key == "curve" else 6}
        marker = {"size": 3, "color": color}
        figure.add_scatter3d(x=x, y=y, z=z, mode=mode, line=line, marker=marker, name=label)
    x, y, z = _three(ring["centroids"]).T
    figure.add_scatter3d(
        x=x,
        y=y,
        z=z,
        mode="markers+text",
        text=_known(result),
        marker={"size": 4, "color": "black"},
        name="centroids",
    )
    titles = [f"component {n} ({v:.0%})" for n, v in enumerate(_variance(ring), 1)]
    titles += [""] * (3 - len(titles))
    figure.update_layout(
        title=f"The {shape}",
        height=620,
        scene={
            f"{axis}axis": {"title": {"text": t}} for axis, t in zip("xyz", titles, strict=True)
        },
    )
    return figure


def _plotly_outputs(result: Result) -> go.Figure:
    # plotly's subplots module is not loaded with the package.
    from plotly.subplots import make_subplots

    maps = result.tables["heat_maps"]
    titles = (f"outputs along the {shape_of(result)}", "outputs along the chord")
    figure = make_subplots(1, 2, subplot_titles=titles, shared_yaxes=True)
    share = [i / (len(maps["chord"][0]) - 1) for i in range(len(maps["chord"][0]))]
    for column, name in enumerate(("manifold", "chord"), 1):
        figure.add_heatmap(
            z=maps[name], x=share, y=_bin_names(result), coloraxis="coloraxis", row=1, col=column
        )
    top = max(max(row) for values in maps.values() for row in values)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="share of the way")
    figure.update_layout(
        height=520,
        coloraxis={"colorscale": SCALE, "cmin": 0, "cmax": top, "colorbar": {"title": "p"}},
    )
    return figure


def _plotly_blocks(result: Result) -> go.Figure:
    blocks, shape = result.tables["blocks"], shape_of(result)
    figure = go.Figure()
    for key, color, dash, label in (
        ("p_passed_manifold", MANIFOLD, "solid", f"{shape}: probability of the concept aimed at"),
        ("p_passed_chord", CHORD, "solid", "chord: the same"),
        ("manifold", MANIFOLD, "dot", f"{shape}: distance to natural outputs"),
        ("chord", CHORD, "dot", "chord: the same"),
        ("miss", GREY, "dash", f"{shape}: distance to the output aimed at (chooses)"),
    ):
        figure.add_scatter(
            x=[block["layer"] for block in blocks],
            y=[block[key] for block in blocks],
            line={"color": color, "dash": dash},
            name=label,
        )
    figure.add_vline(x=result.numbers["best_block"].value, line_width=1)
    figure.update_layout(
        title="Block by block, in train contexts, each held out in turn",
        xaxis_title="block",
        height=420,
    )
    return figure


def shape_of(result: Result) -> str:
    """Return what the concepts lie on: a ring or a line."""
    return "ring" if result.tables.get("closed", True) else "line"


def _known(result: Result) -> list[str]:
    """Return the names of the concepts that have a centroid."""
    names = result.tables["concepts"]
    return [names[z] for z in result.tables["ring"].get("known", range(len(names)))]


def _bin_names(result: Result) -> list[str]:
    if "heat_names" in result.tables:
        return list(result.tables["heat_names"])
    n = len(result.tables["concepts"])
    return ["start", *(f"+{i}" for i in range(1, n)), "other"]


def _variance(ring: dict[str, Any]) -> list[float]:
    return list(ring["variance"])


def _three(points: list[list[float]]) -> np.ndarray:
    """Return [point, 3], with zeros for components that there are not."""
    given = np.array(points)
    return np.pad(given, ((0, 0), (0, 3 - given.shape[1])))
