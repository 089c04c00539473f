"""Draw the energies of all arms with their intervals, and write out the claims.

Matplotlib only; the other pictures and the page they stand on are in `draw`.
"""

from html import escape
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from benchmarks.result import Result

MANIFOLD, CHORD, GREY = "#0b6e8f", "#c8531c", "#8a9096"
"""Colours of the two paths everywhere; told apart in grey and by the colour-blind as well."""
ARMS = {
    "manifold": "manifold, subspace",
    "chord": "chord, subspace",
    "manifold_replaced": "manifold, replaced",
    "chord_replaced": "chord, replaced",
    "additive": "mean difference added",
    "random_path": "random path (control)",
    "random_length": "random, equal length (control)",
    "permuted": "wrong order (control)",
    "mixture": "geometric mixture (control)",
}


def energies_figure(result: Result) -> matplotlib.figure.Figure:
    """Return energies by arm, distant and adjacent pairs apart, the pull-back, and the claims."""
    tables: Any = result.tables
    figure = matplotlib.figure.Figure(figsize=(13.6, 7.0), layout="constrained")
    above: Any
    below: Any
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False)[:, 0]
    left, right, pulled = above.subplots(1, 3, width_ratios=(1, 1, 0.8))
    for axes, kind in ((left, "distant"), (right, "adjacent")):
        _bars(axes, tables["energies"][kind])
        axes.set_title(f"{kind} pairs", fontsize=10)
    _pulled(pulled, tables, float(result.controls["pullback_r2_random"].value or 0.0))
    best = int(result.numbers["best_block"].value or 0)
    above.suptitle(f"{result.task}, {result.model}, block {best}, held-out contexts", fontsize=10)
    below.text(
        0.01, 0.98, _claims_text(tables["claims"]), fontsize=8, va="top", family="DejaVu Sans"
    )
    return figure


def claims_html(result: Result) -> str:
    """Return the claims as a table; nothing for a result that was kept without them."""
    claims = result.tables.get("claims")
    if claims is None:
        return ""
    rows = "".join(
        f"<tr><td>{'holds' if one['holds'] else '<b>does not hold</b>'}</td>"
        f'<td>{escape(one["claim"])}</td><td class="value">{escape(one["seen"])}</td></tr>'
        for one in claims
    )
    return f"<table><tr><th>verdict</th><th>claim</th><th>seen</th></tr>{rows}</table>"


def _bars(axes: Axes, energies: dict[str, dict[str, float | None]]) -> None:
    names = [name for name in ARMS if name in energies]
    found = np.array([[float(energies[n][k] or 0.0) for k in ("value", "lo", "hi")] for n in names])
    colors = [
        MANIFOLD if n.startswith("manifold") else CHORD if n.startswith("chord") else GREY
        for n in names
    ]
    spread = np.abs(found[:, 1:] - found[:, :1]).T
    axes.barh(range(len(names)), found[:, 0], xerr=spread, color=colors, height=0.66, ecolor="#333")
    floor = float(energies["unsteered"]["value"] or 0.0)
    axes.axvline(floor, color="black", lw=0.8, ls="--")
    axes.set_yticks(range(len(names)), [ARMS[name] for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, float(found.max()) * 1.08)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("energy in nats, summed over the path (dashed: unsteered)", fontsize=9)


def _pulled(axes: Axes, tables: dict[str, Any], random: float) -> None:
    """Draw how much of each pulled-back path lies on the ring or line, beside chord and random."""
    table, concepts = tables["pullback"], tables["concepts"]
    places = range(len(table["starts"]))
    axes.plot(places, table["r2"], "o", color=MANIFOLD, label="pulled back")
    axes.plot(places, table["r2_chord"], "o", color=CHORD, label="chord, where it began")
    axes.axhline(random, color=GREY, lw=1.2, ls="--", label="random paths as long, mean")
    axes.set_xticks(places, [concepts[start] for start in table["starts"]], fontsize=7, rotation=30)
    axes.set_ylim(min(0.0, *table["r2"], *table["r2_chord"]), 1.02)
    axes.set_ylabel("R2 on the manifold's path", fontsize=9)
    axes.set_title("pull-back, from each start half-way", fontsize=10)
    axes.legend(fontsize=7, loc="best")


def _claims_text(claims: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{'holds' if one['holds'] else 'DOES NOT HOLD'}: {one['claim']}\n        {one['seen']}"
        for one in claims
    )
