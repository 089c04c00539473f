"""The Mantel test: do two sets of distances between the same things agree, beyond chance?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steer.errors import BeliefError

CHUNK = 4_000_000
"""Entries of one batch of permuted matrices: 32 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Mantel:
    """A correlation of distances, with what it would be if the labels meant nothing."""

    r: float
    p: float
    """One-sided: chance of a correlation at least as high under permuted labels."""
    null: Float[Tensor, " permutation"]
    n: int
    """Number of things, not of pairs: pairs are not independent."""

    def __repr__(self) -> str:
        """Say the correlation, its p and the null's 95 % range."""
        lo, hi = self.null.quantile(torch.tensor([0.025, 0.975], dtype=self.null.dtype)).tolist()
        return (
            f"Mantel(r {self.r:.3f}, p {self.p:.2g} one-sided, {self.n} things; "
            f"{len(self.null)} permutations give {lo:.2f} to {hi:.2f})"
        )


def mantel(
    d1: Tensor | NDArray,
    d2: Tensor | NDArray,
    *,
    permutations: int = 9999,
    seed: int = 0,
    ranks: bool = False,
    ordered: bool = False,
) -> Mantel:
    """Return the correlation of two distance matrices and its permutation test (Mantel 1967).

    Pairs that share a thing are not independent, so the labels of one matrix are permuted, rows
    and columns alike; the observed order counts as one of the permutations, which keeps p above 0.
    That the labels are exchangeable is assumed: moments of one text are not, if near moments are
    alike. Thin such a trajectory, or test texts instead of moments.

    Args:
        d1: [sample, sample]: distances.
        d2: [sample, sample]: distances between the same things in the same order.
        permutations: how many.
        seed: of the permutations.
        ranks: correlate ranks (Spearman), which a monotone warp of the distances leaves alone.
        ordered: use both directions of each pair, for matrices that need not be symmetric.

    Raises:
        BeliefError: matrices that do not fit, fewer than 4 things, equal distances throughout, or
            a matrix that is not symmetric while `ordered` is off.
    """
    a, b = (torch.as_tensor(d, dtype=torch.float64) for d in (d1, d2))
    _require_pair(a, b, ordered=ordered)
    if permutations < 1:
        raise BeliefError(f"{permutations} permutations make no null. Ask for 999 or more.")
    n = len(a)
    pairs = ~torch.eye(n, dtype=torch.bool)
    a, b = (_standard(v, pairs, ranks=ranks) for v in (a, b))
    chooser = torch.Generator().manual_seed(seed)
    null = []
    each = max(1, CHUNK // (n * n))
    for first in range(0, permutations, each):
        size = min(each, permutations - first)
        order = torch.rand(size, n, generator=chooser).argsort(1)
        # Permuting labels moves off-diagonal entries among themselves: b stays standardised.
        null.append((b[order[:, :, None], order[:, None, :]] * a).sum((1, 2)))
    r, nulls = (a * b).sum(), torch.cat(null)
    # Permutations that reproduce the observed order must count, whatever the rounding.
    above = int((nulls >= r - 1e-12).sum())
    return Mantel(float(r), (1 + above) / (1 + permutations), nulls, n)


def _standard(d: Tensor, pairs: Tensor, *, ranks: bool) -> Tensor:
    """Return the matrix with its off-diagonal entries centred and of norm 1, its diagonal 0."""
    values = d[pairs]
    if ranks:
        # Ties share the mean of their ranks.
        _, place, count = values.unique(return_inverse=True, return_counts=True)
        values = (count.cumsum(0) - (count - 1) / 2)[place].double()
    centred = values - values.mean()
    size = centred.norm()
    if not float(size) > 1e-12 * float(values.norm()):
        raise BeliefError(
            "All distances of one matrix are equal, so nothing can correlate with them. Leave out "
            "this comparison, or measure distances that differ."
        )
    return torch.zeros_like(d).masked_scatter(pairs, centred / size)


def _require_pair(a: Tensor, b: Tensor, *, ordered: bool) -> None:
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise BeliefError(
            f"The matrices have the shapes {list(a.shape)} and {list(b.shape)}. Give two square "
            "ones over the same things in the same order."
        )
    n = len(a)
    if n < 4:
        raise BeliefError(
            f"{n} things can be ordered in so few ways that no p below 0.05 is possible. Give at "
            "least 4; 7 or more to find anything but a perfect agreement."
        )
    for side, d in (("first", a), ("second", b)):
        if not bool(d.isfinite().all()):
            raise BeliefError(
                f"The {side} matrix has entries that are not finite. Leave the things out whose "
                "distances are unknown."
            )
        gap = float((d - d.T).abs().max())
        if not ordered and gap > 1e-6 * float(d.abs().max()):
            raise BeliefError(
                f"The {side} matrix is not symmetric (largest difference {gap:.3g}), so a pair has "
                "two distances. Average it with its transpose, or pass ordered=True."
            )
