"""What a subspace holds of the classes and of their samples, and how many components to keep."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.errors import ManifoldError
from manifolds.subspace import Subspace, as_points, fit_pca


def isometric(centroids: Float[Tensor, "knot d_model"]) -> Float[Tensor, "knot k"]:
    """Return coordinates of all centroids with the same distances, at most as many as classes.

    A spline is a linear map of its values, so leaving a class out here is leaving it out of
    activation space: nothing of the left-out class enters through a choice of components.
    """
    left, singular, _ = torch.linalg.svd(centroids - centroids.mean(0), full_matrices=False)
    return left * singular


def chosen_subspace(
    centroids: Float[Tensor, "knot d_model"],
    subspace: Subspace | None,
    n_components: int | None,
    variance: float | int,
    origin: Mapping[str, object] | None,
) -> Subspace:
    """Return the given subspace, or the principal components of the class averages.

    Raises:
        ManifoldError: a subspace and a number of components, or what `fit_pca` refuses.
    """
    if subspace is None:
        return fit_pca(centroids, n_components=n_components, variance=variance, origin=origin)
    if n_components is not None:
        raise ManifoldError(
            f"Both a subspace and n_components={n_components} were given, and the subspace already "
            "says how many components there are. Leave one out."
        )
    return subspace


def explained(centroids: Float[Tensor, "knot d_model"], subspace: Subspace) -> float:
    """Return the share of the variance between classes that lies on the subspace."""
    away = centroids - centroids.mean(0)
    within = away @ subspace.basis.to("cpu", torch.float64).T
    return min(1.0, float(within.square().sum() / away.square().sum()))


def residual_kept(
    points: Float[Tensor, "sample d_model"],
    centroids: Float[Tensor, "knot d_model"],
    of_sample: np.ndarray,
    subspace: Subspace,
) -> float | None:
    """Return the share of the samples' deviation from their class that is off the subspace.

    None where each class has one sample, so none deviates.
    """
    own = points - centroids[torch.from_numpy(of_sample)]
    total = float(own.square().sum())
    if total <= 1e-20 * float(points.square().sum()):
        return None
    on = own @ subspace.basis.to("cpu", torch.float64).T
    return max(0.0, 1 - float(on.square().sum()) / total)


def choose_components(
    x: Tensor | np.ndarray, labels: Sequence[object] | np.ndarray | Tensor
) -> int:
    """Return how many principal components of the class averages predict a left-out sample best.

    Leave one prompt out: the averages, their components and so the subspace are made from all
    other samples, the sample's own class average is projected on the first k of them, and the
    squared distance from it to the sample is added up. Few components lose part of the shape;
    many carry the noise of the averages. For `n_components` of the fits.

    Args:
        x: [sample, d_model].
        labels: [sample], equal for samples of one class.

    Raises:
        ManifoldError: lengths that differ, or a class with one sample, which cannot be left out.
    """
    points = as_points(x)
    names = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else list(labels)
    if len(names) != len(points):
        raise ManifoldError(
            f"There are {len(points)} samples but {len(names)} labels. Give one label per sample."
        )
    distinct, of, counts = np.unique(
        np.array([str(name) for name in names]), return_inverse=True, return_counts=True
    )
    if counts.min() < 2:
        raise ManifoldError(
            f"The class {distinct[counts.argmin()]} has one prompt, and leaving it out leaves "
            "nothing of the class. Read at least two prompts for each, or say n_components."
        )
    if len(distinct) < 3:
        raise ManifoldError(
            f"There are {len(distinct)} classes, whose averages span one component at most, so "
            "there is nothing to choose. Read more classes."
        )
    of, counts = torch.from_numpy(of.reshape(-1)), torch.from_numpy(counts)
    total = torch.zeros(len(counts), points.shape[1], dtype=torch.float64)
    total.index_add_(0, of, points)
    each = torch.arange(len(points)).split(_CHUNK)
    errors = torch.cat([_errors(points, of, total, counts, chosen) for chosen in each])
    return int(errors.mean(0).argmin()) + 1


_CHUNK = 64
"""Left-out samples whose subspaces are found at once."""


def _errors(points: Tensor, of: Tensor, total: Tensor, counts: Tensor, chosen: Tensor) -> Tensor:
    """Return [chosen, k]: squared distances of left-out samples to their projected averages."""
    left, name = points[chosen], of[chosen]
    own = torch.nn.functional.one_hot(name, len(counts)).double()
    averages = (total - own[:, :, None] * left[:, None]) / (counts - own)[:, :, None]
    mean = averages.mean(1, keepdim=True)
    rows = torch.linalg.svd(averages - mean, full_matrices=False).Vh[:, : len(counts) - 1]
    centre = averages[torch.arange(len(chosen)), name] - mean[:, 0]
    parts = torch.einsum("skd,sd->sk", rows, centre)[..., None] * rows
    return (left[:, None] - mean - parts.cumsum(1)).square().sum(-1)
