"""Over blocks and over data sets: layer curves with concept depth, and transfer matrices."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.inputs import Array, Labels, labelled, plain_list, samples
from probes.linear import Label
from probes.scores import Score, interval_of, resampled, weighted_auroc
from probes.selectivity import Fit
from probes.splits import require_disjoint, split

DEPTH = 0.95
"""A concept is there at the first site that reaches this share of the way from chance to peak."""


@dataclass(frozen=True, slots=True)
class LayerCurve:
    """Held-out AUROC (two classes) or accuracy at each site."""

    measure: str
    scores: list[Score]
    peak: int
    """The best site."""
    depth: int | None
    """The first site that reaches 95 % of the way from chance to the peak; None: none is above
    chance."""
    depth_interval: tuple[int, int]
    """Of the depth, with held-out samples drawn again; the number of sites stands for none."""
    n_test: int

    def __repr__(self) -> str:
        """Say the peak and how deep the concept lies."""
        lo, hi = self.depth_interval
        return (
            f"LayerCurve({len(self.scores)} sites, {self.measure}: peak {self.scores[self.peak]!r} "
            f"at site {self.peak}; 95 % of the way at site {self.depth} [{lo}, {hi}])"
        )


def layer_curve(
    fit: Fit,
    x: Array,
    y: Labels,
    *,
    groups: Labels | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> LayerCurve:
    """Return the held-out score at every site, and the depth at which the concept is there.

    Concept depth after Jin et al. 2024 (arXiv:2404.07066), counted from chance and with an
    interval. All sites are fitted at once, on one split, so that they can be compared.

    Args:
        fit: makes a probe, such as `probes.fit_logistic` or `probes.fit_mlp`.
        x: [site, sample, d].
        y: a label for each sample.
        groups: samples of one group are on one side of the split, and are drawn again together.
        n_resamples: of the bootstrap over held-out samples.
        seed: of split and draws.

    Raises:
        ProbeError: a single site; too few samples to hold some out.
    """
    data = samples(x)
    if not data.stacked or len(data.values) < 2:
        raise ProbeError(
            "A layer curve needs several sites: [site, sample, d]. Stack them: acts.stack()."
        )
    n = data.values.shape[1]
    classes, index = labelled(y, n)
    train, test = split(index.tolist(), groups=groups, seed=seed)
    probe = fit(data.values[:, train], index[train].tolist())
    names = None if groups is None else [plain_list(groups, "groups", n)[k] for k in test.tolist()]
    weights = resampled(len(test), names, n_resamples, seed)
    held, truth = data.values[:, test], index[test]
    if len(classes) == 2:
        chance, measure = 0.5, "AUROC"
        draws = weighted_auroc(probe.scores(held).cpu().double(), truth == 1, weights)
    else:
        chance, measure = 1 / len(classes), "accuracy"
        right = (probe.predict(held).cpu() == truth).double()
        draws = right @ weights.T / weights.sum(1)
    depths = _depth(draws.nan_to_num(chance), chance)
    lo, hi = depths[1:].double().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return LayerCurve(
        measure,
        interval_of(draws, 0.95),
        int(draws[:, 0].argmax()),
        int(depths[0]) if int(depths[0]) < len(draws) else None,
        (int(lo), int(hi + 0.999)),
        len(test),
    )


def _depth(draws: Tensor, chance: float) -> Tensor:
    """Return [draw]: the first site that reaches its share of the way, their number for none."""
    peak = draws.max(0).values
    enough = draws >= chance + DEPTH * (peak - chance)
    return torch.where(peak > chance, enough.long().argmax(0), len(draws))


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """AUROC of probes fitted on one set and scored on another; the diagonal is held out."""

    names: tuple[str, ...]
    auroc: Tensor
    """[fitted on, scored on]"""
    lo: Tensor
    hi: Tensor
    cosine: Tensor
    """[set, set]: between the probes' directions."""

    def __repr__(self) -> str:
        """Say how well probes carry over, on the whole."""
        off = ~torch.eye(len(self.names), dtype=torch.bool)
        return (
            f"Transfer({', '.join(self.names)}: own {float(self.auroc.diagonal().mean()):.2f}, "
            f"carried over {float(self.auroc[off].mean()):.2f} "
            f"({float(self.auroc[off].min()):.2f} to {float(self.auroc[off].max()):.2f}))"
        )


