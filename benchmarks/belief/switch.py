"""Evidence for a concept, then for its opposite: how fast a model follows, and like which observer.

The observers and the belief law are fitted on what precedes the switch and asked for what follows;
The texts, the predictors, the measures and the pictures are in `switches`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import steer
from benchmarks import stats
from benchmarks.belief.switches.law import OBSERVERS, PREDICTORS, Fit, counts_of, rates_of
from benchmarks.belief.switches.measure import (
    N_RESAMPLES,
    Sample,
    errors_after,
    fit_before,
    fit_whole,
    floor_of,
    lags_of,
    last_quarter,
    mean_over,
    of_kind,
    sample_of,
    shift_of,
    tuned_errors,
)
from benchmarks.belief.switches.texts import Arm, Design, Readings, read_switches
from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome
from benchmarks.stats import UNSCORED, Number
from benchmarks.task import Options

N_CONTEXTS = 12
DESIGN = Design()
CONTROLS = (
    "no_switch_shift",
    "other_words_shift",
    "shuffled_shift",
    *(f"{kind}_error_{name}" for kind in ("no_switch", "shuffled") for name in PREDICTORS),
)


def measure_switch(lm: steer.LM, options: Options) -> Outcome:
    """Return lags, overshoots and the errors of the observers; --limit is the number of contexts.

    Raises:
        BenchmarkError: fewer than 4 contexts, or a tokenizer that splits too many of the words.
    """
    return run_switch(lm, options, DESIGN)


def run_switch(lm: steer.LM, options: Options, design: Design) -> Outcome:
    """Return the outcome under a design of one's own.

    Raises:
        BenchmarkError: as `measure_switch`.
    """
    n = N_CONTEXTS if options.limit is None else options.limit
    if n < 4:
        raise BenchmarkError(
            f"--limit {n} leaves {n} contexts, and observers are tuned on one half of them and "
            "asked about the other, with intervals from resampling. Give 4 or more."
        )
    return outcome_of(read_switches(lm, design, n, options.seed), design, options.seed)


def outcome_of(readings: Readings, design: Design, seed: int) -> Outcome:
    """Return the numbers of readings, whoever made them."""
    sample = sample_of(readings, seed)
    counts = {name: counts_of(name, sample.sequences) for name in PREDICTORS}
    fits = {name: fit_before(sample, counts[name], design) for name in PREDICTORS}
    predicted = {name: fit.predict(counts[name]) for name, fit in fits.items()}
    errors = {name: errors_after(sample, predicted[name]) for name in PREDICTORS}
    tuned = {name: tuned_errors(sample, counts[name]) for name in PREDICTORS}
    floor = floor_of(sample)
    whole = {name: fit_whole(sample, counts[name], sample.weight) for name in PREDICTORS}
    described = {name: fit.predict(counts[name]) for name, fit in whole.items()}
    numbers = {
        **_lag_numbers(sample, design),
        **_overshoot_numbers(sample, design),
        "switch_shift": _number(shift_of(sample, "switch")),
        **_error_numbers(sample, errors, tuned, floor),
    }
    controls = {
        **{f"{k}_shift": _number(shift_of(sample, k)) for k in ("no_switch", "other_words")},
        "shuffled_shift": _number(shift_of(sample, "shuffled")),
        **{
            f"{kind}_error_{name}": _number(mean_over(sample, errors[name], kind))
            for kind in ("no_switch", "shuffled")
            for name in PREDICTORS
        },
    }
    tables = {
        "winner": _winner(sample, errors),
        "winner_tuned": _winner(sample, tuned),
        "lags": _lag_table(sample, predicted),
        "lags_tuned": _lag_table(sample, described),
        "errors": _error_table(sample, errors, floor),
        "errors_tuned": _error_table(sample, tuned, floor),
        "fits": {name: _fit_table(name, fit) for name, fit in fits.items()},
        "fits_tuned": {name: _fit_table(name, fit) for name, fit in whole.items()},
        "courses": _courses(sample, predicted),
    }
    return Outcome(numbers, controls, tables, _specs(readings, design))


def _lag_numbers(sample: Sample, design: Design) -> dict[str, Number]:
    """Return the lag of each switch, mean over the two directions and for each of them."""
    lags, found = lags_of(sample, sample.curves()), {}
    for before in design.switches:
        pair = [lags[a] for a in of_kind(sample.readings.arms, "switch", before)]
        found[f"lag_{before}"] = _number(torch.stack(pair).mean(0))
        for name, lag in zip(("to_negative", "to_positive"), pair, strict=True):
            found[f"lag_{before}_{name}"] = _number(lag)
    return found


def _overshoot_numbers(sample: Sample, design: Design) -> dict[str, Number]:
    """Return how far beyond a text of the new items alone the belief ends, mean of both directions.

    Over the last quarter of the readings, in nats; negative where the old items still weigh.
    """
    curves, arms = sample.curves(), sample.readings.arms
    fresh = {arms[a].first: a for a in of_kind(arms, "switch", design.longest)}
    found = {}
    for before, after in design.switches.items():
        over = []
        for a in of_kind(arms, "switch", before):
            alone = curves[:, fresh[1 - arms[a].first], : after + 1]
            excess = arms[a].toward * (curves[:, a, before : before + after + 1] - alone)
            over.append(last_quarter(excess))
        found[f"overshoot_{before}"] = _number(torch.stack(over).mean(0))
    return found


def _number(resampled: Float[Tensor, " resample"]) -> Number:
    """Return the first value with the percentile interval of the rest.

    Unscored where it is not finite; without an interval where one of its ends is not, as where
    a curve does not cross within the text.
    """
    value, rest = float(resampled[0]), resampled[1:].numpy()
    rest = rest[~np.isnan(rest)]
    if not np.isfinite(value):
        return UNSCORED
    if not len(rest):
        return Number(value)
    # Ends that are inf must not be interpolated: inf - inf is nan.
    ends = [(1 - stats.LEVEL) / 2, (1 + stats.LEVEL) / 2]
    lo, hi = np.quantile(rest, ends, method="nearest")
    return Number(value, *(float(e) if np.isfinite(e) else None for e in (lo, hi)))


def _error_numbers(
    sample: Sample, errors: Mapping[str, Tensor], tuned: Mapping[str, Tensor], floor: Tensor
) -> dict[str, Number]:
    """Return the errors after the switch, their ratios and how often each observer is the best."""
    mean = {name: mean_over(sample, error, "switch") for name, error in errors.items()}
    also = {name: mean_over(sample, error, "switch") for name, error in tuned.items()}
    best = torch.stack([mean[name] for name in OBSERVERS]).min(0)
    wins = {
        f"wins_{name}": Number(float((best.indices[1:] == at).double().mean()))
        for at, name in enumerate(OBSERVERS)
    }
    return {
        **{f"error_{name}": _number(value) for name, value in mean.items()},
        **{f"error_{name}_tuned": _number(value) for name, value in also.items()},
        "error_floor": _number(mean_over(sample, floor, "switch")),
        "forgetting_over_exact": _number(mean["forgetting"] / mean["exact"]),
        "change_point_over_exact": _number(mean["change_point"] / mean["exact"]),
        "change_point_over_forgetting": _number(mean["change_point"] / mean["forgetting"]),
        "change_point_over_forgetting_tuned": _number(also["change_point"] / also["forgetting"]),
        "law_over_best_observer": _number(mean["law"] / best.values),
        **wins,
    }


def _winner(sample: Sample, errors: Mapping[str, Tensor]) -> str:
    """Return the predictor with the least error on the texts that switch."""
    return min(errors, key=lambda name: float(mean_over(sample, errors[name], "switch")[0]))


def _error_table(
    sample: Sample, errors: Mapping[str, Tensor], floor: Tensor
) -> list[dict[str, Any]]:
    """Return the errors of every predictor for each kind of text and switch."""
    kinds = dict.fromkeys((arm.kind, arm.before) for arm in sample.readings.arms)
    return [
        {
            "kind": kind,
            "before": before,
            # The mean of other contexts says nothing where each has an order of its own.
            **(
                {}
                if kind == "shuffled"
                else {"floor": float(mean_over(sample, floor, kind, before)[0])}
            ),
            **{
                name: _number(mean_over(sample, error, kind, before)).to_json()
                for name, error in errors.items()
            },
        }
        for kind, before in kinds
    ]


def _lag_table(sample: Sample, predicted: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return the measured lag beside those of the predictors; None: not within the text."""
    arms = sample.readings.arms
    curves = {"model": sample.curves()}
    curves |= {name: p[:, sample.sequence[:, 0]] for name, p in predicted.items()}
    lags = {name: lags_of(sample, curve) for name, curve in curves.items()}
    return [
        {
            "before": arms[a].before,
            "after": arms[a].after,
            "toward": "positive" if arms[a].toward > 0 else "negative",
            **{name: _number(found[a]).to_json() for name, found in lags.items()},
        }
        for a in of_kind(arms, "switch")
    ]


