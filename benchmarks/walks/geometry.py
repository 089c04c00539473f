"""How much the nodes' states look like the graph: three measures, each beside its own null.

After Park et al. 2025 (arXiv:2501.00070). The null exchanges the nodes' names: the same states on
the same graph, assigned at random.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import manifolds
from benchmarks.walks.graphs import WalkGraph

N_PERMUTATIONS = 200
MEASURES = ("energy", "distance_correlation", "procrustes")


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """One measure of one walk's centroids, by block: the value and the null's 5 and 95 percent."""

    value: Float[Tensor, "*batch"]
    low: Float[Tensor, "*batch"]
    high: Float[Tensor, "*batch"]


def likeness(
    graph: WalkGraph,
    x: Float[Tensor, "*batch node d_model"],
    seed: int,
    *,
    met: Bool[Tensor, " node"] | None = None,
) -> dict[str, Likeness]:
    """Return the three measures of centroids, with their nulls.

    Only nodes that were met count, in the null too: a state that stands for none would be an
    outlier that rules every distance.

    energy: tr(X^T L X) / tr(X^T X), the Dirichlet energy of centred states over their size: low
    where neighbours are alike. distance_correlation: Pearson, over pairs of nodes, of distances
    and edges between them. procrustes: share of the spectral embedding that a rotation and a
    scale of the states' own first components explain.
    """
    chooser = torch.Generator().manual_seed(seed)
    keep = torch.arange(graph.n) if met is None else met.nonzero()[:, 0]
    orders = torch.stack(
        [torch.arange(len(keep))]
        + [torch.randperm(len(keep), generator=chooser) for _ in range(N_PERMUTATIONS)]
    )
    x = x[..., keep, :].double()
    gram = _gram(x)
    near = graph.adjacency[keep][:, keep]
    spectral = manifolds.spectral_coordinates(graph.edges, graph.n, None)[keep]
    found = {
        "energy": _energy(torch.diag(near.sum(1)) - near, gram, orders),
        "distance_correlation": _correlation(graph.hops[keep][:, keep], gram, orders),
        "procrustes": _procrustes(spectral, x, orders),
    }
    return {
        name: Likeness(each[0], each[1:].quantile(0.05, 0), each[1:].quantile(0.95, 0))
        for name, each in found.items()
    }


def _gram(x: Tensor) -> Tensor:
    away = x - x.mean(-2, keepdim=True)
    return away @ away.mT


def _energy(laplacian: Tensor, gram: Tensor, orders: Tensor) -> Tensor:
    """Return [order, ...]; exchanging names exchanges rows and columns of the Laplacian."""
    forms = laplacian[orders[:, :, None], orders[:, None, :]]
    size = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.einsum("onm,...nm->o...", forms, gram) / size.clamp_min(1e-30)


def _correlation(apart: Tensor, gram: Tensor, orders: Tensor) -> Tensor:
    one, two = torch.triu_indices(len(apart), len(apart), 1)
    own = gram.diagonal(dim1=-2, dim2=-1)
    square = own[..., one] + own[..., two] - 2 * gram[..., one, two]
    far = square.clamp_min(0).sqrt()
    hops = apart[orders[:, one], orders[:, two]]
    far, hops = (a - a.mean(-1, keepdim=True) for a in (far, hops))
    top = torch.einsum("op,...p->o...", hops, far)
    shape = (len(orders), *[1] * (far.ndim - 1))
    return top / (hops.norm(dim=-1).reshape(shape) * far.norm(dim=-1)).clamp_min(1e-30)


def _procrustes(target: Tensor, x: Tensor, orders: Tensor) -> Tensor:
    target = target - target.mean(0)
    away = x - x.mean(-2, keepdim=True)
    left, singular, _ = torch.linalg.svd(away, full_matrices=False)
    k = target.shape[1]
    own = left[..., :k] * singular[..., None, :k]
    crossed = torch.einsum("onk,...nl->o...kl", target[orders], own)
    shared = torch.linalg.svdvals(crossed).sum(-1).square()
    return shared / (target.square().sum() * own.square().sum((-2, -1))).clamp_min(1e-30)
