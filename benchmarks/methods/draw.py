"""The picture of `methods`: effect at equal damage, and effect against damage at the answer."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.methods.numbers import COMPARED_WITH, METHODS
from benchmarks.result import Result
from benchmarks.stats import Number

SHOWN = (*METHODS[:6], "mean_difference_output", "prompting", "shuffled", "opposite")
LEFT = ("pca", "shuffled")
LABELS = {
    "manifold": "manifold, output tokens",
    "mean_difference_output": "mean difference,\noutput tokens",
    "shuffled": "control: shuffled labels",
    "opposite": "control: opposite sign",
}
COLOURS = {name: f"C{k}" for k, name in zip((0, 1, 2, 3, 4, 5, 6, 9), SHOWN, strict=False)}
CONTROL = "0.45"


def draw_methods(result: Result, path: Path) -> list[Path]:
    """Draw effects with intervals over the random bands, and beside them effect against damage."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    _effects(left, result)
    _against_damage(right, result)
    budget = result.provenance.get("specs", {}).get("budget", 1.0)
    figure.suptitle(
        f"{result.model}: steering methods where 95 % of tokens move by at most {budget:g} nat"
    )
    file = path.with_suffix(".png")
    figure.savefig(file, dpi=150)
    return [file]


def _effects(axes: Axes, result: Result) -> None:
    numbers = {**result.numbers, **result.controls}
    above = result.tables["above_random"]
    for row, name in enumerate(SHOWN):
        _, lo, hi = _parts(numbers[COMPARED_WITH.get(name, "random")])
        label = "where a random direction lies (95 %)" if row == 0 else None
        axes.fill_betweenx([row - 0.45, row + 0.45], lo, hi, color="0.88", lw=0, label=label)
        value, lo, hi = _parts(numbers[name])
        colour = COLOURS.get(name, CONTROL)
        axes.errorbar(
            value,
            row,
            xerr=[[value - lo], [hi - value]],
            fmt="o",
            color=colour,
            markerfacecolor=colour if above[name] else "white",
            capsize=3,
        )
    axes.plot([], [], "o", color="0.2", label="interval wholly above it")
    axes.plot([], [], "o", color="0.2", markerfacecolor="white", label="not above it")
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(SHOWN)), [_label(result, name) for name in SHOWN])
    axes.invert_yaxis()
    axes.set(
        xlabel="effect on the log-odds of the target answer (nats)",
        title="Effect at equal damage, held-out questions",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.11), ncols=3, fontsize=8, frameon=False)


def _against_damage(axes: Axes, result: Result) -> None:
    numbers = {**result.numbers, **result.controls}
    for name in SHOWN:
        colour = COLOURS.get(name, CONTROL)
        x, left, right = _parts(numbers[f"{name}_answer_kl"])
        y, lo, hi = _parts(numbers[name])
        spread = ([[x - left], [right - x]], [[y - lo], [hi - y]])
        axes.errorbar(x, y, xerr=spread[0], yerr=spread[1], fmt="o", color=colour, lw=0.8)
        left_of = name in LEFT  # its neighbour writes to the right
        axes.annotate(
            name.replace("_", " "),
            (x, y),
            xytext=(-6 if left_of else 5, -3 if left_of else 4),
            ha="right" if left_of else "left",
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )
    for marker, control in (("x", "random"), ("+", "random_output")):
        points = np.array(_draws(result, control))
        label = f"{control.replace('_', ', ')}: one direction each"
        axes.scatter(points[:, 0], points[:, 1], marker=marker, color="0.3", label=label)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(right=4 * axes.get_xlim()[1])  # for the names
    axes.set(
        xlabel="KL at the token of the answer, same questions (nats)",
        ylabel="effect (nats)",
        title="One scale of damage for all",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2, fontsize=8, frameon=False)


def _draws(result: Result, control: str) -> list[tuple[float, float]]:
    """Return (damage, effect) of each random direction, averaged over behaviours."""
    behaviours = list(result.tables["behaviours"].values())
    arms = [arm for arm in behaviours[0] if arm.split(" ")[0] == control]
    return [
        (
            float(np.mean([one[arm]["answer_kl"] for one in behaviours])),
            float(np.mean([one[arm]["value"] for one in behaviours])),
        )
        for arm in arms
    ]


def _parts(number: Number) -> tuple[float, float, float]:
    """Return value and interval; NaN, which is not drawn, for what is missing."""
    value, lo, hi = (
        np.nan if x is None else float(x) for x in (number.value, number.lo, number.hi)
    )
    return value, lo, hi


def _label(result: Result, name: str) -> str:
    """Return a method's name, and its damage on texts where that is not the budget."""
    label = LABELS.get(name, name.replace("_", " "))
    kl = {**result.numbers, **result.controls}[f"{name}_kl"].value
    if kl is None:
        return f"{label}\n(no strength to set)"
    return label if abs(kl - 1) < 0.05 else f"{label}\n(reaches {kl:.2g} nat)"
