"""Pictures of maps, dose-responses and ROCs. plotly is optional and heavy: who draws imports it."""

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import plotly.graph_objects

Reading = tuple[float | None, float | None, float | None]
"""A value and the two ends of its interval; None where there is none."""
Point = tuple[float, Reading]
"""A factor, and what was read there."""

PROMINENT = "#2f74e0"
MUTED = ("#8b919a", "#a98544", "#4f9488", "#a06f98", "#8f6f5c")
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
THIN = "#8b919a"


def heat_map(
    values: NDArray[np.float64], *, rows: Sequence[str], columns: Sequence[str], title: str
) -> "plotly.graph_objects.Figure":
    """Return an interactive map, zero in white, the same scale on both sides of it.

    Args:
        values: [row, column]; NaN is left blank.
        rows: a name for each, the first at the bottom, as blocks are stacked.
        columns: a name for each.
        title: above it.
    """
    # Optional dependency (extra "plots"), a second to import.
    import plotly.graph_objects as go

    reach = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    picture = go.Heatmap(
        z=values,
        x=list(columns),
        y=list(rows),
        zmin=-reach,
        zmax=reach,
        colorscale="RdBu_r",
        hovertemplate="%{y}<br>%{x}<br>%{z:.3f}<extra></extra>",
    )
    height = max(320, 14 * len(rows) + 160)
    layout = go.Layout(
        title=title, template="plotly_white", height=height, xaxis_type="category", width=760
    )
    return go.Figure(picture, layout)


def bars(
    names: Sequence[str],
    values: NDArray[np.float64],
    ends: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    *,
    title: str,
) -> "plotly.graph_objects.Figure":
    """Return an interactive bar for each name, with its interval.

    Args:
        names: one for each bar, the first on top.
        values: [name]
        ends: of the intervals, [name] each; None draws none.
        title: above it.
    """
    # Optional dependency (extra "plots"), a second to import.
    import plotly.graph_objects as go

    error = None
    if ends is not None:
        error = {"type": "data", "array": ends[1] - values, "arrayminus": values - ends[0]}
    picture = go.Bar(x=values, y=list(names), orientation="h", error_x=error)
    layout = go.Layout(
        title=title,
        template="plotly_white",
        height=max(320, 16 * len(names) + 160),
        width=760,
        yaxis={"autorange": "reversed", "type": "category"},
    )
    return go.Figure(picture, layout)


def dose_response(
    factors: Sequence[float], lines: Mapping[str, Sequence[Reading]], *, own: str | None, unit: str
) -> "plotly.graph_objects.Figure":
    """Return a line with its band for each arm over the factor of the plan's strength.

    Backgrounds are clear, so that the figure stands on a light page and on a dark one. Names and
    unit are text: what looks like markup in them is shown as it is.

    Args:
        factors: in any order; 0 is the model without the plan.
        lines: by arm, a reading at each factor.
        own: the arm of the plan, drawn above the others; None draws all alike.
        unit: of the readings.
    """
    # Optional dependency (extra "plots"), a second to import.
    import plotly.graph_objects as go

    others = [arm for arm in sorted(lines) if arm != own]
    looks = {arm: _look(rank, dashed=own is not None) for rank, arm in enumerate(others)}
    if own is not None:
        looks[own] = _Look(PROMINENT, "solid", 3.0)
    traces = []
    for arm, look in looks.items():
        points = sorted(zip(factors, lines[arm], strict=True), key=lambda point: point[0])
        traces += [go.Scatter(_band(points, look)), go.Scatter(_line(arm, points, look))]
    layout = {
        **_layout("factor of the plan's strength", unit, list(lines)),
        **_zero_mark(factors),
        "hovermode": "x unified",
    }
    return go.Figure(traces, go.Layout(layout))


def roc_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> "plotly.graph_objects.Figure":
    """Return the ROC curves of some monitors, with the diagonal of chance.

    Args:
        curves: by name, (false-positive rates, true-positive rates).
    """
    # Optional dependency (extra "plots"), a second to import.
    import plotly.graph_objects as go

    colors = (PROMINENT, *MUTED[1:])
    traces = []
    for rank, name in enumerate(sorted(curves)):
        look = _Look(colors[rank % len(colors)], "solid", 2.4)
        traces.append(_roc_line(name, *curves[name], look))
    traces.append(_roc_line("chance", [0.0, 1.0], [0.0, 1.0], _Look(THIN, "dash", 1.2)))
    unit = {"range": [-0.01, 1.01], "constrain": "domain", "dtick": 0.2}
    layout = go.Layout(_layout("false-positive rate", "true-positive rate", [*curves, "chance"]))
    layout.update(xaxis=unit, yaxis={**unit, "scaleanchor": "x"})
    return go.Figure([go.Scatter(trace) for trace in traces], layout)


