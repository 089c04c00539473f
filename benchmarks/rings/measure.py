"""Steer along paths and measure the outputs: the arms of `paths`, turned into grids and numbers.

Distances are from an output to the nearest natural one: to the ring M_y through the natural outputs
of the train contexts. The grids are [start, context] as `stats` takes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
import steer
from benchmarks.rings.paths import ARMS, N_POINTS, Ring, Steps
from benchmarks.rings.reading import Bins, Reading
from benchmarks.stats import Grid


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """The outputs along the paths of one arm."""

    steps: Steps
    outputs: Float[Tensor, "path point bin"]
    mixture: Float[Tensor, "path point bin"] | None = None
    """Geometric mixtures of each path's own two ends, where they were asked for."""


def walk(
    lm: steer.LM,
    arm: str,
    ring: Ring,
    reading: Reading,
    steps: Steps,
    bins: Bins,
    *,
    seed: int = 0,
    mixtures: bool = False,
) -> Walk:
    """Steer every path of one arm and return the outputs."""
    make_plan = ARMS[arm](ring, steps, reading.states[ring.site], seed)
    points = [make_plan(steps.waypoint(point)) for point in range(N_POINTS)]
    outputs = steer.sweep(lm, reading.rows, points, lambda logits, _: bins.probabilities(logits))
    along = outputs.values.transpose(0, 1)
    if not mixtures:
        return Walk(steps, along)
    ends = steer.sweep(lm, reading.rows, [points[0], points[-1]], lambda logits, _: logits)
    first, last = ends.values.float()
    return Walk(steps, along, geometric_mixtures(first, last, bins))


def geometric_mixtures(
    first: Float[Tensor, "path vocab"], last: Float[Tensor, "path vocab"], bins: Bins
) -> Float[Tensor, "path point bin"]:
    """Return the bins of p_0^(1-t) p_1^t, normalised, between the ends of each path.

    That is what a chord gives where the read-out after the site is linear and a softmax
    (methods 1.11): no departure from natural outputs along it would be due to the activations.
    """
    shares = torch.linspace(0, 1, N_POINTS, device=first.device)
    return torch.stack([bins.probabilities((1 - t) * first + t * last) for t in shares], 1)


def distances(
    outputs: Float[Tensor, "*path bin"],
    behavior: manifolds.Behavior,
    metric: Literal["hellinger", "bhattacharyya"] = "hellinger",
) -> Float[Tensor, "*path"]:
    """Return the distance of each output to the nearest natural one."""
    return behavior.distance(outputs.double(), metric)


def grid(reading: Reading, values: Float[Tensor, " case"], shape: tuple[int, int]) -> Grid:
    """Return one value per case as [start, context], NaN where there is no case."""
    filled = np.full(shape, np.nan)
    filled[reading.concept.numpy(), reading.context.numpy()] = values.double().numpy()
    return filled


def energies(walks: Walk, behavior: manifolds.Behavior) -> Float[Tensor, " path"]:
    """Return the mean Hellinger distance over the waypoints of each path."""
    return distances(walks.outputs, behavior).mean(-1)


def passed(walks: Walk, period: int) -> Float[Tensor, " path"]:
    """Return the mean probability of the concepts passed between a path's ends, as it passes them.

    NaN for paths that pass none.
    """
    steps = walks.steps
    on = steps.per_path(steps.passed)
    target = (steps.per_path(steps.start) + on.clamp_min(0)) % period
    p = walks.outputs.gather(-1, target[..., None])[..., 0]
    return torch.where(on >= 0, p, torch.nan).nanmean(-1)


def mixture_gap(walks: Walk) -> Float[Tensor, " path"]:
    """Return the mean Hellinger distance of outputs to the geometric mixtures of their ends."""
    assert walks.mixture is not None
    return manifolds.hellinger(walks.outputs, walks.mixture).mean(-1)


def profile(values: Float[Tensor, "path point"]) -> list[float]:
    """Return the mean over paths at each waypoint."""
    return [round(float(v), 5) for v in values.double().mean(0)]


def heat_map(walks: Walk, period: int) -> list[list[float]]:
    """Return [bin][point]: mean outputs, concepts counted from the path's start, other last."""
    start = walks.steps.per_path(walks.steps.start)[:, 0]
    turned = (torch.arange(period)[None] + start[:, None]) % period
    concepts = walks.outputs[..., :-1].gather(
        -1, turned[:, None].expand(-1, walks.outputs.shape[1], -1)
    )
    both = torch.cat([concepts, walks.outputs[..., -1:]], -1).double().mean(0)
    return [[round(float(v), 5) for v in row] for row in both.T]


def summary(walks: Mapping[str, Walk], behavior: manifolds.Behavior) -> dict[str, dict[str, float]]:
    """Return for each arm the mean distances: Hellinger, and the paper's energy in nats."""
    found = {}
    for name, one in walks.items():
        energy = distances(one.outputs, behavior, "bhattacharyya").sum(-1)
        found[name] = {
            "hellinger": float(energies(one, behavior).mean()),
            "bhattacharyya_energy": float(energy.mean()),
            "other": float(one.outputs[..., -1].mean()),
        }
    return found
