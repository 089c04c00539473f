"""Groups of dictionary features that go together, and the span in which each group writes.

A manifold of activations is often held by several features of a dictionary: by a few whose span
contains it, or by many that each fire on a patch of it. `couplings` says which go together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from manifolds.discovery.couplings import coactivation, cosine, ising
from manifolds.errors import ManifoldError
from manifolds.subspace import Subspace, as_points, storage

By = Literal["ising", "coactivation", "cosine"]
Cluster = Literal["spectral", "louvain"]

THRESHOLD = 0.005
"""The least coupling that counts, published for 500,000 tokens."""
LEAK = 0.02
"""Eigenvalue of the normalised Laplacian below which two parts of the graph are two groups."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Features that go together, strongest group first, and how sure each group is."""

    members: tuple[tuple[int, ...], ...]
    strength: Float[Tensor, " group"]
    """The mean coupling within each group; negative ones count as none."""
    null: Float[Tensor, " group"]
    """The same mean after shuffling, over the draws of the null."""
    confidence: Float[Tensor, " group"]
    """1 - p of the strength against the shuffled mean, for as many tries as there are features."""
    spans: tuple[Subspace, ...] | None
    """The span of each group's decoder rows, through the origin; None without a decoder."""
    couplings: Float[Tensor, "feature feature"]
    threshold: float
    """The coupling above which two features were joined."""
    dropped: tuple[tuple[int, ...], ...]
    """Groups that were no stronger than the shuffled ones."""
    by: By

    @property
    def labels(self) -> Int[Tensor, " feature"]:
        """The group of each feature, and -1 where it has none."""
        found = torch.full((len(self.couplings),), -1)
        for number, group in enumerate(self.members):
            found[list(group)] = number
        return found

    def __repr__(self) -> str:
        """Say the groups' sizes and the least confidence among them."""
        sizes = ", ".join(str(len(group)) for group in self.members) or "none"
        sure = f", confidence {float(self.confidence.min()):.3f} or more" if self.members else ""
        return (
            f"Groups({len(self.members)} by {self.by}, of sizes {sizes}{sure}; "
            f"{len(self.couplings)} features, {len(self.dropped)} groups dropped)"
        )


def discover_groups(
    codes: Tensor | np.ndarray,
    decoder: Tensor | np.ndarray | None = None,
    *,
    by: By = "ising",
    cluster: Cluster = "spectral",
    n_groups: int | None = None,
    alpha: float | int | None = None,
    threshold: float | int = THRESHOLD,
    resolution: float | int = 1,
    variance: float | int = 0.999,
    draws: int = 5,
    seed: int = 0,
) -> Groups:
    """Group the features of a dictionary by their codes [sample, feature] or decoder rows.

    The discovery of Bhalla et al. 2026 (arXiv:2604.28119): a matrix between features, a threshold,
    clusters. We differ in three ways. Two features are joined only where their coupling is above
    the threshold and above all couplings of shuffled codes (each feature's activations permuted
    over samples; decoder rows permuted over d_model for cosine), as a threshold made for 500,000
    tokens lets noise through on fewer. Only positive couplings join, because features of two
    subjects that never meet repel each other strongly. And in the place of Leiden, whose packages
    are under the GPL, there is networkx's Louvain.

    Spectral clustering keeps a ring of features in one piece, which modularity cuts into arcs; the
    number of groups is that of the near-separate parts of the graph.

    Args:
        codes: not negative; a feature is on where it is above 0.
        decoder: [feature, d_model], for cosine and for the spans.
        by: the coupling; Ising removes indirect company, at the highest cost.
        cluster: "spectral" or "louvain".
        n_groups: of spectral clustering, instead of the number of parts.
        alpha: L1 penalty of the Ising regressions, by default one that grows with the samples
            (see `couplings.ising`); published is 0.01, for 500,000 tokens.
        threshold: the least coupling that counts.
        resolution: of Louvain; more gives smaller groups.
        variance: share of each group's decoder rows that its span keeps.
        draws: of the null.
        seed: of the null and of the clustering.

    Raises:
        ManifoldError: codes negative, not finite or without any two features on at once; a decoder
            that is missing for cosine or has another number of features; too many groups.
    """
    _check(by, cluster, draws)
    on, atoms = _on(codes, by), _atoms(decoder, codes.shape[1], by)
    rng = torch.Generator().manual_seed(seed)
    couplings = _COUPLINGS[by](on, atoms, alpha)
    shuffled = torch.stack(
        [
            _COUPLINGS[by](*_shuffled(on, atoms, rng), alpha)
            for _ in tqdm(range(draws), desc=f"null of {by}", disable=by != "ising")
        ]
    )
    upper = torch.triu(torch.ones_like(couplings, dtype=torch.bool), 1)
    chance = shuffled[:, upper].clamp_min(0)
    cut = max(float(threshold), float(chance.max()))
    joined = torch.where(couplings > cut, couplings, torch.zeros_like(couplings))
    parts = _clusters(joined, cluster, n_groups, float(resolution), seed)
    strength = torch.tensor([_within(couplings, part) for part in parts], dtype=torch.float64)
    null = torch.tensor(
        [sum(_within(each, part) for each in shuffled) / draws for part in parts],
        dtype=torch.float64,
    )
    pairs = torch.tensor([math.comb(len(part), 2) for part in parts], dtype=torch.float64)
    z = (strength - null) / (chance.std().clamp_min(1e-12) / pairs.sqrt())
    sure = 1 - (len(couplings) * torch.special.ndtr(-z)).clamp(max=1)
    order = strength.argsort(descending=True)
    kept = [int(i) for i in order if sure[i] > 0.95]
    members = tuple(parts[i] for i in kept)
    device, dtype = storage(codes)
    spans = (
        None
        if decoder is None
        else tuple(_span(atoms[list(group)], variance).to(device, dtype) for group in members)
    )
    return Groups(
        members,
        strength[kept],
        null[kept],
        sure[kept],
        spans,
        couplings,
        cut,
        tuple(parts[int(i)] for i in order if int(i) not in kept),
        by,
    )


