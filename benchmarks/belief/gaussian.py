"""Digits drawn from a Gaussian whose mean switches: what a model expects next, at every digit.

After Sarfati, Bigelow, Wurgaft et al. 2026 (arXiv:2602.02315). They take numbers up to 999 that are
one token each; we take the digits 0 to 9, which most tokenizers keep apart. The sibling for yes/no
evidence is `switch`; the pictures are in `gaussian_draw`, the observers in `steer.odds`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import stdtr
from torch import Tensor

import steer
from benchmarks import stats
from benchmarks.belief.digits import (
    DIGITS,
    DigitReadings,
    GaussianDesign,
    conditions,
    draw_digits,
    read_digits,
)
from benchmarks.belief.switches.measure import first_crossing, last_quarter
from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome
from benchmarks.stats import Number
from benchmarks.task import Options
from steer.odds.forecasts import NumberForecast
from steer.odds.mantel import mantel
from steer.odds.observers import ChangePoint, Exact, Forgetting, NormalInverseGamma
from steer.odds.space import distances, hellinger_distances

N_TEXTS = 3
N_RESAMPLES = 1000
N_PERMUTATIONS = 199
EVERY = 8
"""Readings between the moments of a Mantel test: near moments are alike and not exchangeable."""
SMOOTH = 5
PRIOR = NormalInverseGamma(mean=4.5, kappa=1.0, shape=1.5, rate=3.0)
"""Worth one digit in the middle of the scale; a shape above 1 keeps its variance finite."""
KEEPS = torch.tensor([0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99])
HAZARDS = torch.tensor([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3])
OBSERVERS = ("exact", "forgetting", "change_point")
BASELINES = ("running_mean", "uniform")
CONTROLS = (
    "shuffled_shift",
    "shuffled_lag",
    *(f"shuffled_kl_{name}" for name in (*OBSERVERS, *BASELINES)),
    *(f"kl_{name}" for name in BASELINES),
    "mantel_null_high",
    "mantel_shuffled",
)


DESIGN = GaussianDesign()


def measure_gaussian(lm: steer.LM, options: Options) -> Outcome:
    """Return lags, spreads and distances to the observers; --limit is the texts per condition.

    Raises:
        BenchmarkError: fewer than 2 texts, or a tokenizer whose digits are not one token each.
    """
    n = N_TEXTS if options.limit is None else options.limit
    if n < 2:
        raise BenchmarkError(
            f"--limit {n} leaves {n} texts per condition, and rates are fitted on one half of them "
            "and scored on the other. Give 2 or more."
        )
    digits, shuffled = draw_digits(DESIGN, n, options.seed)
    readings, control = read_digits(lm, digits), read_digits(lm, shuffled)
    return outcome_of(readings, control, DESIGN, options.seed)


# -- observers -----------------------------------------------------------------------------------


def binned(forecast: NumberForecast) -> Float[Tensor, "batch time digit"]:
    """Return the chance of each digit: of rounding to it, the tails going to 0 and 9."""
    edges = torch.arange(0.5, 9, dtype=torch.float64)
    z = (edges - forecast.centre[..., None]) / forecast.scale[..., None]
    below = torch.as_tensor(stdtr(forecast.dof[..., None].numpy(), z.numpy()))
    below = (forecast.log_weight.exp()[..., None] * below).sum(-2)
    ends = torch.zeros_like(below[..., :1])
    # Weights sum to 1 only up to rounding.
    return torch.cat([ends, below, ends + 1], -1).diff(dim=-1).clamp_min(0)


def predicted(digits: Int[Tensor, "text time"]) -> dict[str, Float[Tensor, "rate text time digit"]]:
    """Return what each predictor expects after 1, 2, ... digits, at each of its rates."""
    x = digits.double()
    found = {
        "exact": [binned(Exact(PRIOR).observe(x))],
        "forgetting": [binned(Forgetting(PRIOR, float(k)).observe(x)) for k in KEEPS],
        "change_point": [binned(ChangePoint(PRIOR, float(h)).observe(x)) for h in HAZARDS],
    }
    every = {name: torch.stack(each)[:, :, 1:] for name, each in found.items()}
    every["uniform"] = torch.full_like(every["exact"], 0.1)
    every["running_mean"] = _running(x)[None]
    return every


def _running(x: Float[Tensor, "text time"]) -> Float[Tensor, "text time digit"]:
    """Return a normal about the mean of the digits so far, with their standard deviation."""
    n = torch.arange(1, x.shape[1] + 1)
    mean = x.cumsum(1) / n
    variance = x.square().cumsum(1) / n - mean.square()
    # A few equal digits would make the narrowest of normals: 1/12 is what rounding alone leaves.
    normal = torch.distributions.Normal(
        mean[..., None], variance.clamp_min(1 / 12).sqrt()[..., None]
    )
    below = normal.cdf(torch.arange(0.5, 9, dtype=torch.float64))
    ends = torch.zeros_like(below[..., :1])
    return torch.cat([ends, below, ends + 1], -1).diff(dim=-1)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """Return KL(q || p) in nats over the last axis."""
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1)


def cross_fitted(
    error: Float[Tensor, "rate text"], weight: Float[Tensor, "resample text"]
) -> tuple[Float[Tensor, " resample"], Int[Tensor, " resample"]]:
    """Return the error at the rate that the other half of the texts chose, and the whole's rate.

    The error is nan in a resample that drew no text of one half: nothing there chooses a rate.
    """
    half = torch.arange(error.shape[1]) % 2
    total = torch.zeros(len(weight), dtype=torch.float64)
    for side in (0, 1):
        chosen = ((weight * (half != side)) @ error.T).argmin(1)
        scored = (weight * (half == side)) @ error.T
        total += scored.gather(1, chosen[:, None])[:, 0]
    both = (weight[:, half == 0].sum(1) > 0) & (weight[:, half == 1].sum(1) > 0)
    total = torch.where(both, total, torch.nan)
    return total / weight.sum(1), (weight @ error.T).argmin(1)


# -- numbers -------------------------------------------------------------------------------------


def outcome_of(
    readings: DigitReadings, control: DigitReadings, design: GaussianDesign, seed: int
) -> Outcome:
    """Return the numbers of readings and of those of the shuffled texts, whoever made them."""
    n_texts = len(readings.digits)
    n = n_texts // (len(design.means) * len(design.sigmas))
    drawn = stats.counts(n_texts, N_RESAMPLES, np.random.default_rng(seed))
    weight = torch.tensor(np.concatenate([np.ones((1, n_texts)), drawn]))
    expected = predicted(readings.digits)
    kls, rates = _errors(readings, expected, weight, design.before)
    shuffled, _ = _errors(control, predicted(control.digits), weight, design.before)
    best = torch.stack([kls[name] for name in OBSERVERS]).argmin(0)
    scored = kls["exact"].isfinite()
    wins = {
        f"wins_{name}": Number(float((best[1:][scored[1:]] == at).double().mean()))
        for at, name in enumerate(OBSERVERS)
    }
    r, p, null = _agreement(readings, weight, seed)
    course = progress(readings.mean(), design, n)
    numbers = {
        **_switch_numbers(readings, design, weight),
        **{f"kl_{name}": _number(kls[name]) for name in OBSERVERS},
        "forgetting_over_exact": _number(kls["forgetting"] / kls["exact"]),
        "change_point_over_forgetting": _number(kls["change_point"] / kls["forgetting"]),
        **wins,
        "keep": _number(KEEPS.double()[rates["forgetting"]]),
        "hazard": _number(HAZARDS.double()[rates["change_point"]]),
        **_surprise(readings, expected, rates, weight),
        **_stationary(readings, design, n, weight),
        "digit_mass": _number(_mean(readings.mass.mean(1), weight)),
        "mantel_r": _number(r),
        "mantel_p": Number(p),
    }
    controls = {
        "shuffled_shift": _number(
            _shift(_mean(progress(control.mean(), design, n), weight), design)
        ),
        "shuffled_lag": _number(lag(_mean(progress(control.mean(), design, n), weight), design)),
        **{f"shuffled_kl_{name}": _number(value) for name, value in shuffled.items()},
        **{f"kl_{name}": _number(kls[name]) for name in BASELINES},
        "mantel_null_high": Number(float(null.quantile(0.975))),
        "mantel_shuffled": _number(_agreement(control, weight, seed)[0]),
    }
    chosen = {name: expected[name][rates[name][0]] for name in OBSERVERS}
    tables = {
        "nearest": OBSERVERS[int(best[0])],
        "lag_of_observers": {
            name: _number(lag(_mean(progress(q @ DIGITS, design, n), weight), design)).to_json()
            for name, q in chosen.items()
        },
        "before": design.before,
        "courses": {
            "progress": _band(course, weight),
            "shuffled": _band(progress(control.mean(), design, n), weight),
            "spread": _band(readings.spread(), weight),
            "predicted": {n_: _course(q, design, n) for n_, q in chosen.items()},
        },
    }
    return Outcome(numbers, controls, tables, _specs(design, n))


def progress(mean: Tensor, design: GaussianDesign, n: int) -> Float[Tensor, "text time"]:
    """Return how far each mean is on the way from the first mu (0) to the second (1)."""
    first, second, _ = (v[:, None] for v in conditions(design, n))
    return (mean - first) / (second - first)


def lag(curve: Float[Tensor, "resample time"], design: GaussianDesign) -> Tensor:
    """Return the digits from the switch until half the way is gone.

    nan where the curve moves less than half the way: noise about the middle is no crossing.
    """
    crossing = first_crossing(curve[:, design.before - 1 :] - 0.5)
    return torch.where(_shift(curve, design) > 0.5, crossing, torch.nan)


def _shift(curve: Tensor, design: GaussianDesign) -> Tensor:
    before, after = curve[:, : design.before], curve[:, design.before :]
    return last_quarter(after) - last_quarter(before)


def _switch_numbers(
    readings: DigitReadings, design: GaussianDesign, weight: Tensor
) -> dict[str, Number]:
    n = len(readings.digits) // (len(design.means) * len(design.sigmas))
    each = progress(readings.mean(), design, n)
    curve, spread = _mean(each, weight), _mean(readings.spread(), weight)
    smooth = curve[:, design.before :].unfold(1, SMOOTH, 1).mean(-1)
    settled = last_quarter(spread[:, : design.before])
    first, second, sigma = conditions(design, n)
    split = {"upward": second > first, "downward": second < first}
    split |= {f"sigma_{s:g}": sigma == s for s in design.sigmas}
    return {
        "lag": _number(lag(curve, design)),
        **{f"lag_{k}": _number(lag(_mean(each, weight * on), design)) for k, on in split.items()},
        "shift": _number(_shift(curve, design)),
        "overshoot": _number(smooth.max(1).values - 1),
        "peak_std": _number(spread[:, design.before :].max(1).values),
        "peak_std_over_settled": _number(spread[:, design.before :].max(1).values / settled),
        "final_std_over_settled": _number(last_quarter(spread) / settled),
    }


def _errors(
    readings: DigitReadings, expected: Mapping[str, Tensor], weight: Tensor, before: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return KL(predictor || model) after the switch, and which rate each takes."""
    found = {
        name: cross_fitted(divergence(q, readings.probabilities)[..., before:].mean(-1), weight)
        for name, q in expected.items()
    }
    return {k: error for k, (error, _) in found.items()}, {
        k: rate for k, (_, rate) in found.items()
    }


