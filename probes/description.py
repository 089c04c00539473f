"""Minimum description length: how many bits the labels cost, given the states."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, log2
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.inputs import Array, Labels, labelled, samples
from probes.linear import Label

PORTIONS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)


@runtime_checkable
class Logits(Protocol):
    """A probe that says how sure it is."""

    @property
    def classes(self) -> tuple[Label, ...] | None:
        """Sorted labels."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Return a logit per sample, or one per class."""
        ...


Fit = Callable[[Tensor, list[int]], Logits]
"""(x, y) -> probe: `probes.fit_logistic`, or a partial of it."""


@dataclass(frozen=True, slots=True)
class Description:
    """The length of the labels in bits; lists per site of a stack."""

    bits: list[float]
    uniform_bits: float
    """Without the states: log2 of the number of classes for each label."""

    @property
    def compression(self) -> list[float]:
        """How many times shorter than without the states; 1 means that they say nothing."""
        return [self.uniform_bits / max(one, 1e-9) for one in self.bits]

    def __repr__(self) -> str:
        """Say the shortest."""
        best = min(range(len(self.bits)), key=self.bits.__getitem__)
        where = f", site {best} of {len(self.bits)}" if len(self.bits) > 1 else ""
        return (
            f"Description({self.bits[best]:.1f} of {self.uniform_bits:.1f} bits{where}: "
            f"compressed {self.compression[best]:.2f} times)"
        )


def description_length(
    fit: Fit,
    x: Array,
    y: Labels,
    *,
    portions: Sequence[float] = PORTIONS,
    seed: int = 0,
) -> Description:
    """Return the online code length of the labels: each portion coded by a probe of those before.

    Voita and Titov 2020 (arXiv:2003.12298). Accuracy does not say how hard a read-out was to find;
    this counts what is learned late. The first portion costs the uniform code.

    Args:
        fit: makes a probe with `logits`.
        x: [sample, d], or [site, sample, d] for all sites at once.
        y: a label for each sample.
        portions: growing shares of the samples, the last one 1. Those in which a class is still
            missing, or has one sample, are joined with the next.
        seed: of the order of the samples.

    Raises:
        ProbeError: portions that do not grow to 1; one class only; a fit whose logits are no
            log-odds.
    """
    data = samples(x)
    n = data.values.shape[1]
    classes, index = labelled(y, n)
    if (
        list(portions) != sorted(set(portions))
        or not portions
        or (portions[0] <= 0 or portions[-1] != 1)
    ):
        raise ProbeError(
            f"The portions are {list(portions)}. Each is a share above 0, larger than the one "
            "before, and the last is all of them: 1. Give such as (0.1, 0.3, 1.0)."
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    x_all, y_all = data.values[:, order], index[order]
    given = x_all if data.stacked else x_all[0]
    ends = [round(share * n) for share in portions]
    enough = [k for k in ends if int(y_all[:k].bincount(minlength=len(classes)).min()) >= 2]
    first = enough[0]
    total = torch.full((len(x_all),), first * log2(len(classes)), dtype=torch.float64)
    for start, end in itertools.pairwise(enough):
        probe = fit(given[..., :start, :], y_all[:start].tolist())
        _require_log_odds(probe)
        logits = probe.logits(given[..., start:end, :]).cpu().double()
        total = total + _bits(logits if data.stacked else logits[None], y_all[start:end])
    return Description(total.tolist(), n * log2(len(classes)))


def _require_log_odds(probe: Logits) -> None:
    if getattr(probe, "link", "logistic") != "logistic":
        raise ProbeError(
            "The logits of this probe are distances, not log-odds: what they would cost in bits "
            "depends on the units of the states. Use a fit of probabilities: fit_logistic, "
            "fit_lda, fit_mlp."
        )


def _bits(logits: Tensor, index: Tensor) -> Tensor:
    """Return [site]: what the labels cost under the probe's probabilities."""
    if logits.ndim == 2:
        logits = torch.stack([torch.zeros_like(logits), logits], -1)
    at = index.expand(len(logits), -1).unsqueeze(-1)
    return -logits.log_softmax(-1).gather(-1, at).sum((1, 2)) / log(2)
