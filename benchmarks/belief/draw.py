"""Draw belief results: phase diagrams with the data on them, curves, errors, realised targets.

Made from the result alone. Imported only when something is drawn: matplotlib belongs to the extra
`plots`.
"""

from pathlib import Path
from typing import Any

import matplotlib.colors
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from benchmarks.result import Result

OURS, OTHER, GREY = "#0b6e8f", "#c8531c", "#8a9096"
"""Told apart in grey and by the colour-blind as well."""
ODDS, STRENGTH = "RdBu_r", "viridis"
ARMS = {
    "controller": (OURS, "-", "controller"),
    "fixed": (OTHER, "-", "best fixed strength"),
    "shuffled evidence": (GREY, "--", "evidence shuffled (control)"),
    "random direction": (GREY, ":", "random direction (control)"),
}


def draw_sentiment(result: Result, path: Path) -> list[Path]:
    """Draw a result of `belief_sentiment` beside its file; return the files written."""
    return [
        _save(phase_figure(result), path, "phase"),
        _save(curves_figure(result), path, "curves"),
        _save(errors_figure(result), path, "errors"),
    ]


def draw_persona(result: Result, path: Path) -> list[Path]:
    """Draw a result of `belief_persona` beside its file; return the file written."""
    return [_save(personas_figure(result), path, "personas")]


def draw_controller(result: Result, path: Path) -> list[Path]:
    """Draw a result of `controller` beside its file; return the file written."""
    return [_save(targets_figure(result), path, "targets")]


def phase_figure(result: Result) -> matplotlib.figure.Figure:
    """Return predicted log-odds over evidence and strength, the measured ones as filled circles.

    A circle vanishes where the prediction is right.
    """
    grids = result.tables["grids"]
    reach = max(float(np.abs(grid["log_odds"]).max()) for grid in grids.values())
    norm = matplotlib.colors.Normalize(-reach, reach)
    figure = matplotlib.figure.Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
    picture = None
    for axes, (name, grid) in zip(panels, grids.items(), strict=True):
        fit = grid["fits"]["law"]
        n, m = np.array(fit["fine_evidence"]), np.array(fit["fine_strength"])
        phase = np.array(fit["phase"])
        picture = axes.pcolormesh(m, _shown(n), phase, cmap=ODDS, norm=norm, shading="nearest")
        axes.contour(m, _shown(n), phase, levels=[0.0], colors="black", linewidths=1.4)
        at_m, at_n = np.meshgrid(grid["strength"], _shown(np.array(grid["evidence"])))
        axes.scatter(
            at_m,
            at_n,
            c=np.array(grid["log_odds"]),
            cmap=ODDS,
            norm=norm,
            s=34,
            edgecolors="black",
            linewidths=0.5,
        )
        for end in fit["valid"]:
            axes.axvline(end, color="black", lw=1, ls="--")
        axes.set_xlim(m.min() - 0.08, m.max() + 0.08)
        axes.set_xlabel("strength (mean differences)", fontsize=9)
        axes.set_title(
            f"{name} contexts: a {fit['a'][0]:.2f}, b {fit['b']:.2f}, gamma {fit['gamma']:.2f}, "
            f"alpha {fit['alpha']:.2f} ({fit['form']})",
            fontsize=9,
        )
    ticks = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128])
    panels[0].set_yticks(_shown(ticks), [str(n) for n in ticks])
    panels[0].set_ylabel("statements in the context", fontsize=9)
    if picture is not None:
        figure.colorbar(picture, ax=panels, label="log-odds of the context's own side (nats)")
    figure.supxlabel(
        "Colour: the law; circles: measured, means of all questions; black line: even odds; "
        "dashed: where the fit says that it holds.",
        fontsize=8,
    )
    figure.suptitle(f"{result.task} on {result.model}", fontsize=11)
    return figure


