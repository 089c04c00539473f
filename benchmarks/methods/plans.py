"""The methods as plans of strength 1, which a factor scales, and the controls beside them.

All act at one site. What is fitted at the answer's letter acts on every token but the first; the
move along the manifold acts where its curve was fitted, at the token that gives the answer and on
what is generated from there (OUTPUT), and so do the additions that it is compared with.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

import manifolds
import probes
import steer
from benchmarks.methods.states import States
from steer.interventions.plans import Plan

EVERYWHERE = ~steer.FIRST
N_BINS = 6
"""Points of the curve: bins of questions of nearly equal log-odds."""
OUTPUT_ARMS = frozenset({"manifold", "mean_difference_output"})
"""What acts on OUTPUT; `random_output` is their control."""
AT_MOST: Mapping[str, float] = MappingProxyType(
    {"ablation": 1.0, "rotation": math.pi, "manifold": 64.0}
)
"""Largest factors. Ablation ends where the direction is gone, a rotation (1 radian) at half a turn;
a move may go beyond the length of the curve (factor 1): the factor says how far."""


def methods(states: States, site: steer.Site, seed: int) -> dict[str, Plan]:
    """Return the fitted methods and `shuffled`, at unit strength.

    `single_pair` is the addition of Turner et al. 2023 (arXiv:2308.10248) from one pair of answers;
    theirs adds it at the first tokens of the prompt alone. `pca` is Zou et al. 2023
    (arXiv:2310.01405), `ablation` Arditi et al. 2024 (arXiv:2406.11717) at one site, `rotation`
    a turn in the plane of the mean state and the mean difference: angular steering (Vu et al.
    2025) takes the first principal component instead of the mean state, whose sign is arbitrary.

    Args:
        states: at one site.
        site: which.
        seed: of the pair and of the shuffled labels.
    """
    positive, negative = states.positive[0], states.negative[0]
    difference = mean_difference(positive, negative)
    pca = probes.fit_pca_difference(positive, negative)
    draw = torch.Generator().manual_seed(seed)
    pair = int(torch.randint(len(positive), (1,), generator=draw))
    middle = torch.cat([positive, negative]).mean(0)
    plane = torch.stack([middle / middle.norm(), difference / difference.norm()])
    curve = curve_of(states)
    return {
        "mean_difference": [_add(site, difference)],
        "single_pair": [_add(site, positive[pair] - negative[pair])],
        "pca": [_add(site, float(difference.norm()) * pca.direction)],
        "ablation": [steer.Ablate(site, difference, scope=EVERYWHERE)],
        "rotation": [steer.Rotate(site, plane, 1.0, scope=EVERYWHERE)],
        "manifold": [steer.MoveAlong(site, curve, by=_length(curve))],
        "mean_difference_output": [steer.Add(site, difference, scope=steer.OUTPUT)],
        "shuffled": [_add(site, shuffled_difference(states, seed))],
    }


def random_directions(d_model: int, n: int, seed: int) -> Tensor:
    """Return [n, d_model] unit directions, uniform on the sphere."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(n, d_model, generator=draw)
    return directions / directions.norm(dim=1, keepdim=True)


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """Return CAA's raw vector: the difference of the means."""
    probe = probes.fit_mean_difference(positive, negative)
    return torch.as_tensor(probe.separation) * probe.direction


def shuffled_difference(states: States, seed: int) -> Tensor:
    """Return the mean difference after half of the questions, drawn by lot, have swapped sides.

    Half to the nearest question, so that little of the true difference is left.
    """
    n = int(states.question.max()) + 1
    draw = torch.Generator().manual_seed(seed)
    swapped = torch.zeros(n, dtype=torch.bool)
    swapped[torch.randperm(n, generator=draw)[: n // 2]] = True
    turn = swapped[states.question][:, None]
    positive, negative = states.positive[0], states.negative[0]
    return mean_difference(
        torch.where(turn, negative, positive), torch.where(turn, positive, negative)
    )


def curve_of(states: States) -> manifolds.Curve:
    """Return the curve through the mean states of questions of rising log-odds.

    Wurgaft et al. 2026 (arXiv:2605.05115) know the coordinate of each prompt; here it is the
    model's own log-odds, by quantile, and the curve is smoothed by leaving one bin out.
    """
    order = states.log_odds.argsort()
    coordinates = torch.empty(len(order))
    for part in order.tensor_split(N_BINS):
        coordinates[part] = states.log_odds[part].mean()
    return manifolds.fit_curve(states.before[0], coordinates, smoothing="loo")


def _length(curve: manifolds.Curve) -> float:
    """Return how many nats the curve spans."""
    return float(curve.breaks[-1] - curve.breaks[0])


def _add(site: steer.Site, direction: Tensor) -> steer.Add:
    return steer.Add(site, direction, scope=EVERYWHERE)
