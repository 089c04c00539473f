"""Rational in-context learning: is a trained model the mixture that complexity and loss call for?

A grid of task diversity and training steps. One law of three numbers for each setting, fitted on
every other cell of the grid, is scored on the others, against each predictor alone and against
mixtures that do not know the law.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import steer
from benchmarks.rational.settings import PREDICTORS, SETTINGS, Batch, Setting
from benchmarks.rational.strategies import on, strategies, trained_data
from benchmarks.rational.train import Recipe, chosen, trained
from benchmarks.result import Outcome
from benchmarks.stats import UNSCORED, Number
from benchmarks.task import Options
from steer.odds.rational import Trained, fit_rational, nearest_mixture, weights_of

CONTROLS = (
    "fixed_mixture_over_law",
    "shuffled_over_law",
    "shuffled_context_over_context",
    "new_tasks_over_best",
)
N_TESTS = 128
"""Rows of the tests, at least."""
N_TEST_POSITIONS = 1024
"""Predictions of the tests, at least: a setting with one in each row gets more rows."""
N_RESAMPLES = 500


def measure_rational(lm: steer.LM, options: Options) -> Outcome:
    """Train, ask, fit and score; `--limit` is the number of training steps.

    The model of the command line is not used. For each setting: SETTING_kl_law, the divergence of
    the models from the law's mixture on held-out cells, in nats, against _kl_memorised,
    _kl_generalised, _kl_constant and _kl_best_each (the nearest single predictor of each cell,
    chosen by looking); _law_over_best_alone, over the better of the first two; _exponent_measured
    and _exponent_predicted, the slope of log transition time against log diversity; _kl_context,
    the divergence of the law that also weighs losses within the context, and _context_over_law, its
    share of the plain law's (not for classes: their items are no predictions).
    law_over_best_alone without a setting is the worst of them. Controls: one mixture for all
    cells, and the law fitted under wrong labels, both over the law, and the law with the contexts
    of other rows over the one with their own (the least of the settings each); and the law's
    mixture over the best single predictor on sequences of new tasks, on which neither the models
    were trained nor the law was fitted.
    """
    del lm
    recipe = Recipe()
    if options.limit is not None:
        steps = tuple(step for step in recipe.steps if step <= options.limit)
        recipe = replace(recipe, steps=steps or (options.limit,))
    found = [_setting(setting, recipe, options.seed) for setting in SETTINGS]
    numbers: dict[str, Number] = {}
    for setting, one in zip(SETTINGS, found, strict=True):
        numbers |= {f"{setting.name}_{name}": number for name, number in one.numbers.items()}
    worst = max(found, key=lambda one: one.numbers["law_over_best_alone"].value or math.inf)
    numbers["law_over_best_alone"] = worst.numbers["law_over_best_alone"]
    controls = {name: _least(found, name) for name in CONTROLS[:3]}
    controls[CONTROLS[3]] = worst.controls[CONTROLS[3]]
    tables = {s.name: one.tables for s, one in zip(SETTINGS, found, strict=True)}
    specs: dict[str, Any] = {
        "diversities": list(recipe.diversities),
        "steps": list(recipe.steps),
        "rows": recipe.n_rows,
        "rate": recipe.rate,
        "settings": [repr(setting) for setting in SETTINGS],
    }
    return Outcome(numbers, controls, tables, specs)


def _setting(setting: Setting, recipe: Recipe, seed: int) -> Outcome:
    draw = torch.Generator().manual_seed(seed)
    pool = setting.pool(max(recipe.diversities), draw)
    n_positions = len(range(setting.sizes[2])[setting.read_at])
    n_tests = max(N_TESTS, N_TEST_POSITIONS // n_positions)
    tests = setting.sequences(chosen(pool, recipe.diversities, n_tests, draw), draw)
    fresh = setting.pool(n_tests, draw)
    new = {name: x.expand(len(recipe.diversities), *x.shape) for name, x in fresh.items()}
    unseen = setting.sequences(new, draw)
    model = trained(setting, pool, recipe, _both(tests, unseen), draw)
    seen = strategies(setting, pool, recipe, tests, draw)
    data = trained_data(setting, seen, recipe, model[:, :, :n_tests].double())
    there = on(seen, setting, pool, recipe, unseen)
    elsewhere = trained_data(setting, there, recipe, model[:, :, n_tests:].double())
    return scored(data, elsewhere, recipe.diversities, seed)


def scored(data: Trained, elsewhere: Trained, diversities: Sequence[int], seed: int) -> Outcome:
    """Return how well the law predicts what was seen; see `measure_rational`."""
    held, whole = held_out(data), data
    data, elsewhere = data.plain(), elsewhere.plain()
    law = fit_rational(data, cells=~held)
    apart = data.divergence(data.mixed(weights_of(law, data)))
    alone = data.alone()
    flat = fixed_mixture(data, ~held)
    numbers = {"kl_law": _mean(apart[held], seed)}
    for at, name in enumerate(PREDICTORS):
        numbers[f"kl_{name}"] = _mean(alone[..., at][held], seed)
    numbers["kl_best_each"] = _mean(alone.amin(-1)[held], seed)
    numbers["kl_fixed_mixture"] = _mean(flat[held], seed)
    best = int(alone[held][:, :2].mean(0).argmin())
    numbers["law_over_best_alone"] = _quotient(apart[held], alone[..., best][held], seed)
    numbers |= {name: Number(getattr(law, name)) for name in ("alpha", "beta", "gamma")}
    within, shuffled_context = _within(whole, apart, held, seed)
    numbers |= within
    own = nearest_mixture(data)
    numbers["kl_free_mixture"] = _mean(data.divergence(data.mixed(own))[held], seed)
    when = transitions(own, data.steps)
    predicted = law.transition(data.bits[:, :2], data.losses[:, :2])
    numbers |= exponents(when, predicted, torch.tensor(diversities).double(), seed)
    new = elsewhere.divergence(elsewhere.mixed(weights_of(law, elsewhere)))
    best_new = int(elsewhere.alone()[held][:, :2].mean(0).argmin())
    controls = {
        "fixed_mixture_over_law": _quotient(flat[held], apart[held], seed),
        "shuffled_over_law": _quotient(_shuffled(data, held, seed), apart[held], seed),
        "shuffled_context_over_context": shuffled_context,
        "new_tasks_over_best": _quotient(new[held], elsewhere.alone()[..., best_new][held], seed),
    }
    tables = {
        "kl": apart.tolist(),
        "alone": alone.tolist(),
        "weights": weights_of(law, data).tolist(),
        "own_weights": own.tolist(),
        "bits": data.bits.tolist(),
        "losses": data.losses.tolist(),
        "transition_measured": [None if math.isnan(x) else x for x in when.tolist()],
        "transition_predicted": [x if math.isfinite(x) else None for x in predicted.tolist()],
        "controls": {name: number.to_json() for name, number in controls.items()},
    }
    return Outcome(numbers, controls, tables)


def _within(
    data: Trained, plain: Tensor, held: Tensor, seed: int
) -> tuple[Mapping[str, Number], Number]:
    """Return what the losses within the context add to a law, and what other rows' losses do.

    The control: each row with the losses of another one, law fitted anew.
    """
    names = ("kl_context", "context_over_law", "alpha_context", "gamma_context")
    if data.context is None:
        return dict.fromkeys(names, UNSCORED), UNSCORED
    law = fit_rational(data, cells=~held)
    apart = data.divergence(data.mixed(weights_of(law, data)))[held]
    wrong = replace(data, context=data.context.roll(1, dims=2))
    other = fit_rational(wrong, cells=~held)
    astray = wrong.divergence(wrong.mixed(weights_of(other, wrong)))[held]
    found = (
        _mean(apart, seed),
        _quotient(apart, plain[held], seed),
        Number(law.alpha),
        Number(law.gamma_context),
    )
    return dict(zip(names, found, strict=True)), _quotient(astray, apart, seed)


def held_out(data: Trained) -> Tensor:
    """Return [diversity, step]: every other cell, as on a chessboard."""
    n_diversities, n_steps = data.model.shape[:2]
    return (torch.arange(n_diversities)[:, None] + torch.arange(n_steps)) % 2 == 1


def transitions(own: Tensor, steps: Tensor) -> Tensor:
    """Return [diversity]: the steps at which memorising comes to outweigh generalising for good.

    By the mixtures nearest to each cell, [diversity, step, predictor]; between two readings by
    linear interpolation of log weights in log steps. NaN where it is not seen to happen: heavier
    from the first reading on, or not at the last one. Readings where both together weigh less than
    a tenth do not tell them apart, and are passed over.
    """
    both = own[..., :2].clamp(min=1e-3).log()
    told = own[..., :2].sum(-1) >= 0.1
    found = []
    for odds, use in zip(both[..., 0] - both[..., 1], told, strict=True):
        y, x = odds[use].tolist(), steps[use].log().tolist()
        ups = [k for k in range(len(y) - 1) if y[k] <= 0 < y[k + 1]]
        if not ups or y[-1] <= 0:
            found.append(math.nan)
            continue
        k = ups[-1]
        found.append(math.exp(x[k] - y[k] * (x[k + 1] - x[k]) / (y[k + 1] - y[k])))
    return torch.tensor(found, dtype=torch.float64)


def exponents(
    measured: Tensor, predicted: Tensor, diversity: Tensor, seed: int
) -> Mapping[str, Number]:
    """Return the slopes of log transition time on log diversity, measured and by the law.

    Over the diversities where a transition was measured; unscored where those are fewer than
    three. Intervals: bootstrap over diversities.
    """
    have = torch.isfinite(measured) & torch.isfinite(predicted) & (predicted > 0)
    numbers = {"transitions_seen": Number(float(torch.isfinite(measured).sum()))}
    names = ("exponent_measured", "exponent_predicted")
    if int(have.sum()) < 3:
        return numbers | dict.fromkeys((*names, "transition_log2_error"), UNSCORED)
    x = diversity[have].log().numpy()
    for name, when in zip(names, (measured, predicted), strict=True):
        numbers[name] = _slope(x, when[have].log().numpy(), seed)
    error = (measured[have] / predicted[have]).log2().abs()
    return numbers | {"transition_log2_error": _mean(error, seed)}


def fixed_mixture(data: Trained, cells: Tensor) -> Tensor:
    """Return [diversity, step]: the divergence from the best mixture that is the same everywhere.

    The best of a fine grid over the simplex, on the given cells.
    """
    ticks = torch.linspace(0, 1, 11, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    grid = grid[grid.sum(1) <= 1 + 1e-9]
    shape = (*data.model.shape[:2], 3)
    whole = torch.cat([grid, (1 - grid.sum(1, keepdim=True)).clamp(min=0)], dim=1)
    each = [data.divergence(data.mixed(point.expand(shape))) for point in whole]
    return min(each, key=lambda found: float(found[cells].mean()))


def _shuffled(data: Trained, held: Tensor, seed: int) -> Tensor:
    """Return [cell]: held-out divergences of a law fitted to models under the wrong labels."""
    n_diversities, n_steps = data.model.shape[:2]
    order = torch.randperm(n_steps, generator=torch.Generator().manual_seed(seed))
    turned = torch.arange(n_diversities).roll(n_diversities // 2)
    wrong = replace(data, bits=data.bits[turned], losses=data.losses[turned])
    wrong = replace(wrong, steps=data.steps[order])
    law = fit_rational(wrong, cells=~held)
    return data.divergence(data.mixed(weights_of(law, wrong)))[held]


def _both(first: Batch, second: Batch) -> Batch:
    return Batch(
        torch.cat([first.inputs, second.inputs], dim=1),
        torch.cat([first.targets, second.targets], dim=1),
        {},
    )


def _least(found: Sequence[Outcome], name: str) -> Number:
    have = [one.controls[name] for one in found if one.controls[name].value is not None]
    return min(have, key=lambda number: number.value or 0.0)


def _mean(values: Tensor, seed: int) -> Number:
    return _resampled(values[:, None].numpy(), lambda x: float(x[:, 0].mean()), seed)


def _quotient(above: Tensor, below: Tensor, seed: int) -> Number:
    both = torch.stack([above, below], dim=1).numpy()
    return _resampled(both, lambda x: float(x[:, 0].mean() / x[:, 1].mean()), seed)


def _slope(x: NDArray[np.float64], y: NDArray[np.float64], seed: int) -> Number:
    def slope(both: NDArray[np.float64]) -> float:
        apart = both[:, 0] - both[:, 0].mean()
        return float((apart * both[:, 1]).sum() / (apart**2).sum())

    return _resampled(np.stack([x, y], axis=1), slope, seed)


def _resampled(values: NDArray[np.float64], statistic: Any, seed: int) -> Number:
    """Return a statistic of rows with its percentile interval, bootstrapped over rows."""
    random = np.random.default_rng(seed)
    picks = random.integers(len(values), size=(N_RESAMPLES, len(values)))
    # A slope needs two different points; a resample of one point repeated says nothing.
    picks = picks[[len(set(pick.tolist())) > 1 for pick in picks]]
    lo, hi = np.quantile([statistic(values[pick]) for pick in picks], [0.025, 0.975])
    value = float(statistic(values))
    return Number(value, min(float(lo), value), max(float(hi), value))
