"""Numbers of `world_model`: how far paths leave the states and the outputs that the network has."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
import steer
from benchmarks import stats
from benchmarks.cars.model import WARM, Recipe, World, expected, world
from benchmarks.cars.paths import (
    ADJACENT,
    ARMS,
    DISTANT,
    FROM,
    N_POINTS,
    Pairs,
    outputs,
    pairs,
    ways,
)
from benchmarks.result import Outcome
from benchmarks.stats import Grid, Number
from benchmarks.task import Options
from benchmarks.ways import geometric_mixture

CONTROLS = (
    "position_error_permuted",
    "velocity_error_permuted",
    *(
        f"{arm}_{name}"
        for name in ("energy", "to_surface", "to_states", "off_course")
        for arm in ("permuted", "random_path")
    ),
    "floor_energy",
    "mixture_energy",
    "chord_over_mixture",
    "states_energy",
    "states_to_surface",
    "isometry_permuted",
)
N_SEEDS, N_PAIRS = 3, 24
SHOWN = 400
"""Held-out states that are encoded, and that the picture shows."""


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """What was measured along the paths of one distance, [pair] each, by arm."""

    energy: dict[str, Tensor]
    """Bhattacharyya distance to natural outputs, summed over waypoints, in nats."""
    to_surface: dict[str, Tensor]
    """Mean distance of the waypoints to M_h, in units of the activations."""
    to_states: dict[str, Tensor]
    """... to the nearest held-out state, within the subspace."""
    off_course: dict[str, Tensor]
    """Mean distance of what the network expects next from what it expects on the true way."""
    lengths: dict[str, Tensor]
    """Of the ways along M_h, its chord, the permuted surface and M_y."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was found in one network."""

    error: Float[Tensor, "state 2"]
    """Of position and velocity read off held-out states, in shares of their ranges."""
    permuted_error: Float[Tensor, "state 2"]
    distant: Walked
    adjacent: Walked
    course: dict[str, list[list[float]]]
    """Of the pair farthest apart: what is expected at each waypoint, and where the car was."""
    cloud: list[list[float]]
    """Held-out states in three components, then their place."""
    profile: dict[str, list[float]]


def measure_cars(lm: steer.LM, options: Options) -> Outcome:
    """Train the networks and measure each; `--limit` is the number of seeds.

    The model that was loaded is not used.
    """
    del lm
    seeds = range(options.seed, options.seed + (options.limit or N_SEEDS))
    found = [found_in(world(Recipe(), seed), seed) for seed in seeds]
    numbers, controls = numbers_of(found, options.seed)
    tables = {
        "seeds": list(seeds),
        "course": found[0].course,
        "cloud": found[0].cloud,
        "profile": found[0].profile,
        "adjacent_energy": {arm: float(v.mean()) for arm, v in found[0].adjacent.energy.items()},
    }
    return Outcome(numbers, controls, tables, {"recipe": str(Recipe()), "n_points": N_POINTS})


def found_in(one: World, seed: int) -> Found:
    """Return what is found in one network."""
    flat = one.states[:, WARM:].flatten(0, 1)
    places = one.drives.states[:, WARM:].flatten(0, 1)
    few = torch.linspace(0, len(flat) - 1, SHOWN).long()

    def error(surface: manifolds.Surface) -> Tensor:
        return (surface.encode(flat[few]) - places[few]).abs()

    far = pairs(one, DISTANT, N_PAIRS)
    distant, profile, course = _walk(one, far, tuple(ARMS), seed)
    near = pairs(one, ADJACENT, N_PAIRS)
    adjacent, _, _ = _walk(one, near, ("manifold", "chord"), seed)
    shown = one.surface.subspace.coordinates(flat[few])[:, :3]
    return Found(
        error(one.surface),
        error(one.permuted),
        distant,
        adjacent,
        course,
        torch.cat([shown, places[few]], 1).tolist(),
        profile,
    )