def plotly_js() -> str:
    """Return the script that draws figures in a browser: 5 MB, to stand once in a page."""
    # Optional dependency (extra "plots"), a second to import.
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


class _Look(NamedTuple):
    color: str
    dash: str
    width: float


def _look(rank: int, *, dashed: bool) -> _Look:
    dash = DASHES[rank % len(DASHES)] if dashed else "solid"
    return _Look(MUTED[rank % len(MUTED)], dash, 1.8)


def _zero_mark(factors: Sequence[float]) -> dict[str, object]:
    """Return the line at factor 0, named above the picture where no curve crosses the words."""
    line = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper"}
    words = {"text": "without the plan", "x": 0, "y": 1, "yref": "paper", "yanchor": "bottom"}
    low, high = min([0.0, *factors]), max([0.0, *factors])
    share = -low / (high - low) if high > low else 0.5
    # Centred words would be cut off at the edge of the figure.
    side = "left" if share < 0.15 else "right" if share > 0.85 else "center"
    return {
        # Between: below the curves, above the grid line at 0.
        "shapes": [{**line, "layer": "between", "line": {"color": THIN, "width": 1.2}}],
        "annotations": [{**words, "xanchor": side, "showarrow": False, "font": {"size": 11}}],
    }


def _line(arm: str, points: Sequence[Point], look: _Look) -> dict[str, object]:
    return {
        "x": [factor for factor, _ in points],
        "y": [reading[0] for _, reading in points],
        "name": _text(arm, 32),
        "legendrank": 1 if look.color == PROMINENT else 2,
        "mode": "lines+markers",
        "line": look._asdict(),
        "marker": {"size": 3 + 1.5 * look.width},
        "text": [_told(reading) for _, reading in points],
        "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
    }


def _band(points: Sequence[Point], look: _Look) -> dict[str, object]:
    """Return a polygon for each run of points with an interval: a gap stays a gap."""
    x: list[float | None] = []
    y: list[float | None] = []
    for known, run in groupby(points, key=lambda point: None not in point[1]):
        if not known:
            continue
        there = list(run)
        back = there[::-1]
        x += [factor for factor, _ in there + back] + [None]
        y += [lo for _, (_, lo, _) in there] + [hi for _, (_, _, hi) in back] + [None]
    return {
        "x": x,
        "y": y,
        "mode": "lines",
        "fill": "toself",
        # An outline, because the polygon of a point alone has no area.
        "line": {"color": look.color, "width": 0.6},
        "fillcolor": f"rgba({_rgb(look.color)},{0.2 if look.color == PROMINENT else 0.12})",
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _roc_line(
    name: str, false: Sequence[float], true: Sequence[float], look: _Look
) -> dict[str, object]:
    return {
        "x": list(false),
        "y": list(true),
        "name": _text(name, 32),
        "mode": "lines",
        "line": look._asdict(),
        "hovertemplate": "%{x:.3g}, %{y:.3g}<extra>%{fullData.name}</extra>",
    }


def _layout(x: str, y: str, names: Sequence[str]) -> dict[str, object]:
    # The legend takes its lines from the picture's height; in a narrow figure few names share one.
    in_one = sum(len(name) + 6 for name in names) <= 52
    lines = 1 if in_one else sum(_text(name, 32).count("<br>") + 1 for name in names)
    title = {"standoff": 8, "font": {"size": 13}}
    axis = {"zeroline": False, "automargin": True, "gridcolor": "#e3e5e8"}
    return {
        "template": "plotly_white",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "height": 362 + 18 * min(lines, 12),
        "margin": {"l": 56, "r": 16, "t": 16, "b": 44},
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.08, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "#1c1e21", "font": {"color": "#ffffff"}, "namelength": -1},
        "xaxis": {**axis, "title": {**title, "text": x}},
        "yaxis": {**axis, "title": {**title, "text": _text(y, 36)}},
    }


def _text(name: str, width: int) -> str:
    """Return a name as text for plotly, which reads some HTML; long ones are broken into lines."""
    lines = textwrap.wrap(name, width) or [name]
    return "<br>".join(escape(line, quote=False) for line in lines)


def _told(reading: Reading) -> str:
    value, lo, hi = reading
    if value is None:
        return ""
    return f"{value:.3g}" if lo is None or hi is None else f"{value:.3g} [{lo:.3g}, {hi:.3g}]"


def _rgb(color: str) -> str:
    return ",".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))