def _surprise(
    readings: DigitReadings,
    expected: Mapping[str, Tensor],
    rates: Mapping[str, Tensor],
    weight: Tensor,
) -> dict[str, Number]:
    """Return the cross-entropy of the digits that came, over the whole text."""
    every = {"model": readings.probabilities}
    every |= {name: expected[name][rates[name][0]] for name in (*OBSERVERS, "running_mean")}
    came = readings.digits[:, 1:, None]
    return {
        f"surprise_{name}": _number(
            _mean(-q[:, :-1].gather(-1, came)[..., 0].clamp_min(1e-12).log().mean(1), weight)
        )
        for name, q in every.items()
    }


def _stationary(
    readings: DigitReadings, design: GaussianDesign, n: int, weight: Tensor
) -> dict[str, Number]:
    """Return slopes over texts in the last quarter before the switch; 1 is ideal."""
    upto = design.before
    mean = last_quarter(readings.mean()[:, :upto])
    spread = last_quarter(readings.spread()[:, :upto])
    first, _, sigma = conditions(design, n)
    seen = readings.digits[:, :upto].double()
    return {
        "slope_mean_on_mu": _number(_slope(first, mean, weight)),
        "slope_mean_on_sample": _number(_slope(seen.mean(1), mean, weight)),
        "slope_std_on_sigma": _number(_slope(sigma, spread, weight)),
        "slope_std_on_sample": _number(_slope(seen.std(1), spread, weight)),
        "std_over_sample": _number(_mean(spread, weight) / _mean(seen.std(1), weight)),
    }