def _fit_table(name: str, fit: Fit) -> dict[str, Any]:
    """Return the parameters that the readings before the switch gave."""
    b, positive, negative = (_number(column).to_json() for column in fit.coefficients.unbind(1))
    alpha = {
        concept: _number(column).to_json()
        for concept, column in zip(("positive", "negative"), fit.alpha.unbind(1), strict=True)
    }
    rate = _number(rates_of(name)[fit.rate]).to_json()
    gamma = {"positive": positive, "negative": negative}
    return {"b": b, "gamma": gamma, "alpha": alpha, "rate": rate}


def _courses(sample: Sample, predicted: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return what the pictures show: mean log-odds with intervals, and every prediction."""
    curves = sample.curves()
    return [
        _course(arm, curves[:, a], {n: p[0, sample.sequence[a]] for n, p in predicted.items()})
        for a, arm in enumerate(sample.readings.arms)
    ]


def _course(arm: Arm, measured: Tensor, predicted: Mapping[str, Tensor]) -> dict[str, Any]:
    n = arm.before + arm.after + 1
    lo, hi = measured[1:, :n].quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    return {
        **asdict(arm),
        "mean": _rounded(measured[0, :n]),
        "lo": _rounded(lo),
        "hi": _rounded(hi),
        "predicted": {name: _rounded(each.mean(0)[:n]) for name, each in predicted.items()},
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]


def _specs(readings: Readings, design: Design) -> dict[str, Any]:
    return {
        "contexts": readings.n_contexts,
        "switches": {str(before): after for before, after in design.switches.items()},
        "adjectives": design.n_adjectives,
        "error": "mean absolute, nats, of every reading after the switch",
        "fit": "least squares on the readings before the latest switch, both concepts together",
        "tuned": "fitted on whole texts; errors on the other half of the contexts",
        "prior": "uniform chance of a positive item",
        "interval": f"{stats.LEVEL:.0%} bootstrap over contexts, fits repeated in each resample",
        "n_resamples": N_RESAMPLES,
    }
