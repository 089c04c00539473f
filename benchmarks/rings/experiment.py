"""The experiment on one ring, from prompts to numbers: read, choose a block, steer, compare.

What each step does is in the other modules of this package; which rings there are is in
`benchmarks.data.rings`, and the tasks are declared in `benchmarks.tasks.rings`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import manifolds
import steer
from benchmarks import stats
from benchmarks.data.rings import Ring as Concepts
from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome
from benchmarks.rings import measure
from benchmarks.rings.measure import Walk
from benchmarks.rings.paths import (
    N_POINTS,
    Ring,
    Steps,
    fit_ring,
    on_chord,
    on_manifold,
    steps_of,
)
from benchmarks.rings.reading import Bins, Reading, bins_of, read, require_all_concepts
from benchmarks.rings.scan import Block, best_of, scan
from benchmarks.stats import Grid, Number
from benchmarks.task import Options

DISTANT = (
    "manifold",
    "chord",
    "manifold_replaced",
    "chord_replaced",
    "additive",
    "random_path",
    "permuted",
)
ADJACENT = ("manifold", "chord")
CONTROLS = ("random_path_over_manifold", "permuted_over_manifold", "geometric_mixture_gap")
N_REFITS = 100
"""Refits on resampled train contexts, for the intervals of the isometry."""


@dataclass(frozen=True, slots=True, eq=False)
class Steered:
    """All that was measured on the test contexts."""

    reading: Reading
    behavior: manifolds.Behavior
    distant: Mapping[str, Walk]
    adjacent: Mapping[str, Walk]
    shape: tuple[int, int]
    """Number of starts and of contexts."""


def run_ring(lm: steer.LM, concepts: Concepts, options: Options) -> Outcome:
    """Steer round one ring of concepts and return the numbers.

    Raises:
        BenchmarkError: too few contexts, or a model that cannot do the task unsteered.
    """
    if options.limit is not None and options.limit < 2:
        raise BenchmarkError(
            f"--limit {options.limit} leaves fewer than 2 contexts, and holding one out in turn "
            "takes two. Give 2 or more, or leave it out for all."
        )
    period, sites, bins = len(concepts), lm.sites("resid_post"), bins_of(lm, concepts)
    train_contexts, test_contexts = concepts.train[: options.limit], concepts.test[: options.limit]
    train = read(lm, concepts, train_contexts, bins, sites)
    require_all_concepts(train, concepts, "train")
    blocks = scan(lm, train, bins, sites, period)
    if not blocks:
        raise BenchmarkError(
            "No train context can be held out, as some concept is answered correctly in one "
            "context only. Use more contexts (a larger --limit) or another model."
        )
    best = best_of(blocks)
    kept = train.where(train.correct)
    ring = fit_ring(kept, sites[best.layer], period)
    asked = read(lm, concepts, test_contexts, bins, [ring.site])
    if not bool(asked.correct.any()):
        raise BenchmarkError(
            "The model goes on correctly in no test context, so there is nothing to steer. Use "
            "another model."
        )
    test = asked.where(asked.correct)
    steered = _steer(lm, ring, kept, test, bins, options, (period, len(test_contexts)))
    numbers, controls = _numbers(steered, ring, kept, best, options.seed)
    tables = {
        "concepts": list(concepts.concepts),
        "blocks": [asdict(block) for block in blocks],
        "answered": _answered(train, asked),
        "distant": measure.summary(steered.distant, steered.behavior),
        "adjacent": measure.summary(steered.adjacent, steered.behavior),
        "natural_bhattacharyya": float(
            measure.distances(test.natural, steered.behavior, "bhattacharyya").mean()
        ),
        "profiles": _profiles(steered),
        "heat_maps": {
            arm: measure.heat_map(steered.distant[arm], period) for arm in ("manifold", "chord")
        },
        "ring": _drawable(ring),
    }
    return Outcome(numbers, controls, tables, _specs(ring, steered, concepts, options))


def _steer(
    lm: steer.LM,
    ring: Ring,
    train: Reading,
    test: Reading,
    bins: Bins,
    options: Options,
    shape: tuple[int, int],
) -> Steered:
    """Walk every arm on the test contexts."""

    def walks(arms: Sequence[str], distance: int) -> dict[str, Walk]:
        steps = steps_of(test, distance)
        return {
            arm: measure.walk(
                lm,
                arm,
                ring,
                test,
                steps,
                bins,
                seed=options.seed,
                mixtures=arm == "chord" and distance > 1,
            )
            for arm in arms
        }

    distant, adjacent = walks(DISTANT, ring.period // 2), walks(ADJACENT, 1)
    return Steered(test, train.behavior(ring.period), distant, adjacent, shape)


def _numbers(
    steered: Steered, ring: Ring, train: Reading, best: Block, seed: int
) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return the numbers and the controls, with their intervals."""

    def cells(values: torch.Tensor) -> Grid:
        return measure.grid(steered.reading, values, steered.shape)

    far = {arm: cells(measure.energies(w, steered.behavior)) for arm, w in steered.distant.items()}
    near = {
        arm: cells(measure.energies(w, steered.behavior)) for arm, w in steered.adjacent.items()
    }
    floor = measure.distances(steered.reading.natural, steered.behavior)

    def over(top: Grid, bottom: Grid) -> Number:
        return stats.ratio(top, bottom, seed=seed)

    def passed(arm: str) -> Number:
        found = measure.passed(steered.distant[arm], ring.period)
        return stats.mean(cells(found), seed=seed)

    numbers = {
        "best_block": Number(float(best.layer)),
        "chord_over_manifold": over(far["chord"], far["manifold"]),
        "chord_over_manifold_adjacent": over(near["chord"], near["manifold"]),
        "full_replace_over_manifold": over(far["chord_replaced"], far["manifold"]),
        "chord_over_manifold_replaced": over(far["chord_replaced"], far["manifold_replaced"]),
        "additive_over_manifold": over(far["additive"], far["manifold"]),
        "natural_floor": stats.mean(cells(floor), seed=seed),
        "distance_manifold": stats.mean(far["manifold"], seed=seed),
        "distance_chord": stats.mean(far["chord"], seed=seed),
        "p_passed_manifold": passed("manifold"),
        "p_passed_chord": passed("chord"),
        **_isometry(ring, train, steered.behavior, seed),
    }
    gap = cells(measure.mixture_gap(steered.distant["chord"]))
    controls = {
        "random_path_over_manifold": over(far["random_path"], far["manifold"]),
        "permuted_over_manifold": over(far["permuted"], far["manifold"]),
        "geometric_mixture_gap": stats.mean(gap, seed=seed),
    }
    return numbers, controls


