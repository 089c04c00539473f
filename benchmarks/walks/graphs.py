"""Graphs to walk on: a ring, a grid and a cylinder, with the coordinates that they are drawn by."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.csgraph import shortest_path
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class WalkGraph:
    """Nodes, who is next to whom, and where they lie."""

    name: str
    adjacency: Float[Tensor, "node node"]
    u: Float[Tensor, "node dim"]
    periods: tuple[int | None, ...]

    @property
    def n(self) -> int:
        """How many nodes."""
        return len(self.adjacency)

    @property
    def edges(self) -> Int[Tensor, "edge 2"]:
        """Each edge once."""
        return self.adjacency.triu().nonzero()

    @property
    def hops(self) -> Float[Tensor, "node node"]:
        """How many edges apart nodes are."""
        found = shortest_path(self.adjacency.numpy(), directed=False, unweighted=True)
        return torch.from_numpy(found)

    @property
    def laplacian(self) -> Float[Tensor, "node node"]:
        """Degrees less adjacency."""
        return torch.diag(self.adjacency.sum(1)) - self.adjacency


def lattice(name: str, sizes: tuple[int, ...], closed: tuple[bool, ...]) -> WalkGraph:
    """Return the graph whose nodes are next to each other along one axis; closed axes go round."""
    u = torch.cartesian_prod(*(torch.arange(n) for n in sizes)).reshape(-1, len(sizes))
    gap = (u[:, None] - u).abs()
    turn = torch.tensor(sizes)
    gap = torch.where(torch.tensor(closed), torch.minimum(gap, turn - gap), gap)
    adjacency = (gap.sum(-1) == 1).double()
    periods = tuple(n if c else None for n, c in zip(sizes, closed, strict=True))
    return WalkGraph(name, adjacency, u.double(), periods)


RING = lattice("ring", (8,), (True,))
GRID = lattice("grid", (4, 4), (False, False))
CYLINDER = lattice("cylinder", (6, 3), (True, False))
GRAPHS = (RING, GRID, CYLINDER)


def walk(graph: WalkGraph, n: int, seed: int) -> Int[Tensor, " step"]:
    """Return the nodes of a random walk of n steps, from a random start, each way as likely."""
    rng = np.random.default_rng(seed)
    neighbours = [np.flatnonzero(row) for row in graph.adjacency.numpy()]
    nodes = [int(rng.integers(graph.n))]
    while len(nodes) < n:
        nodes.append(int(rng.choice(neighbours[nodes[-1]])))
    return torch.tensor(nodes)


def exchanged(graph: WalkGraph, seed: int) -> Int[Tensor, " node"]:
    """Return the nodes in a random order that is no other view of the graph.

    No node keeps its place, and of the edges fewer than half are edges again: turning a ring would
    leave a right map.
    """
    chooser = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(graph.n, generator=chooser)
        kept = graph.adjacency[order][:, order] * graph.adjacency
        if not (order == torch.arange(graph.n)).any() and 2 * kept.sum() < graph.adjacency.sum():
            return order
