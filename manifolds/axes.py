"""Coordinates of charts with more than one: which axes close, how they differ, how they are lifted.

A periodic axis becomes a circle of circumference 1 and an open one a segment of length 1, so that
a step along either counts alike in the radial functions of `radial`, and closing is exact.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.errors import ManifoldError

Period = float | int | None


class Lifted(NamedTuple):
    """Lifted coordinates z and their first two derivatives, each by the one coordinate it has."""

    value: Float[Tensor, "*batch lift"]
    first: Float[Tensor, "*batch lift"]
    second: Float[Tensor, "*batch lift"]
    axis: tuple[int, ...]
    """Which coordinate each lifted one comes from."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """The range of each coordinate; a periodic one goes once round from its lower end."""

    lower: Float[Tensor, " dim"]
    upper: Float[Tensor, " dim"]
    periods: tuple[Period, ...]

    @property
    def dim(self) -> int:
        """How many coordinates a point has."""
        return len(self.periods)

    @property
    def n_lifted(self) -> int:
        """How many lifted coordinates a point has: two for a periodic axis, one for an open one."""
        return self.dim + sum(period is not None for period in self.periods)

    def closed(self, like: Tensor) -> Tensor:
        """Return [dim] bool: which axes are periodic, on the device of `like`."""
        return torch.tensor([p is not None for p in self.periods], device=like.device)

    def turn(self, like: Tensor) -> Tensor:
        """Return [dim]: the period of each axis, 1 for open ones, in the dtype of `like`."""
        turns = [1.0 if p is None else float(p) for p in self.periods]
        return torch.tensor(turns, dtype=like.dtype, device=like.device)

    def wrap(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return u within [0, period) on periodic axes, unchanged on open ones."""
        turn = self.turn(u)
        wrapped = torch.remainder(u, turn)
        # The remainder of a tiny negative number rounds up to the period itself.
        wrapped = torch.where(wrapped >= turn, torch.zeros_like(wrapped), wrapped)
        return torch.where(self.closed(u), wrapped, u)

    def clamp(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return u within its range on open axes, unchanged on periodic ones."""
        inside = u.clamp(self.lower.to(u), self.upper.to(u))
        return torch.where(self.closed(u), u, inside)

    def between(
        self, u0: Float[Tensor, "*batch dim"], u1: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return the signed way from u0 to u1, the shorter way round on periodic axes.

        Half a turn goes upwards.
        """
        way, turn = u1 - u0, self.turn(u0)
        half = turn / 2
        return torch.where(self.closed(u0), half - torch.remainder(half - way, turn), way)

    def grid(self, counts: tuple[int, ...]) -> Float[Tensor, "point dim"]:
        """Return the points of a regular grid over the range, the last axis running fastest.

        Open axes have both ends, periodic ones no closing copy.
        """
        sides = []
        for i, (count, period) in enumerate(zip(counts, self.periods, strict=True)):
            open_step = 0 if period is None else 1
            steps = torch.linspace(
                0, 1, count + open_step, dtype=self.lower.dtype, device=self.lower.device
            )[:count]
            sides.append(self.lower[i] + steps * (self.upper[i] - self.lower[i]))
        return torch.cartesian_prod(*sides).reshape(-1, self.dim)

    def lift(self, u: Float[Tensor, "*batch dim"]) -> Lifted:
        """Return the lifted coordinates of u, with derivatives."""
        value, first, second, axis = [], [], [], []
        lower, size = self.lower.to(u), (self.upper - self.lower).to(u)
        for i, period in enumerate(self.periods):
            here = u[..., i]
            if period is None:
                value.append((here - lower[i]) / size[i])
                first.append(torch.ones_like(here) / size[i])
                second.append(torch.zeros_like(here))
                axis.append(i)
                continue
            rate = 2 * math.pi / float(period)
            cos, sin = torch.cos(rate * here), torch.sin(rate * here)
            radius = 1 / (2 * math.pi)
            value += [radius * cos, radius * sin]
            first += [-radius * rate * sin, radius * rate * cos]
            second += [-radius * rate**2 * cos, -radius * rate**2 * sin]
            axis += [i, i]
        return Lifted(
            torch.stack(value, -1), torch.stack(first, -1), torch.stack(second, -1), tuple(axis)
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Axes":
        """Return the same axes on another device, and stored in another dtype if given."""
        return Axes(self.lower.to(device, dtype), self.upper.to(device, dtype), self.periods)


def along(
    start: Float[Tensor, "*batch dim"], by: Float[Tensor, "*batch dim"], n: int
) -> Float[Tensor, "*batch point dim"]:
    """Return n equally spaced points from start to start + by, both included.

    Raises:
        ManifoldError: n is below 2.
    """
    if n < 2:
        raise ManifoldError(
            f"A path of {n} points cannot have both ends. Ask for at least 2 points."
        )
    steps = torch.linspace(0, 1, n, dtype=start.dtype, device=start.device)
    return start[..., None, :] + by[..., None, :] * steps[:, None]
