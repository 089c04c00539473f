"""The picture of `methods`: effect at equal damage, and effect against damage at the answer."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.methods.numbers import COMPARED_WITH, METHODS
from benchmarks.result import Result

SHOWN = (*METHODS[:6], "mean_difference_output", "prompting", "shuffled", "opposite")
LABELS = {
    "mean_difference_output": "mean difference\n(output tokens)",
    "manifold": "manifold\n(output tokens)",
    "prompting": "prompting\n(no budget)",
    "ablation": "ablation\n(whole)",
    "shuffled": "control: shuffled labels",
    "opposite": "control: opposite sign",
}


def draw_methods(result: Result, path: Path) -> list[Path]:
    """Draw effects with intervals over the random bands, and beside them effect against damage."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _effects(left, result)
    _against_damage(right, result)
    figure.suptitle(f"{result.model}: steering methods at equal damage")
    file = path.with_suffix(".png")
    figure.savefig(file, dpi=150)
    return [file]


def _effects(axes: Axes, result: Result) -> None:
    numbers = {**result.numbers, **result.controls}
    above = result.tables["above_random"]
    for row, name in enumerate(SHOWN):
        one, band = numbers[name], numbers[COMPARED_WITH.get(name, "random")]
        axes.fill_betweenx(
            [row - 0.42, row + 0.42],
            band.lo,
            band.hi,
            color="0.87",
            linewidth=0,
            label="a random direction (95 %)" if row == 0 else None,
        )
        axes.errorbar(
            one.value,
            row,
            xerr=[[one.value - one.lo], [one.hi - one.value]],
            fmt="o" if above[name] else "o",
            color=_colour(name),
            markerfacecolor=_colour(name) if above[name] else "white",
            capsize=3,
        )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(SHOWN)), [_label(name) for name in SHOWN])
    axes.invert_yaxis()
    axes.set(
        xlabel="effect on the log-odds of the target answer (nats)",
        title="95 % of tokens within 1 nat; filled: above random",
    )
    axes.legend(loc="lower right", fontsize=8)


def _against_damage(axes: Axes, result: Result) -> None:
    numbers = {**result.numbers, **result.controls}
    for name in SHOWN:
        kl, one = numbers[f"{name}_answer_kl"], numbers[name]
        axes.errorbar(
            kl.value,
            one.value,
            xerr=[[kl.value - kl.lo], [kl.hi - kl.value]],
            yerr=[[one.value - one.lo], [one.hi - one.value]],
            fmt="o",
            color=_colour(name),
            alpha=0.9,
            linewidth=0.8,
        )
        axes.annotate(
            name.replace("_", " "),
            (kl.value, one.value),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
            color=_colour(name),
        )
    for marker, control in (("x", "random"), ("+", "random_output")):
        points = _draws(result, control)
        axes.scatter(
            [kl for kl, _ in points],
            [effect for _, effect in points],
            marker=marker,
            color="0.5",
            label=f"{control.replace('_', ' ')}, one direction",
        )
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_xscale("log")
    axes.set(
        xlabel="KL at the answer, held-out questions (nats)",
        ylabel="effect (nats)",
        title="the same against one scale of damage",
    )
    axes.legend(loc="lower left", fontsize=8)


def _draws(result: Result, control: str) -> list[tuple[float, float]]:
    """Return (damage, effect) of each random direction, averaged over behaviours."""
    behaviours = list(result.tables["behaviours"].values())
    arms = [arm for arm in behaviours[0] if arm.split(" ")[0] == control]
    return [
        (
            sum(one[arm]["answer_kl"] for one in behaviours) / len(behaviours),
            sum(one[arm]["value"] for one in behaviours) / len(behaviours),
        )
        for arm in arms
    ]


def _colour(name: str) -> str:
    if name in ("shuffled", "opposite"):
        return "0.45"
    return f"C{[shown for shown in SHOWN].index(name)}"


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))