def transfer(
    fit: Fit,
    sets: Mapping[str, tuple[Array, Labels]],
    *,
    groups: Mapping[str, Labels] | None = None,
    n_resamples: int = 500,
    seed: int = 0,
) -> Transfer:
    """Return how well a probe of each set reads each other set: data sets, sites or checkpoints.

    All probes are fitted on four fifths of their set and scored on the other fifth of every set,
    so that rows and columns can be compared.

    Args:
        fit: makes a probe of two classes.
        sets: name -> (x [sample, d], y). Labels must mean the same in all; of two classes.
        groups: name -> the group of each sample. A group that is in the training part of one set
            and the test part of another is refused.
        n_resamples: of the bootstrap over test samples.
        seed: of splits and draws.

    Raises:
        ProbeError: fewer than two sets, sets of different widths or classes, leaking groups.
    """
    parts = {name: _part(name, *one, (groups or {}).get(name), seed) for name, one in sets.items()}
    widths = {p.x.shape[1] for p in parts.values()}
    kinds = {p.classes for p in parts.values()}
    if len(parts) < 2 or len(widths) > 1 or len(kinds) > 1 or any(len(k) != 2 for k in kinds):
        raise ProbeError(
            f"{len(parts)} sets with widths {sorted(widths)} and classes {sorted(map(str, kinds))} "
            "were given. A probe carries over between two or more sets of one width and the same "
            "two classes. Give such sets."
        )
    if groups is not None:
        unnamed = [name for name in parts if name not in groups]
        if unnamed:
            raise ProbeError(
                f"{unnamed[0]!r} has no groups while others have, so its leaks could not be seen. "
                "Give the groups of every set."
            )
        for first in parts.values():
            for second in parts.values():
                require_disjoint(first.train_groups, second.test_groups)
    names = tuple(parts)
    found = [fit(p.x[p.train], p.index[p.train].tolist()) for p in parts.values()]
    rows: list[list[Score]] = []
    for probe in found:
        row = []
        for p in parts.values():
            weights = resampled(len(p.test), p.test_groups or None, n_resamples, seed)
            scores = probe.scores(p.x[p.test]).cpu().double()[None]
            row += interval_of(weighted_auroc(scores, p.index[p.test] == 1, weights), 0.95)
        rows.append(row)
    value, lo, hi = (
        torch.tensor([[getattr(score, end) for score in row] for row in rows])
        for end in ("value", "lo", "hi")
    )
    directions = torch.stack([getattr(probe, "direction", p.x.new_full(p.x.shape[1:], torch.nan))
                              for probe, p in zip(found, parts.values(), strict=True)])  # fmt: skip
    return Transfer(names, value, lo, hi, directions @ directions.mT)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    x: Tensor
    index: Tensor
    classes: tuple[object, ...]
    train: Tensor
    test: Tensor
    train_groups: list[Label]
    test_groups: list[Label]


def _part(name: str, x: Array, y: Labels, groups: Labels | None, seed: int) -> _Part:
    data = samples(x, name)
    if data.stacked:
        raise ProbeError(f"{name} is a stack of sites. Give one site of it: [sample, d].")
    n = data.values.shape[1]
    classes, index = labelled(y, n)
    train, test = split(index.tolist(), groups=groups, seed=seed)
    listed = [] if groups is None else plain_list(groups, f"groups of {name}", n)
    of = [[listed[k] for k in rows.tolist()] if listed else [] for rows in (train, test)]
    return _Part(data.values[0], index, classes, train, test, of[0], of[1])
