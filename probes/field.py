"""Linear field probing: a direction for each value of a continuous parameter."""

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.field_probe import FieldProbe
from probes.held_out import split
from probes.inputs import (
    Array,
    Labels,
    Samples,
    check_penalty,
    labelled,
    plain_list,
    samples,
    targets,
)
from probes.linear import Origin
from probes.softmax import softmax_through_zero


def fit_field(
    x: Array,
    u: Labels,
    *,
    period: int | float | None = None,
    l2: float = 1.0,
    groups: Labels | None = None,
    seed: int = 0,
    origin: Origin | None = None,
) -> FieldProbe:
    """Fit a softmax over the values of u without a bias: cross entropy + l2 / 2 |weight|^2.

    Linear field probing (Sarfati et al. 2026, arXiv:2602.02315). They train by AdamW with weight
    decay; ours is the optimum itself, as scikit-learn's LogisticRegression(C=1 / l2,
    fit_intercept=False), whose rows sum to zero. x is not centred: a bias would be a direction
    that all values share. The diagnostics have the accuracy and the mean error in u on a held-out
    fifth, the accuracy of guessing, and how well a value's direction is that half-way between its
    neighbours' (`interpolated_cosine`): evidence for a field, not for separate classes.

    Args:
        x: [sample, d], or [site, sample, d] for one probe per site.
        u: a number for each sample; each value several times.
        period: u and u + period are the same.
        l2: the penalty, on weights of raw activations.
        groups: samples of one group are never on both sides of the held-out split.
        seed: of the held-out split.
        origin: where x came from, `acts.origin(site)`.

    Raises:
        ProbeError: fewer than three values, or a value with one sample; a period that the values
            overrun; otherwise as fit_ridge.
    """
    check_penalty("l2", l2)
    data = samples(x)
    n = data.values.shape[1]
    numbers = targets(u, n)
    _, index = labelled(numbers.tolist(), n)
    values = numbers.unique()
    if len(values) < 3 or (period is not None and float(values[-1] - values[0]) >= period):
        raise ProbeError(
            f"u has {len(values)} values from {float(values[0]):g} to {float(values[-1]):g}"
            f"{'' if period is None else f', with a period of {period:g}'}. A field needs three "
            "values or more, within one period. Give others."
        )
    index = index.to(data.values.device)
    names = None if groups is None else plain_list(groups, "groups", n)
    weight = softmax_through_zero(data.values, index, len(values), l2)
    diagnostics: dict[str, object] = {"n_samples": n, "n_values": len(values), "seed": seed}
    diagnostics |= _scores(data, index, values, period, l2, split(index.cpu(), names, seed))
    whole = FieldProbe(weight.cpu(), values, period)
    half = _interpolated(whole)
    diagnostics["interpolated_cosine"] = half.tolist() if data.stacked else half[0].item()
    kept = data.restored(weight)
    return FieldProbe(kept, values.to(kept), period, origin, diagnostics)


def _scores(
    data: Samples,
    index: Tensor,
    values: Tensor,
    period: int | float | None,
    l2: float,
    parts: tuple[Tensor, Tensor] | None,
) -> dict[str, object]:
    """Return accuracy and mean error on samples that the probe did not see."""
    if parts is None:
        return {"held_out_accuracy": None, "held_out_error": None}
    train, test = (part.to(index.device) for part in parts)
    weight = softmax_through_zero(data.values[:, train], index[train], len(values), l2)
    probe = FieldProbe(weight, values.to(weight), period)
    x = data.values[:, test]
    right = (probe.probabilities(x).argmax(-1) == index[test]).double().mean(-1)
    off = probe.scores(x) - values.to(weight)[index[test]]
    if period is not None:
        off = (off + period / 2) % period - period / 2
    told = {"held_out_accuracy": right, "held_out_error": off.abs().mean(-1)}
    most = float(index[test].bincount().max()) / len(test)
    found: dict[str, object] = {"guessed_accuracy": most}
    for name, value in told.items():
        found[name] = value.tolist() if data.stacked else value[0].item()
    return found


def _interpolated(probe: FieldProbe) -> Tensor:
    """Return [site]: the mean cosine of each inner row with its neighbours' mean."""
    rows = probe.weight / probe.weight.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    if probe.period is not None:
        rows = torch.cat([rows[:, -1:], rows, rows[:, :1]], 1)
    middle, around = rows[:, 1:-1], rows[:, :-2] + rows[:, 2:]
    return torch.nn.functional.cosine_similarity(middle, around, dim=-1).mean(-1)
