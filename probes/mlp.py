"""A fit with one hidden layer: the control for whether a linear probe is enough."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.held_out import auroc, split
from probes.inputs import Array, Labels, check_penalty, labelled, plain_list, samples
from probes.linear import Origin
from probes.mlp_probe import MLPProbe

Layers = tuple[Tensor, Tensor, Tensor, Tensor]
"""Weight and bias of the hidden layer and of the output layer."""

_RATE, _BETA1, _BETA2 = 0.05, 0.9, 0.999


def fit_mlp(
    x: Array,
    y: Labels,
    *,
    hidden: int = 32,
    l2: float = 1.0,
    groups: Labels | None = None,
    seed: int = 0,
    origin: Origin | None = None,
    n_iterations: int = 400,
) -> MLPProbe:
    """Fit one hidden tanh layer: cross entropy summed over samples + l2 / 2 |weights|^2.

    Hewitt and Liang 2019 (arXiv:1909.03368) compare linear and MLP probes; we train on the full
    batch by Adam with cosine decay. tanh, as it is smooth: full-batch steps settle. Adam acts on
    each entry by itself, so sites do not influence each other. The optimum is a local one:
    `diagnostics["relative_gradient"]` is the last gradient's norm as a share of the first.

    The output layer starts at zero and the hidden one depends on the seed only: every site starts
    at the same weights, and swapped labels give the same probe with its logits' sign turned.

    Args:
        x: [sample, d], or [site, sample, d] for one probe per site.
        y: one label for each sample: booleans, numbers or strings.
        hidden: units of the hidden layer.
        l2: the penalty on both layers' weights, the first on standardized features.
        groups: samples of one group are never on both sides of the held-out split.
        seed: of the initial weights and the held-out split.
        origin: where x came from, `acts.origin(site)`.
        n_iterations: Adam steps.

    Raises:
        ProbeError: hidden or n_iterations below 1; otherwise as fit_logistic.
    """
    check_penalty("l2", l2)
    if hidden < 1 or n_iterations < 1:
        raise ProbeError(
            f"hidden is {hidden} and n_iterations is {n_iterations}. A layer needs a unit and a "
            "fit needs a step. Give at least 1 of each."
        )
    data = samples(x)
    n_samples = data.values.shape[1]
    classes, index = labelled(y, n_samples)
    names = None if groups is None else plain_list(groups, "groups", n_samples)
    index = index.to(data.values.device)

    def fitted(rows: Tensor) -> tuple[Layers, Tensor]:
        return _mlp(data.values[:, rows], index[rows], len(classes), hidden, l2, seed, n_iterations)

    layers, gradient = fitted(torch.arange(n_samples, device=index.device))
    told: dict[str, object] = {"n_samples": n_samples, "seed": seed}
    told["relative_gradient"] = gradient.tolist() if data.stacked else gradient[0].item()
    told["held_out_accuracy"] = None
    parts = split(index.cpu(), names, seed)
    if parts is not None:
        train, test = (part.to(index.device) for part in parts)
        on_train, _ = fitted(train)
        probe = MLPProbe(*on_train, classes)
        held, truth = data.values[:, test], index[test]
        scores = {"held_out_accuracy": (probe.predict(held) == truth).double().mean(-1)}
        if len(classes) == 2:
            scores["held_out_auroc"] = auroc(probe.logits(held), truth == 1)
        told |= {k: v.tolist() if data.stacked else v[0].item() for k, v in scores.items()}
    w_in, b_in, w_out, b_out = (data.restored(layer) for layer in layers)
    return MLPProbe(w_in, b_in, w_out, b_out, classes, origin, told)


def adam(
    gradient: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
    start: tuple[Tensor, ...],
    n_iterations: int,
    rate: float = _RATE,
) -> tuple[Tensor, ...]:
    """Return the parameters after full-batch Adam steps whose rate decays along half a cosine.

    Kingma and Ba 2014 (arXiv:1412.6980). Nothing is written in place.
    """
    theta = start
    first = second = tuple(torch.zeros_like(item) for item in start)
    for step in range(1, n_iterations + 1):
        slopes = gradient(theta)
        first = tuple(_BETA1 * m + (1 - _BETA1) * g for m, g in zip(first, slopes, strict=True))
        second = tuple(
            _BETA2 * v + (1 - _BETA2) * g.square() for v, g in zip(second, slopes, strict=True)
        )
        length = rate * (1 + math.cos(math.pi * (step - 1) / n_iterations)) / 2
        length = length * math.sqrt(1 - _BETA2**step) / (1 - _BETA1**step)
        theta = tuple(
            t - length * m / (v.sqrt() + 1e-10)
            for t, m, v in zip(theta, first, second, strict=True)
        )
    return theta


def _mlp(
    x: Tensor, index: Tensor, n_classes: int, hidden: int, l2: float, seed: int, n_iterations: int
) -> tuple[Layers, Tensor]:
    """Return both layers on raw activations, and the last gradient relative to the first."""
    n_sites, _, d_model = x.shape
    mean, scale = x.mean(1), x.std(1, correction=0)
    # A deviation of the size of rounding is that of a constant feature.
    constant = scale <= 1e-12 * (mean.abs() + 1)
    if bool(constant.all(-1).any()):
        raise ProbeError(
            f"All {d_model} features are constant over the {x.shape[1]} samples. Nothing can be "
            "read from what does not vary. Check that the right token was captured."
        )
    scale = torch.where(constant, torch.ones_like(scale), scale)
    z = (x - mean.unsqueeze(1)) / scale.unsqueeze(1)
    if n_classes == 2:
        target = index.to(x.dtype).unsqueeze(-1)
    else:
        target = torch.nn.functional.one_hot(index, n_classes).to(x.dtype)
    rows = target.shape[-1]

    def gradient(theta: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        w_in, b_in, w_out, b_out = theta
        active = (z @ w_in.mT + b_in.unsqueeze(1)).tanh()
        logits = active @ w_out.mT + b_out.unsqueeze(1)
        error = (logits.sigmoid() if rows == 1 else logits.softmax(-1)) - target
        back = (error @ w_out) * (1 - active.square())
        return (
            back.mT @ z + l2 * w_in,
            back.sum(1),
            error.mT @ active + l2 * w_out,
            error.sum(1),
        )

    generator = torch.Generator().manual_seed(seed)
    w_in = torch.randn(hidden, d_model, generator=generator, dtype=x.dtype) / math.sqrt(d_model)
    start = (
        w_in.to(x.device).expand(n_sites, -1, -1),
        x.new_zeros(n_sites, hidden),
        x.new_zeros(n_sites, rows, hidden),
        x.new_zeros(n_sites, rows),
    )
    w_in, b_in, w_out, b_out = theta = adam(gradient, start, n_iterations)
    left = _norm(gradient(theta)) / _norm(gradient(start)).clamp_min(1e-300)
    raw = w_in / scale.unsqueeze(1)
    return (raw, b_in - (raw @ mean.unsqueeze(-1)).squeeze(-1), w_out, b_out), left


def _norm(parts: tuple[Tensor, ...]) -> Tensor:
    """Return the norm over all parameters of each site."""
    return torch.stack([part.flatten(1).square().sum(-1) for part in parts]).sum(0).sqrt()
