"""The controller: is a posterior that is asked for reached, whatever the context holds?

A belief per concept is fitted on train contexts and train questions. On other contexts and other
questions each row is steered with the strength that the belief asks for, given how many statements
its context holds, and compared with the best strength that is the same for all contexts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import steer
from benchmarks import stats
from benchmarks.belief.collect import (
    Readings,
    collect,
    fit_direction,
    joined,
    odds_of,
    random_like,
    site_of,
)
from benchmarks.belief.data import (
    Design,
    SentimentItems,
    Text,
    choose_items,
    row_of,
    texts_of,
)
from benchmarks.belief.holdout import Grid, fit_form, grid_of
from benchmarks.belief.predictions import CONCEPTS
from benchmarks.errors import BenchmarkError
from benchmarks.result import Json, Outcome
from benchmarks.stats import Number, percentiles
from benchmarks.task import Options

CONTROLS = ("shuffled_evidence_mae_posterior", "random_mae_posterior", "unsteered_mae_posterior")
TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TRAIN_DESIGN = Design(many=(32, 64), groups=10, width=2)
STRENGTHS = (-2.0, -1.25, -0.8, -0.4, 0.0, 0.4, 0.8, 1.25, 2.0)
SHOTS = {0: 12, 1: 12, 2: 12, 4: 12, 8: 12, 16: 12, 32: 6, 64: 6}
"""Statements in a test context -> how many such contexts, each with a question of its own."""

CONTROL_ARMS = ("shuffled evidence", "random direction")

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setup:
    """The size of a run."""

    train: Design = TRAIN_DESIGN
    strengths: tuple[float, ...] = STRENGTHS
    targets: tuple[float, ...] = TARGETS
    shots: tuple[tuple[int, int], ...] = tuple(SHOTS.items())
    every: int = 4
    """The controls are measured at one target in so many: they cost as much as what they check."""

    def measured(self, arm: str) -> tuple[int, ...]:
        """Return the numbers of the targets at which an arm is measured."""
        step = self.every if arm in CONTROL_ARMS else 1
        return tuple(range(0, len(self.targets), step))


@dataclass(frozen=True, slots=True, eq=False)
class Dosed:
    """The test rows of one concept, their doses, and what came; all [target, row] but the last."""

    attainable: NDArray[np.bool_]
    doses: Array
    fixed: Array
    posteriors: Mapping[str, Array]
    """By arm: the realised probability of the concept."""
    shots: NDArray[np.int64]
    """[row]"""
    question: NDArray[np.int64]
    """[row]"""


def measure_controller(lm: steer.LM, options: Options) -> Outcome:
    """Fit on train contexts, steer test contexts; `--limit` is the largest number of shots.

    Raises:
        BenchmarkError: too small a limit, or a tokenizer that splits the words.
    """
    setup = Setup()
    if options.limit is not None:
        setup = replace(
            setup, shots=tuple((n, rows) for n, rows in setup.shots if n <= options.limit)
        )
    return run_controller(lm, choose_items(lm, seed=options.seed), setup, options)


def run_controller(lm: steer.LM, items: SentimentItems, setup: Setup, options: Options) -> Outcome:
    """Fit and steer with given words.

    Raises:
        BenchmarkError: too few questions for train and test.
    """
    seed, site = options.seed, site_of(lm)
    train, test = split(items, setup.train.n_questions)
    direction = fit_direction(lm, items, site, seed=seed)
    beliefs, grids = _fitted(lm, train, setup, site, direction, seed)
    dosed = {
        name: _steered(lm, test, setup, belief, (site, direction), (grids[name], sign), seed)
        for (name, sign), belief in zip(CONCEPTS.items(), beliefs.values(), strict=True)
    }
    numbers, controls = _numbers(list(dosed.values()), setup, seed)
    tables: dict[str, Json] = {
        "targets": list(setup.targets),
        "concepts": {name: _table(one) for name, one in dosed.items()},
        "beliefs": {name: repr(belief) for name, belief in beliefs.items()},
    }
    specs = {
        "site": str(site),
        "scope": "ALL",
        "unit": "raw mean difference of contexts, positive minus negative",
        "norm": float(direction.norm()),
        "intervention": steer.belief.identity(site, direction),
        "train": asdict(setup.train),
        "strengths": list(setup.strengths),
        "shots": [list(pair) for pair in setup.shots],
        "items": asdict(items),
    }
    return Outcome(numbers, controls, tables, specs)


def split(items: SentimentItems, n_train: int) -> tuple[SentimentItems, SentimentItems]:
    """Return the words with the train questions, and with the others for the test.

    Raises:
        BenchmarkError: no question is left for the test.
    """
    if len(items.questions) <= n_train:
        raise BenchmarkError(
            f"{n_train} of {len(items.questions)} questions are for the fit, which leaves none to "
            "test it on. Add question nouns, or use a smaller train design."
        )
    return (
        replace(items, questions=items.questions[:n_train]),
        replace(items, questions=items.questions[n_train:]),
    )


def _fitted(
    lm: steer.LM,
    items: SentimentItems,
    setup: Setup,
    site: steer.Site,
    direction: Tensor,
    seed: int,
) -> tuple[dict[str, steer.belief.Belief], dict[str, Grid]]:
    parts: list[Readings] = [
        collect(lm, items, texts, setup.train, site, direction, setup.strengths)
        for texts in texts_of(items, setup.train, seed=seed)
        if texts
    ]
    readings, identity = joined(parts), steer.belief.identity(site, direction)
    grids = {name: grid_of(readings, sign, setup.train.evidence) for name, sign in CONCEPTS.items()}
    beliefs = {
        name: fit_form(*grid.cells(), decay=True, intervention=identity)
        for name, grid in grids.items()
    }
    return beliefs, grids


def asked_texts(items: SentimentItems, setup: Setup, concept: int, *, seed: int) -> list[Text]:
    """Return contexts of one concept that each end in a question, by number of shots.

    Questions go round, so that each number of shots meets as many of them as it has contexts.
    """
    rng = np.random.default_rng([seed, 1, concept + 1])
    words, n_questions = items.adjectives(concept), len(items.questions)
    made: list[Text] = []
    for shots, n_rows in setup.shots:
        first = len(made)
        for row in range(n_rows):
            asked = (first + row) % n_questions
            nouns = [str(word) for word in rng.choice(items.context, shots)]
            said = [str(word) for word in rng.choice(words, shots + 1)]
            pairs = tuple(zip([*nouns, items.questions[asked]], said, strict=True))
            made.append(Text(concept, len(made), pairs, (shots,), (asked,)))
    return made


def _steered(
    lm: steer.LM,
    items: SentimentItems,
    setup: Setup,
    belief: steer.belief.Belief,
    where: tuple[steer.Site, Tensor],
    learned: tuple[Grid, int],
    seed: int,
) -> Dosed:
    """Steer the test rows of one concept by the belief, by the best fixed strength, by controls."""
    (site, direction), (grid, sign) = where, learned
    texts = asked_texts(items, setup, sign, seed=seed)
    shots = np.array([text.evidence[0] for text in texts])
    rows = [row_of(lm, text)[0] for text in texts]
    evidence = torch.as_tensor(shots, dtype=torch.float64)
    mixed = evidence[torch.as_tensor(np.random.default_rng(seed).permutation(len(texts)))]
    logits = torch.logit(torch.tensor(setup.targets, dtype=torch.float64))
    low, high = belief.attainable(evidence)
    attainable = (logits[:, None] >= low) & (logits[:, None] <= high)
    # A row that is refused is steered as far as it goes and counts nowhere.
    controls = [
        _control(belief, site, direction, target, evidence, (low, high)) for target in logits
    ]
    wrong = [
        _control(belief, site, direction, target, mixed, belief.attainable(mixed))
        for target in logits
    ]
    fixed = [best_fixed(grid, target, setup.train.evidence, shots) for target in setup.targets]
    other = random_like(direction, seed=seed + 1)
    arms: dict[str, list[steer.belief.Control | steer.Add]] = {
        "controller": list(controls),
        "fixed": [steer.Add(site, direction, m) for m in fixed],
        "shuffled evidence": list(wrong),
        "random direction": [
            steer.Add(site, other, doses_of(one, len(rows)).to(direction)) for one in controls
        ],
    }
    odds = odds_of(lm, items)
    cells = [(arm, at) for arm in arms for at in setup.measured(arm)]
    swept = steer.sweep(
        lm, rows, [[arms[arm][at]] for arm, at in cells], lambda scores, _: odds.scores(scores)
    )
    realised = torch.sigmoid(sign * swept.values.double()).numpy()
    posteriors = {arm: np.full(attainable.shape, np.nan) for arm in arms}
    for (arm, at), values in zip(cells, realised, strict=True):
        posteriors[arm][at] = values
    natural = torch.sigmoid(sign * swept.natural.double()).numpy()
    posteriors["unsteered"] = np.broadcast_to(natural, attainable.shape)
    return Dosed(
        attainable.numpy(),
        torch.stack([doses_of(one, len(rows)) for one in controls]).numpy(),
        np.broadcast_to(np.array(fixed)[:, None], attainable.shape),
        posteriors,
        shots,
        np.array([text.questions[0] for text in texts]),
    )


def _control(
    belief: steer.belief.Belief,
    site: steer.Site,
    direction: Tensor,
    target: Tensor,
    evidence: Tensor,
    reach: tuple[Tensor, Tensor],
) -> steer.belief.Control:
    aim = torch.minimum(torch.maximum(target.expand_as(evidence), reach[0]), reach[1])
    return steer.belief.controller(belief, site, direction, aim, evidence)


def doses_of(control: steer.belief.Control, n_rows: int) -> Tensor:
    """Return [row]: the strengths of a controller whose evidence is known beforehand."""
    assert control.doses is not None
    return control.doses.expand(n_rows)


def best_fixed(grid: Grid, target: float, cells: Sequence[int], shots: NDArray[np.int64]) -> float:
    """Return the one strength that comes nearest to a target over the train contexts.

    Each train cell counts as often as test rows hold about as much evidence. Strengths between
    those measured are interpolated in log-odds.
    """
    nearest = np.abs(shots[:, None] - np.asarray(cells)).argmin(1)
    weight = np.bincount(nearest, minlength=len(cells)).astype(float)
    fine = np.linspace(grid.strengths.min(), grid.strengths.max(), 401)
    log_odds = np.stack([np.interp(fine, grid.strengths, row) for row in grid.values])
    errors = np.abs(1 / (1 + np.exp(-log_odds)) - target)
    return float(fine[(weight @ errors).argmin()])


def cell_errors(dosed: Dosed, arm: str, targets: Sequence[float], weights: Array) -> Array:
    """Return [resample, target, shots]: |mean posterior - target|, NaN where none is attainable.

    The posterior of a context of so many shots is the mean over its questions, as in the paper.

    Args:
        dosed: of one concept.
        arm: which of its arms.
        targets: probabilities.
        weights: [resample, row].
    """
    levels = np.unique(dosed.shots)
    inside = (dosed.shots[:, None] == levels).astype(float)
    total = weights @ inside
    summed = np.einsum("br,rc,tr->btc", weights, inside, dosed.posteriors[arm], optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = np.abs(summed / total[:, None] - np.asarray(targets)[:, None])
    open_to = (dosed.attainable.astype(float) @ inside) > 0
    return np.where(open_to, gaps, np.nan)


def _numbers(
    dosed: Sequence[Dosed], setup: Setup, seed: int
) -> tuple[dict[str, Number], dict[str, Number]]:
    rng = np.random.default_rng(seed)
    n_questions = 1 + max(int(one.question.max()) for one in dosed)
    drawn = np.concatenate(
        [np.ones((1, n_questions)), stats.counts(n_questions, stats.N_RESAMPLES, rng)]
    )

    def errors(arm: str, at: str = "controller") -> Array:
        """Return [resample], at the targets at which another arm was measured as well."""
        chosen = list(setup.measured(arm if arm in CONTROL_ARMS else at))
        found = [
            cell_errors(one, arm, setup.targets, drawn[:, one.question])[:, chosen] for one in dosed
        ]
        gaps = np.concatenate([f.reshape(len(drawn), -1) for f in found], 1)
        with np.errstate(invalid="ignore"):  # no target can be reached: unscored
            return np.nansum(gaps, 1) / np.isfinite(gaps).sum(1)

    def row_errors(arm: str) -> Array:
        top, bottom = np.zeros(len(drawn)), np.zeros(len(drawn))
        for one in dosed:
            gaps = np.abs(one.posteriors[arm] - np.asarray(setup.targets)[:, None])
            top = top + drawn[:, one.question] @ (gaps * one.attainable).sum(0)
            bottom = bottom + drawn[:, one.question] @ one.attainable.sum(0)
        with np.errstate(invalid="ignore"):  # as above
            return top / bottom

    def number(values: Array) -> Number:
        return percentiles(float(values[0]), values[1:])

    ours, fixed = errors("controller"), errors("fixed")
    refused = [float(1 - one.attainable.mean()) for one in dosed]
    numbers = {
        "mae_posterior": number(ours),
        "fixed_mae_posterior": number(fixed),
        "over_fixed": number(ours / fixed),
        "refused_share": Number(float(np.mean(refused))),
        "mae_posterior_at_control_targets": number(errors("controller", CONTROL_ARMS[0])),
        "row_mae_posterior": number(row_errors("controller")),
        "row_fixed_mae_posterior": number(row_errors("fixed")),
    }
    controls = {
        "shuffled_evidence_mae_posterior": number(errors("shuffled evidence")),
        "random_mae_posterior": number(errors("random direction")),
        "unsteered_mae_posterior": number(errors("unsteered")),
    }
    return numbers, controls


def _table(dosed: Dosed) -> dict[str, Json]:
    """Return means over the rows of each number of shots: [target][shots]."""
    levels = np.unique(dosed.shots)
    inside = (dosed.shots[:, None] == levels).astype(float)
    share = inside / inside.sum(0)
    return {
        "shots": levels.tolist(),
        "rows": inside.sum(0).astype(int).tolist(),
        "attainable": ((dosed.attainable @ inside) > 0).tolist(),
        "doses": (dosed.doses @ share).tolist(),
        "fixed": dosed.fixed[:, 0].tolist(),
        "posteriors": {
            arm: [None if np.isnan(row).any() else (row @ share).tolist() for row in p]
            for arm, p in dosed.posteriors.items()
        },
    }