_COUPLINGS: dict[By, Callable[[Tensor, Tensor, float | int | None], Tensor]] = {
    "ising": lambda on, _, alpha: ising(on, alpha=alpha),
    "coactivation": lambda on, *_: coactivation(on),
    "cosine": lambda _, atoms, __: cosine(atoms),
}


def _check(by: str, cluster: str, draws: int) -> None:
    for name, given, known in (("by", by, By), ("cluster", cluster, Cluster)):
        if given not in get_args(known):
            raise ManifoldError(
                f"{name} is {given!r}, which is not known here. Write one of "
                f"{', '.join(map(repr, get_args(known)))}."
            )
    if draws < 2:
        raise ManifoldError(
            f"The null has {draws} draws, and its scatter takes 2 at least. Leave draws at 5."
        )


def _on(codes: Tensor | np.ndarray, by: By) -> Tensor:
    values = as_points(codes)
    if values.min() < 0:
        raise ManifoldError(
            f"{int((values < 0).sum())} codes are negative (lowest {float(values.min()):.3g}), and "
            "a feature that is on below 0 is not known here. Pass the codes after the dictionary's "
            "own non-linearity."
        )
    on = values > 0
    if by != "cosine" and int(on.sum(1).max()) < 2:
        raise ManifoldError(
            f"No two of {on.shape[1]} features are ever on in one of {len(on)} samples, so there "
            "is no co-activation to group by. Read more samples, or use by='cosine'."
        )
    return on


def _atoms(decoder: Tensor | np.ndarray | None, n_features: int, by: By) -> Tensor:
    if decoder is None:
        if by == "cosine":
            raise ManifoldError(
                "Cosine compares the rows of a decoder, and none was given. Pass decoder=, or "
                "group by 'ising' or 'coactivation'."
            )
        return torch.zeros(n_features, 1, dtype=torch.float64)
    atoms = as_points(decoder)
    if len(atoms) != n_features:
        raise ManifoldError(
            f"The codes have {n_features} features, but the decoder {len(atoms)} rows: these are "
            "not of one dictionary. The decoder is [feature, d_model]; transpose it if need be."
        )
    return atoms


def _shuffled(on: Tensor, atoms: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Permute each feature over samples, and each decoder row over d_model, independently."""
    rows = torch.rand(on.shape, generator=rng).argsort(0)
    entries = torch.rand(atoms.shape, generator=rng).argsort(1)
    return on.gather(0, rows), atoms.gather(1, entries)


def _clusters(
    joined: Tensor, cluster: Cluster, n_groups: int | None, resolution: float, seed: int
) -> list[tuple[int, ...]]:
    """Return groups of two features or more; features that are joined to none are in none."""
    alive = (joined.sum(1) > 0).nonzero().flatten()
    if len(alive) == 0:
        return []
    graph = joined[alive][:, alive].numpy()
    if cluster == "louvain":
        # Takes a third of a second to import.
        import networkx as nx

        made = nx.community.louvain_communities(
            nx.from_numpy_array(graph), resolution=resolution, seed=seed
        )
        parts = [sorted(part) for part in made]
    else:
        parts = _spectral(graph, n_groups, seed)
    found = [tuple(alive[list(part)].tolist()) for part in parts]
    return [part for part in found if len(part) > 1]


def _spectral(graph: np.ndarray, n_groups: int | None, seed: int) -> list[list[int]]:
    n = len(graph)
    if n_groups is not None and not 1 <= n_groups <= n // 2:
        raise ManifoldError(
            f"n_groups is {n_groups}, but {n} features are joined to any other, so there are 1 to "
            f"{n // 2} groups of two or more. Ask for fewer, or lower the threshold."
        )
    root = np.sqrt(graph.sum(1))
    values = np.linalg.eigvalsh(np.eye(n) - graph / root / root[:, None])
    count = n_groups or int((values < LEAK).sum())
    if count == 1:
        return [list(range(n))]
    # Takes a second to import.
    from sklearn.cluster import SpectralClustering

    # A touch of company for all keeps the graph in one part, which scikit-learn asks for.
    model = SpectralClustering(count, affinity="precomputed", random_state=seed)
    labels = model.fit_predict(graph + 1e-9 * graph.max())
    return [np.flatnonzero(labels == label).tolist() for label in range(count)]


def _within(couplings: Tensor, part: tuple[int, ...]) -> float:
    index = torch.tensor(part)
    size = len(part)
    return float(couplings[index][:, index].clamp_min(0).sum()) / (size * (size - 1))


def _span(atoms: Tensor, variance: float | int) -> Subspace:
    _, singular, rows = torch.linalg.svd(atoms, full_matrices=False)
    share = singular.square() / singular.square().sum()
    k = int((share.cumsum(0) < variance * (1 - 1e-12)).sum()) + 1
    return Subspace(torch.zeros(atoms.shape[1], dtype=atoms.dtype), rows[:k], share[:k])
