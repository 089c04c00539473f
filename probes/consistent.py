"""A fit without labels: contrast-consistent search on pairs of opposite statements."""

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.held_out import split
from probes.inputs import Array, Labels, check_penalty, contrast, labelled, plain_list
from probes.linear import LinearProbe, Origin
from probes.mlp import adam


def fit_consistent(
    positive: Array,
    negative: Array,
    *,
    n_starts: int = 10,
    l2: float = 0.01,
    labels: Labels | None = None,
    groups: Labels | None = None,
    seed: int = 0,
    origin: Origin | None = None,
    n_iterations: int = 300,
) -> LinearProbe:
    """Fit by contrast-consistent search: mean of (p+ - (1 - p-))^2 + min(p+, p-)^2 over pairs.

    Burns et al. 2022 (arXiv:2212.03827). Each set is centred by its own mean, so that which of
    the two it is cannot be read; we divide both by one common deviation, they each by its own.
    They decay weights in AdamW; we add l2 / 2 |weight|^2 to the loss. Without it a long weight
    makes the loss vanish along any direction that tells the pairs apart, the true one or not.
    The best of n_starts by the sum is kept; starts and sites run together.

    The loss is the same for the opposite sign: without labels the sign is arbitrary. `labels` turn
    the sign only and never enter the loss.

    At use it is not known which set an activation is of. The probe folds in the midpoint of both
    means: its logit of a positive sample is the fitted one plus weight (mean+ - mean-) / 2, of a
    negative one minus that.

    Args:
        positive: [sample, d] or [site, sample, d]; row i is paired with row i of negative.
        negative: of the same shape.
        n_starts: random initial directions.
        l2: the penalty, on weights of standardized features.
        labels: for each pair, True (the later of two sorted labels) if the positive one holds.
        groups: pairs of one group are never on both sides of the held-out split.
        seed: of the starts and the held-out split.
        origin: where the samples came from, `acts.origin(site)`.
        n_iterations: Adam steps.

    Raises:
        ProbeError: sets of different sizes, n_starts or n_iterations below 1, more than two
            labels, constant features; otherwise as fit_mean_difference.
    """
    check_penalty("l2", l2)
    data, index = contrast(positive, negative)
    n_pairs = int((index == 0).sum())
    if 2 * n_pairs != len(index) or n_starts < 1 or n_iterations < 1:
        raise ProbeError(
            f"There are {len(index) - n_pairs} positive and {n_pairs} negative samples, n_starts "
            f"is {n_starts} and n_iterations is {n_iterations}. The search needs pairs in the same "
            "order, a start and a step. Give sets of one size and at least 1 of the others."
        )
    truth = None if labels is None else _truth(labels, n_pairs, data.values.device)
    sides = data.values[:, n_pairs:], data.values[:, :n_pairs]
    names = None if groups is None else plain_list(groups, "groups", n_pairs)

    def fitted(rows: Tensor) -> tuple[Tensor, ...]:
        chosen = None if truth is None else truth[rows]
        pair = sides[0][:, rows], sides[1][:, rows]
        return _search(*pair, chosen, n_starts, l2, seed, n_iterations)

    weight, bias, means, loss = fitted(torch.arange(n_pairs, device=data.values.device))
    numbers = {"loss": loss}
    parts = split(torch.zeros(n_pairs, dtype=torch.long), names, seed)
    if parts is not None:
        train, test = (part.to(data.values.device) for part in parts)
        w, b, centres, _ = fitted(train)
        p, q = _sides((sides[0][:, test], sides[1][:, test]), centres, w, b)
        numbers["held_out_loss"] = _loss(p, q)
        if truth is not None:
            said = p + 1 - q > 1
            numbers["held_out_accuracy"] = (said == truth[test]).double().mean(-1)
    told: dict[str, object] = {"n_samples": n_pairs, "seed": seed, "sign_known": truth is not None}
    told |= {k: v.tolist() if data.stacked else v[0].item() for k, v in numbers.items()}
    offset = bias - (weight * means.mean(0)).sum(-1)
    return LinearProbe(
        data.restored(weight),
        data.restored(offset),
        "logistic",
        (False, True),
        origin,
        {"held_out_loss": None, **told},
    )


