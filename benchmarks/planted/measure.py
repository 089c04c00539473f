"""The measurement: plant, read, fit, choose a block, steer, compare with the truth."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
import steer
from benchmarks import stats
from benchmarks.planted.model import (
    Chart,
    Natural,
    Reading,
    Recipe,
    bins,
    coordinates,
    fit_chart,
    fit_natural,
    planted,
    points,
)
from benchmarks.planted.paths import ARMS, MOST, N_POINTS, Pairs, distances, outputs, pairs
from benchmarks.planted.shapes import SHAPES, Shape, difference
from benchmarks.planted.unlabelled import Unlabelled, unlabelled
from benchmarks.result import Outcome
from benchmarks.stats import Grid, Number
from benchmarks.task import Options
from steer.sites import AnySite

NULLS = ("permuted", "random_path", "mixture", "floor")
CONTROLS = tuple(
    f"{shape.name}_{name}"
    for shape in SHAPES
    for name in (
        "coordinate_error_permuted",
        "output_error",
        "topology_right_shuffled",
        *(f"{null}_over_manifold" for null in NULLS),
        "chord_over_mixture",
    )
)
N_SEEDS = 3
N_CHOICE = 60
"""Training prompts on which the block is chosen."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was found in one model."""

    layer: int
    missed: dict[int, float]
    """For each block how far steered outputs are from those of the target (Hellinger)."""
    error: Float[Tensor, " row"]
    """Of the coordinates of held-out states, as a share of the turn or the range."""
    output_error: Float[Tensor, " row"]
    permuted_error: Float[Tensor, " row"]
    unlabelled: Unlabelled
    distant: dict[str, Grid]
    adjacent: dict[str, Grid]
    profile: dict[str, list[float]]
    """Mean energy at each waypoint of the distant paths."""
    plane: list[list[float]]
    """The first coordinates of the held-out states in the chart's subspace, then their places."""


def measure_planted(lm: steer.LM, options: Options) -> Outcome:
    """Train the models, measure each; `--limit` is the number of seeds.

    The model that was loaded is not used.
    """
    del lm
    seeds = range(options.seed, options.seed + (options.limit or N_SEEDS))
    recipe = Recipe()
    numbers: dict[str, Number] = {}
    controls: dict[str, Number] = {}
    tables: dict[str, object] = {"seeds": list(seeds), "shapes": [s.name for s in SHAPES]}
    for shape in SHAPES:
        found = [found_in(shape, recipe, seed) for seed in seeds]
        own, null = numbers_of(found, options.seed)
        numbers |= {f"{shape.name}_{name}": value for name, value in own.items()}
        controls |= {f"{shape.name}_{name}": value for name, value in null.items()}
        tables[shape.name] = {
            "layers": [one.layer for one in found],
            "missed": [{str(k): v for k, v in one.missed.items()} for one in found],
            "topology": [one.unlabelled.topology for one in found],
            "topology_shuffled": [one.unlabelled.shuffled_topology for one in found],
            "coordinate_error": [float(one.error.mean()) for one in found],
            "manifold_over_chord": [
                float(np.nansum(one.distant["manifold"]) / np.nansum(one.distant["chord"]))
                for one in found
            ],
            "profile": found[0].profile,
            "plane": found[0].plane,
        }
    specs = {"recipe": str(recipe), "shapes": [str(shape) for shape in SHAPES]}
    return Outcome(numbers, controls, tables, specs)


def found_in(shape: Shape, recipe: Recipe, seed: int) -> Found:
    """Train one model and return what is found in it."""
    lm, seen, out = planted(shape, recipe, seed)
    natural = fit_natural(shape, seen)
    draw = torch.Generator().manual_seed(seed)
    missed = _missed(lm, shape, seen, natural, draw)
    site = min(missed, key=missed.__getitem__)
    chart = fit_chart(shape, seen.states[site], seen.places)
    wrong = fit_chart(shape, seen.states[site], _permuted(seen.places, draw))
    half = shape.size // 2
    far, near = (pairs(shape, out, way, seed=seed) for way in (half, 1))
    apart = {}
    for many in (far, near):
        walked = outputs(lm, shape, site, chart, wrong, many, seed=seed)
        apart[many] = {arm: distances(natural, p) for arm, p in walked.items()}

    def error(fitted: Chart | Natural, x: Tensor) -> Tensor:
        gap = difference(shape, coordinates(fitted, x), out.places)
        return gap.abs().mean(-1) / shape.extent

    shown = chart.subspace.coordinates(out.states[site])[:, :3]
    return Found(
        list(missed).index(site),
        dict(enumerate(missed.values())),
        error(chart, out.states[site]),
        error(natural, out.outputs),
        error(wrong, out.states[site]),
        unlabelled(
            shape,
            torch.cat([seen.states[site], out.states[site]]),
            torch.cat([seen.places, out.places]),
            draw,
        ),
        _grids(natural, far, apart[far]),
        _grids(natural, near, apart[near]),
        {arm: one.mean(0).tolist() for arm, one in apart[far].items()},
        torch.cat([shown, out.places], 1).tolist(),
    )


