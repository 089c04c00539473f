"""Bayesian predictors of in-context learning: one that memorised its tasks, one that generalises.

For the three settings of Wurgaft et al. 2025 (arXiv:2506.17859): balls drawn from urns, noisy
linear regression, and classification of noisy copies. The memorising predictor is exact Bayes with
the training tasks as a discrete prior; the generalising one is exact Bayes with the continuous
prior from which those tasks were drawn. All rows and positions are predicted at once.
"""

import torch
from torch import Tensor


def urns_memorised(urns: Tensor, balls: Tensor) -> Tensor:
    """Return [..., position, colour]: the next ball's probabilities if it is one of known urns.

    Args:
        urns: [urn, colour], probabilities.
        balls: [..., position], colours drawn from one urn, as integers.
    """
    logs = urns.clamp(min=1e-30).log()
    seen = logs.T[balls].cumsum(-2)  # [..., position, urn]
    before = torch.cat([torch.zeros_like(seen[..., :1, :]), seen[..., :-1, :]], dim=-2)
    return before.softmax(-1) @ urns


def urns_generalised(balls: Tensor, *, n_colours: int, concentration: float = 1.0) -> Tensor:
    """Return [..., position, colour]: the same, if urns come from a symmetric Dirichlet.

    The posterior mean: (count + concentration) / (balls + n_colours * concentration).
    """
    one_hot = torch.nn.functional.one_hot(balls, n_colours).double()
    before = one_hot.cumsum(-2) - one_hot
    total = before.sum(-1, keepdim=True) + n_colours * concentration
    return (before + concentration) / total


def regression_memorised(tasks: Tensor, x: Tensor, y: Tensor, *, noise: float) -> Tensor:
    """Return [..., position]: the mean of y at each x if the weights are one of known tasks.

    Args:
        tasks: [task, feature], weights.
        x: [..., position, feature].
        y: [..., position], x @ weights plus normal noise.
        noise: its standard deviation.
    """
    each = x @ tasks.T  # [..., position, task]
    fit = -((y[..., None] - each) ** 2 / (2 * noise**2)).cumsum(-2)
    before = torch.cat([torch.zeros_like(fit[..., :1, :]), fit[..., :-1, :]], dim=-2)
    return (before.softmax(-1) * each).sum(-1)


def regression_generalised(x: Tensor, y: Tensor, *, noise: float) -> Tensor:
    """Return [..., position]: the same, if weights are standard normal: ridge regression.

    w = (X'X + noise**2 I)^-1 X'y over the positions before.
    """
    outer = x[..., :, None] * x[..., None, :]
    both = x * y[..., None]
    gram, cross = outer.cumsum(-3) - outer, both.cumsum(-2) - both
    ridge = gram + noise**2 * torch.eye(x.shape[-1], dtype=x.dtype)
    weights = torch.linalg.solve(ridge, cross[..., None])[..., 0]
    return (weights * x).sum(-1)


def classes_memorised(
    means: Tensor, labels: Tensor, x: Tensor, y: Tensor, query: Tensor, *, noise: float
) -> Tensor:
    """Return [..., label]: probabilities of the query's label if its class is a known one.

    Items are (mean + noise * z) / sqrt(1 + noise**2), with z and means of variance 1 / feature.
    The query is of the same class as one of the items in context, each equally likely.

    Args:
        means: [class, feature].
        labels: [class], 0 or 1.
        x: [..., item, feature], the items in context.
        y: [..., item], their labels.
        query: [..., feature].
        noise: how much larger an item's noise is than its class mean.
    """
    of_item = _fits(means, x, noise).masked_fill(y[..., None] != labels, -torch.inf)
    of_query = _fits(means, query, noise)  # [..., class]
    joint = (of_item.log_softmax(-1)).logsumexp(-2) + of_query
    by_label = [joint.masked_fill(labels != label, -torch.inf).logsumexp(-1) for label in (0, 1)]
    return torch.stack(by_label, dim=-1).softmax(-1)


def classes_generalised(x: Tensor, y: Tensor, query: Tensor, *, noise: float) -> Tensor:
    """Return [..., label]: the same, if classes are new: the label of the nearest item, softly.

    Two items of a class are normal with correlation r = 1 / (1 + noise**2), so the query given an
    item is normal about r times it, with variance (1 - r**2) / feature.
    """
    r = 1 / (1 + noise**2)
    apart = ((query[..., None, :] - r * x) ** 2).sum(-1)
    near = (-apart * x.shape[-1] / (2 * (1 - r**2))).softmax(-1)
    ones = (near * y).sum(-1)
    return torch.stack([1 - ones, ones], dim=-1)


def _fits(means: Tensor, x: Tensor, noise: float) -> Tensor:
    """Return [..., class]: log-likelihoods of items under each class, up to a constant."""
    shrink = (1 + noise**2) ** -0.5
    apart = ((x[..., None, :] - shrink * means) ** 2).sum(-1)
    return -apart * means.shape[-1] / (2 * (noise * shrink) ** 2)
