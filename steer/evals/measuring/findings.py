"""What one part of an evaluation found, and how parts become a report. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from steer.evals.measuring.choices import Values
from steer.evals.report.effects import mean
from steer.evals.report.roc import Roc
from steer.evals.report.values import Curve, Interval

NOTHING = Interval(None)


@dataclass(frozen=True, slots=True)
class Findings:
    """Numbers and controls by name, curves, ROCs by monitor, and what must be said in words."""

    numbers: Mapping[str, Interval] = field(default_factory=dict)
    controls: Mapping[str, Interval] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    rocs: Mapping[str, Roc] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def together(parts: Iterable[Findings]) -> Findings:
    """Return all findings as one, in their order."""
    numbers: dict[str, Interval] = {}
    controls: dict[str, Interval] = {}
    curves: dict[str, Curve] = {}
    rocs: dict[str, Roc] = {}
    notes: list[str] = []
    for part in parts:
        numbers |= part.numbers
        controls |= part.controls
        curves |= part.curves
        rocs |= part.rocs
        notes += part.notes
    return Findings(numbers, controls, curves, rocs, tuple(notes))


def envelope(changes: Sequence[Values], *, seed: int) -> Interval:
    """Return the mean of several controls' effects, and the ends that hold all their intervals.

    One random direction has an effect of its own, whose sign is chance; several say how large such
    effects are.

    Args:
        changes: [item] for each random direction.
        seed: of the bootstrap.
    """
    found = [mean(change, seed=seed) for change in changes]
    lows = [one.lo for one in found if one.lo is not None]
    highs = [one.hi for one in found if one.hi is not None]
    return Interval(float(np.mean([change.mean() for change in changes])), min(lows), max(highs))


def apart(one: Interval, other: Interval) -> bool:
    """Whether two intervals do not overlap."""
    if None in (one.lo, one.hi, other.lo, other.hi):
        return False
    assert one.lo is not None
    assert one.hi is not None
    assert other.lo is not None
    assert other.hi is not None
    return one.lo > other.hi or one.hi < other.lo