def numbers_of(found: list[Found], seed: int) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return the numbers and the controls of one shape, over all its models.

    Intervals are over held-out prompts, or over starts and prompts, of all models together.
    """

    def error(of: Callable[[Found], Tensor]) -> Number:
        return stats.mean(torch.stack([of(one) for one in found], 1).double().numpy(), seed=seed)

    def over(top: str, bottom: str, *, near: bool = False) -> Number:
        both = [one.adjacent if near else one.distant for one in found]
        tops = np.concatenate([one[top] for one in both])
        return stats.ratio(tops, np.concatenate([one[bottom] for one in both]), seed=seed)

    def energy(arm: str) -> Number:
        return stats.mean(np.concatenate([one.distant[arm] for one in found]), seed=seed)

    def share(of: Callable[[Unlabelled], float]) -> Number:
        return Number(float(np.mean([of(one.unlabelled) for one in found])))

    everything = torch.cat([one.error for one in found]).double()
    numbers = {
        "coordinate_error": error(lambda one: one.error),
        "coordinate_error_q95": Number(float(everything.quantile(0.95))),
        "coordinate_error_worst_seed": Number(max(float(one.error.mean()) for one in found)),
        "topology_right": share(lambda one: one.right),
        "topology_confidence": share(lambda one: one.confidence),
        "unlabelled_agreement": share(lambda one: one.agreement),
        "manifold_over_chord": over("manifold", "chord"),
        "manifold_over_chord_adjacent": over("manifold", "chord", near=True),
        **{f"energy_{arm}": energy(arm) for arm in (*ARMS, "floor")},
        "reach_error": Number(float(np.mean([min(one.missed.values()) for one in found]))),
    }
    controls = {
        "coordinate_error_permuted": error(lambda one: one.permuted_error),
        "output_error": error(lambda one: one.output_error),
        "topology_right_shuffled": share(lambda one: one.shuffled_right),
        **{f"{null}_over_manifold": over(null, "manifold") for null in NULLS},
        "chord_over_mixture": over("chord", "mixture"),
    }
    return numbers, controls


def _missed(
    lm: steer.LM, shape: Shape, seen: Reading, natural: Natural, draw: torch.Generator
) -> dict[AnySite, float]:
    """Return for each block how far outputs steered there are from natural ones of the target.

    On training prompts, each sent to the place of another one, on the chart of half of them. A
    block whose writes are overwritten misses.
    """
    order = torch.randperm(len(seen.rows), generator=draw)
    asked = seen.where(order[:N_CHOICE])
    fitted = seen.where(order[N_CHOICE:])
    target = asked.places.roll(1, 0)
    u = target[:, 0] if shape.dim == 1 else target
    sites = lm.sites("resid_post")
    charts = [fit_chart(shape, fitted.states[site], fitted.places) for site in sites]
    plans: list[steer.Plan] = [
        [steer.MoveTo(site, chart, u, scope=steer.LAST)]
        for site, chart in zip(sites, charts, strict=True)
    ]
    found = steer.sweep(lm, asked.rows, plans, lambda logits, _: bins(shape, logits)).values
    gaps = manifolds.hellinger(found, points(natural, target)).mean(-1)
    return dict(zip(sites, gaps.tolist(), strict=True))


def _permuted(places: Tensor, draw: torch.Generator) -> Tensor:
    """Return the places with whole classes exchanged among each other."""
    known, of = places.unique(dim=0, return_inverse=True)
    return known[torch.randperm(len(known), generator=draw)][of]


def _grids(natural: Natural, many: Pairs, apart: dict[str, Tensor]) -> dict[str, Grid]:
    """Return the energy of every path of every arm, and of unsteered outputs, as grids."""
    values = {arm: one.sum(-1) for arm, one in apart.items()}
    values["floor"] = distances(natural, many.reading.outputs) * N_POINTS
    made = {}
    for arm, one in values.items():
        grid = np.full((int(many.start.max()) + 1, MOST), np.nan)
        grid[many.start.numpy(), many.context.numpy()] = one.numpy()
        made[arm] = grid
    return made