def _search(
    positive: Tensor,
    negative: Tensor,
    truth: Tensor | None,
    n_starts: int,
    l2: float,
    seed: int,
    n_iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weight [site, d], bias [site], the sets' means [2, site, d] and the loss [site]."""
    means = torch.stack([positive.mean(1), negative.mean(1)])
    centred = positive - means[0].unsqueeze(1), negative - means[1].unsqueeze(1)
    scale = (torch.cat(centred, 1).square().mean(1)).sqrt()
    # A deviation of the size of rounding is that of a constant feature.
    constant = scale <= 1e-12 * (means.abs().amax(0) + 1)
    if bool(constant.all(-1).any()):
        raise ProbeError(
            f"All {scale.shape[-1]} features are constant within each set. Nothing can be read "
            "from what does not vary. Check that the right token was captured."
        )
    scale = torch.where(constant, torch.ones_like(scale), scale)
    u, v = (side / scale.unsqueeze(1) for side in centred)

    def gradient(theta: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        w, b = theta
        p, q = ((side @ w.mT + b.unsqueeze(1)).sigmoid() for side in (u, v))
        agree, least = 2 * (p + q - 1), 2 * torch.minimum(p, q)
        to_p = (agree + torch.where(p <= q, least, 0.0)) * p * (1 - p) / u.shape[1]
        to_q = (agree + torch.where(p > q, least, 0.0)) * q * (1 - q) / u.shape[1]
        return to_p.mT @ u + to_q.mT @ v + l2 * w, to_p.sum(1) + to_q.sum(1)

    generator = torch.Generator().manual_seed(seed)
    # The same unit starts at every site, so that a stack equals its sites.
    start = torch.randn(n_starts, u.shape[-1], generator=generator, dtype=u.dtype).to(u)
    start = start / start.norm(dim=-1, keepdim=True)
    begin = start.expand(len(u), -1, -1), u.new_zeros(len(u), n_starts)
    w, b = adam(gradient, begin, n_iterations)
    p, q = ((side @ w.mT + b.unsqueeze(1)).sigmoid() for side in (u, v))
    loss = _loss(p.mT, q.mT)
    best = (loss + l2 / 2 * w.square().sum(-1)).argmin(-1)
    sites = torch.arange(len(u), device=u.device)
    weight, bias, loss = w[sites, best] / scale, b[sites, best], loss[sites, best]
    if truth is not None:
        p, q = _sides((positive, negative), means, weight, bias)
        right = ((p > q) == truth).double().mean(-1)
        sign = torch.where(right >= 0.5, 1.0, -1.0).to(weight)
        weight, bias = sign.unsqueeze(-1) * weight, sign * bias
    return weight, bias, means, loss


def _sides(
    sides: tuple[Tensor, Tensor], means: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return p+ and p- [site, sample], each set centred by its own mean."""
    p, q = (
        (((x - mean.unsqueeze(1)) * weight.unsqueeze(1)).sum(-1) + bias.unsqueeze(-1)).sigmoid()
        for x, mean in zip(sides, means, strict=True)
    )
    return p, q


def _loss(p: Tensor, q: Tensor) -> Tensor:
    """Return consistency plus confidence, averaged over the last axis."""
    return ((p + q - 1).square() + torch.minimum(p, q).square()).mean(-1)


def _truth(labels: Labels, n_pairs: int, device: torch.device) -> Tensor:
    """Return whether the positive statement of each pair holds."""
    classes, index = labelled(labels, n_pairs)
    if len(classes) != 2:
        raise ProbeError(
            f"labels has {len(classes)} classes. They turn a sign, which has two sides. Give two."
        )
    return (index == 1).to(device)