def curves_figure(result: Result) -> matplotlib.figure.Figure:
    """Return the curves in evidence, one for each strength, each predicted without that strength.

    Below the same with little evidence predicting much, where that was measured.
    """
    held, further = result.tables["held"], result.tables["further"]
    rows = 2 if further else 1
    figure = matplotlib.figure.Figure(figsize=(10.4, 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, len(held), squeeze=False, sharey=True)
    for row, (found, what) in enumerate(
        ((held, "that strength held out"), (further, "more evidence held out"))[:rows]
    ):
        for axes, (name, one) in zip(panels[row], found.items(), strict=True):
            grid = result.tables["grids"][name]
            n = np.array(grid["evidence"])[-len(one["observed"]) :]
            _curves(axes, n, one)
            axes.set_title(f"{name} contexts, {what}", fontsize=9)
            axes.set_xlabel("statements in the context", fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("log-odds (nats)", fontsize=9)
    r, mae = result.numbers["r_held_strength"], result.numbers["mae_nats"]
    figure.suptitle(
        f"{result.task} on {result.model}: dots measured, lines predicted (dashed: where the fit "
        f"does not claim to hold); r {r}, error {mae} nats",
        fontsize=9,
    )
    return figure


def errors_figure(result: Result) -> matplotlib.figure.Figure:
    """Return the error of the law and of every baseline at held-out strengths."""
    errors = {k: v for k, v in result.tables["errors"].items() if k != "law everywhere"}
    names = sorted(errors, key=lambda name: errors[name])
    figure = matplotlib.figure.Figure(figsize=(7.6, 1.4 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    colors = [OURS if name.startswith("law") else GREY for name in names]
    axes.barh(names, [errors[name] for name in names], color=colors, height=0.6)
    for at, name in enumerate(names):
        axes.annotate(f" {errors[name]:.2f}", (errors[name], at), va="center", fontsize=8)
    axes.axvline(0.5, color=OTHER, lw=1.2)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_xlabel(
        "mean error in nats, strengths held out in turn, where the law claims to hold; line: 0.5",
        fontsize=8,
    )
    axes.set_title(f"{result.task} on {result.model}", fontsize=10)
    return figure


def personas_figure(result: Result) -> matplotlib.figure.Figure:
    """Return the measured curves of every persona, both answers, one line for each strength."""
    grids, rows = result.tables["grids"], result.tables["personas"]
    figure = matplotlib.figure.Figure(figsize=(3.4 * len(grids), 5.6), layout="constrained")
    panels = figure.subplots(2, len(grids), squeeze=False, sharey=True)
    for column, (name, pair) in enumerate(grids.items()):
        for axes, grid, what in zip(panels[:, column], pair, ("its own", "opposite"), strict=True):
            colors = _colors(grid["strength"])
            for at, color in enumerate(colors):
                axes.plot(
                    _shown(np.array(grid["evidence"])),
                    np.array(grid["log_odds"])[:, at],
                    color=color,
                    marker="o",
                    ms=3,
                    lw=1,
                )
            axes.set_title(f"{name}, {what} answers", fontsize=8)
            axes.axhline(0, color=GREY, lw=0.8)
        row = rows[column]
        verdict = "told apart" if row["separable"] else "NOT told apart"
        panels[1, column].set_xlabel(
            f"answers in the context (log)\n{verdict}\nAUROC {row['auroc_zero_shot']}", fontsize=8
        )
    panels[0, 0].set_ylabel("log-odds of the context's answers (nats)", fontsize=8)
    figure.suptitle(f"{result.task} on {result.model}; colour: strength, dark least", fontsize=10)
    return figure


def targets_figure(result: Result) -> matplotlib.figure.Figure:
    """Return realised posteriors against targets, one line for each number of shots."""
    concepts = result.tables["concepts"]
    targets = np.array(result.tables["targets"])
    figure = matplotlib.figure.Figure(figsize=(10.8, 3.6 * len(concepts)), layout="constrained")
    panels = figure.subplots(len(concepts), len(ARMS), squeeze=False, sharex=True, sharey=True)
    for line, (name, one) in zip(panels, concepts.items(), strict=True):
        open_to = np.array(one["attainable"])
        colors = _colors(one["shots"])
        for axes, (arm, (_, _, label)) in zip(line, ARMS.items(), strict=True):
            found = one["posteriors"][arm]
            at_all = [at for at, row in enumerate(found) if row is not None]
            rows = np.array([found[at] for at in at_all])
            realised = np.where(open_to[at_all], rows, np.nan)
            axes.plot([0, 1], [0, 1], color=GREY, lw=1)
            for at, color in enumerate(colors):
                axes.plot(targets[at_all], realised[:, at], color=color, marker="o", ms=3, lw=1)
            axes.set_title(f"{label}\n{name} contexts", fontsize=8)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
        line[0].set_ylabel("realised posterior", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("target", fontsize=9)
    ours, fixed = result.numbers["mae_posterior"], result.numbers["fixed_mae_posterior"]
    figure.suptitle(
        f"{result.task} on {result.model}: error {ours}, best fixed strength {fixed}; refused "
        f"{result.numbers['refused_share']}; colour: shots, dark fewest",
        fontsize=9,
    )
    return figure


def _curves(axes: Axes, n: Any, one: dict[str, Any]) -> None:
    observed, predicted = np.array(one["observed"]), np.array(one["predicted"])
    for at, color in enumerate(_colors(one["strength"])):
        style = "-" if one["inside"][at] else "--"
        axes.plot(_shown(n), predicted[:, at], color=color, lw=1.2, ls=style)
        axes.plot(_shown(n), observed[:, at], color=color, ls="", marker="o", ms=3.5)
        axes.annotate(
            f"{one['strength'][at]:+g}",
            (_shown(n)[-1], predicted[-1, at]),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
            color=color,
        )
    axes.set_xticks(_shown(n), [f"{x:.0f}" for x in n], fontsize=7)
    axes.axhline(0, color=GREY, lw=0.8)


def _shown(n: Any) -> Any:
    """Return where evidence stands on an axis: its logarithm, with a place for none."""
    return np.log2(1 + np.asarray(n, float))


def _colors(values: Any) -> list[Any]:
    scale = matplotlib.colormaps[STRENGTH]
    return [scale(0.92 * at / max(1, len(values) - 1)) for at in range(len(values))]


def _save(figure: matplotlib.figure.Figure, path: Path, what: str) -> Path:
    file = Path(f"{path.with_suffix('')}_{what}.png")
    figure.savefig(file, dpi=130, facecolor="white")
    return file
