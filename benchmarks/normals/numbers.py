"""From what was measured to numbers with intervals, and controls."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks import stats
from benchmarks.normals.fields import Fields
from benchmarks.normals.plane import SOON, OffPlane
from benchmarks.normals.reading import Readings
from benchmarks.normals.steering import Shapes, Steered
from benchmarks.normals.switching import FIRST, OBSERVERS, Switched, lag
from benchmarks.stats import Number

OWN = ("vector", "manifold", "transport", "chord", "field")
NULLS = ("permuted", "random_path")
CONTROLS = (
    "slope_mixed",
    "kl_to_uniform",
    "lfp_accuracy_shuffled",
    "lfp_accuracy_spread_shuffled",
    "r2_mean_permuted",
    "r2_spread_permuted",
    *(f"{arm}_{name}" for name in ("missed", "inflation", "energy") for arm in NULLS),
    "mixture_energy",
    "vector_over_mixture_energy",
    "mixture_inflation",
    "energy_floor",
    "permuted_over_manifold_energy",
    "spread_reached_permuted",
    "off_steady_late",
    "off_plane_wide",
    "off_plane_permuted",
    *(f"lag_{name}" for name in OBSERVERS),
)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """All that was measured on one model."""

    block: int
    missed: Float[Tensor, " block"]
    means: Readings
    mixed: Readings
    spreads: Readings
    kl_observer: Float[Tensor, "text read"]
    """Of the exact Bayesian observer to the model."""
    kl_to_uniform: Float[Tensor, "text read"]
    """... to a uniform law: what a model would leave that knew nothing."""
    mean_fields: Fields
    spread_fields: Fields
    mean_encoded: Float[Tensor, "block text read"]
    spread_encoded: Float[Tensor, "block text read"]
    mean_encoded_wrong: Float[Tensor, "draw text read"]
    spread_encoded_wrong: Float[Tensor, "draw text read"]
    steered: Steered
    widened: Steered
    switched: Switched
    plane: OffPlane
    shapes: Shapes


def numbers_of(m: Measured, seed: int) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return numbers and controls; intervals are over texts."""

    def mean(values: Tensor) -> Number:
        rows = values.double().reshape(len(values), -1)
        return stats.mean(rows.mean(1).numpy()[:, None], seed=seed)

    numbers = {
        "best_block": Number(float(m.block)),
        "slope_of_mean": _slope(m.means.u, m.means.mean, seed),
        "slope_of_spread": _slope(m.spreads.u.exp(), m.spreads.spread, seed),
        "kl_of_observer": mean(m.kl_observer),
        "digit_mass": mean(m.means.mass),
        "lfp_accuracy": mean(m.mean_fields.accuracy[m.block]),
        "lfp_within_one": mean(m.mean_fields.near[m.block]),
        "lfp_accuracy_first_block": mean(m.mean_fields.accuracy[0]),
        "lfp_accuracy_spread": mean(m.spread_fields.accuracy[m.block]),
        "lfp_own_pair": Number(float(m.mean_fields.local[m.block, 0])),
        "lfp_next_pair": Number(float(m.mean_fields.local[m.block, 1])),
        "lfp_far_pair": Number(float(m.mean_fields.local[m.block, -1])),
        "r2_mean": _r2(m.mean_encoded[m.block], m.means.u, seed),
        "r2_spread": _r2(m.spread_encoded[m.block], m.spreads.u, seed),
        **_steering(m.steered, OWN, seed),
        "vector_over_manifold_energy": _over(m.steered, "vector", "manifold", seed),
        "chord_over_manifold_energy": _over(m.steered, "chord", "manifold", seed),
        "spread_reached_manifold": _reached(m.widened, "manifold", seed),
        "spread_reached_vector": _reached(m.widened, "vector", seed),
        **_switch_numbers(m.switched, m.plane, seed),
    }
    floor = m.shapes.behavior.distance(m.means.probabilities.float())
    controls = {
        "slope_mixed": _slope(m.mixed.u, m.mixed.mean, seed),
        "kl_to_uniform": mean(m.kl_to_uniform),
        "lfp_accuracy_shuffled": _over_draws(m.mean_fields.shuffled),
        "lfp_accuracy_spread_shuffled": _over_draws(m.spread_fields.shuffled),
        "r2_mean_permuted": _r2_wrong(m.mean_encoded_wrong, m.means.u),
        "r2_spread_permuted": _r2_wrong(m.spread_encoded_wrong, m.spreads.u),
        **_steering(m.steered, NULLS, seed),
        "mixture_energy": mean(m.steered.distance["mixture"].sum(1)),
        "vector_over_mixture_energy": _over(m.steered, "vector", "mixture", seed),
        "mixture_inflation": _inflation(m.steered, "mixture", seed),
        "energy_floor": mean(floor * len(m.steered.u)),
        "permuted_over_manifold_energy": _over(m.steered, "permuted", "manifold", seed),
        "spread_reached_permuted": _reached(m.widened, "permuted", seed),
        "off_steady_late": mean(m.switched.off_steady[:, -8:]),
        "off_plane_wide": mean(m.plane.wide[:, FIRST : FIRST + SOON]),
        "off_plane_permuted": _over_draws(m.plane.permuted),
        **{f"lag_{k}": _lag(v, seed) for k, v in m.switched.observers.items()},
    }
    return numbers, controls


