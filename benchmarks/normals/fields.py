"""Linear field probing by block: how well each block tells the laws apart, and how locally."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import probes
from benchmarks.normals.reading import Readings

L2 = 10.0
N_DRAWS = 10
"""Exchanges of labels in a null: one alone may come near to the truth by chance."""


@dataclass(frozen=True, slots=True, eq=False)
class Fields:
    """What probes of every block say of held-out texts."""

    accuracy: Float[Tensor, "block text"]
    near: Float[Tensor, "block text"]
    """Right, or a neighbour of the right value."""
    error: Float[Tensor, "block text"]
    """Of the mean value under the softmax, absolute."""
    shuffled: Float[Tensor, " draw"]
    """Accuracy, at the chosen block, of probes whose train texts had each other's labels."""
    local: Float[Tensor, "block pair"]
    """AUROC of the lowest pair's direction on each pair of neighbouring values: as high everywhere
    if one direction serves all, a half where directions are unrelated, near 0 where the curve has
    turned back."""


def fields(train: Readings, test: Readings, block: int, seed: int) -> Fields:
    """Fit a field probe per block on the train texts, score it on the test texts; null at one."""
    x, xt = (one.states.flatten(1, 2) for one in (train, test))
    scale = x.flatten(0, 1).norm(dim=-1).view(len(x), -1).median(1).values[:, None, None]
    x, xt = x / scale * x.shape[-1] ** 0.5, xt / scale * x.shape[-1] ** 0.5
    labels = train.labels
    probe = probes.fit_field(x, labels, l2=L2, groups=train.texts.tolist(), seed=seed)
    values = train.u.unique()
    right = torch.searchsorted(values, test.labels)
    guess = probe.probabilities(xt).argmax(-1)
    gap = (guess - right).abs().unflatten(1, test.states.shape[1:3])
    told = (probe.scores(xt) - test.labels).abs().unflatten(1, test.states.shape[1:3])
    local = _locality(probe, xt, test.labels)
    return Fields(
        (gap == 0).double().mean(-1),
        (gap <= 1).double().mean(-1),
        told.double().mean(-1),
        _null(x[block], xt[block], train, right, seed),
        local,
    )


def relabelled(readings: Readings, seed: int) -> Float[Tensor, " sample"]:
    """Return labels of readings where whole texts have each other's."""
    order = torch.randperm(len(readings.u), generator=torch.Generator().manual_seed(seed))
    return readings.u[order][:, None].expand(-1, len(readings.after)).flatten()


def _null(x: Tensor, xt: Tensor, train: Readings, right: Tensor, seed: int) -> Tensor:
    """Return the accuracy of probes of one block whose texts had each other's labels."""
    found = []
    for draw in range(N_DRAWS):
        probe = probes.fit_field(
            x, relabelled(train, seed + draw), l2=L2, groups=train.texts.tolist(), seed=seed
        )
        found.append((probe.probabilities(xt).argmax(-1) == right).double().mean())
    return torch.stack(found)


def _locality(
    probe: probes.FieldProbe, xt: Float[Tensor, "block sample d_model"], known: Tensor
) -> Float[Tensor, "block pair"]:
    """Return how well the probe's direction between its two lowest values orders each pair."""
    values = probe.values
    way = probe.weight[:, 1] - probe.weight[:, 0]
    told = (xt * way[:, None].to(xt)).sum(-1)

    def auroc(low: Tensor, high: Tensor) -> Tensor:
        below, above = (told[:, known == one] for one in (low, high))
        return (above[:, :, None] > below[:, None]).double().mean((1, 2))

    return torch.stack([auroc(*values[at : at + 2]) for at in range(len(values) - 1)], 1)
