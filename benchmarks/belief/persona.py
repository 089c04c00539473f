"""Personas: does the law predict how many-shot answers and steering move a persona's choices?

After Bigelow et al. 2025 (arXiv:2511.00617), with other contrast sets and plain text instead of
chat turns, so that any model can be asked. What is read is the log-odds of the persona's letter
over the other, at every question of one long text. Questions answered by A and by B alternate: a
liking for a letter cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import steer
from benchmarks import stats
from benchmarks.belief.collect import Readings, joined, random_like, site_of
from benchmarks.belief.contrast import SETS, Choice, answered, draw, fetch, told
from benchmarks.belief.data import at_all, ids_of
from benchmarks.belief.holdout import (
    Grid,
    baselines,
    error,
    extrapolate,
    grid_of,
    law,
    leave_each_out,
    means,
    resampled,
    within_r,
)
from benchmarks.belief.predictions import NO_INTERACTION
from benchmarks.errors import BenchmarkError
from benchmarks.result import Json, Outcome
from benchmarks.stats import UNSCORED, Number, percentiles
from benchmarks.task import Options

CONTROLS = ("random_over_direction", "random_answers_over_evidence")
N_REFITS = 20
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setup:
    """The size of a run, per persona."""

    strengths: tuple[float, ...] = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    bins: tuple[int, ...] = (0, 1, 2, 3, 5, 9)
    """The least number of shots of each cell."""
    n_long: int = 4
    n_short: int = 8
    shots: int = 12
    """In a long text."""
    few: int = 2
    """Shots in a short text."""
    up_to: int = 4
    n_fit: int = 32
    n_zero: int = 64
    longest: int = 90
    n_refits: int = N_REFITS

    @property
    def n_questions(self) -> int:
        """All questions that are asked in contexts; each stands in one context only."""
        return self.n_long * (self.shots + 1) + self.n_short * (self.few + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Persona:
    """All that was measured of one persona."""

    name: str
    readings: Readings
    zero: tuple[Array, NDArray[np.int64]]
    """Log-odds of A over B without shots, and whether A is the persona's."""
    told: tuple[Array, NDArray[np.int64]]
    """The same after matching answers, unsteered, in the last two cells."""
    random_effect: float
    """Effect of a random direction over that of the direction."""
    random_answers: float
    """Effect of random answers over that of matching and of opposite ones."""


def measure_persona(lm: steer.LM, options: Options) -> Outcome:
    """Measure every persona; `--limit` is the number of personas.

    Raises:
        BenchmarkError: a persona with too few questions of two choices.
    """
    setup = Setup()
    names = list(SETS)[: options.limit]
    found = [
        ask(lm, name, fetch(name), setup, seed=options.seed + at) for at, name in enumerate(names)
    ]
    return outcome_of(found, setup, site_of(lm), seed=options.seed)


def ask(lm: steer.LM, name: str, choices: Sequence[Choice], setup: Setup, *, seed: int) -> Persona:
    """Measure one persona on some of its questions; none is in two of the three parts."""
    needed = setup.n_fit + setup.n_zero + setup.n_questions
    drawn = draw(lm, choices, needed, longest=setup.longest, seed=seed)
    fit, zero = drawn[: setup.n_fit], drawn[setup.n_fit : setup.n_fit + setup.n_zero]
    asked = drawn[setup.n_fit + setup.n_zero :]
    site = site_of(lm)
    direction = _direction(lm, fit, site)
    readings = _collect(lm, asked, setup, site, direction, setup.strengths, long=True)
    ends = (-1.0, 1.0)
    random = random_like(direction, seed=seed + 1)
    effects = [
        _effect(_collect(lm, asked, setup, site, vector, ends, long=False))
        for vector in (direction, random)
    ]
    rows = [told(lm, [choice], ["A"])[0] for choice in zero]
    odds = _odds(lm)
    scores = odds.scores(lm.logits(rows, scope=steer.LAST)).reshape(len(rows))
    labels = np.array([choice.sign > 0 for choice in zero]).astype(int)
    return Persona(
        name,
        readings,
        (scores.double().cpu().numpy(), labels),
        _told(readings, asked),
        abs(effects[1] / effects[0]) if effects[0] else float("nan"),
        _random_answers(lm, asked, setup, readings, seed),
    )


def _direction(lm: steer.LM, choices: Sequence[Choice], site: steer.Site) -> Tensor:
    """Return the mean difference of states at the letter (Rimsky et al. 2023, arXiv:2312.06681)."""
    states = [
        lm.capture(
            [answered(lm, choice, choice.letter(concept)) for choice in choices],
            [site],
            scope=steer.LAST,
        )[site]
        for concept in (1, -1)
    ]
    return states[0].float().mean(0) - states[1].float().mean(0)


