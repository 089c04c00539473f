"""Fits of numbers: ridge regression."""

import torch
from torch import Tensor

from probes.features import principal_axes
from probes.held_out import r_squared, split
from probes.inputs import Array, Labels, check_penalty, plain_list, samples, targets
from probes.linear import LinearProbe, Origin


def fit_ridge(
    x: Array,
    y: Labels,
    *,
    l2: float = 1.0,
    standardize: bool = True,
    groups: Labels | None = None,
    seed: int = 0,
    origin: Origin | None = None,
) -> LinearProbe:
    """Fit numbers: squared error summed over samples + l2 |weight|^2, the bias free.

    Equal to scikit-learn's Ridge(alpha=l2), behind a StandardScaler if standardize. `scores` are
    predictions in the units of y; `direction` points to larger ones.

    Args:
        x: [sample, d], or [site, sample, d] for one probe per site.
        y: one number for each sample.
        l2: the penalty, on weights of standardized features if they are.
        standardize: divide each feature by its deviation first; folded into the weights after.
        groups: samples of one group are never on both sides of the held-out split.
        seed: of the held-out split.
        origin: where x came from, `acts.origin(site)`.

    Raises:
        ProbeError: targets that are equal, strings or not finite; otherwise as fit_logistic.
    """
    check_penalty("l2", l2)
    data = samples(x)
    n_samples = data.values.shape[1]
    y = targets(y, n_samples).to(data.values.device)
    names = None if groups is None else plain_list(groups, "groups", n_samples)
    diagnostics: dict[str, object] = {"n_samples": n_samples, "seed": seed, "held_out_r2": None}
    parts = split(torch.zeros(n_samples, dtype=torch.long), names, seed)
    if parts is not None:
        train, test = (part.to(y.device) for part in parts)
        if len(test) > 1 and len(train) > 1 and bool((y[test] != y[test][0]).any()):
            probe = LinearProbe(*_ridge(data.values[:, train], y[train], l2, standardize))
            score = r_squared(probe.scores(data.values[:, test]), y[test])
            diagnostics["held_out_r2"] = score.tolist() if data.stacked else score[0].item()
    weight, bias = _ridge(data.values, y, l2, standardize)
    return LinearProbe(
        data.restored(weight),
        data.restored(bias),
        "identity",
        origin=origin,
        diagnostics=diagnostics,
    )


def _ridge(x: Tensor, y: Tensor, l2: float, standardize: bool) -> tuple[Tensor, Tensor]:
    """Return weight [site, d] and bias [site] in closed form."""
    axes = principal_axes(x, standardize=standardize)
    middle = y.mean()
    weight = axes.z.mT @ (y - middle).unsqueeze(-1) / (axes.gram + l2).unsqueeze(-1)
    raw, bias = axes.folded(weight, middle.expand(len(x), 1))
    return raw.squeeze(-2), bias.squeeze(-1)
