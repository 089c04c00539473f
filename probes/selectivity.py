"""Control labels: does a probe read the state, or does it learn the task by itself?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.inputs import Array, Labels, Samples, labelled, plain_list, samples
from probes.linear import Label
from probes.scores import Classifier, Score
from probes.splits import split

Fit = Callable[[Tensor, list[int]], Classifier]
"""(x, y) -> probe: `probes.fit_logistic`, or a partial of it."""


@dataclass(frozen=True, slots=True)
class Selectivity:
    """Accuracy on the task, on control labels, and the difference; lists per site of a stack."""

    task: list[Score]
    control: list[Score]
    selectivity: list[Score]
    """Task minus control. Near zero: the probe could as well have learned labels of no meaning."""

    def __repr__(self) -> str:
        """Say the three of them; of a stack, the best site's."""
        best = max(range(len(self.task)), key=lambda k: self.selectivity[k].value)
        where = f"site {best} of {len(self.task)}: " if len(self.task) > 1 else ""
        return (
            f"Selectivity({where}{self.selectivity[best]!r}; task {self.task[best]!r}, control "
            f"{self.control[best]!r})"
        )


def control_labels(types: Labels, y: Labels, *, seed: int = 0) -> list[Label]:
    """Return a label for each sample, drawn once for each type, with the classes' frequencies.

    Hewitt and Liang 2019 (arXiv:1909.03368): all samples of a type (a word, a prompt) get the same
    random label, so that it can only be learned by remembering types.

    Raises:
        ProbeError: lists of different lengths, one class only, fewer types than classes.
    """
    listed = plain_list(y, "y", len(y))
    names = plain_list(types, "types", len(listed))
    classes, index = labelled(y, len(listed))
    kinds = list(dict.fromkeys(names))
    draw = torch.Generator().manual_seed(seed)
    if len(kinds) < len(classes):
        raise ProbeError(
            f"{len(kinds)} types cannot have {len(classes)} labels: each type has one. Give types "
            "that are finer."
        )
    order = torch.randperm(len(kinds), generator=draw).tolist()
    order.sort(key=lambda k: -names.count(kinds[k]))
    # Large types first, each to the class that lacks most samples; equal lacks are broken by lot.
    lacks = index.bincount(minlength=len(classes)).double()
    lots = torch.rand(len(classes), generator=draw) * 1e-6
    place = []
    for k in order:
        place.append(int((lacks + lots).argmax()))
        lacks = lacks - names.count(kinds[k]) * torch.eye(len(classes))[place[-1]]
    for c in range(len(classes)):
        # A rare class has one type at least: the smallest of those that are not alone.
        if c not in place:
            place[max(k for k in range(len(kinds)) if place.count(place[k]) > 1)] = c
    label = {kinds[k]: classes[c] for k, c in zip(order, place, strict=True)}
    return [label[name] for name in names]


def selectivity(
    fit: Fit, x: Array, y: Labels, types: Labels, *, n_seeds: int = 5, seed: int = 0
) -> Selectivity:
    """Return held-out accuracy on the task and on control labels, over several splits.

    Types are on both sides of the split, as in Hewitt and Liang 2019: what is asked is how much of
    a score a probe could have by remembering types. The intervals are the range over seeds.

    Args:
        fit: makes a probe from x and class indices.
        x: [sample, d], or [site, sample, d] for all sites at once.
        y: a label for each sample.
        types: what control labels are drawn for, the same for several samples.
        n_seeds: how many splits and draws of control labels.
        seed: the first of them.

    Raises:
        ProbeError: each type once: control labels could not be learned by anyone.
    """
    data = samples(x)
    n = data.values.shape[1]
    names = plain_list(types, "types", n)
    if len(set(names)) == n:
        raise ProbeError(
            f"Each of the {n} samples has a type of its own, so its control label is in no other "
            "sample and can only be guessed. Give types that samples share, such as their last "
            "token, or each prompt's template."
        )
    _, index = labelled(y, n)
    task, control = [], []
    for k in range(seed, seed + n_seeds):
        task.append(_held_out(fit, data, index, k))
        _, other = labelled(control_labels(types, y, seed=k), n)
        control.append(_held_out(fit, data, other, k))
    first, second = torch.stack(task), torch.stack(control)
    return Selectivity(_ranges(first), _ranges(second), _ranges(first - second))


def _held_out(fit: Fit, data: Samples, index: Tensor, seed: int) -> Tensor:
    """Return [site]: accuracy on a fifth of the samples."""
    train, test = split(index, seed=seed)
    x = data.values if data.stacked else data.values[0]
    probe = fit(x[..., train, :], index[train].tolist())
    labels = torch.tensor(probe.classes)[probe.predict(x[..., test, :]).cpu()]
    right = (labels == index[test]).double().mean(-1)
    return right if data.stacked else right[None]


def _ranges(several: Tensor) -> list[Score]:
    """Return the mean over seeds with the range, for each site of [seed, site]."""
    return [Score(float(one.mean()), float(one.min()), float(one.max())) for one in several.T]
