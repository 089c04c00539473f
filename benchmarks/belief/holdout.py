"""Predict cells that were held out, by the law and by its baselines, and score the predictions.

Pure arrays. A grid is one concept's mean log-odds, evidence by strength; a method is fitted on some
of its columns or rows and asked for the others.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

import steer
from benchmarks import stats
from benchmarks.belief.collect import Readings
from steer.odds.belief import Form
from steer.odds.design import require_identified
from steer.odds.fit import fitted

Array = NDArray[np.float64]

FORMS: tuple[Literal["power", "boxcox"], ...] = ("power", "boxcox")
UP_TO = 32
"""Evidence up to which is fitted where more of it is to be predicted."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Mean log-odds of one concept over its opposite, in nats."""

    evidence: Array
    """[row]"""
    strengths: Array
    """[column]"""
    values: Array
    """[row, column]"""

    def columns(self, keep: NDArray[np.bool_]) -> "Grid":
        """Return some of the strengths."""
        return Grid(self.evidence, self.strengths[keep], self.values[:, keep])

    def rows(self, keep: NDArray[np.bool_]) -> "Grid":
        """Return some of the evidence."""
        return Grid(self.evidence[keep], self.strengths, self.values[keep])

    def cells(self) -> tuple[Array, Array, Array]:
        """Return evidence, strength and log-odds of every cell, each [cell]."""
        evidence, strength = np.meshgrid(self.evidence, self.strengths, indexing="ij")
        return evidence.ravel(), strength.ravel(), self.values.ravel()


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What a method learned."""

    predict: Callable[[Array, Array], Array]
    """(evidence, strength) -> log-odds, elementwise."""
    valid: tuple[float, float]
    """The strengths within which it claims to hold."""


Method = Callable[[Array, Array, Array], Fitted]
"""(evidence, strength, log_odds), each [cell] -> what was learned."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Held-out cells of one concept, observed and predicted without them."""

    strength: Array
    """[column]"""
    observed: Array
    """[row, column]"""
    predicted: Array
    inside: NDArray[np.bool_]
    """[column]: strengths at which the fit claims to hold."""

    def columns(self, keep: NDArray[np.bool_]) -> "Held":
        """Return some of the strengths."""
        return Held(
            self.strength[keep],
            self.observed[:, keep],
            self.predicted[:, keep],
            self.inside[keep],
        )

    @property
    def errors(self) -> Array:
        """[row, column]: absolute, in nats."""
        return np.abs(self.predicted - self.observed)


def grid_of(readings: Readings, concept: int, cells: Sequence[int]) -> Grid:
    """Return the mean log-odds of a concept, its own sign, over all questions of each cell.

    Every question stands once in every cell, so differences between questions cancel between cells.
    """
    values = means(readings, concept, len(cells), np.ones((1, len(readings.evidence))))[0]
    one = readings.concept == concept
    placed = np.bincount(readings.cell[one], readings.evidence[one], len(cells))
    evidence = placed / np.bincount(readings.cell[one], minlength=len(cells))
    return Grid(evidence, readings.strengths, values)


