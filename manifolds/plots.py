"""Pictures of curves: an interactive one (plotly) and a still one (matplotlib).

Both libraries are optional and heavy, so they are imported inside the functions: importing
`manifolds` imports neither. Numbers are made in `curve`; here they are only drawn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from manifolds.curve import Curve
from manifolds.errors import ManifoldError

if TYPE_CHECKING:
    import matplotlib.figure
    import plotly.graph_objects

_PER_INTERVAL = 24
_COLORS = ("#d1495b", "#00798c", "#edae49", "#30638e", "#003d5b")


class _Lines(NamedTuple):
    """What both pictures show, in the first three coordinates: the knots, the curve, the paths."""

    knots: Tensor
    names: list[str]
    curve: Tensor
    paths: dict[str, Tensor]


def plot_curve(
    curve: Curve,
    *,
    centroids: Tensor | None = None,
    labels: Sequence[str] | None = None,
    paths: Mapping[str, Tensor] | None = None,
) -> "plotly.graph_objects.Figure":
    """Return an interactive figure of the curve in the first three coordinates of its subspace.

    Args:
        curve: what is drawn; the axes are in units of the activations.
        centroids: [knot, d_model] points to mark; the curve's own points at its knots if None.
        labels: one name for each of them, in increasing u; their coordinates if None.
        paths: further lines by name, [point, d_model] each, such as `curve.decode(curve.path(...))`
            and the chord.

    Raises:
        ManifoldError: labels that are not as many as points, or points of another width.
    """
    # Optional dependency (extra "plots"), a second to import.
    import plotly.graph_objects as go

    lines = _lines(curve, centroids, labels, paths or {})

    def xyz(points: Tensor) -> dict[str, list[float]]:
        return {axis: points[:, i].tolist() for i, axis in enumerate("xyz")}

    drawn = [
        go.Scatter3d(**xyz(lines.curve), mode="lines", name="manifold", line={"color": "#8d99ae"}),
        go.Scatter3d(
            **xyz(lines.knots),
            mode="markers+text",
            name="classes",
            text=lines.names,
            marker={"size": 4, "color": "#2b2d42"},
        ),
    ]
    for i, (name, points) in enumerate(lines.paths.items()):
        style = {"color": _COLORS[i % len(_COLORS)], "width": 5}
        marker = {"size": 3, "color": _COLORS[i % len(_COLORS)]}
        drawn.append(
            go.Scatter3d(**xyz(points), mode="lines+markers", name=name, line=style, marker=marker)
        )
    axes = {f"{axis}axis": {"title": {"text": f"PC {i + 1}"}} for i, axis in enumerate("xyz")}
    layout = {"scene": {**axes, "aspectmode": "data"}, "margin": {"l": 0, "r": 0, "t": 30, "b": 0}}
    return go.Figure(drawn, layout)


def draw_curve(
    curve: Curve,
    *,
    centroids: Tensor | None = None,
    labels: Sequence[str] | None = None,
    paths: Mapping[str, Tensor] | None = None,
) -> "matplotlib.figure.Figure":
    """Return a still figure of the curve, seen along its third coordinate and along its second.

    The arguments are those of `plot_curve`. It belongs to no window: `figure.savefig("ring.png")`.

    Raises:
        ManifoldError: labels that are not as many as points, or points of another width.
    """
    # Optional dependency (extra "plots"), a second to import. No pyplot: it would keep state.
    from matplotlib.figure import Figure

    lines = _lines(curve, centroids, labels, paths or {})
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    for ax, (i, j) in zip(figure.subplots(1, 2), ((0, 1), (0, 2)), strict=True):
        ax.plot(*lines.curve[:, [i, j]].T.tolist(), color="#8d99ae", label="manifold")
        ax.scatter(*lines.knots[:, [i, j]].T.tolist(), color="#2b2d42", s=16, zorder=3)
        for name, point in zip(lines.names, lines.knots.tolist(), strict=True):
            ax.annotate(name, (point[i], point[j]), xytext=(3, 3), textcoords="offset points")
        for n, (name, points) in enumerate(lines.paths.items()):
            color = _COLORS[n % len(_COLORS)]
            ax.plot(*points[:, [i, j]].T.tolist(), ".-", color=color, label=name)
        ax.set(xlabel=f"PC {i + 1}", ylabel=f"PC {j + 1}")
        ax.set_aspect("equal", adjustable="datalim")
    figure.axes[0].legend(loc="best", frameon=False)
    return figure


def _lines(
    curve: Curve,
    centroids: Tensor | None,
    labels: Sequence[str] | None,
    paths: Mapping[str, Tensor],
) -> _Lines:
    """Return all points to draw, in three coordinates on the CPU."""
    marked = curve.decode(curve.knots) if centroids is None else centroids
    names = list(labels) if labels is not None else [f"{u:g}" for u in curve.knots.tolist()]
    if len(names) != len(marked):
        raise ManifoldError(
            f"There are {len(names)} labels for {len(marked)} points, so some point would go "
            f"without a name or have the wrong one. Give one label a point; the {len(curve.knots)} "
            "knots of the curve are in increasing u."
        )
    first, last = float(curve.breaks[0]), float(curve.breaks[-1])
    n = _PER_INTERVAL * (len(curve.breaks) - 1) + 1
    around = curve.decode(torch.linspace(first, last, n, device=curve.breaks.device))
    seen = {name: _three(curve, points) for name, points in paths.items()}
    return _Lines(_three(curve, marked), names, _three(curve, around), seen)


def _three(curve: Curve, points: Tensor) -> Tensor:
    """Return the first three coordinates of points [point, d_model], zeros where there are less."""
    coordinates = curve.subspace.coordinates(points).detach().cpu()[:, :3]
    return torch.nn.functional.pad(coordinates, (0, 3 - coordinates.shape[1]))