def _isometry(
    ring: Ring, train: Reading, behavior: manifolds.Behavior, seed: int
) -> dict[str, Number]:
    """Return how well lengths predict behaviour lengths; intervals by refits on resampled contexts.

    One interior point per interval, as in the paper for months.
    """
    whole = manifolds.isometry(ring.curve, behavior, interior=1)
    contexts = train.context.unique()
    chooser = torch.Generator().manual_seed(seed)
    refits = []
    for _ in range(N_REFITS):
        drawn = contexts[torch.randint(len(contexts), (len(contexts),), generator=chooser)]
        cases = torch.cat([(train.context == c).nonzero()[:, 0] for c in drawn])
        again = train.where(cases)
        if len(again.concept.unique()) < ring.period:
            continue
        curve, natural = again.curve(ring.site, ring.period), again.behavior(ring.period)
        refits.append(manifolds.isometry(curve, natural, interior=1))
    each = torch.tensor([[r.manifold, r.chord] for r in refits]).reshape(-1, 2).double().numpy()
    return {
        "isometry_manifold": stats.percentiles(whole.manifold, each[:, 0]),
        "isometry_chord": stats.percentiles(whole.chord, each[:, 1]),
    }


def _answered(train: Reading, test: Reading) -> dict[str, Any]:
    """Return how many cases of each split the model answers correctly, of how many."""
    return {
        name: {"correct": int(one.correct.sum()), "of": len(one.rows)}
        for name, one in (("train", train), ("test", test))
    }


def _profiles(steered: Steered) -> dict[str, dict[str, list[float]]]:
    """Return the mean distance at each waypoint, for each arm."""
    return {
        kind: {
            arm: measure.profile(measure.distances(w.outputs, steered.behavior))
            for arm, w in walks.items()
        }
        for kind, walks in (("distant", steered.distant), ("adjacent", steered.adjacent))
    }


def _drawable(ring: Ring) -> dict[str, Any]:
    """Return the ring, its centroids and one path of each kind in the first three components."""
    space = ring.curve.subspace
    axes = min(3, space.k)

    def flat(points: torch.Tensor) -> list[list[float]]:
        return [[round(float(v), 4) for v in p[:axes]] for p in space.coordinates(points)]

    round_it = torch.linspace(0, ring.period, 20 * ring.period + 1)
    share = torch.linspace(0, 1, N_POINTS)
    knots = ring.curve.decode(torch.arange(ring.period).float())
    spread = space.coordinates(knots).double()
    variance = spread.var(0) / spread.var(0).sum()
    one = _one_path(share, ring.period)
    return {
        "centroids": flat(ring.centroids),
        "curve": flat(ring.curve.decode(round_it)),
        "manifold_path": flat(on_manifold(ring, one)),
        "chord_path": flat(on_chord(ring, one)),
        "variance": [round(float(v), 4) for v in variance[:axes]],
        "k": space.k,
    }


def _one_path(share: torch.Tensor, period: int) -> Steps:
    """Return the rows of the one path that the picture of the ring shows."""
    none = torch.zeros(len(share), dtype=torch.long)
    return Steps(none, none, none, share, period // 2)


def _specs(ring: Ring, steered: Steered, concepts: Concepts, options: Options) -> dict[str, Any]:
    """Return the settings that made the numbers."""
    return {
        "site": str(ring.site),
        "components": ring.curve.subspace.k,
        "curve_digest": ring.curve.digest,
        "curve_diagnostics": dict(ring.curve.diagnostics),
        "behavior_digest": steered.behavior.digest,
        "metric": "hellinger, mean over waypoints",
        "n_points": N_POINTS,
        "distances": {"distant": ring.period // 2, "adjacent": 1},
        "interval": f"{stats.LEVEL:.0%} bootstrap over starts and contexts, paired",
        "train": [asdict(c) for c in concepts.train[: options.limit]],
        "test": [asdict(c) for c in concepts.test[: options.limit]],
        "cases_steered": len(steered.reading.rows),
    }
