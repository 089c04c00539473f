"""Which way a path goes in an order of concepts: round a ring, or along a line as far as it goes.

Integers only. The paths themselves are in `paths`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Order:
    """n places, 0 to n - 1; closed, the first one comes again after the last one."""

    n: int
    closed: bool = True

    @property
    def period(self) -> int | None:
        """How far it is once round; None on a line."""
        return self.n if self.closed else None

    @property
    def half(self) -> int:
        """How far apart distant places are: half-way round, or half of the line."""
        return self.n // 2

    def way(self, start: Int[Tensor, "*place"], distance: int) -> Int[Tensor, "*place"]:
        """Return the signed way of this distance from each place, 0 where there is none.

        Upwards, except where a line ends before that: there it is downwards.
        """
        up = torch.full_like(start, distance)
        if self.closed:
            return up
        down = torch.where(start >= distance, -up, torch.zeros_like(up))
        return torch.where(start + distance < self.n, up, down)

    def place(self, at: Int[Tensor, "*place"]) -> Int[Tensor, "*place"]:
        """Return places counted on past the period as places from 0 to n - 1."""
        return at % self.n if self.closed else at

    def offsets(self, distance: int) -> int:
        """Return how many places a path of this distance can be told apart from: its columns.

        On a ring all of them, on a line those that it goes through.
        """
        return self.n if self.closed else distance + 1

    def neighbours(self, order: Int[Tensor, " place"]) -> int:
        """Return how many neighbours in a rearranged order are neighbours in this one."""
        gap = (order.roll(-1) - order).abs()
        if self.closed:
            return int(((gap == 1) | (gap == self.n - 1)).sum())
        return int((gap[:-1] == 1).sum())
