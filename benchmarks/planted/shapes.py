"""What is planted: hidden places on a ring, a line or a torus, prompts that hint at them, answers.

A prompt is a few numbers near a hidden place, then a sign of equality; the place is their mean. The
right answer is a distribution: a bump about the place, over an even floor. So whoever answers
well carries the place, and nothing else, at the last token.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOOR = 0.05
"""Share of the answers spread evenly. Without tails a straight path is natural on a line: bumps
of one width are then an exponential family, closed under geometric mixture."""
REACH = 2
"""How far from the first hint along an axis the others may be."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A ring, a line or a torus of whole places, and how it is hinted at."""

    name: str
    size: int
    """Places along each axis; the answers are the places."""
    closed: tuple[bool, ...]
    """For each axis whether it goes round."""
    hints: int
    """Numbers in a prompt for each axis."""
    width: float
    """Standard deviation of the bump, in places."""

    @property
    def dim(self) -> int:
        """Number of axes."""
        return len(self.closed)

    @property
    def periods(self) -> tuple[int | None, ...]:
        """The period of each axis, None where it is open."""
        return tuple(self.size if closed else None for closed in self.closed)

    @property
    def extent(self) -> int:
        """What errors are relative to: a turn, or the range of a line."""
        return self.size if all(self.closed) else self.size - 1

    @property
    def n_answers(self) -> int:
        """Number of answers: one for each whole place."""
        return self.size**self.dim

    @property
    def words(self) -> list[str]:
        """The vocabulary: hints of each axis, the sign of equality, and the answers."""
        hints = [f"{axis}{k}" for axis in "ab"[: self.dim] for k in range(self.size)]
        return [*hints, "=", *(f"<{k}>" for k in range(self.n_answers))]

    @property
    def first_answer(self) -> int:
        """The token id of the first answer."""
        return self.dim * self.size + 1


RING = Shape("ring", 24, (True,), 3, 1.5)
LINE = Shape("line", 24, (False,), 3, 1.5)
TORUS = Shape("torus", 10, (True, True), 2, 1.0)
SHAPES = (RING, LINE, TORUS)


def prompts(shape: Shape) -> tuple[Int[Tensor, "row token"], Float[Tensor, "row dim"]]:
    """Return every prompt as token ids, and the place that it hints at."""
    parts = [_axis(shape, closed=closed) for closed in shape.closed]
    grid = torch.meshgrid([torch.arange(len(ids)) for ids, _ in parts], indexing="ij")
    picks = [one.flatten() for one in grid]
    ids = [
        ids[at] + k * shape.size for k, ((ids, _), at) in enumerate(zip(parts, picks, strict=True))
    ]
    places = [place[at] for (_, place), at in zip(parts, picks, strict=True)]
    equals = torch.full((len(picks[0]), 1), shape.dim * shape.size)
    return torch.cat([*ids, equals], 1), torch.stack(places, 1)


def _axis(shape: Shape, *, closed: bool) -> tuple[Tensor, Tensor]:
    """Return all hints [row, hint] about one axis, and the place of each row."""
    steps = torch.arange(-REACH, REACH + 1)
    others = torch.cartesian_prod(*[steps] * (shape.hints - 1)).reshape(-1, shape.hints - 1)
    offsets = torch.cat([torch.zeros(len(others), 1, dtype=torch.long), others], 1)
    hints = (torch.arange(shape.size)[:, None, None] + offsets).flatten(0, 1)
    place = hints.double().mean(1)
    if closed:
        return hints % shape.size, (place % shape.size).float()
    inside = ((hints >= 0) & (hints < shape.size)).all(1)
    return hints[inside], place[inside].float()


def difference(
    shape: Shape, u: Float[Tensor, "*batch dim"], v: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch dim"]:
    """Return u - v in places, the shorter way round closed axes."""
    gap = u - v
    closed = torch.tensor(shape.closed, device=gap.device)
    return torch.where(closed, (gap + shape.size / 2) % shape.size - shape.size / 2, gap)


def answers(shape: Shape, places: Float[Tensor, "row dim"]) -> Float[Tensor, "row answer"]:
    """Return the right distribution over the answers: a bump about each place, over the floor.

    A von Mises bump on closed axes, a normal one on open axes; a product where there are two.
    """
    whole = torch.arange(shape.size, dtype=places.dtype)
    turn = 2 * torch.pi / shape.size
    total = torch.zeros(len(places), *[1] * shape.dim)
    for axis, closed in enumerate(shape.closed):
        gap = places[:, axis, None] - whole
        bump = (turn * gap).cos() / turn**2 if closed else -gap.square() / 2
        sides = [-1 if k == axis else 1 for k in range(shape.dim)]
        total = total + (bump / shape.width**2).reshape(len(places), *sides)
    sharp = total.flatten(1).softmax(1)
    return (1 - FLOOR) * sharp + FLOOR / shape.n_answers
