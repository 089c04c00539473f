"""Steer along paths and measure the outputs: the arms of `arms`, turned into grids of numbers.

Distances are from an output to the nearest natural one: to the ring or line M_y through the natural
outputs of the train contexts. The grids are [start, context] as `stats` takes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
import steer
from benchmarks.rings.arms import ARMS
from benchmarks.rings.order import Order
from benchmarks.rings.paths import N_POINTS, Ring, Steps
from benchmarks.rings.reading import Bins, Reading
from benchmarks.stats import Grid


@dataclass(frozen=True, slots=True, eq=False)
class Distances:
    """How far outputs are from the nearest natural ones, in both units."""

    hellinger: Float[Tensor, "*path"]
    bhattacharyya: Float[Tensor, "*path"]
    """In nats."""

    @property
    def mean(self) -> Float[Tensor, " path"]:
        """The mean Hellinger distance over the waypoints of each path."""
        return self.hellinger.mean(-1)

    @property
    def energy(self) -> Float[Tensor, " path"]:
        """The naturalness energy of arXiv:2605.05115: Bhattacharyya, summed over the waypoints."""
        return self.bhattacharyya.sum(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """The outputs along the paths of one arm."""

    steps: Steps
    outputs: Float[Tensor, "path point bin"]


def walk(
    lm: steer.LM,
    arms: Sequence[str],
    ring: Ring,
    reading: Reading,
    steps: Steps,
    bins: Bins,
    *,
    seed: int = 0,
) -> dict[str, Walk]:
    """Steer every path of some arms and return the outputs, in one sweep.

    The prompts themselves are run once for all arms.
    """
    plans = [plan for arm in arms for plan in _plans(arm, ring, reading, steps, seed)]
    found = steer.sweep(lm, reading.rows, plans, lambda logits, _: bins.probabilities(logits))
    outputs = found.values.unflatten(0, (len(arms), steps.n_points)).transpose(1, 2)
    return {arm: Walk(steps, one) for arm, one in zip(arms, outputs, strict=True)}


def mixture(
    lm: steer.LM, ring: Ring, reading: Reading, steps: Steps, bins: Bins
) -> Float[Tensor, "path point bin"]:
    """Return the geometric mixtures of the outputs at the two ends of each chord."""
    plans = _plans("chord", ring, reading, steps, 0)
    ends = steer.sweep(lm, reading.rows, [plans[0], plans[-1]], lambda logits, _: logits)
    first, last = ends.values.float()
    return geometric_mixtures(first, last, bins, n_points=steps.n_points)


def _plans(arm: str, ring: Ring, reading: Reading, steps: Steps, seed: int) -> list[steer.Plan]:
    make = ARMS[arm](ring, steps, reading.states[ring.site], seed)
    return [make(steps.waypoint(point)) for point in range(steps.n_points)]


def geometric_mixtures(
    first: Float[Tensor, "path vocab"],
    last: Float[Tensor, "path vocab"],
    bins: Bins,
    *,
    n_points: int = N_POINTS,
) -> Float[Tensor, "path point bin"]:
    """Return the bins of p_0^(1-t) p_1^t, normalised, between the ends of each path.

    That is what a chord gives where the read-out after the site is linear and a softmax
    (methods 1.11): no departure from natural outputs along it would be due to the activations.
    """
    shares = torch.linspace(0, 1, n_points, device=first.device)
    return torch.stack([bins.probabilities((1 - t) * first + t * last) for t in shares], 1)


def distances(outputs: Float[Tensor, "*path bin"], behavior: manifolds.Behavior) -> Distances:
    """Return the distance of each output to the nearest natural one, looked for once."""
    p = outputs.double()
    near = behavior.project(p).double()
    p = p / p.sum(-1, keepdim=True)
    return Distances(manifolds.hellinger(p, near), manifolds.bhattacharyya(p, near))


def grid(reading: Reading, values: Float[Tensor, " case"], shape: tuple[int, int]) -> Grid:
    """Return one value per case as [start, context], NaN where there is no case."""
    filled = np.full(shape, np.nan)
    filled[reading.concept.numpy(), reading.context.numpy()] = values.double().numpy()
    return filled


def passed(walks: Walk) -> Float[Tensor, " path"]:
    """Return the mean probability of the concepts passed between a path's ends, as it passes them.

    NaN for paths that pass none.
    """
    steps = walks.steps
    on = steps.passed
    at = steps.order.place(steps.start + steps.way.sign() * on.clamp_min(0))
    p = walks.outputs.gather(-1, steps.per_path(at)[..., None])[..., 0]
    return torch.where(steps.per_path(on) >= 0, p, torch.nan).nanmean(-1)


def mixture_gap(
    outputs: Float[Tensor, "path point bin"], mixtures: Float[Tensor, "path point bin"]
) -> Float[Tensor, " path"]:
    """Return the mean Hellinger distance of outputs to the geometric mixtures of their ends."""
    return manifolds.hellinger(outputs, mixtures).mean(-1)


def profile(values: Float[Tensor, "path point"]) -> list[float]:
    """Return the mean over paths at each waypoint."""
    return [round(float(v), 5) for v in values.double().mean(0)]


def heat_map(walks: Walk) -> list[list[float]]:
    """Return [bin][point]: mean outputs, concepts counted from the path's start, in its direction.

    The last row is other; on a line the one before it is all concepts that the path does not pass.
    """
    steps = walks.steps
    n = steps.order.offsets(int(steps.way.abs().max()))
    start, way = (steps.per_path(v)[:, :1] for v in (steps.start, steps.way))
    at = steps.order.place(start + way.sign() * torch.arange(n))
    on = walks.outputs.gather(-1, at[:, None].expand(-1, walks.outputs.shape[1], -1))
    rest = walks.outputs[..., :-1].sum(-1, keepdim=True) - on.sum(-1, keepdim=True)
    parts = [on, *([] if steps.order.closed else [rest]), walks.outputs[..., -1:]]
    both = torch.cat(parts, -1).double().mean(0)
    return [[round(float(v), 5) for v in row] for row in both.T]


def heat_names(order: Order, distance: int) -> list[str]:
    """Return what the rows of a heat map are."""
    on = ["start", *(f"+{i}" for i in range(1, order.offsets(distance)))]
    return [*on, *([] if order.closed else ["elsewhere"]), "other"]
