"""Scores with intervals: AUROC, accuracy, calibration, samples or groups drawn again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.display import table
from probes.errors import ProbeError
from probes.inputs import Array, Labels, plain_list, samples
from probes.linear import Label

N_BINS = 10


@dataclass(frozen=True, slots=True)
class Score:
    """A value and the ends of its interval; one for each site of a stack as a list of these."""

    value: float
    lo: float
    hi: float

    def __repr__(self) -> str:
        """Print `0.912 [0.874, 0.941]`."""
        return f"{self.value:.3f} [{self.lo:.3f}, {self.hi:.3f}]"


@runtime_checkable
class Classifier(Protocol):
    """What is scored: any probe of classes."""

    @property
    def classes(self) -> tuple[Label, ...] | None:
        """Sorted labels."""
        ...

    def scores(self, x: Tensor) -> Tensor:
        """Return one number per sample, or one per class."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Return the index of the likeliest class."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeScores:
    """What a probe does on samples; for a stack one score per site, in lists."""

    numbers: Mapping[str, Score | list[Score]]
    n_samples: int

    def __getitem__(self, name: str) -> Score | list[Score]:
        """Return one of the scores: accuracy, auroc, brier, calibration_error."""
        return self.numbers[name]

    def __repr__(self) -> str:
        """Say all of them."""
        told = ", ".join(f"{name} {value!r}" for name, value in self.numbers.items())
        return f"ProbeScores({self.n_samples} samples: {told})"

    def _repr_html_(self) -> str:
        """Return a small table for notebooks."""
        rows = {name: repr(value) for name, value in self.numbers.items()}
        return table(f"ProbeScores, {self.n_samples} samples", rows)


def score_probe(
    probe: Classifier,
    x: Array,
    y: Labels,
    *,
    groups: Labels | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ProbeScores:
    """Return accuracy, and for two classes AUROC, Brier score and calibration error, on samples.

    Give samples that the probe was not fitted on: see `split`, `require_disjoint`. Brier score and
    calibration error (ten bins of equal mass) are of probabilities, and left out where scores are
    not. The calibration error of a sample lies above 0 also for a calibrated probe.

    Args:
        probe: of classes; a stack reads [site, sample, d].
        x: [sample, d] or [site, sample, d].
        y: a label for each sample, of the probe's classes.
        groups: drawn again as wholes; samples of one prompt are not independent.
        n_resamples: of the bootstrap.
        level: of the intervals.
        seed: of the draw.

    Raises:
        ProbeError: a probe of numbers, a label that is not one of its classes, or one class only.
    """
    classes = probe.classes
    if classes is None:
        raise ProbeError("This probe predicts a number. Score it by its held_out_r2.")
    data = samples(x)
    n = data.values.shape[1]
    labels = plain_list(y, "y", n)
    strange = [label for label in dict.fromkeys(labels) if label not in classes]
    if strange:
        raise ProbeError(
            f"{strange[0]!r} is not a class of this probe, which knows "
            f"{', '.join(map(repr, classes))}. It could never be right. Leave those samples out."
        )
    index = torch.tensor([classes.index(label) for label in labels])
    weights = resampled(n, groups, n_resamples, seed)
    values = (data.values if data.stacked else data.values[0]).to(data.device, data.dtype)
    if len(classes) == 2 and len(set(labels)) == 1:
        raise ProbeError(
            f"All {n} labels are {labels[0]!r}. There is nothing to tell it from. Score samples of "
            "both classes."
        )
    right = _stacked(probe.predict(values).cpu() == index, data.stacked)
    found = {"accuracy": interval_of(right.double() @ weights.T / weights.sum(1), level)}
    if len(classes) == 2:
        scores = _stacked(probe.scores(values).cpu().double(), data.stacked)
        positive = index == 1
        found["auroc"] = interval_of(weighted_auroc(scores, positive, weights), level)
        if getattr(probe, "link", "logistic") == "logistic" and _shares(scores):
            error = (scores - positive.double()).square()
            found["brier"] = interval_of(error @ weights.T / weights.sum(1), level)
            found["calibration_error"] = interval_of(_calibration(scores, positive, weights), level)
    numbers = {name: each if data.stacked else each[0] for name, each in found.items()}
    return ProbeScores(numbers, n)


def resampled(n: int, groups: Labels | None, n_resamples: int, seed: int) -> Tensor:
    """Return [1 + resample, sample] weights: all ones, then draws with replacement.

    Whole groups are drawn where they are given.
    """
    draw = torch.Generator().manual_seed(seed)
    if groups is None:
        kind, n_groups = torch.arange(n), n
    else:
        names = plain_list(groups, "groups", n)
        place = {name: k for k, name in enumerate(dict.fromkeys(names))}
        kind, n_groups = torch.tensor([place[name] for name in names]), len(place)
    picks = torch.randint(n_groups, (n_resamples, n_groups), generator=draw)
    counts = torch.zeros(n_resamples, n_groups, dtype=torch.float64).scatter_add(
        1, picks, torch.ones(picks.shape, dtype=torch.float64)
    )
    return torch.cat([torch.ones(1, n, dtype=torch.float64), counts[:, kind]])


def weighted_auroc(
    scores: Float[Tensor, "site sample"],
    positive: Bool[Tensor, " sample"],
    weights: Float[Tensor, "draw sample"],
) -> Float[Tensor, "site draw"]:
    """Return the area under the ROC curve with weighted samples; ties count one half.

    NaN in a draw without one of the classes.
    """
    order = scores.argsort(-1)
    ordered = scores.gather(-1, order)
    # Samples of equal score share one place; [site, sample].
    place = torch.cat(
        [torch.zeros_like(order[:, :1]), (ordered.diff(dim=-1) > 0).long().cumsum(-1)], -1
    )
    found = []
    for one, at in zip(order, place, strict=True):
        w, is_positive = weights[:, one], positive[one].double()
        blank = torch.zeros(len(w), int(at[-1]) + 1, dtype=w.dtype)
        where = at.expand_as(w)
        up = blank.scatter_add(1, where, w * is_positive)
        down = blank.scatter_add(1, where, w * (1 - is_positive))
        below = down.cumsum(1) - down / 2
        found.append((up * below).sum(1) / (up.sum(1) * down.sum(1)))
    return torch.stack(found)


def _shares(scores: Tensor) -> bool:
    return float(scores.min()) >= 0 and float(scores.max()) <= 1


def _calibration(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Return [site, draw]: mean |share of positives - mean score| over bins of equal mass."""
    n = scores.shape[-1]
    order = scores.argsort(-1)
    share = torch.arange(n) * min(N_BINS, n) // n
    member = torch.nn.functional.one_hot(share).double()
    gap = positive.double()[order] - scores.gather(-1, order)
    # Bins are sums of weighted gaps: one product for each site, nothing as large as all draws.
    each = [
        (weights[:, at] @ (one[:, None] * member)).abs().sum(-1)
        for at, one in zip(order, gap, strict=True)
    ]
    return torch.stack(each) / weights.sum(1)


def interval_of(draws: Float[Tensor, "site draw"], level: float) -> list[Score]:
    """Return the first draw's value, which is the data's own, and percentiles of the others."""
    tail = (1 - level) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=draws.dtype)
    lo, hi = draws[:, 1:].nanquantile(ends, dim=1)
    return [Score(*map(float, one)) for one in zip(draws[:, 0], lo, hi, strict=True)]


def _stacked(values: Tensor, stacked: bool) -> Tensor:
    return values if stacked else values[None]
