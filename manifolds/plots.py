"""Pictures of curves and surfaces: interactive ones (plotly) and a still one (matplotlib).

Both libraries are optional and heavy, so they are imported inside the functions: importing
`manifolds` imports neither. Numbers are made in `curve`; here they are only drawn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from manifolds.behavior.manifold import Behavior
from manifolds.curve import Curve
from manifolds.errors import ManifoldError
from manifolds.subspace import Subspace
from manifolds.surface import Surface

if TYPE_CHECKING:
    import matplotlib.figure
    import plotly.graph_objects

_PER_INTERVAL = 24
_MARGIN = {"l": 0, "r": 0, "t": 30, "b": 0}
_GRID = 48
"""Points of each drawn coordinate line of a surface."""
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


def plot_surface(
    surface: Surface,
    *,
    labels: Sequence[str] | None = None,
    paths: Mapping[str, Tensor] | None = None,
) -> "plotly.graph_objects.Figure":
    """Return an interactive figure of a surface's coordinate lines through its knots.

    In the first three coordinates of its subspace, in units of the activations. Of a surface with
    more than two coordinates the lines of the first two are drawn, at the middle of the others.

    Args:
        surface: what is drawn.
        labels: one name for each knot; their coordinates if None.
        paths: further lines by name, [point, d_model] each.

    Raises:
        ManifoldError: labels that are not as many as knots, or points of another width.
    """
    # Optional dependency (extra "plots"), a second to import.
    import plotly.graph_objects as go

    names = list(labels) if labels is not None else [_name(u) for u in surface.knots]
    if len(names) != len(surface.knots):
        raise ManifoldError(
            f"There are {len(names)} labels for {len(surface.knots)} knots. Give one label a knot, "
            "in the order of surface.knots."
        )
    knots = _three(surface.subspace, surface.decode(surface.knots))
    drawn = [
        go.Scatter3d(
            **_xyz(line),
            mode="lines",
            line={"color": "#8d99ae"},
            name="manifold",
            showlegend=i == 0,
        )
        for i, line in enumerate(_coordinate_lines(surface))
    ]
    marker = {"size": 4, "color": "#2b2d42"}
    drawn.append(
        go.Scatter3d(**_xyz(knots), mode="markers+text", name="classes", text=names, marker=marker)
    )
    for i, (name, points) in enumerate((paths or {}).items()):
        style = {"color": _COLORS[i % len(_COLORS)], "width": 5}
        seen = _three(surface.subspace, points)
        drawn.append(go.Scatter3d(**_xyz(seen), mode="lines+markers", name=name, line=style))
    return go.Figure(drawn, {"scene": _scene(), "margin": _MARGIN})


def plot_two_manifolds(
    curve: Curve,
    behavior: Behavior,
    *,
    labels: Sequence[str] | None = None,
    paths: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> "plotly.graph_objects.Figure":
    """Return activation and behaviour manifold side by side, two scenes that turn by themselves.

    Left M_h in the first three principal components of the activations; right M_y in those of the
    square roots of the outputs, seen from the tangent space at their mean.

    Args:
        curve: M_h.
        behavior: M_y, over the same coordinates.
        labels: one name for each class; their coordinates if None.
        paths: by name the points [point, d_model] of a path in activation space and its outputs
            [point, bin].

    Raises:
        ManifoldError: the two do not have the same knots, or labels are not as many.
    """
    from plotly.subplots import make_subplots

    if len(curve.knots) != len(behavior.knots):
        raise ManifoldError(
            f"The curve has {len(curve.knots)} knots and the behaviour {len(behavior.knots)}, so "
            "their classes do not correspond. Fit both on the same classes."
        )
    titles = ("activations: M_h", "outputs: M_y")
    figure = make_subplots(1, 2, specs=[[{"type": "scene"}] * 2], subplot_titles=titles)
    for trace in _ring(curve, curve.knots, labels):
        figure.add_trace(trace, 1, 1)
    for trace in _ring(behavior.tangent, behavior.knots, labels):
        figure.add_trace(trace.update(showlegend=False), 1, 2)
    for i, (name, (points, outputs)) in enumerate((paths or {}).items()):
        color = _COLORS[i % len(_COLORS)]
        left = _three(curve.subspace, points)
        right = _three(behavior.tangent.subspace, behavior.tangents(outputs))
        for column, seen in ((1, left), (2, right)):
            figure.add_trace(_path(name, seen, color, column == 1), 1, column)
    scene = _scene()
    return figure.update_layout(scene=scene, scene2=scene, margin=_MARGIN, legend={"y": 0.5})


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
    seen = {name: _three(curve.subspace, points) for name, points in paths.items()}
    return _Lines(_three(curve.subspace, marked), names, _around(curve), seen)


def _around(curve: Curve) -> Tensor:
    """Return points [point, 3] close to each other along a whole curve."""
    first, last = float(curve.breaks[0]), float(curve.breaks[-1])
    n = _PER_INTERVAL * (len(curve.breaks) - 1) + 1
    around = curve.decode(torch.linspace(first, last, n, device=curve.breaks.device))
    return _three(curve.subspace, around)


def _three(subspace: Subspace, points: Tensor) -> Tensor:
    """Return the first three coordinates of points [point, d_model], zeros where there are less."""
    coordinates = subspace.coordinates(points).detach().cpu()[:, :3]
    return torch.nn.functional.pad(coordinates, (0, 3 - coordinates.shape[1]))


def _ring(curve: Curve, knots: Tensor, labels: Sequence[str] | None) -> list:
    import plotly.graph_objects as go

    names = list(labels) if labels is not None else [f"{u:g}" for u in knots.tolist()]
    if len(names) != len(knots):
        raise ManifoldError(
            f"There are {len(names)} labels for {len(knots)} knots. Give one label a knot, in "
            "increasing u."
        )
    grey = {"color": "#8d99ae"}
    marker = {"size": 4, "color": "#2b2d42"}
    line, classes = _around(curve), _three(curve.subspace, curve.decode(knots))
    return [
        go.Scatter3d(**_xyz(line), mode="lines", name="manifold", line=grey),
        go.Scatter3d(
            **_xyz(classes), mode="markers+text", name="classes", text=names, marker=marker
        ),
    ]


def _path(name: str, points: Tensor, color: str, legend: bool) -> "plotly.graph_objects.Scatter3d":
    import plotly.graph_objects as go

    return go.Scatter3d(
        **_xyz(points),
        mode="lines+markers",
        name=name,
        line={"color": color, "width": 5},
        marker={"size": 3, "color": color},
        legendgroup=name,
        showlegend=legend,
    )


def _coordinate_lines(surface: Surface) -> list[Tensor]:
    """Return the lines [point, 3] on which one of the first two coordinates is that of a knot."""
    lower, upper = surface.axes.lower.cpu(), surface.axes.upper.cpu()
    middle = (lower + upper) / 2
    found = []
    for moving, fixed in ((0, 1), (1, 0)):
        steps = torch.linspace(0, 1, _GRID).to(lower)
        along = lower[moving] + steps * (upper[moving] - lower[moving])
        for at in surface.knots[:, fixed].cpu().unique():
            u = middle.repeat(_GRID, 1)
            u = u.index_fill(1, torch.tensor([fixed]), float(at))
            u = torch.where(torch.arange(surface.dim) == moving, along[:, None], u)
            found.append(_three(surface.subspace, surface.decode(u.to(surface.knots))))
    return found


def _name(u: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in u.tolist())


def _xyz(points: Tensor) -> dict[str, list[float]]:
    return {axis: points[:, i].tolist() for i, axis in enumerate("xyz")}


def _scene() -> dict[str, object]:
    axes = {f"{axis}axis": {"title": {"text": f"PC {i + 1}"}} for i, axis in enumerate("xyz")}
    return {**axes, "aspectmode": "data"}
