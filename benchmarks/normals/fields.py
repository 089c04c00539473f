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
    own: Float[Tensor, " block"]
    """AUROC of the lowest pair's direction on that pair."""
    far: Float[Tensor, " block"]
    """... on the highest pair: as near to `own` if one direction serves all, a half if directions
    at the two ends are unrelated, near 0 if the curve has turned back."""


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
    own, far = _locality(x, labels, xt, test.labels, values)
    return Fields(
        (gap == 0).double().mean(-1),
        (gap <= 1).double().mean(-1),
        told.double().mean(-1),
        _null(x[block], xt[block], train, right, seed),
        own,
        far,
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
    x: Tensor, labels: Tensor, xt: Tensor, known: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the AUROC of the direction between the two lowest values, on them and on the highest.

    A direction that tells 2 from 2.6 and also 6.4 from 7 is one direction for all.
    """
    low, high = (values[0], values[1]), (values[-2], values[-1])
    way = x[:, labels == low[1]].mean(1) - x[:, labels == low[0]].mean(1)

    def auroc(pair: tuple[Tensor, Tensor]) -> Tensor:
        below, above = ((xt[:, known == one] * way[:, None]).sum(-1) for one in pair)
        return (above[:, :, None] > below[:, None]).double().mean((1, 2))

    return auroc(low), auroc(high)
