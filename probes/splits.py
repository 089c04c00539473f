"""Splits that keep groups together, and the refusal of splits that do not."""

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.held_out import split as held_out_split
from probes.inputs import Labels, labelled, plain_list


def split(y: Labels, *, groups: Labels | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the rows to fit on and the rows to score on: a fifth, stratified by class.

    Args:
        y: a label for each sample.
        groups: samples of one group (a prompt's template, a document) stay on one side.
        seed: of the draw.

    Raises:
        ProbeError: one class only, or too few samples or groups for both sides to have each class.

    >>> train, test = split([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    >>> len(train), len(test)
    (8, 2)
    """
    n = len(y)
    _, index = labelled(y, n)
    names = None if groups is None else plain_list(groups, "groups", n)
    parts = held_out_split(index, names, seed)
    if parts is None:
        what = "samples" if names is None else f"groups ({len(set(names))} of them)"
        raise ProbeError(
            f"{n} samples have too few {what} of some class to be held out: both sides need every "
            "class. Add some, or give groups that are not of one class each."
        )
    return parts


def folds(y: Labels, n_folds: int = 5, *, groups: Labels | None = None, seed: int = 0) -> Tensor:
    """Return [sample]: the fold in which each is held out; stratified, or by whole groups.

    Groups are dealt out whatever their classes, so that a fold of few groups may lack one.

    Raises:
        ProbeError: fewer samples of a class, or fewer groups, than folds.
    """
    n = len(y)
    _, index = labelled(y, n)
    if n_folds < 2:
        raise ProbeError(f"{n_folds} folds leave nothing to hold out. Give 2 or more.")
    draw = torch.Generator().manual_seed(seed)
    if groups is not None:
        names = plain_list(groups, "groups", n)
        place = {name: k for k, name in enumerate(dict.fromkeys(names))}
        kind = torch.tensor([place[name] for name in names])
        least = len(place)
        order = torch.randperm(len(place), generator=draw)
        part = (order.argsort() % n_folds)[kind]
    else:
        least = int(index.bincount().min())
        # Samples of a class in random order, dealt out in turn.
        shuffled = torch.randperm(n, generator=draw)
        by_class = shuffled[index[shuffled].argsort(stable=True)]
        part = torch.empty_like(by_class).scatter(0, by_class, torch.arange(n) % n_folds)
    if not 2 <= n_folds <= least:
        raise ProbeError(
            f"{n_folds} folds were asked for, of {least} "
            f"{'groups' if groups is not None else 'samples of the smallest class'}. Each fold "
            f"must hold out at least one. Give 2 to {least}."
        )
    return part


def require_disjoint(train: Labels, test: Labels) -> None:
    """Refuse a split with a group on both sides: its test score would be of what was learned.

    Args:
        train: the group of each sample that is fitted on.
        test: the group of each sample that is scored on.

    Raises:
        ProbeError: groups on both sides; says which.
    """
    # As plain values: tensors of one number are equal and yet hash apart.
    known = set(plain_list(test, "test groups", len(test)))
    both = [x for x in dict.fromkeys(plain_list(train, "train groups", len(train))) if x in known]
    if both:
        shown = ", ".join(repr(name) for name in both[:3])
        raise ProbeError(
            f"{len(both)} groups are on both sides of the split: {shown}"
            f"{', ...' if len(both) > 3 else ''}. A probe that remembers them would score well on "
            "them, and on nothing else. Split by group: probes.split(y, groups=...)."
        )