def _steering(found: Steered, arms: tuple[str, ...], seed: int) -> dict[str, Number]:
    def mean(values: Tensor) -> Number:
        return stats.mean(values.double().mean(1).numpy()[:, None], seed=seed)

    return {
        **{
            f"{arm}_missed": mean((found.mean(arm) - found.natural_mean)[:, 1:].abs())
            for arm in arms
        },
        **{f"{arm}_inflation": _inflation(found, arm, seed) for arm in arms},
        **{f"{arm}_energy": mean(found.distance[arm] * len(found.u)) for arm in arms},
    }


def _inflation(found: Steered, arm: str, seed: int) -> Number:
    """Return the greatest spread on the way over the natural one at that place."""
    ratio = found.spread(arm) / found.natural_spread
    return stats.mean(ratio[:, 1:-1].amax(1).numpy()[:, None], seed=seed)


def _over(found: Steered, top: str, bottom: str, seed: int) -> Number:
    sides = [found.distance[arm].sum(1).numpy()[:, None] for arm in (top, bottom)]
    return stats.ratio(sides[0], sides[1], seed=seed)


def _reached(found: Steered, arm: str, seed: int) -> Number:
    """Return how much of the natural rise of the spread an arm achieves from end to end."""
    rise = found.spread(arm)[:, -1] - found.spread(arm)[:, 0]
    natural = found.natural_spread[-1] - found.natural_spread[0]
    return stats.mean((rise / natural).numpy()[:, None], seed=seed)


def _switch_numbers(found: Switched, plane: OffPlane, seed: int) -> dict[str, Number]:
    def mean(values: Tensor) -> Number:
        return stats.mean(values.double().numpy()[:, None], seed=seed)

    smooth = found.off.unfold(1, 3, 1).mean(-1)
    wide = found.spread.unfold(1, 3, 1).mean(-1)
    return {
        "off_before": mean(found.off[:, :FIRST].mean(1)),
        "off_after": mean(smooth[:, FIRST : FIRST + SOON].amax(1)),
        "off_late": mean(found.off[:, -8:].mean(1)),
        "off_plane_after": mean(plane.off[:, FIRST : FIRST + SOON].mean(1)),
        "off_plane_late": mean(plane.off[:, -8:].mean(1)),
        "lag_states": _lag(found.u, seed),
        "lag_outputs": _lag(found.mean, seed),
        "spread_peak_over_before": mean(
            wide[:, FIRST : FIRST + SOON].amax(1) / found.spread[:, :FIRST].mean(1)
        ),
        "spread_late_over_before": mean(
            found.spread[:, -8:].mean(1) / found.spread[:, :FIRST].mean(1)
        ),
    }


def _lag(course: Float[Tensor, "text time"], seed: int) -> Number:
    """Return the lag of the mean course; its interval is over texts."""
    rng = np.random.default_rng(seed)
    drawn = [
        lag(course[torch.from_numpy(rng.integers(0, len(course), len(course)))].mean(0), FIRST)
        for _ in range(500)
    ]
    return stats.percentiles(lag(course.mean(0), FIRST), np.array(drawn))


def _slope(u: Tensor, read: Float[Tensor, "text read"], seed: int) -> Number:
    """Return the slope of readings on what they should follow; its interval is over texts."""
    x, y = u.double().numpy(), read.mean(1).numpy()
    rng = np.random.default_rng(seed)

    def slope(at: np.ndarray) -> float:
        return float(np.polyfit(x[at], y[at], 1)[0])

    drawn = [slope(rng.integers(0, len(x), len(x))) for _ in range(1000)]
    return stats.percentiles(slope(np.arange(len(x))), np.array(drawn))


def _r2(encoded: Float[Tensor, "text read"], u: Float[Tensor, " text"], seed: int) -> Number:
    """Return 1 - squared error over variance, of coordinates of held-out states."""
    error = (encoded - u[:, None]).square().mean(1).numpy()
    spread = (u - u.mean()).square().numpy()
    whole = stats.ratio(error[:, None], spread[:, None], seed=seed)
    if whole.value is None or whole.lo is None or whole.hi is None:
        return whole
    return Number(1 - whole.value, 1 - whole.hi, 1 - whole.lo)


def share(encoded: Float[Tensor, "text read"], u: Float[Tensor, " text"]) -> float:
    """Return 1 - the share of the variance of u that is left unexplained."""
    left = (encoded - u[:, None]).square().mean() / (u - u.mean()).square().mean()
    return round(1 - float(left), 4)


def _r2_wrong(encoded: Float[Tensor, "draw text read"], u: Float[Tensor, " text"]) -> Number:
    return _over_draws(torch.tensor([share(one, u) for one in encoded]))


def _over_draws(values: Float[Tensor, " draw"]) -> Number:
    """Return the mean over draws of a null, and between what 95 % of them lie."""
    return stats.percentiles(float(values.mean()), values.double().numpy())