def _walk(
    one: World, many: Pairs, arms: tuple[str, ...], seed: int
) -> tuple[Walked, dict[str, list[float]], dict[str, list[list[float]]]]:
    """Return the measures of every arm, their energies by waypoint, and one pair's course."""
    points = ways(one, many, arms, seed=seed) | {"states": many.states}
    said = {arm: outputs(one, many, x) for arm, x in points.items()}
    said["mixture"] = geometric_mixture(said["chord"]).float()
    # The floor: what the network says unsteered, where paths start.
    said["floor"] = one.outputs[many.drive, FROM, None].expand(-1, N_POINTS, -1)
    away = {arm: one.behavior.distance(p) for arm, p in said.items()}
    space = one.surface.subspace
    # The states of the drives that are walked would be at no distance from themselves.
    others = torch.ones(len(one.states), dtype=torch.bool).index_fill(0, many.drive, value=False)
    cloud = space.coordinates(one.states[others, WARM:]).flatten(0, 1)

    def near(x: Tensor) -> Tensor:
        inside = space.coordinates(x).flatten(0, 1)
        return torch.cdist(inside, cloud).amin(1).view(x.shape[:2]).mean(1)

    true = expected(said["states"])
    u0, u1 = many.ends
    ends = points["chord"][:, [0, -1]]
    walked = Walked(
        {arm: one.sum(-1) for arm, one in away.items()},
        {arm: one.surface.distance(space.flatten(x)).mean(-1) for arm, x in points.items()},
        {arm: near(x) for arm, x in points.items()},
        {arm: (expected(p) - true).norm(dim=-1).mean(-1) for arm, p in said.items()},
        {
            "manifold": one.surface.arc_length(u0, u1),
            "chord": (ends[:, 1] - ends[:, 0]).norm(dim=-1),
            "permuted": one.permuted.arc_length(u0, u1),
            "behavior": one.behavior.arc_length(u0, u1),
        },
    )
    longest = int((u1 - u0).norm(dim=-1).argmax())
    course = {arm: expected(p)[longest].tolist() for arm, p in said.items()}
    course["car"] = many.true[longest].tolist()
    return walked, {arm: v.mean(0).tolist() for arm, v in away.items()}, course


def numbers_of(found: list[Found], seed: int) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return numbers and controls over all networks; intervals are over pairs, or states."""

    def grid(values: list[Tensor]) -> Grid:
        return torch.cat(values).double().numpy()[:, None]

    def mean(name: str, arm: str) -> Number:
        return stats.mean(grid([getattr(one.distant, name)[arm] for one in found]), seed=seed)

    def over(name: str, top: str, bottom: str, *, near: bool = False) -> Number:
        both = [one.adjacent if near else one.distant for one in found]
        values = [grid([getattr(one, name)[arm] for one in both]) for arm in (top, bottom)]
        return stats.ratio(values[0], values[1], seed=seed)

    def error(axis: int, *, permuted: bool = False) -> Number:
        parts = [one.permuted_error if permuted else one.error for one in found]
        return stats.mean(grid([part[:, axis] for part in parts]), seed=seed)

    measures = ("energy", "to_surface", "to_states", "off_course")
    own = [arm for arm in ARMS if arm not in ("permuted", "random_path")]
    numbers = {
        "position_error": error(0),
        "velocity_error": error(1),
        **{f"{arm}_{name}": mean(name, arm) for name in measures for arm in own},
        "chord_over_manifold": over("energy", "chord", "manifold"),
        "chord_over_manifold_adjacent": over("energy", "chord", "manifold", near=True),
        "chord_over_pulled_to_surface": over("to_surface", "chord", "pulled"),
        "isometry_manifold": _isometry(found, "manifold", seed),
        "isometry_chord": _isometry(found, "chord", seed),
    }
    controls = {
        "position_error_permuted": error(0, permuted=True),
        "velocity_error_permuted": error(1, permuted=True),
        **{f"{a}_{name}": mean(name, a) for name in measures for a in ("permuted", "random_path")},
        "floor_energy": mean("energy", "floor"),
        "mixture_energy": mean("energy", "mixture"),
        "chord_over_mixture": over("energy", "chord", "mixture"),
        "states_energy": mean("energy", "states"),
        "states_to_surface": mean("to_surface", "states"),
        "isometry_permuted": _isometry(found, "permuted", seed),
    }
    return numbers, controls


def _isometry(found: list[Found], name: str, seed: int) -> Number:
    """Return r between lengths in activation space and along M_y; the mean over networks."""
    pairs_of = [
        np.stack([one.distant.lengths[k].double().numpy() for k in (name, "behavior")])
        for one in found
    ]

    def r(parts: list[np.ndarray]) -> float:
        return float(np.mean([np.corrcoef(part)[0, 1] for part in parts]))

    rng = np.random.default_rng(seed)
    drawn = [
        r([part[:, rng.integers(0, part.shape[1], part.shape[1])] for part in pairs_of])
        for _ in range(1000)
    ]
    return stats.percentiles(r(pairs_of), np.array(drawn))
