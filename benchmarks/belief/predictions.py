"""The held-out predictions of one measured grid: the law, its rivals, and their intervals.

Pure arrays in, numbers and tables out. What is held out and how it is scored is in `holdout`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

import steer
from benchmarks.belief.collect import Readings
from benchmarks.belief.data import Design
from benchmarks.belief.holdout import (
    UP_TO,
    Grid,
    Held,
    Method,
    baselines,
    error,
    extrapolate,
    fit_form,
    grid_of,
    law,
    leave_each_out,
    means,
    paper_law,
    resampled,
    within_r,
)
from benchmarks.result import Json
from benchmarks.stats import UNSCORED, Number, percentiles

CONCEPTS: Mapping[str, int] = {"positive": 1, "negative": -1}
INNER = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
OUTER = (-2.0, -1.5, 1.5, 2.0)
PARAMETRIC = ("no_discount", "additive_in_probability")
NO_INTERACTION = (*PARAMETRIC, "monotone_spline")
"""The baselines in which evidence and strength do not interact. The spline is additive as the law
is, with a number for each strength and each amount of evidence instead of a formula."""
N_SHUFFLES = 5
N_REFITS = 20
"""Refits on resampled questions, for the intervals."""

DESIGN = Design()

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setup:
    """The size of a run."""

    design: Design = DESIGN
    inner: tuple[float, ...] = INNER
    outer: tuple[float, ...] = OUTER
    neutral: tuple[int, ...] = (4, 16)
    up_to: int = UP_TO
    n_refits: int = N_REFITS

    @property
    def strengths(self) -> tuple[float, ...]:
        """All of them, in order."""
        return tuple(sorted((*self.inner, *self.outer)))


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a method says of cells that it has not seen; one entry per concept."""

    every: Sequence[Held]
    """Each strength left out in turn."""
    strengths: Sequence[Held]
    """The inner ones of them."""
    further: Sequence[Held]
    """Evidence beyond `Setup.up_to`."""


def grids_of(readings: Readings, setup: Setup) -> list[Grid]:
    """Return the grid of each concept."""
    return [grid_of(readings, sign, setup.design.evidence) for sign in CONCEPTS.values()]


def predict(grids: Sequence[Grid], method: Method, setup: Setup) -> Predictions:
    """Predict each inner strength from all others, and more evidence from less, at inner ones."""
    inner = np.isin(grids[0].strengths, setup.inner)
    every = [leave_each_out(grid, method) for grid in grids]
    further = []
    if max(setup.design.evidence) > setup.up_to:
        further = [extrapolate(grid.columns(inner), method, up_to=setup.up_to) for grid in grids]
    return Predictions(every, [held.columns(inner) for held in every], further)