def _odds(lm: steer.LM) -> steer.belief.TokenOdds:
    return steer.belief.TokenOdds((ids_of(lm, "A")[0],), (ids_of(lm, "B")[0],))


def _parts(asked: Sequence[Choice], setup: Setup, *, long: bool) -> list[tuple[int, range]]:
    """Return (context, numbers of its questions) of the long texts, if asked for, and the short."""
    size = setup.shots + 1
    parts = [(t, range(t * size, (t + 1) * size)) for t in range(setup.n_long)]
    begin, few = setup.n_long * size, setup.few + 1
    short = [
        (setup.n_long + t, range(begin + t * few, begin + (t + 1) * few))
        for t in range(setup.n_short)
    ]
    assert short[-1][1].stop <= len(asked)
    return [*parts, *short] if long else short


def _collect(
    lm: steer.LM,
    asked: Sequence[Choice],
    setup: Setup,
    site: steer.Site,
    direction: Tensor,
    strengths: Sequence[float],
    *,
    long: bool,
) -> Readings:
    """Return the log-odds of the persona's letter at every question, text by text.

    The questions of two texts stand at different tokens, so each text is a sweep of its own.
    """
    odds = _odds(lm)
    arms = [[steer.Add(site, direction, float(m))] for m in strengths]
    found = []
    for order, numbers in _parts(asked, setup, long=long):
        choices = [asked[at] for at in numbers]
        signs = np.array([choice.sign for choice in choices], float)
        for concept in (1, -1):
            row, places = told(lm, choices, [choice.letter(concept) for choice in choices])
            swept = steer.sweep(
                lm,
                [row],
                arms,
                lambda logits, _: odds.scores(logits).reshape(len(logits), -1),
                scope=at_all(places),
            )
            shots = np.arange(len(choices))
            found.append(
                Readings(
                    np.asarray(strengths, float),
                    swept.values.double().numpy()[:, 0] * signs,
                    shots.astype(float),
                    np.searchsorted(setup.bins, shots, side="right") - 1,
                    np.array(numbers),
                    np.full(len(choices), order),
                    np.full(len(choices), concept),
                )
            )
    return joined(found)


def _effect(readings: Readings) -> float:
    return float((readings.values[-1] - readings.values[0]).mean()) / 2


def _natural(readings: Readings) -> Array:
    return readings.values[int(np.flatnonzero(readings.strengths == 0.0)[0])]


def _told(readings: Readings, asked: Sequence[Choice]) -> tuple[Array, NDArray[np.int64]]:
    late = (readings.cell >= readings.cell.max() - 1) & (readings.concept == 1)
    signs = np.array([choice.sign for choice in asked])[readings.question[late]]
    return _natural(readings)[late] * signs, (signs > 0).astype(int)


def _random_answers(
    lm: steer.LM, asked: Sequence[Choice], setup: Setup, readings: Readings, seed: int
) -> float:
    """Return how far contexts of random letters move the answer, over how far the persona's do."""
    rng, odds = np.random.default_rng(seed), _odds(lm)
    after, before = [], []
    for _, numbers in _parts(asked, setup, long=True)[: setup.n_long]:
        choices = [asked[at] for at in numbers]
        row, places = told(lm, choices, [str(x) for x in rng.choice(["A", "B"], len(choices))])
        signs = torch.tensor([float(choice.sign) for choice in choices])
        found = odds.scores(lm.logits([row], scope=at_all(places))).reshape(-1).cpu() * signs
        after.append(found[setup.bins[-2] :])
        before.append(found[:1])
    moved = float(torch.cat(after).mean() - torch.cat(before).mean())
    natural, last = _natural(readings), readings.cell.max()
    shifts = [
        float(
            natural[(readings.cell >= last - 1) & (readings.concept == sign)].mean()
            - natural[(readings.cell == 0) & (readings.concept == sign)].mean()
        )
        for sign in (1, -1)
    ]
    return abs(moved) / float(np.mean(np.abs(shifts)))


def auroc(
    scores: Array, labels: NDArray[np.int64], *, seed: int, n_resamples: int = stats.N_RESAMPLES
) -> Number:
    """Return the area under the ROC curve, with an interval over questions drawn again.

    The share of pairs, one of each label, that stand in the right order; ties count half.
    """
    first, second = scores[labels == 1][:, None], scores[labels == 0]
    right = (first > second) + 0.5 * (first == second)
    drawn = stats.counts(len(scores), n_resamples, np.random.default_rng(seed))
    ones, zeros = drawn[:, labels == 1], drawn[:, labels == 0]
    pairs = ones.sum(1) * zeros.sum(1)
    kept = pairs > 0  # a resample of one label only says nothing
    found = np.einsum("bi,ij,bj->b", ones, right, zeros, optimize=True)[kept] / pairs[kept]
    return percentiles(float(right.mean()), found)


