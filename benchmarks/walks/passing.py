"""Points between a node and its target: does the mass pass the nodes on the way?

At a point of a path, the node passed is the one whose coordinates lie nearest. A shape goes by the
places of the nodes between; a chord goes straight from state to state and meets none of them. Both
are asked for the neighbours of the same node.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

import steer
from benchmarks.walks.graphs import WalkGraph, exchanged
from benchmarks.walks.reading import LENGTHS, Walked, centroids
from benchmarks.walks.steering import HELD, shape_of, targets_of

FRACTIONS = (0.25, 0.5, 0.75)
WAYS = ("surface", "chord", "permuted")


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """The nodes on the way and the mass on all nodes, for each way, walk, target and fraction."""

    nodes: Int[Tensor, "walk target point"]
    mass: Float[Tensor, "way walk target point node"]
    natural: Float[Tensor, "walk node"]
    own: Int[Tensor, " walk"]
    targets: Int[Tensor, "walk target"]

    def gain(self, graph: WalkGraph) -> Float[Tensor, "way walk target point"]:
        """Return by how much mass rises on neighbours of the node passed.

        Left out are neighbours of the node that the walk is at, and of the target: a chord's
        points share them with its two ends, and a mixture of the ends gives them mass. NaN where
        nothing is left.
        """
        near = graph.adjacency.to(self.mass)
        ends = (near[self.own][:, None] + near[self.targets]).clamp_max(1)[:, :, None]
        wanted = near[self.nodes] * (1 - ends)
        gain = ((self.mass - self.natural[:, None, None]) * wanted).sum(-1)
        return torch.where(wanted.sum(-1) > 0, gain, torch.nan)


def pass_by(lm: steer.LM, walked: Walked, block: int, n_targets: int, seed: int) -> Passed:
    """Move every walk's last state part of the way to each of its farthest nodes."""
    graph = walked.graph
    own = walked.nodes[:, -1]
    targets = targets_of(graph, own, n_targets)
    points = centroids(walked, LENGTHS[-1], upto=HELD)[0][:, block]
    site = lm.sites("resid_post")[block]
    t = torch.tensor(FRACTIONS, dtype=graph.u.dtype)
    u = _between(graph, own[:, None], targets, t)
    nodes = _nearest(graph, u)
    mass = torch.empty(len(WAYS), *targets.shape, len(t), graph.n)
    natural = torch.empty(len(own), graph.n)
    for w, row in enumerate(walked.rows):
        order = exchanged(graph, seed + w)
        shapes = (shape_of(graph, points[w]), shape_of(graph, points[w, order]))
        here, there = points[w, own[w]], points[w, targets[w]]
        chord = (here + t[:, None].to(here) * (there - here)[:, None]).flatten(0, 1)
        places = [_place(place) for place in u[w].flatten(0, 1)]
        along, other = (
            [[steer.MoveTo(site, shape, place, scope=steer.LAST)] for place in places]
            for shape in shapes
        )
        straight = [[steer.Patch(site, x, scope=steer.LAST)] for x in chord]
        names = walked.tokens[w]
        swept = steer.sweep(
            lm,
            [row],
            [*along, *straight, *other],
            lambda logits, _, names=names: logits.float().softmax(-1)[:, names],
        )
        mass[:, w] = swept.values[:, 0].reshape(len(WAYS), n_targets, len(t), graph.n)
        natural[w] = swept.natural[0]
    return Passed(nodes, mass, natural, own, targets)


def _between(graph: WalkGraph, one: Tensor, two: Tensor, t: Tensor) -> Tensor:
    """Return coordinates [walk, target, point, dim], the shorter way round where an axis closes."""
    way = graph.u[two] - graph.u[one]
    turn = torch.tensor([p or torch.inf for p in graph.periods], dtype=way.dtype)
    way = torch.where(turn.isinf(), way, (way + turn / 2) % turn - turn / 2)
    return graph.u[one][..., None, :] + t[:, None] * way[..., None, :]


def _nearest(graph: WalkGraph, u: Tensor) -> Tensor:
    gap = u[..., None, :] - graph.u
    turn = torch.tensor([p or torch.inf for p in graph.periods], dtype=gap.dtype)
    gap = torch.where(turn.isinf(), gap, (gap + turn / 2) % turn - turn / 2)
    return gap.square().sum(-1).argmin(-1)


def _place(u: Tensor) -> Tensor | float:
    return u if len(u) > 1 else float(u[0])
