"""Move the state of the last node to another node's place, and see where the mass goes.

Every walk has its own words and its own states, so a shape is fitted to each walk's own context,
without its last positions, and written at its last token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

import manifolds
import steer
from benchmarks.walks.graphs import WalkGraph, exchanged
from benchmarks.walks.reading import LENGTHS, Walked, centroids
from steer.protocols import Intervention, Manifold

HELD = 20
"""Last positions that no centroid is made of."""
ARMS = ("surface", "left_out", "additive", "centroid", "permuted", "random")


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What the mass on nodes became, for each arm, block, walk and target."""

    arms: tuple[str, ...]
    blocks: tuple[int, ...]
    targets: Int[Tensor, "walk target"]
    own: Int[Tensor, " walk"]
    """The node that each walk is at."""
    mass: Float[Tensor, "arm block walk target node"]
    natural: Float[Tensor, "walk node"]

    def gain(self, graph: WalkGraph) -> Float[Tensor, "arm block walk target"]:
        """Return by how much mass on the target's neighbours rises.

        Neighbours of the node that the walk is at are left out: they have mass already.
        """
        near = graph.adjacency.to(self.mass)
        wanted = near[self.targets] * (1 - near[self.own])[:, None]
        return ((self.mass - self.natural[:, None]) * wanted).sum(-1)

    def kept(self, graph: WalkGraph) -> Float[Tensor, "arm block walk target"]:
        """Return the mass that stays on the own node's neighbours, the target's left out."""
        near = graph.adjacency.to(self.mass)
        wanted = near[self.own][:, None] * (1 - near[self.targets])
        return (self.mass * wanted).sum(-1)


def targets_of(
    graph: WalkGraph, own: Int[Tensor, " walk"], n: int, *, adjacent: bool = False
) -> Int[Tensor, "walk target"]:
    """Return for each walk the n farthest nodes, farthest first; or n that are next to its own."""
    hops = graph.hops[own]
    if adjacent:
        return hops.argsort(dim=1, stable=True)[:, 1 : n + 1]
    return hops.argsort(dim=1, descending=True, stable=True)[:, :n]


def move(
    lm: steer.LM,
    walked: Walked,
    blocks: Sequence[int],
    arms: Sequence[str],
    n_targets: int,
    seed: int,
    *,
    adjacent: bool = False,
) -> Moved:
    """Steer every walk to each of its targets by each arm, after each of the blocks."""
    graph = walked.graph
    own = walked.nodes[:, -1]
    targets = targets_of(graph, own, n_targets, adjacent=adjacent)
    points, _ = centroids(walked, LENGTHS[-1], upto=HELD)
    sites = lm.sites("resid_post")
    mass = torch.empty(len(arms), len(blocks), *targets.shape, graph.n)
    natural = torch.empty(len(own), graph.n)
    for w, row in enumerate(walked.rows):
        plans = []
        for arm in arms:
            for block in blocks:
                make = ARM_PLANS[arm](graph, points[w, block], seed + w)
                state = walked.states[w, block, -1]
                plans += [[make(sites[block], state, int(own[w]), int(b))] for b in targets[w]]
        names = walked.tokens[w]
        swept = steer.sweep(
            lm, [row], plans, lambda logits, _, names=names: logits.float().softmax(-1)[:, names]
        )
        mass[:, :, w] = swept.values[:, 0].reshape(len(arms), len(blocks), n_targets, graph.n)
        natural[w] = swept.natural[0]
    return Moved(tuple(arms), tuple(blocks), targets, own, mass, natural)


def shape_of(
    graph: WalkGraph, points: Float[Tensor, "node d_model"], without: int | None = None
) -> Manifold:
    """Return the shape through a walk's centroids over the graph's own coordinates.

    Args:
        graph: the coordinates.
        points: of each node.
        without: a node that the shape does not see.
    """
    seen = torch.arange(graph.n) != (-1 if without is None else without)
    if graph.u.shape[1] == 1:
        return manifolds.fit_curve(points[seen], graph.u[seen, 0], period=graph.periods[0])
    return manifolds.fit_surface(points[seen], graph.u[seen], periods=graph.periods)


Make = Callable[[steer.Site, Tensor, int, int], Intervention]
Arm = Callable[[WalkGraph, Tensor, int], Make]
"""Takes a graph, the centroids [node, d_model] and a seed; returns what makes the write."""


def _surface(graph: WalkGraph, points: Tensor, seed: int) -> Make:
    del seed
    shape = shape_of(graph, points)
    return lambda site, _, __, to: _to(site, shape, graph, to)


def _left_out(graph: WalkGraph, points: Tensor, seed: int) -> Make:
    """Move to where the other nodes say that the target lies: only geometry can know."""
    del seed
    return lambda site, _, __, to: _to(site, shape_of(graph, points, to), graph, to)


def _to(site: steer.Site, shape: Manifold, graph: WalkGraph, node: int) -> steer.MoveTo:
    u = graph.u[node] if graph.u.shape[1] > 1 else float(graph.u[node, 0])
    return steer.MoveTo(site, shape, u, scope=steer.LAST)


def _permuted(graph: WalkGraph, points: Tensor, seed: int) -> Make:
    return _surface(graph, points[exchanged(graph, seed)], seed)


def _additive(graph: WalkGraph, points: Tensor, seed: int) -> Make:
    del graph, seed
    return lambda site, state, own, to: steer.Patch(
        site, state + points[to] - points[own], scope=steer.LAST
    )


def _centroid(graph: WalkGraph, points: Tensor, seed: int) -> Make:
    del graph, seed
    return lambda site, _, __, to: steer.Patch(site, points[to], scope=steer.LAST)


def _random(graph: WalkGraph, points: Tensor, seed: int) -> Make:
    del graph
    noise = torch.randn(points.shape, generator=torch.Generator().manual_seed(seed))

    def make(site: steer.Site, state: Tensor, own: int, to: int) -> steer.Patch:
        size = (points[to] - points[own]).norm()
        return steer.Patch(site, state + size * noise[to] / noise[to].norm(), scope=steer.LAST)

    return make


ARM_PLANS: Mapping[str, Arm] = {
    "surface": _surface,
    "left_out": _left_out,
    "additive": _additive,
    "centroid": _centroid,
    "permuted": _permuted,
    "random": _random,
}