def predictions_of(
    readings: Readings, setup: Setup, *, seed: int
) -> tuple[dict[str, Number], dict[str, Json]]:
    """Return the numbers of the law and its baselines, and the tables that show them.

    The law is fitted with its validity decay, in the form of evidence that fits the cells it is
    shown, and errors count where that fit claims to hold. Each baseline is given its better chance:
    fitted on all strengths, or on the inner ones only.
    """
    grids = grids_of(readings, setup)
    ours = predict(grids, law(decay=True), setup)
    inside = [held.inside for held in ours.strengths]
    others = {
        name: _better(grids, method, setup, inside)
        for name, method in baselines(sorted(steer.belief.BASELINES)).items()
    }
    undecayed = predict(grids, law(decay=False), setup)
    others["law without decay"] = undecayed
    others["law of the paper"] = predict(grids, paper_law(decay=False), setup)
    others["law of the paper with decay"] = predict(grids, paper_law(decay=True), setup)
    errors = {name: error(p.strengths, where=inside) for name, p in others.items()}
    best = min(NO_INTERACTION, key=lambda name: errors[name])
    formula = min(PARAMETRIC, key=lambda name: errors[name])
    found = _scores(ours, undecayed, others[best], others[formula])
    again = _refits(readings, setup, (best, formula), seed)
    numbers = {
        name: percentiles(value, np.array([one[name] for one in again]))
        if np.isfinite(value)
        else UNSCORED
        for name, value in found.items()
    }
    tests = {name: _additivity(readings, sign, setup) for name, sign in CONCEPTS.items()}
    numbers["additivity_p"] = Number(min(1.0, len(tests) * min(p for p, _ in tests.values())))
    for name, (p, _) in tests.items():
        numbers[f"additivity_p_{name}"] = Number(p)
    tables: dict[str, Json] = {
        "grids": {name: _table(grid, setup) for name, grid in zip(CONCEPTS, grids, strict=True)},
        "held": {
            name: _held_table(held) for name, held in zip(CONCEPTS, ours.strengths, strict=True)
        },
        "further": {
            name: _held_table(held) for name, held in zip(CONCEPTS, ours.further, strict=False)
        },
        "errors": {
            "law": error(ours.strengths, where=inside),
            "law everywhere": error(ours.strengths),
            **dict(sorted(errors.items(), key=lambda pair: pair[1])),
        },
        "errors_further": {
            name: error(p.further) for name, p in {"law": ours, **others}.items() if p.further
        },
        "best_baseline": best,
        "best_formula": formula,
        "additivity": {name: text for name, (_, text) in tests.items()},
    }
    return numbers, tables


def _better(
    grids: Sequence[Grid], method: Method, setup: Setup, inside: Sequence[NDArray[np.bool_]]
) -> Predictions:
    """Return a method's predictions, from all strengths or from the inner ones: the better."""
    inner = np.isin(grids[0].strengths, setup.inner)
    tried = [predict(grids, method, setup)]
    if not inner.all():
        tried.append(predict([grid.columns(inner) for grid in grids], method, setup))
    return min(tried, key=lambda found: error(found.strengths, where=inside))


def _scores(
    ours: Predictions, plain: Predictions, best: Predictions, formula: Predictions
) -> dict[str, float]:
    """Return all numbers that are refitted for their intervals.

    Args:
        ours: of the law with its validity decay.
        plain: of the law without, on the same strengths.
        best: of the best baseline without interaction.
        formula: of the best of them that is a formula, as the law is.
    """
    inside = [held.inside for held in ours.strengths]
    mae = error(ours.strengths, where=inside)
    baseline = error(best.strengths, where=inside)
    found = {
        "r_held_strength": within_r(ours.strengths),
        "r_extrapolate": within_r(ours.further) if ours.further else float("nan"),
        "mae_nats": mae,
        "mae_everywhere_nats": error(ours.strengths),
        "mae_extrapolate_nats": error(ours.further) if ours.further else float("nan"),
        "best_baseline_mae_nats": baseline,
        "over_best_baseline": mae / baseline,
        "formula_baseline_mae_nats": error(formula.strengths, where=inside),
        "over_formula_baseline": mae / error(formula.strengths, where=inside),
        "range_share": float(np.mean(np.concatenate(inside))),
        "decay_over_plain": _decay_over_plain(ours.every, plain.every),
    }
    for name, held, mask in zip(CONCEPTS, ours.strengths, inside, strict=True):
        found[f"r_held_strength_{name}"] = within_r([held])
        found[f"mae_nats_{name}"] = error([held], where=[mask])
    return found


def _decay_over_plain(decayed: Sequence[Held], plain: Sequence[Held]) -> float:
    """Return the error of the law with decay over that without, outside the validity range.

    Both are fitted on all strengths but one; the range is the one that the law with decay states.
    """
    outside = [~held.inside for held in decayed]
    return error(decayed, where=outside) / error(plain, where=outside)


