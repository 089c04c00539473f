"""Pictures of maps. plotly is optional and heavy: it is imported by whoever draws."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import plotly.graph_objects


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
