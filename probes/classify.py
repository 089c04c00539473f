"""Fits from labels: logistic regression and linear discriminant analysis."""

from functools import partial

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.features import principal_axes, scaled
from probes.held_out import Start, scored_probe
from probes.inputs import Array, Labels, check_penalty, labelled, plain_list, samples
from probes.linear import LinearProbe, Origin
from probes.logistic import logistic_regression
from probes.softmax import softmax_regression


def fit_logistic(
    x: Array,
    y: Labels,
    *,
    l2: float = 1.0,
    standardize: bool = True,
    groups: Labels | None = None,
    seed: int = 0,
    origin: Origin | None = None,
) -> LinearProbe:
    """Fit a logistic probe: cross entropy summed over samples + l2 / 2 |weight|^2, the bias free.

    Equal to scikit-learn's LogisticRegression(C=1 / l2), behind a StandardScaler if standardize;
    with more than two classes it is the multinomial model, its rows centred. `scores` are
    probabilities; the second of the sorted classes (True of False and True) is the positive one.

    Args:
        x: [sample, d], or [site, sample, d] for one probe per site.
        y: one label for each sample: booleans, numbers or strings.
        l2: the penalty, on weights of standardized features if they are.
        standardize: divide each feature by its deviation first; folded into the weights after.
        groups: samples of one group are never on both sides of the held-out split.
        seed: of the held-out split.
        origin: where x came from, `acts.origin(site)`.

    Raises:
        ProbeError: one class only, a class with one sample, entries that are not finite, lengths
            that differ, constant features, l2 not above 0.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0], [4.0, 0.0]])
    >>> probe = fit_logistic(x, [False, False, True, True])
    >>> probe.scores(x) > 0.5
    tensor([False, False,  True,  True])
    """
    check_penalty("l2", l2)
    data = samples(x)
    n_samples = data.values.shape[1]
    classes, index = labelled(y, n_samples)
    return scored_probe(
        partial(_logistic, n_classes=len(classes), l2=l2, standardize=standardize),
        data,
        index,
        classes,
        link="logistic",
        groups=None if groups is None else plain_list(groups, "groups", n_samples),
        seed=seed,
        origin=origin,
    )


def fit_lda(
    x: Array,
    y: Labels,
    *,
    shrinkage: float = 0.1,
    groups: Labels | None = None,
    seed: int = 0,
    origin: Origin | None = None,
) -> LinearProbe:
    """Fit linear discriminant analysis: class means whitened by the shared covariance.

    Fisher 1936. Equal to scikit-learn's LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...):
    covariance = (1 - shrinkage) within + shrinkage tr(within) / d. `scores` are probabilities.
    shrinkage is in [0, 1]; above 0 it also serves fewer samples than features.

    Raises:
        ProbeError: as fit_logistic; a covariance that is singular without shrinkage.
    """
    if not 0 <= shrinkage <= 1:
        raise ProbeError(
            f"shrinkage is {shrinkage}. It is the share of the covariance that is replaced by a "
            "multiple of the identity. Give a number from 0 to 1."
        )
    data = samples(x)
    n_samples = data.values.shape[1]
    classes, index = labelled(y, n_samples)
    return scored_probe(
        partial(_lda, n_classes=len(classes), shrinkage=shrinkage),
        data,
        index,
        classes,
        link="logistic",
        groups=None if groups is None else plain_list(groups, "groups", n_samples),
        seed=seed,
        origin=origin,
    )


def _logistic(
    x: Tensor, index: Tensor, near: Start, *, n_classes: int, l2: float, standardize: bool
) -> tuple[Tensor, Tensor]:
    """Return weight and bias on raw activations."""
    if n_classes == 2:
        return _two_classes(x, index, near, l2=l2, standardize=standardize)
    axes = principal_axes(x, standardize=standardize)
    weight, bias = softmax_regression(axes.z, axes.gram, index, n_classes, l2)
    return axes.folded(weight, bias)


def _two_classes(
    x: Tensor, index: Tensor, near: Start, *, l2: float, standardize: bool
) -> tuple[Tensor, Tensor]:
    """Return weight [site, d] and bias [site]."""
    z, mean, scale = scaled(x, standardize=standardize)
    positive = index.to(z.dtype)
    if x.shape[-1] <= x.shape[1]:
        start = None if near is None else _in_units(*near, mean, scale)
        theta = logistic_regression(z, positive, l2, start)
        weight = theta[:, :-1]
    else:
        # Weights lie in the span of the samples: as many coordinates as those.
        span, corner = torch.linalg.qr(z.mT)
        theta = logistic_regression(corner.mT, positive, l2)
        weight = (span @ theta[:, :-1].unsqueeze(-1)).squeeze(-1)
    raw = weight / scale
    return raw, theta[:, -1] - (raw * mean).sum(-1)


def _in_units(weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return [site, d + 1]: weights on raw activations as weights on scaled ones."""
    return torch.cat([weight * scale, (bias + (weight * mean).sum(-1)).unsqueeze(-1)], -1)


def _lda(
    x: Tensor, index: Tensor, near: Start, *, n_classes: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Return weight and bias from means, covariance and class frequencies."""
    del near  # a closed form begins nowhere
    n_samples, d_model = x.shape[1:]
    if shrinkage == 0 and n_samples - n_classes < d_model:
        raise ProbeError(
            f"{n_samples} samples of {n_classes} classes cannot give a covariance of {d_model} "
            "features: it is singular. Its inverse does not exist. Give a shrinkage above 0."
        )
    target = torch.nn.functional.one_hot(index, n_classes).to(x.dtype)
    share = target.mean(0)
    means = target.mT @ x / target.sum(0).unsqueeze(-1)
    within = x - means[:, index]
    covariance = within.mT @ within / n_samples
    spread = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    if bool((spread <= 0).any()):
        raise ProbeError(
            "The samples of each class are all equal. There is no spread to weigh differences by. "
            "Use fit_mean_difference, or check that the right token was captured."
        )
    ridge = (shrinkage * spread)[:, None, None] * torch.eye(d_model).to(x)
    covariance = (1 - shrinkage) * covariance + ridge
    weight = torch.linalg.solve(covariance, means.mT).mT
    bias = share.log() - (weight * means).sum(-1) / 2
    centred = weight - weight.mean(-2, keepdim=True), bias - bias.mean(-1, keepdim=True)
    return _two_sided(*centred)


def _two_sided(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the difference of two classes' rows as one; more classes stay as they are."""
    if weight.shape[-2] != 2:
        return weight, bias
    return weight[..., 1, :] - weight[..., 0, :], bias[..., 1] - bias[..., 0]
