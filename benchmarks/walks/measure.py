"""Numbers of `graph_walk`: accuracy and likeness against context length, and steering by arm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import steer
from benchmarks import stats
from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome
from benchmarks.stats import Number
from benchmarks.task import Options
from benchmarks.walks.geometry import MEASURES, Likeness, likeness
from benchmarks.walks.graphs import GRAPHS, WalkGraph
from benchmarks.walks.passing import WAYS, pass_by
from benchmarks.walks.reading import LENGTHS, Walked, centroids, read
from benchmarks.walks.steering import ARMS, Moved, move

CONTROLS = tuple(
    f"{g.name}_{name}"
    for g in GRAPHS
    for name in (
        "legal_shuffled",
        "legal_chance",
        "gain_permuted",
        "gain_random",
        "gain_adjacent_permuted",
        "passed_permuted",
    )
)
N_TRAIN, N_TEST = 2, 4
"""Walks on which the block is chosen, and on which everything is reported."""
N_TARGETS, N_ADJACENT = 3, 2
_BESIDE = ("surface", "left_out", "permuted")
ABLE = 0.1
"""Mass on neighbours beyond what a shuffled walk has, below which there is nothing to steer."""


def measure_walks(lm: steer.LM, options: Options) -> Outcome:
    """Walk on each graph, read, and steer; --limit is how many walks are reported for each.

    Raises:
        BenchmarkError: a model that does not follow walks, or fewer than 2 walks.
    """
    n_test = options.limit or N_TEST
    if n_test < 2:
        raise BenchmarkError(
            f"--limit {n_test} leaves {n_test} walks, and an interval takes two. Give 2 or more."
        )
    numbers: dict[str, Number] = {}
    controls: dict[str, Number] = {}
    tables: dict[str, Any] = {}
    for graph in GRAPHS:
        base = 100 * options.seed
        test = read(lm, graph, range(base + N_TRAIN, base + N_TRAIN + n_test))
        mixed = read(lm, graph, range(base + N_TRAIN, base + N_TRAIN + n_test), shuffled=True)
        able = float(test.legal[:, -1].mean() - mixed.legal[:, -1].mean())
        if able < ABLE:
            raise BenchmarkError(
                f"On the {graph.name}, after {LENGTHS[-1]} nodes, this model puts "
                f"{float(test.legal[:, -1].mean()):.2f} of its mass on neighbours; where the same "
                f"nodes come in a random order {float(mixed.legal[:, -1].mean()):.2f}. It does not "
                "build the graph in its context, so there is none to steer on. Use another model."
            )
        train = read(lm, graph, range(base, base + N_TRAIN))
        found, null, table = _on(lm, train, test, mixed, options.seed)
        numbers |= {f"{graph.name}_{k}": v for k, v in found.items()}
        controls |= {f"{graph.name}_{k}": v for k, v in null.items()}
        tables[graph.name] = table
    specs = {
        "lengths": list(LENGTHS),
        "walks": {"train": N_TRAIN, "test": n_test},
        "targets": {"far": N_TARGETS, "adjacent": N_ADJACENT},
        "interval": f"{stats.LEVEL:.0%} bootstrap over walks and targets",
    }
    return Outcome(numbers, controls, tables, specs)


def _on(
    lm: steer.LM, train: Walked, test: Walked, mixed: Walked, seed: int
) -> tuple[dict[str, Number], dict[str, Number], dict[str, Any]]:
    """Return numbers, controls and tables of one graph."""
    graph = test.graph
    every = tuple(range(lm.n_layers))
    chosen = move(lm, train, every, ["surface"], N_TARGETS, seed).gain(graph).mean((0, 2, 3))
    block = int(chosen.argmax())
    moved = move(lm, test, [block], ARMS, N_TARGETS, seed)
    gains, kept = moved.gain(graph)[:, 0], moved.kept(graph)[:, 0]
    beside = move(lm, test, [block], _BESIDE, N_ADJACENT, seed, adjacent=True).gain(graph)[:, 0]
    passed = pass_by(lm, test, block, N_TARGETS, seed).gain(graph).flatten(2)
    # Where the geometry shows best need not be where a write works best.
    own = _alike(train, LENGTHS[-1], seed)["distance_correlation"]
    shown = int(own.value.mean(0).argmax())
    alike = {length: _alike(test, length, seed, block=shown) for length in LENGTHS}
    last = alike[LENGTHS[-1]]

    def over(values: Tensor) -> Number:
        return stats.mean(_grid(values), seed=seed)

    def arm(name: str) -> Number:
        return over(gains[ARMS.index(name)])

    numbers = {
        "best_block": Number(float(block)),
        "geometry_block": Number(float(shown)),
        "legal": over(test.legal[:, -1:]),
        "legal_early": over(test.legal[:, :1]),
        **{name: over(last[name].value[:, None]) for name in MEASURES},
        "energy_null_low": over(last["energy"].low[:, None]),
        "distance_correlation_null_high": over(last["distance_correlation"].high[:, None]),
        "procrustes_null_high": over(last["procrustes"].high[:, None]),
        **{f"gain_{name}": arm(name) for name in ("surface", "left_out", "additive", "centroid")},
        "gain_adjacent_surface": over(beside[0]),
        "gain_adjacent_left_out": over(beside[1]),
        "passed_surface": over(passed[WAYS.index("surface")]),
        "passed_chord": over(passed[WAYS.index("chord")]),
        "kept_natural": over(_kept_natural(moved, graph)),
        "kept_surface": over(kept[0]),
    }
    degree = graph.adjacency.sum(1)[test.nodes[:, -1]]
    controls = {
        "legal_shuffled": over(mixed.legal[:, -1:]),
        "legal_chance": Number(float(degree.mean() / graph.n)),
        "gain_permuted": arm("permuted"),
        "gain_random": arm("random"),
        "gain_adjacent_permuted": over(beside[2]),
        "passed_permuted": over(passed[WAYS.index("permuted")]),
    }
    return numbers, controls, _table(test, mixed, alike, chosen, shown, own)


def _table(
    test: Walked,
    mixed: Walked,
    alike: Mapping[int, dict[str, Likeness]],
    chosen: Tensor,
    shown: int,
    own: Likeness,
) -> dict[str, Any]:
    """Return what the picture is drawn from."""
    return {
        "legal": _curve(test.legal),
        "legal_shuffled": _curve(mixed.legal),
        "likeness": {
            name: {
                str(length): {
                    part: _round(getattr(alike[length][name], part).mean())
                    for part in ("value", "low", "high")
                }
                for length in LENGTHS
            }
            for name in MEASURES
        },
        "blocks": [_round(v) for v in chosen],
        "pca": _pca(test, shown),
        "correlation_by_block": [_round(v) for v in own.value.mean(0)],
        "edges": test.graph.edges.tolist(),
    }


def _alike(
    walked: Walked, length: int, seed: int, *, block: int | None = None
) -> dict[str, Likeness]:
    """Return the measures of every walk, stacked: [walk, block], or [walk] at one block.

    One by one, because walks differ in the nodes that they have met.
    """
    points, met = centroids(walked, length)
    points = points if block is None else points[:, block]
    each = [likeness(walked.graph, x, seed, met=m) for x, m in zip(points, met, strict=True)]
    return {
        name: Likeness(
            torch.stack([one[name].value for one in each]),
            torch.stack([one[name].low for one in each]),
            torch.stack([one[name].high for one in each]),
        )
        for name in MEASURES
    }


def _kept_natural(moved: Moved, graph: WalkGraph) -> Tensor:
    near = graph.adjacency.to(moved.natural)
    wanted = near[moved.own][:, None] * (1 - near[moved.targets])
    return (moved.natural[:, None] * wanted).sum(-1)


def _pca(walked: Walked, block: int) -> list[list[float]]:
    """Return the first walk's centroids in their first two components."""
    x = centroids(walked, LENGTHS[-1])[0][0, block].double()
    left, singular, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return [[_round(v) for v in row] for row in (left * singular)[:, :2]]


def _curve(values: Tensor) -> list[list[float]]:
    return [[_round(v) for v in row] for row in values]


def _round(value: Tensor) -> float:
    return round(float(value), 4)


def _grid(values: Tensor) -> np.ndarray:
    return values.double().numpy()