def means(readings: Readings, concept: int, n_cells: int, weights: Array) -> Array:
    """Return [resample, cell, strength]: weighted means of a concept's log-odds, NaN if unweighted.

    Args:
        readings: of both concepts.
        concept: 1 or -1; its log-odds are concept times what was read.
        n_cells: how many cells there are.
        weights: [resample, reading].
    """
    mine = weights * (readings.concept == concept)
    inside = (readings.cell[:, None] == np.arange(n_cells)).astype(float)
    total = mine @ inside
    summed = np.einsum("br,rc,sr->bcs", mine, inside, concept * readings.values, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return summed / total[..., None]


def resampled(readings: Readings, n_resamples: int, *, seed: int) -> Array:
    """Return [resample, reading] weights: questions drawn again, with replacement.

    A question stands once in every cell, so whichever are drawn, their differences still cancel
    between cells. Drawing contexts again as well would undo that: no two cells have the same.
    """
    rng = np.random.default_rng(seed)
    return stats.counts(int(readings.question.max()) + 1, n_resamples, rng)[:, readings.question]


def fit_form(
    evidence: Array,
    strength: Array,
    log_odds: Array,
    *,
    decay: bool,
    intervention: str | None = None,
) -> steer.belief.Belief:
    """Return the law in the form of evidence that fits these cells better.

    The power N^(1-alpha) of the paper, or the Box-Cox form, which may saturate. Both have as many
    parameters, so the better fit is the choice of Akaike's criterion too, and it looks at nothing
    that is held out.
    """
    fits = [
        replace(
            _fit(evidence, strength, log_odds, decay=decay, form=form), intervention=intervention
        )
        for form in FORMS
    ]
    left = [float(((_ask(b, evidence, strength) - log_odds) ** 2).sum()) for b in fits]
    return fits[int(np.argmin(left))]


def law(*, decay: bool) -> Method:
    """Return the belief law as a method, with or without the validity decay."""

    def method(evidence: Array, strength: Array, log_odds: Array) -> Fitted:
        return _fitted(fit_form(evidence, strength, log_odds, decay=decay))

    return method


def paper_law(*, decay: bool) -> Method:
    """Return the law in the form of the paper, a power of the evidence."""

    def method(evidence: Array, strength: Array, log_odds: Array) -> Fitted:
        return _fitted(_fit(evidence, strength, log_odds, decay=decay, form="power"))

    return method


def _fit(
    evidence: Array, strength: Array, log_odds: Array, *, decay: bool, form: Form
) -> steer.belief.Belief:
    """Fit whatever there is: evidence that speaks against its concept is a result here."""
    data = steer.belief.data_of(evidence, strength, log_odds)
    require_identified(data.evidence, data.strength)
    return fitted(data, decay=decay, form=form)


def _fitted(belief: steer.belief.Belief) -> Fitted:
    return Fitted(partial(_ask, belief), belief.valid or (-np.inf, np.inf))


def _ask(belief: steer.belief.Belief, evidence: Array, strength: Array) -> Array:
    return belief.log_odds(torch.as_tensor(evidence), torch.as_tensor(strength)).numpy()


def leave_each_out(grid: Grid, method: Method) -> Held:
    """Predict each strength of a grid from all the others: one fit for each."""
    each = np.eye(len(grid.strengths), dtype=bool)
    columns = [_predict(grid.columns(~one), grid.columns(one), method) for one in each]
    return Held(
        grid.strengths,
        grid.values,
        np.concatenate([one.predicted for one in columns], axis=1),
        np.concatenate([one.inside for one in columns]),
    )


def extrapolate(grid: Grid, method: Method, *, up_to: float = UP_TO) -> Held:
    """Predict the rows of more evidence from those of at most `up_to`."""
    known = grid.evidence <= up_to
    return _predict(grid.rows(known), grid.rows(~known), method)


def _predict(train: Grid, test: Grid, method: Method) -> Held:
    fitted = method(*train.cells())
    evidence, strength, _ = test.cells()
    lo, hi = fitted.valid
    return Held(
        test.strengths,
        test.values,
        fitted.predict(evidence, strength).reshape(test.values.shape),
        (test.strengths >= lo) & (test.strengths <= hi),
    )


def within_r(held: Sequence[Held]) -> float:
    """Return the correlation of predicted and observed, each concept about its own mean.

    Two concepts far apart would correlate without any curve being right.
    """
    both = [np.stack([one.predicted.ravel(), one.observed.ravel()]) for one in held]
    centred = np.concatenate([pair - pair.mean(1, keepdims=True) for pair in both], axis=1)
    top = float(centred[0] @ centred[1])
    bottom = float(np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1])))
    return top / bottom if bottom > 0 else float("nan")


def error(held: Sequence[Held], *, where: Sequence[NDArray[np.bool_]] | None = None) -> float:
    """Return the mean absolute error in nats, at some strengths of each concept or at all."""
    masks = [np.ones_like(one.inside) for one in held] if where is None else where
    found = [one.errors[:, mask].ravel() for one, mask in zip(held, masks, strict=True)]
    cells = np.concatenate(found)
    return float(cells.mean()) if len(cells) else float("nan")


def baselines(names: Sequence[str]) -> Mapping[str, Method]:
    """Return some of the toolkit's baselines as methods; they claim to hold everywhere."""
    return {name: partial(_baseline, name) for name in names}


def _baseline(name: str, evidence: Array, strength: Array, log_odds: Array) -> Fitted:
    with warnings.catch_warnings():
        # A curve that may rise or fall is no error of a rival's: it is what was measured.
        warnings.filterwarnings("ignore", message="Confidence interval of the Spearman")
        predictor = steer.belief.BASELINES[name](steer.belief.data_of(evidence, strength, log_odds))

    def predict(n: Array, m: Array) -> Array:
        return predictor(torch.as_tensor(n), torch.as_tensor(m)[:, None]).numpy()

    return Fitted(predict, (-np.inf, np.inf))
