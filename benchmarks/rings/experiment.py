"""The experiment on one order of concepts: read, choose a block, steer, compare.

What each step does is in the other modules of this package; which rings and lines there are is in
`benchmarks.data.rings`, and the tasks are declared in `benchmarks.tasks.rings`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

import steer
from benchmarks import stats
from benchmarks.data.rings import Concepts
from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome
from benchmarks.rings import measure, numbers, pulling
from benchmarks.rings.arms import POINTS
from benchmarks.rings.claims import claims_of
from benchmarks.rings.numbers import Pairs, Steered
from benchmarks.rings.order import Order
from benchmarks.rings.paths import (
    Ring,
    Steps,
    fit_ring,
    lengths,
    on_chord,
    on_manifold,
    points_of,
    steerable,
    steps_of,
)
from benchmarks.rings.reading import Bins, Reading, bins_of, known_concepts, read
from benchmarks.rings.scan import best_of, scan
from benchmarks.task import Options

DISTANT = (
    "manifold",
    "chord",
    "manifold_replaced",
    "chord_replaced",
    "additive",
    "random_path",
    "random_length",
    "permuted",
)
CONTROLS = (*numbers.CONTROLS, *pulling.CONTROLS)
ADJACENT = ("manifold", "chord", "manifold_replaced", "chord_replaced")
N_REFITS = 100
"""Refits on resampled train contexts, for the intervals of the isometry."""


def run_ring(lm: steer.LM, concepts: Concepts, options: Options) -> Outcome:
    """Steer round one ring, or along one line, of concepts and return the numbers.

    Raises:
        BenchmarkError: too few contexts, or a model that cannot do the task unsteered.
    """
    if options.limit is not None and options.limit < 2:
        raise BenchmarkError(
            f"--limit {options.limit} leaves fewer than 2 contexts, and holding one out in turn "
            "takes two. Give 2 or more, or leave it out for all."
        )
    order, sites = Order(len(concepts), concepts.closed), lm.sites("resid_post")
    bins = bins_of(lm, concepts)
    train_contexts, test_contexts = concepts.train[: options.limit], concepts.test[: options.limit]
    train = read(lm, concepts, train_contexts, bins, sites)
    known = known_concepts(train, concepts, "train")
    blocks = scan(lm, train, bins, sites, order, known)
    if not blocks:
        raise BenchmarkError(
            "No train context can be held out, as some concept is answered correctly in one "
            "context only. Use more contexts (a larger --limit) or another model."
        )
    best = best_of(blocks)
    kept = train.where(train.correct)
    ring = fit_ring(kept, sites[best.layer], order)
    asked = read(lm, concepts, test_contexts, bins, [ring.site])
    steered = _steer(lm, ring, kept, asked, bins, options)
    found, controls = numbers.numbers_of(steered, best.layer, options.seed)
    found |= numbers.isometry_numbers(ring, kept, steered.behavior, N_REFITS, options.seed)
    pulled = pulling.pull(
        lm, ring, steered.behavior, kept, steered.distant.reading, bins, seed=options.seed
    )
    pulled_numbers, pulled_controls = pulling.numbers_of(pulled, options.seed)
    found, controls = found | pulled_numbers, controls | pulled_controls
    claims = claims_of(found, controls, concepts.target)
    answered = _answered(train, asked, [concepts.concepts[z] for z in known.tolist()])
    tables = {
        "concepts": list(concepts.concepts),
        "closed": concepts.closed,
        "blocks": [asdict(block) for block in blocks],
        "answered": answered,
        **_tables(steered, options.seed),
        "ring": _drawable(ring),
        "pullback": pulling.table(pulled),
        "claims": [asdict(claim) for claim in claims],
    }
    specs = _specs(ring, steered, concepts, options) | {
        "claims": [str(claim) for claim in claims],
    }
    return Outcome(found, controls, tables, specs)


def _steer(
    lm: steer.LM, ring: Ring, train: Reading, asked: Reading, bins: Bins, options: Options
) -> Steered:
    """Walk every arm on the test contexts.

    Raises:
        BenchmarkError: no test case can be steered.
    """
    behavior = train.behavior(ring.order)
    shape = (ring.order.n, int(asked.context.max()) + 1)

    def pairs(arms: Sequence[str], distance: int) -> Pairs:
        usable = asked.correct & _ends_known(asked, ring, distance)
        if not bool(usable.any()):
            raise BenchmarkError(
                f"The model goes on correctly in no test context from which a path of {distance} "
                "concepts leads to a known one, so there is nothing to steer. Use another model."
            )
        test = asked.where(usable)
        steps = steps_of(test, ring.order, distance)
        walks = measure.walk(lm, arms, ring, test, steps, bins, seed=options.seed)
        return Pairs(
            test,
            distance,
            walks,
            {arm: measure.distances(one.outputs, behavior) for arm, one in walks.items()},
            measure.distances(test.natural, behavior),
            {
                name: lengths(points(ring, steps, options.seed), steps)
                for name, points in POINTS.items()
                if name in arms
            },
            shape,
        )

    far, near = pairs(DISTANT, ring.order.half), pairs(ADJACENT, 1)
    mixed = measure.mixture(lm, ring, far.reading, far.walks["chord"].steps, bins)
    gap = measure.mixture_gap(far.walks["chord"].outputs, mixed)
    return Steered(behavior, far, near, measure.distances(mixed, behavior), gap)


def _ends_known(reading: Reading, ring: Ring, distance: int) -> Bool[Tensor, " case"]:
    return steerable(reading, ring.known, ring.order, distance)


def _answered(train: Reading, test: Reading, known: Sequence[str]) -> dict[str, Any]:
    """Return how many cases of each split the model answers correctly, of how many."""
    found: dict[str, Any] = {
        name: {"correct": int(one.correct.sum()), "of": len(one.rows)}
        for name, one in (("train", train), ("test", test))
    }
    return found | {"known": list(known)}


def _tables(steered: Steered, seed: int) -> dict[str, Any]:
    """Return what the pictures are made of, and the longer tables."""
    both = {"distant": steered.distant, "adjacent": steered.adjacent}
    far = steered.distant
    return {
        **{kind: numbers.summary(pairs) for kind, pairs in both.items()},
        "energies": {kind: numbers.energies(steered, pairs, seed) for kind, pairs in both.items()},
        "lengths": {kind: numbers.lengths_over_manifold(pairs) for kind, pairs in both.items()},
        "natural_bhattacharyya": float(far.natural.bhattacharyya.mean()),
        "profiles": {
            kind: {arm: measure.profile(d.hellinger) for arm, d in pairs.distances.items()}
            for kind, pairs in both.items()
        },
        "heat_maps": {arm: measure.heat_map(far.walks[arm]) for arm in ("manifold", "chord")},
        "heat_names": measure.heat_names(far.walks["chord"].steps.order, far.distance),
    }


def _drawable(ring: Ring) -> dict[str, Any]:
    """Return the ring, its centroids and one path of each kind in the first three components."""
    space, order = ring.curve.subspace, ring.order
    axes = min(3, space.k)

    def flat(points: Tensor) -> list[list[float]]:
        return [[round(float(v), 4) for v in p[:axes]] for p in space.coordinates(points)]

    # A line is drawn between the outermost concepts that it was fitted to.
    low = int(ring.known[0])
    high = low + order.n if order.closed else int(ring.known[-1])
    along = torch.linspace(low, high, 20 * (high - low) + 1)
    share = torch.linspace(0, 1, points_of(order.half))
    spread = space.coordinates(ring.curve.decode(ring.known.float())).double()
    variance = spread.var(0) / spread.var(0).sum()
    one = _one_path(ring, share)
    return {
        "centroids": flat(ring.centroids[ring.known]),
        "known": ring.known.tolist(),
        "curve": flat(ring.curve.decode(along)),
        "manifold_path": flat(on_manifold(ring, one)),
        "chord_path": flat(on_chord(ring, one)),
        "variance": [round(float(v), 4) for v in variance[:axes]],
        "k": space.k,
    }


def _one_path(ring: Ring, share: Tensor) -> Steps:
    """Return the rows of the one path that the picture of the ring shows."""
    none = torch.zeros(len(share), dtype=torch.long)
    start = none + ring.known[0]
    way = ring.order.way(start, ring.order.half)
    return Steps(none, start, none, share, way, ring.order, len(share))


def _specs(ring: Ring, steered: Steered, concepts: Concepts, options: Options) -> dict[str, Any]:
    """Return the settings that made the numbers."""
    return {
        "site": str(ring.site),
        "components": ring.curve.subspace.k,
        "curve_digest": ring.curve.digest,
        "curve_diagnostics": dict(ring.curve.diagnostics),
        "behavior_digest": steered.behavior.digest,
        "metric": "hellinger, mean over waypoints; energies: bhattacharyya in nats, summed",
        "n_points": {"distant": points_of(ring.order.half), "adjacent": points_of(1)},
        "distances": {"distant": ring.order.half, "adjacent": 1},
        "interval": f"{stats.LEVEL:.0%} bootstrap over starts and contexts, paired",
        "target": concepts.target,
        "train": [repr(c) for c in concepts.train[: options.limit]],
        "test": [repr(c) for c in concepts.test[: options.limit]],
        "cases_steered": len(steered.distant.reading.rows),
    }
