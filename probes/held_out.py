"""Honest scores: a split that keeps groups together, and what is measured on the held-out part."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.errors import ProbeError
from probes.inputs import Samples
from probes.linear import Label, LinearProbe, Link, Origin

Start = tuple[Tensor, Tensor] | None
"""Weight and bias from which an iteration may begin; where it ends must not depend on it."""
Fit = Callable[[Tensor, Tensor, Start], tuple[Tensor, Tensor]]
"""From [site, sample, d] and the class index of each sample to weight and bias."""

SHARE = 0.2
_ATTEMPTS = 50


def scored_probe(
    fit: Fit,
    data: Samples,
    index: Tensor,
    classes: tuple[Label, ...],
    *,
    link: Link,
    groups: Sequence[Label] | None,
    seed: int,
    origin: Origin | None,
) -> LinearProbe:
    """Return the probe fitted on all samples, with the scores of one fitted on four fifths of them.

    The scores are of the held-out fifth, stratified by class; where groups are given, none lies
    on both sides. They are None where the samples are too few to be split.
    """
    index = index.to(data.values.device)
    diagnostics: dict[str, object] = {"n_samples": len(index), "seed": seed}
    weight, bias = fit(data.values, index, None)
    near = (weight, bias)
    diagnostics |= _held_out_scores(fit, data, index, classes, groups, seed, near)
    return LinearProbe(
        data.restored(weight), data.restored(bias), link, classes, origin, diagnostics
    )


def _held_out_scores(
    fit: Fit,
    data: Samples,
    index: Tensor,
    classes: tuple[Label, ...],
    groups: Sequence[Label] | None,
    seed: int,
    near: Start,
) -> dict[str, object]:
    """Return accuracy, and for two classes the area under the ROC curve, on held-out samples."""
    parts = split(index.cpu(), groups, seed)
    if parts is None:
        return {"held_out_accuracy": None}
    train, test = (part.to(index.device) for part in parts)
    try:
        weight, bias = fit(data.values[:, train], index[train], near)
    except ProbeError:
        # All samples could be fitted, four fifths of them could not: there is no score to give.
        return {"held_out_accuracy": None}
    probe = LinearProbe(weight, bias, "identity", classes)
    x, y = data.values[:, test], index[test]
    scores = {"held_out_accuracy": _listed((probe.predict(x) == y).double().mean(-1), data)}
    if len(classes) == 2:
        scores["held_out_auroc"] = _listed(auroc(probe.scores(x), y == 1), data)
    return scores


def split(index: Tensor, groups: Sequence[Label] | None, seed: int) -> tuple[Tensor, Tensor] | None:
    """Return the rows to fit on and the rows to score on, or None if they are too few.

    Both parts have every class, the first at least two samples of each; rows keep their order.
    Without groups a fifth of each class is held out, rounded up.
    """
    generator = torch.Generator().manual_seed(seed)
    n_classes = int(index.max()) + 1
    if groups is None:
        rows = [(index == c).nonzero().flatten() for c in range(n_classes)]
        if min(map(len, rows)) < 3:
            return None
        shuffled = [part[torch.randperm(len(part), generator=generator)] for part in rows]
        test = torch.cat([part[: -(-len(part) // round(1 / SHARE))] for part in shuffled])
        return _rest(len(index), test), test.sort().values
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    member = torch.tensor([names[name] for name in groups])
    for _ in range(_ATTEMPTS):
        order = torch.randperm(len(names), generator=generator)
        sizes = member.bincount(minlength=len(names))[order].cumsum(0)
        # As many groups as it takes to reach the share, never all.
        held = order[: int((sizes < SHARE * len(index)).sum()) + 1]
        test = torch.isin(member, held).nonzero().flatten()
        train = _rest(len(index), test)
        counts = index[train].bincount(minlength=n_classes)
        if counts.min() >= 2 and index[test].bincount(minlength=n_classes).min() >= 1:
            return train, test
    return None


def auroc(scores: Float[Tensor, "*site sample"], positive: Bool[Tensor, " sample"]) -> Tensor:
    """Return the area under the ROC curve: the chance that a positive outscores a negative.

    Ties count one half. One number for each leading index.

    Raises:
        ProbeError: only one class.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        raise ProbeError(
            f"There are {n_positive} positive and {n_negative} negative samples. The area under "
            "the curve compares pairs of the two. Score a sample that has both."
        )
    ordered = scores.sort(dim=-1).values
    wanted = scores[..., positive].contiguous()
    below = torch.searchsorted(ordered, wanted) + torch.searchsorted(ordered, wanted, right=True)
    ranks = (below.double() + 1) / 2
    return (ranks.sum(-1) / n_positive - (n_positive + 1) / 2) / n_negative


def r_squared(predicted: Float[Tensor, "*site sample"], y: Float[Tensor, " sample"]) -> Tensor:
    """Return 1 - (squared error) / (squared deviation of y from its own mean)."""
    return 1 - (predicted - y).square().sum(-1) / (y - y.mean()).square().sum()


def _rest(n_samples: int, test: Tensor) -> Tensor:
    """Return the rows that are not held out, in order."""
    keep = torch.ones(n_samples, dtype=torch.bool)
    keep[test] = False
    return keep.nonzero().flatten()


def _listed(numbers: Tensor, data: Samples) -> object:
    """Return a number, or one for each site."""
    return numbers.tolist() if data.stacked else numbers[0].item()