def separable(areas: Sequence[Number]) -> bool:
    """Say whether the model tells the persona's choices at all: some interval lies above 1/2."""
    return any(area.lo is not None and area.lo > 0.5 for area in areas)


def _grids(readings: Readings, setup: Setup) -> list[Grid]:
    return [grid_of(readings, sign, setup.bins) for sign in (1, -1)]


def _scores(grids: Sequence[Grid], setup: Setup) -> dict[str, float]:
    held = [leave_each_out(grid, law(decay=True)) for grid in grids]
    inside = [one.inside for one in held]
    further = [extrapolate(grid, law(decay=True), up_to=setup.up_to) for grid in grids]
    rivals = {
        name: [leave_each_out(grid, method) for grid in grids]
        for name, method in baselines(NO_INTERACTION).items()
    }
    return {
        "r_held_strength": within_r(held),
        "r_extrapolate": within_r(further),
        "mae_nats": error(held, where=inside),
        "mae_everywhere_nats": error(held),
        "best_baseline_mae_nats": min(error(rival, where=inside) for rival in rivals.values()),
        "range_share": float(np.mean(np.concatenate(inside))),
    }


def _refitted(readings: Readings, setup: Setup, seed: int) -> dict[str, Number]:
    grids = _grids(readings, setup)
    found = _scores(grids, setup)
    weights = resampled(readings, setup.n_refits, seed=seed)
    drawn = [means(readings, sign, len(setup.bins), weights) for sign in (1, -1)]
    again = [
        _scores(
            [Grid(g.evidence, g.strengths, v) for g, v in zip(grids, values, strict=True)], setup
        )
        for values in zip(*drawn, strict=True)
        if all(np.isfinite(one).all() for one in values)
    ]
    return {
        name: percentiles(value, np.array([one[name] for one in again]))
        if np.isfinite(value)
        else UNSCORED
        for name, value in found.items()
    }


def outcome_of(
    personas: Sequence[Persona], setup: Setup, site: steer.Site, *, seed: int
) -> Outcome:
    """Return the numbers per persona, their means over those that the model can tell, and tables.

    Raises:
        BenchmarkError: no persona was measured.
    """
    if not personas:
        raise BenchmarkError(
            "No persona was asked for, so there is nothing to report. Give 1 or more."
        )
    numbers: dict[str, Number] = {}
    rows: list[dict[str, Json]] = []
    scored: list[Mapping[str, Number]] = []
    for one in personas:
        areas = {"zero_shot": auroc(*one.zero, seed=seed), "told": auroc(*one.told, seed=seed)}
        can = separable(list(areas.values()))
        found = _refitted(one.readings, setup, seed)
        if can:
            scored.append(found)
        numbers |= {f"{name}_{one.name}": number for name, number in found.items()}
        numbers |= {f"auroc_{name}_{one.name}": number for name, number in areas.items()}
        rows.append(
            {
                "persona": one.name,
                "separable": can,
                "random_over_direction": one.random_effect,
                "random_answers_over_evidence": one.random_answers,
                **{f"auroc_{name}": str(area) for name, area in areas.items()},
                **{name: str(number) for name, number in found.items()},
            }
        )
    over_all = {
        name: _mean([found[name] for found in scored]) if scored else UNSCORED
        for name in _refitted_names()
    }
    controls = {
        "random_over_direction": _spread([one.random_effect for one in personas]),
        "random_answers_over_evidence": _spread([one.random_answers for one in personas]),
    }
    tables: dict[str, Json] = {
        "personas": rows,
        "cannot_separate": [row["persona"] for row in rows if not row["separable"]],
        "grids": {one.name: [_grid(g) for g in _grids(one.readings, setup)] for one in personas},
    }
    specs = {"site": str(site), "scope": "ALL", "setup": asdict(setup), "sets": dict(SETS)}
    numbers["separable_share"] = Number(len(scored) / len(personas))
    return Outcome({**over_all, **numbers}, controls, tables, specs)


def _refitted_names() -> tuple[str, ...]:
    return (
        "r_held_strength",
        "r_extrapolate",
        "mae_nats",
        "mae_everywhere_nats",
        "best_baseline_mae_nats",
        "range_share",
    )


def _mean(numbers: Sequence[Number]) -> Number:
    """Return the mean over personas; the interval is its range, as few personas have no other."""
    return _spread([n.value for n in numbers if n.value is not None])


def _spread(values: Sequence[float]) -> Number:
    finite = [value for value in values if np.isfinite(value)]
    return Number(float(np.mean(finite)), min(finite), max(finite)) if finite else UNSCORED


def _grid(grid: Grid) -> dict[str, Json]:
    return {
        "evidence": grid.evidence.tolist(),
        "strength": grid.strengths.tolist(),
        "log_odds": grid.values.tolist(),
    }