def _refits(
    readings: Readings, setup: Setup, rivals: Sequence[str], seed: int
) -> list[dict[str, float]]:
    """Return the scores of refits on resampled questions."""
    weights = resampled(readings, setup.n_refits, seed=seed)
    whole = grids_of(readings, setup)
    n_cells = len(setup.design.evidence)
    drawn = [means(readings, sign, n_cells, weights) for sign in CONCEPTS.values()]
    methods = [baselines([name])[name] for name in rivals]
    found = []
    for values in zip(*drawn, strict=True):
        if not all(np.isfinite(one).all() for one in values):
            continue
        grids = [
            Grid(grid.evidence, grid.strengths, one)
            for grid, one in zip(whole, values, strict=True)
        ]
        ours = predict(grids, law(decay=True), setup)
        plain = predict(grids, law(decay=False), setup)
        inside = [held.inside for held in ours.strengths]
        best, formula = (_better(grids, method, setup, inside) for method in methods)
        found.append(_scores(ours, plain, best, formula))
    return found


def _additivity(readings: Readings, concept: int, setup: Setup) -> tuple[float, str]:
    """Return the p-value of the test of additivity at the inner strengths, and what it says."""
    mine = readings.where(readings.concept == concept).at(np.isin(readings.strengths, setup.inner))
    n = len(mine.evidence)
    data = steer.belief.data_of(
        np.tile(mine.evidence, len(mine.strengths)),
        np.repeat(mine.strengths, n),
        (concept * mine.values).ravel(),
        question=np.tile(mine.question, len(mine.strengths)),
    )
    found = steer.belief.additivity(data)
    return found.p, repr(found)


def shuffled(readings: Readings, setup: Setup, *, seed: int) -> dict[str, Number]:
    """Return how well a held-out strength is predicted where strengths are given at random.

    What correlation is left is that of the evidence alone.
    """
    rng = np.random.default_rng(seed)
    inner = np.isin(readings.strengths, setup.inner)
    grids = [grid.columns(inner) for grid in grids_of(readings, setup)]
    rs, errors = [], []
    for _ in range(N_SHUFFLES):
        order = rng.permutation(len(grids[0].strengths))
        mixed = [Grid(grid.evidence, grid.strengths, grid.values[:, order]) for grid in grids]
        held = [leave_each_out(grid, law(decay=False)) for grid in mixed]
        rs.append(within_r(held))
        errors.append(error(held))
    return {
        "shuffled_strength_r": percentiles(float(np.mean(rs)), np.array(rs)),
        "shuffled_strength_mae_nats": percentiles(float(np.mean(errors)), np.array(errors)),
    }


def _table(grid: Grid, setup: Setup) -> dict[str, Json]:
    """Return a grid and the whole fit on it, for the pictures."""
    evidence, strength, log_odds = grid.cells()
    fits = {}
    for name, decay in (("law", True), ("law without decay", False)):
        belief = fit_form(evidence, strength, log_odds, decay=decay)
        low, high = float(grid.strengths.min()), float(grid.strengths.max())
        fine = torch.linspace(low, high, 81)
        # Even steps of log(1 + N), as the pictures show it.
        many = torch.linspace(0, float(np.log1p(grid.evidence[-1])), 90).expm1()
        fits[name] = {
            "a": torch.as_tensor(belief.a).reshape(-1).tolist(),
            "b": float(belief.b),
            "gamma": float(belief.gamma),
            "alpha": float(belief.alpha),
            "form": belief.form,
            "valid": list(belief.valid or (low, high)),
            "says": repr(belief),
            "fine_strength": fine.tolist(),
            "fine_evidence": many.tolist(),
            "phase": belief.phase(many, fine).tolist(),
            "curves": belief.phase(many, torch.as_tensor(grid.strengths)).tolist(),
        }
    return {
        "evidence": grid.evidence.tolist(),
        "strength": grid.strengths.tolist(),
        "inner": list(setup.inner),
        "log_odds": grid.values.tolist(),
        "fits": fits,
    }


def _held_table(held: Held) -> dict[str, Json]:
    return {
        "strength": held.strength.tolist(),
        "observed": held.observed.tolist(),
        "predicted": held.predicted.tolist(),
        "inside": held.inside.tolist(),
    }
