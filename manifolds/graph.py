"""Graphs: nodes and edges only, with spectral coordinates and ways along the edges.

For concepts of which it is known who is next to whom but not where: the Laplacian's eigenvectors
say where, and a surface goes through the nodes' states there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, shortest_path
from torch import Tensor

from manifolds.axes import Period
from manifolds.components import chosen_subspace, residual_kept
from manifolds.errors import ManifoldError
from manifolds.fit_surfaces import Places, surface_through
from manifolds.radial import Kernel
from manifolds.spec import Spec, check_spec, html_table, spec_digest
from manifolds.subspace import Subspace, as_points, storage
from manifolds.surface import Surface


@final
@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A surface over the spectral coordinates of a graph, and the graph itself.

    The coordinates are the Laplacian's eigenvectors 2, 3, ... (Park et al. 2025, arXiv:2501.00070,
    find in-context states of graph walks near them), so a ring of nodes is a circle in a plane and
    what is inside it belongs to the surface too: `route` keeps to the edges.
    """

    surface: Surface
    edges: Int[Tensor, "edge 2"]

    @property
    def dim(self) -> int:
        """Number of spectral coordinates."""
        return self.surface.dim

    @property
    def d_model(self) -> int:
        """Width of the ambient space."""
        return self.surface.d_model

    @property
    def periods(self) -> tuple[Period, ...]:
        """None for each coordinate: what closes, closes in the plane."""
        return self.surface.periods

    @property
    def subspace(self) -> Subspace:
        """The affine subspace on which the surface lies."""
        return self.surface.subspace

    @property
    def origin(self) -> Mapping[str, object] | None:
        """Where the states were read, as JSON values."""
        return self.surface.origin

    @property
    def diagnostics(self) -> Mapping[str, object]:
        """What the fit was worth; see `fit_surface`."""
        return self.surface.diagnostics

    @property
    def u(self) -> Float[Tensor, "node dim"]:
        """The spectral coordinates of the nodes."""
        return self.surface.knots

    @property
    def n_nodes(self) -> int:
        """How many nodes there are."""
        return len(self.surface.knots)

    def decode(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch d_model"]:
        """Return the points at u; `decode(graph.u[i])` is node i's."""
        return self.surface.decode(u)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch dim"]:
        """Return the coordinates of the point of the surface nearest to x."""
        return self.surface.encode(x)

    def node(self, x: Float[Tensor, "*batch d_model"]) -> Int[Tensor, "*batch"]:
        """Return the node whose point is nearest to x, within the subspace."""
        space = self.surface.subspace
        at = space.coordinates(x)
        nodes = self.surface.value(self.u.to(at))
        return torch.cdist(at.reshape(-1, space.k), nodes).argmin(1).reshape(x.shape[:-1])

    def project(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the surface nearest to x: decode(encode(x))."""
        return self.surface.project(x)

    def flatten(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the point of the surface's affine subspace nearest to x."""
        return self.surface.flatten(x)

    def distance(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the Euclidean distance from x to the surface."""
        return self.surface.distance(x)

    def tangent(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch d_model dim"]:
        """Return dx/du [..., d_model, dim]."""
        return self.surface.tangent(u)

    def path(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"], n: int
    ) -> Float[Tensor, "*batch point dim"]:
        """Return n equally spaced coordinates straight from u0 to u1; `route` follows the edges."""
        return self.surface.path(u0, u1, n)

    def arc_length(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch"]:
        """Return the length of `path(u0, u1)` in the units of x."""
        return self.surface.arc_length(u0, u1)

    def hops(self) -> Float[Tensor, "node node"]:
        """Return the number of edges on the shortest way between any two nodes."""
        found, _ = _shortest(self.edges, self.n_nodes)
        return torch.from_numpy(found)

    def route(self, first: int, last: int, n: int) -> Float[Tensor, "point dim"]:
        """Return n coordinates along the edges of a shortest way, equally far apart by edges.

        Raises:
            ManifoldError: a node that does not exist, or n below 2.
        """
        for name in (first, last):
            if not 0 <= name < self.n_nodes:
                raise ManifoldError(
                    f"There is no node {name}: the nodes are 0 to {self.n_nodes - 1}. Name one of "
                    "those."
                )
        if n < 2:
            raise ManifoldError(
                f"A route of {n} points cannot have both ends. Ask for at least 2 points."
            )
        _, before = _shortest(self.edges, self.n_nodes)
        way = [last]
        while way[-1] != first:
            way.append(int(before[first, way[-1]]))
        stops = self.u[way[::-1]]
        at = torch.linspace(0, len(stops) - 1, n, dtype=stops.dtype, device=stops.device)
        here = at.floor().long().clamp_max(max(len(stops) - 2, 0))
        after = (here + 1).clamp_max(len(stops) - 1)
        share = (at - here)[:, None]
        return stops[here] * (1 - share) + stops[after] * share

    def wrap(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return u: spectral coordinates do not close."""
        return u

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Graph":
        """Return the same graph on another device, and stored in another dtype if given."""
        return replace(self, surface=self.surface.to(device, dtype), edges=self.edges.to(device))

    def spec(self) -> Spec:
        """Return the plain dict, with tensors as leaves, this graph can be rebuilt from."""
        return {
            "kind": "manifolds.Graph",
            "version": 1,
            "surface": self.surface.spec(),
            "edges": self.edges,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Graph":
        """Rebuild the graph whose `spec()` this is; its surface may be rebuilt already.

        Raises:
            ManifoldError: a spec of something else, or with missing or misshapen parts.
        """
        check_spec(spec, "manifolds.Graph", frozenset(cls.__dataclass_fields__))
        part, edges = spec["surface"], spec["edges"]
        if isinstance(part, Mapping):
            part = Surface.from_spec(part)
        if (
            not isinstance(part, Surface)
            or not isinstance(edges, Tensor)
            or edges.ndim != 2
            or edges.shape[1] != 2
            or edges.dtype != torch.int64
            or not bool(((edges >= 0) & (edges < len(part.knots))).all())
        ):
            raise ManifoldError(
                f"The spec of a Graph has edges that do not belong to {part!r}. It was edited or "
                "truncated. Refit it."
            )
        return cls(part, edges)

    @property
    def digest(self) -> str:
        """The sha256 of the spec, in hex."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the sizes, never the numbers."""
        return (
            f"Graph({self.n_nodes} nodes, {len(self.edges)} edges, {self.dim} spectral "
            f"coordinates, d_model {self.d_model}, k {self.subspace.k})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the repr and the diagnostics as a table."""
        return html_table(repr(self), self.diagnostics)


def fit_graph(
    x: Tensor | np.ndarray,
    nodes: Sequence[int] | np.ndarray | Tensor,
    edges: Sequence[tuple[int, int]] | np.ndarray | Tensor,
    *,
    dim: int | None = None,
    subspace: Subspace | None = None,
    n_components: int | None = None,
    variance: float | int = 0.999,
    kernel: Kernel = "thin_plate_spline",
    origin: Mapping[str, object] | None = None,
) -> Graph:
    """Fit a surface through the states of a graph's nodes, from the nodes and edges alone.

    Args:
        x: [sample, d_model].
        nodes: [sample], the node of each sample, 0 to n - 1; each has at least one.
        edges: [edge, 2], undirected.
        dim: how many spectral coordinates; the least number of at least 2 that tells all nodes
            apart and splits no pair of equal eigenvalues if None.
        subspace: used as it is, in place of principal components.
        n_components: at most so many components.
        variance: share of the variance between the nodes to keep.
        kernel: as in `fit_surface`.
        origin: where x was read; carried along, in JSON values.

    Raises:
        ManifoldError: nodes without samples or edges to nodes that do not exist, a graph in
            several parts, nodes that the coordinates do not tell apart, and what `fit_surface`
            refuses.
    """
    points = as_points(x)
    of = _nodes(nodes, len(points))
    n = int(of.max()) + 1
    counts = np.bincount(of, minlength=n)
    if (counts == 0).any():
        raise ManifoldError(
            f"Node {int(np.flatnonzero(counts == 0)[0])} has no sample, so it has no state to go "
            "through. Read it, or number the nodes without it."
        )
    pairs = _edges(edges, n)
    at = spectral_coordinates(pairs, n, dim)
    total = torch.zeros(n, points.shape[1], dtype=torch.float64)
    total.index_add_(0, torch.from_numpy(of), points)
    places = Places(at, total / torch.from_numpy(counts)[:, None], of, counts)
    space = chosen_subspace(places.centroids, subspace, n_components, variance, origin)
    surface = surface_through(places, space, (None,) * at.shape[1], 0, kernel, origin)
    kept = residual_kept(points, places.centroids, of, surface.subspace)
    told = MappingProxyType({**surface.diagnostics, "residual_kept": kept})
    return Graph(replace(surface, diagnostics=told), pairs).to(*storage(x))


def spectral_coordinates(
    edges: Int[Tensor, "edge 2"], n: int, dim: int | None = None
) -> Float[Tensor, "node dim"]:
    """Return the eigenvectors 2 to dim + 1 of the graph's Laplacian, one row per node.

    Raises:
        ManifoldError: a graph in several parts, or coordinates that do not tell all nodes apart.
    """
    ends = edges.numpy()
    ones = np.ones(len(ends))
    half = coo_array((ones, (ends[:, 0], ends[:, 1])), shape=(n, n))
    parts, _ = connected_components(half, directed=False)
    if parts > 1:
        raise ManifoldError(
            f"The graph has {parts} parts without an edge between them, so there is no way from "
            "one to another and no common coordinate. Fit one graph for each part."
        )
    adjacency = np.minimum((half + half.T).toarray(), 1)
    values, vectors = np.linalg.eigh(np.diag(adjacency.sum(1)) - adjacency)
    wanted = range(2, n - 1) if dim is None else (dim,)
    for count in wanted:
        found = torch.from_numpy(vectors[:, 1 : count + 1].copy())
        apart = torch.pdist(found).min() if 1 <= count < n else torch.tensor(0.0)
        split = dim is None and abs(values[count + 1] - values[count]) < 1e-9 * values[-1]
        if float(apart) > 1e-6 and not split:
            largest = found.gather(0, found.abs().argmax(0, keepdim=True))
            return found * largest.sign()
    raise ManifoldError(
        f"{dim or 'No number of'} spectral coordinates do not tell the {n} nodes of this graph "
        "apart: two of them look the same to the eigenvectors. Ask for another dim, or give "
        "coordinates of your own to fit_surface."
    )


def _nodes(nodes: object, n_samples: int) -> np.ndarray:
    found = nodes.detach().cpu().numpy() if isinstance(nodes, Tensor) else np.asarray(nodes)
    if found.shape != (n_samples,) or found.dtype.kind not in "iu" or found.min() < 0:
        raise ManifoldError(
            f"There are {n_samples} samples, but nodes has the shape {list(found.shape)} of "
            f"{found.dtype}: each sample needs the number of its node, from 0 up."
        )
    return found.astype(np.int64)


def _edges(edges: object, n: int) -> Tensor:
    found = edges.detach().cpu().numpy() if isinstance(edges, Tensor) else np.asarray(edges)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu":
        raise ManifoldError(
            f"edges has the shape {list(found.shape)} of {found.dtype}, but an edge joins two "
            "nodes: pass [edge, 2] whole numbers."
        )
    if found.min() < 0 or found.max() >= n:
        raise ManifoldError(
            f"The edges name the nodes {found.min()} to {found.max()}, but the samples are of the "
            f"nodes 0 to {n - 1}. Number both alike."
        )
    return torch.from_numpy(found.astype(np.int64))


def _shortest(edges: Tensor, n: int) -> tuple[np.ndarray, np.ndarray]:
    ends = edges.cpu().numpy()
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    return shortest_path(graph.tocsr(), directed=False, unweighted=True, return_predecessors=True)
