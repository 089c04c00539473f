"""A law whose mean changes: do states leave the manifold on their way, and when do they arrive?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import steer
from benchmarks.belief.gaussian import PRIOR, binned
from benchmarks.normals.reading import SIGMA, Readings, draw, mean_of, read
from benchmarks.normals.steering import Shapes
from steer.odds.observers import ChangePoint, Exact, Forgetting

BEFORE, AFTER = 40, 32
START = 16
"""Digits before the first reading."""
FIRST = BEFORE - START + 1
"""Readings before the first digit of the new law was seen."""
FROM, TO = 2.625, 6.375
KEEP, HAZARD = 0.9, 0.02
"""Of the two observers that may forget; not fitted here, but see `belief_gaussian`."""
OBSERVERS = {
    "exact": Exact(PRIOR),
    "forgetting": Forgetting(PRIOR, KEEP),
    "change_point": ChangePoint(PRIOR, HAZARD),
}


@dataclass(frozen=True, slots=True, eq=False)
class Switched:
    """The course of texts whose mean changes, and of texts whose mean does not."""

    off: Float[Tensor, "text time"]
    """Distance to M_h within its subspace, in units of that of texts without a change."""
    off_steady: Float[Tensor, "text time"]
    u: Float[Tensor, "text time"]
    """Where on M_h the states are."""
    mean: Float[Tensor, "text time"]
    spread: Float[Tensor, "text time"]
    observers: dict[str, Float[Tensor, "text time"]]
    """The mean that each observer expects."""


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Texts with a change of mean and, after those, as many without."""

    readings: Readings
    n: int

    @property
    def after(self) -> tuple[int, ...]:
        """After how many digits they were read."""
        return self.readings.after

    @property
    def first(self) -> int:
        """Readings before the first digit of the new law was seen."""
        return FIRST

    @property
    def states(self) -> Float[Tensor, "text time d_model"]:
        """At the one block that was read."""
        return self.readings.states[0]


def texts_of(lm: steer.LM, block: int, n: int, seed: int) -> Texts:
    """Read n texts with a change, and as many without, after every digit from the 16th on."""
    first, second, steady = (
        draw([law], n, length, seed + k)
        for k, (law, length) in enumerate(
            [((FROM, SIGMA), BEFORE), ((TO, SIGMA), AFTER), ((FROM, SIGMA), BEFORE + AFTER)]
        )
    )
    digits = torch.cat([torch.cat([first, second], 1), steady])
    after = tuple(range(START, BEFORE + AFTER + 1))
    return Texts(read(lm, digits, torch.zeros(2 * n), after, [block]), n)


def switch(texts: Texts, shapes: Shapes) -> Switched:
    """Return the course of texts with a change, beside that of texts without."""
    found, n = texts.readings, texts.n
    off, u = _places(found, shapes)
    unit = off[n:].mean()
    expected = {
        name: mean_of(binned(one.observe(found.digits[:n].double())))[:, list(found.after)]
        for name, one in OBSERVERS.items()
    }
    return Switched(
        off[:n] / unit, off[n:] / unit, u[:n], found.mean[:n], found.spread[:n], expected
    )


def lag(course: Float[Tensor, " time"], first: int) -> float:
    """Return how many digits after the change a course has passed the middle of the two means.

    nan if it never does within the text: an observer for whom nothing changes may not.
    """
    over = (course[first:] >= (FROM + TO) / 2).nonzero()
    return float(over[0, 0]) + 1 if len(over) else float("nan")


def _places(found: Readings, shapes: Shapes) -> tuple[Tensor, Tensor]:
    flat = shapes.curve.flatten(found.states[0])
    return shapes.curve.distance(flat).double(), shapes.curve.encode(flat).double()
