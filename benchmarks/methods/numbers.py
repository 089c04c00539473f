"""From answers to numbers: effects with intervals, damage, controls, and what beats chance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.methods.asking import Answers, Values
from benchmarks.methods.calibrating import Calibrated
from benchmarks.stats import N_RESAMPLES, Number, counts, percentiles

METHODS = (
    "mean_difference",
    "single_pair",
    "pca",
    "ablation",
    "rotation",
    "manifold",
    "prompting",
)
BESIDE = ("mean_difference_output", "mean_difference_quarter")
"""The mean difference where the curve acts, and at a quarter of the budget."""
CONTROLS = ("random", "random_output", "random_quarter", "shuffled", "opposite")
COMPARED_WITH = {
    "manifold": "random_output",
    "mean_difference_output": "random_output",
    "mean_difference_quarter": "random_quarter",
}
"""The random control of a method; `random` for all others."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A behaviour's answers under all arms."""

    name: str
    answers: Answers
    calibrated: Mapping[str, Calibrated]
    opposite: float
    """Damage of the opposite on texts: it has the factor of the mean difference, not its own."""

    def draws(self, name: str) -> list[str]:
        """Return the arms of a name: several of a random control."""
        arms = self.answers.arms
        return [name] if name in arms else [arm for arm in arms if arm.split(" ")[0] == name]

    def effects(self, name: str) -> Values:
        """Return [draw, question]."""
        return np.stack([self.answers.effect(arm) for arm in self.draws(name)])

    def damages(self, name: str) -> Values:
        """Return [draw, question]: KL at the token of the answer."""
        return np.stack([self.answers.damage(arm) for arm in self.draws(name)])

    def against(self, name: str) -> Values:
        """Return [draw, question]: 1 where the log-odds went the wrong way."""
        return (self.effects(name) < 0).astype(float)

    def reached(self, name: str) -> list[float]:
        """Return the damage on texts; nothing for what has none there."""
        known = self.calibrated
        if name == "opposite":
            return [self.opposite]
        return [known[arm].suggestion.kl for arm in self.draws(name) if arm in known]


def averaged(grids: Sequence[Values], seed: int, n_resamples: int = N_RESAMPLES) -> Number:
    """Return the mean over behaviours of [draw, question], and its interval.

    Questions are resampled within a behaviour, alike for every arm. Where there are several draws,
    each resample takes one of them in each behaviour: the interval is then that of one arbitrary
    direction, not of the mean direction, which would be too narrow to compare a method with.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(n_resamples)
    for grid in grids:
        n_draws, n = grid.shape
        weights = counts(n, n_resamples, rng) / n
        drawn = rng.integers(n_draws, size=n_resamples)
        total += np.einsum("bq,bq->b", weights, grid[drawn])
    value = float(np.mean([grid.mean() for grid in grids]))
    return percentiles(value, total / len(grids))


def numbers_of(
    compared: Sequence[Compared], seed: int
) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return numbers and controls; `_kl` has the range over behaviours instead of an interval."""
    sides: list[dict[str, Number]] = []
    for names in (METHODS + BESIDE, CONTROLS):
        side: dict[str, Number] = {}
        for name in names:
            side[name] = _over(compared, Compared.effects, name, seed)
        for name in names:
            side[f"{name}_kl"] = _range([kl for one in compared for kl in one.reached(name)])
        for name in names:
            side[f"{name}_answer_kl"] = _over(compared, Compared.damages, name, seed)
        for name in names:
            side[f"{name}_anti_steerable"] = _over(compared, Compared.against, name, seed)
        sides.append(side)
    return sides[0], sides[1]


def beyond(number: Number, control: Number) -> tuple[bool, bool]:
    """Return whether an interval lies wholly above, and wholly below, that of a control."""
    assert number.lo is not None
    assert number.hi is not None
    assert control.lo is not None
    assert control.hi is not None
    return number.lo > control.hi, number.hi < control.lo


def tables_of(
    compared: Sequence[Compared],
    numbers: Mapping[str, Number],
    controls: Mapping[str, Number],
    seed: int,
) -> dict[str, object]:
    """Return what beats the random directions, and everything by behaviour."""
    names = (*METHODS, *BESIDE, "shuffled", "opposite")
    every = {**numbers, **controls}
    sides = {name: beyond(every[name], every[COMPARED_WITH.get(name, "random")]) for name in names}
    return {
        "above_random": {name: above for name, (above, _) in sides.items()},
        "below_random": {name: below for name, (_, below) in sides.items()},
        "compared_with": {name: COMPARED_WITH.get(name, "random") for name in names},
        "behaviours": {one.name: _by_arm(one, seed) for one in compared},
        "unsteered": {one.name: float(one.answers.log_odds[0].mean()) for one in compared},
    }


def _by_arm(one: Compared, seed: int) -> dict[str, dict[str, object]]:
    """Return an arm's effect, damage and calibration."""
    rows: dict[str, dict[str, object]] = {}
    for arm in one.answers.arms[1:]:
        effect = averaged([one.answers.effect(arm)[None]], seed)
        rows[arm] = {
            **effect.to_json(),
            "answer_kl": float(one.answers.damage(arm).mean()),
            "anti_steerable": float((one.answers.effect(arm) < 0).mean()),
        }
        if arm in one.calibrated:
            known = one.calibrated[arm].suggestion
            rows[arm] |= {
                "kl": known.kl,
                "factor": known.factor,
                "reached": known.reached,
                "budget": known.budget,
                "tokens": known.n_tokens,
            }
    return rows


def _over(
    compared: Sequence[Compared], what: Callable[[Compared, str], Values], name: str, seed: int
) -> Number:
    return averaged([what(one, name) for one in compared], seed)


def _range(values: Sequence[float]) -> Number:
    """Return the mean and the range; unscored where nothing was calibrated."""
    if not values:
        return Number(None)
    return Number(float(np.mean(values)), float(min(values)), float(max(values)))
