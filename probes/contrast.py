"""Fits from two sets of activations, positive and negative: mean difference and its main axis."""

from dataclasses import replace

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.held_out import Fit, Start, scored_probe
from probes.inputs import Array, Samples, contrast
from probes.linear import LinearProbe, Origin

_CLASSES = ("negative", "positive")


def fit_mean_difference(
    positive: Array, negative: Array, *, seed: int = 0, origin: Origin | None = None
) -> LinearProbe:
    """Fit the direction from the mean of the negative samples to the mean of the positive ones.

    CAA, Rimsky et al. 2023 (arXiv:2312.06681). `scores` are distances along the unit direction in
    activation units, zero half-way between the means. `probe.separation` is the distance between
    the means, so CAA's raw vector is `probe.separation * probe.direction`.

    Args:
        positive: [sample, d] or [site, sample, d]; the sets may differ in their number of samples.
        negative: of the same width and sites.
        seed: of the held-out split.
        origin: where the samples came from, `acts.origin(site)`.

    Raises:
        ProbeError: equal means, different widths, fewer than two samples, entries not finite.
    """
    data, index = contrast(positive, negative)
    return _contrasted(_mean_difference, data, index, groups=None, seed=seed, origin=origin)


def fit_pca_difference(
    positive: Array, negative: Array, *, seed: int = 0, origin: Origin | None = None
) -> LinearProbe:
    """Fit the axis of the paired differences positive[i] - negative[i], its sign by their labels.

    LAT, Zou et al. 2023 (arXiv:2310.01405). They turn the sign of each difference at random and
    take the first principal component; we take the axis of the uncentred second moments, which is
    its expectation over those signs and needs none. `scores` as in fit_mean_difference.

    Raises:
        ProbeError: sets of different sizes, all pairs equal, an axis that does not tell the two
            sets apart; otherwise as fit_mean_difference.
    """
    data, index = contrast(positive, negative)
    n_negative = int((index == 0).sum())
    if 2 * n_negative != len(index):
        raise ProbeError(
            f"There are {len(index) - n_negative} positive and {n_negative} negative samples. "
            "Differences are taken pair by pair. Give pairs in the same order, or use "
            "fit_mean_difference."
        )
    pairs = list(range(n_negative)) * 2
    return _contrasted(_pca_difference, data, index, groups=pairs, seed=seed, origin=origin)


def _contrasted(
    fit: Fit,
    data: Samples,
    index: Tensor,
    *,
    groups: list[int] | None,
    seed: int,
    origin: Origin | None,
) -> LinearProbe:
    """Return the fitted probe with the distance between the means in its diagnostics."""
    probe = scored_probe(
        fit, data, index, _CLASSES, link="identity", groups=groups, seed=seed, origin=origin
    )
    x = data.values if data.stacked else data.values[0]
    scores = probe.to(x.device).scores(x)
    gap = scores[..., index == 1].mean(-1) - scores[..., index == 0].mean(-1)
    return replace(probe, diagnostics={"separation": gap.tolist(), **probe.diagnostics})


def _mean_difference(x: Tensor, index: Tensor, near: Start) -> tuple[Tensor, Tensor]:
    """Return the unit difference of the means and the bias that puts zero between them."""
    del near  # a closed form begins nowhere
    negative, positive = x[:, index == 0].mean(1), x[:, index == 1].mean(1)
    return _between(positive - negative, positive, negative)


def _pca_difference(x: Tensor, index: Tensor, near: Start) -> tuple[Tensor, Tensor]:
    """Return the first right singular vector of the differences, pointing to the positive."""
    del near  # a closed form begins nowhere
    negative, positive = x[:, index == 0], x[:, index == 1]
    differences = positive - negative
    # The smaller of the two Gram matrices; sites are few, features many.
    if x.shape[-1] <= differences.shape[1]:
        axis = torch.linalg.eigh(differences.mT @ differences).eigenvectors[..., -1]
    else:
        weights = torch.linalg.eigh(differences @ differences.mT).eigenvectors[..., -1:]
        axis = (differences.mT @ weights).squeeze(-1)
    return _between(axis, positive.mean(1), negative.mean(1))


def _between(axis: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit axis pointing from negative to positive, zero half-way between them."""
    norm = torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    unit = axis / norm.clamp_min(torch.finfo(axis.dtype).tiny)
    gap = (unit * (positive - negative)).sum(-1, keepdim=True)
    # Rounding of means: a gap below it has no sign.
    floor = 1e-12 * (positive.norm(dim=-1, keepdim=True) + negative.norm(dim=-1, keepdim=True))
    apart = (norm > 0) & (gap.abs() > floor)
    if not bool(apart.all()):
        site = int((~apart).flatten().nonzero()[0])
        raise ProbeError(
            f"The means of the positive and the negative samples coincide along the axis (site "
            f"{site} of {len(apart)}). It has no sign then, and no midpoint tells them apart. "
            "Check that the two sets differ, and that the right token was captured."
        )
    weight = unit * gap.sign()
    return weight, -(weight * (positive + negative) / 2).sum(-1)