def _slope(x: Tensor, y: Tensor, weight: Tensor) -> Float[Tensor, " resample"]:
    dx, dy = x - _mean(x, weight)[:, None], y - _mean(y, weight)[:, None]
    return (weight * dx * dy).sum(1) / (weight * dx.square()).sum(1)


def _agreement(
    readings: DigitReadings, weight: Tensor, seed: int
) -> tuple[Float[Tensor, " resample"], float, Tensor]:
    """Return the mean Mantel r over texts, its one-sided p, and the mean of the texts' nulls."""
    tests = [
        mantel(
            hellinger_distances(p[EVERY - 1 :: EVERY]),
            distances(h[EVERY - 1 :: EVERY]),
            permutations=N_PERMUTATIONS,
            seed=seed + at,
        )
        for at, (p, h) in enumerate(zip(readings.probabilities, readings.states, strict=True))
    ]
    r = torch.tensor([test.r for test in tests], dtype=torch.float64)
    null = torch.stack([test.null for test in tests]).mean(0)
    above = int((null >= r.mean() - 1e-12).sum())
    return _mean(r, weight), (1 + above) / (1 + len(null)), null


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over texts in every resample."""
    return torch.tensordot(weight, values, dims=1) / weight.sum(1).reshape(
        -1, *[1] * (values.ndim - 1)
    )


def _number(resampled: Float[Tensor, " resample"]) -> Number:
    return stats.percentiles(float(resampled[0]), resampled[1:].numpy())


def _band(values: Float[Tensor, "text time"], weight: Tensor) -> dict[str, list[float]]:
    curve = _mean(values, weight)
    lo, hi = curve[1:].quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    return {"mean": _rounded(curve[0]), "lo": _rounded(lo), "hi": _rounded(hi)}


def _course(q: Tensor, design: GaussianDesign, n: int) -> dict[str, list[float]]:
    mean = q @ DIGITS
    spread = (q * (DIGITS - mean[..., None]).square()).sum(-1).sqrt()
    moved = progress(mean, design, n).mean(0)
    return {"progress": _rounded(moved), "spread": _rounded(spread.mean(0))}


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]


def _specs(design: GaussianDesign, n: int) -> dict[str, Any]:
    return {
        "texts_per_condition": n,
        "means": [list(pair) for pair in design.means],
        "sigmas": list(design.sigmas),
        "before": design.before,
        "after": design.after,
        "prior": {k: getattr(PRIOR, k) for k in ("mean", "kappa", "shape", "rate")},
        "error": "KL(predictor || model) in nats, mean over the readings after the switch",
        "rates": "chosen on one half of the texts, scored on the other",
        "interval": f"{stats.LEVEL:.0%} bootstrap over texts",
        "mantel": f"within texts, every {EVERY}th reading, r averaged; near moments are alike, so "
        "p is too small",
    }
