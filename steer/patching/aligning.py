"""Which token of one prompt stands for which of another: pairs of clean and corrupted prompts.

Pure: token ids in, positions out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steer.errors import PlanError

Align = Literal["token", "ends"]


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """For each token of the prompts that are patched, the token that its value comes from."""

    places: Tensor
    """[row, position]: the position in the other prompt, -1 where none stands for it."""
    mask: Tensor
    """[row, position] bool: the prompts' own tokens."""

    @property
    def paired(self) -> Tensor:
        """[row, position] bool: tokens that have a counterpart."""
        return self.places >= 0


def aligned(
    into: Sequence[Sequence[int]],
    out_of: Sequence[Sequence[int]],
    decode: Callable[[list[int]], str],
    align: Align = "token",
) -> Alignment:
    """Return the alignment of pairs of prompts, row by row.

    Args:
        into: the prompts that are patched, as token ids.
        out_of: the prompts whose values are written, one for each of them.
        decode: token ids to text, for the error.
        align: "token" pairs token i with token i, and wants prompts of one length in each pair;
            "ends" pairs what a pair has in common at its beginning, and, counted from the end,
            what it has in common there: the part between is paired where it is of one length.

    Raises:
        PlanError: different numbers of prompts, or a pair that cannot be aligned; says where the
            two part.
    """
    if len(into) != len(out_of):
        raise PlanError(
            f"There are {len(out_of)} prompts to take values from and {len(into)} to write them "
            "into. Patching compares pairs. Give one for each, in the same order."
        )
    a, a_mask = _padded(into)
    b, b_mask = _padded(out_of)
    n, m = a_mask.sum(1), b_mask.sum(1)
    width = torch.arange(a.shape[1])
    same = n == m
    if align == "token" and not bool(same.all()):
        raise PlanError(_parting(into, out_of, int((~same).nonzero()[0]), decode))
    shortest = torch.minimum(n, m)
    front = _common(a, b, shortest)
    back = _common(_from_end(a, n), _from_end(b, m), shortest - front)
    if bool((~same & (front + back == 0)).any()):
        row = int((~same & (front + back == 0)).nonzero()[0])
        raise PlanError(_parting(into, out_of, row, decode))
    middle = same[:, None] | (width < front[:, None])
    at_end = (width >= (n - back)[:, None]) & a_mask
    places = torch.where(middle, width, -1)
    places = torch.where(at_end & ~same[:, None], width + (m - n)[:, None], places)
    return Alignment(torch.where(a_mask, places, -1), a_mask)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(row)) for row in rows], True, -1)
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def _from_end(ids: Tensor, lengths: Tensor) -> Tensor:
    at = lengths[:, None] - 1 - torch.arange(ids.shape[1])
    return ids.gather(1, at.clamp(min=0))


def _common(a: Tensor, b: Tensor, most: Tensor) -> Tensor:
    """Return [row]: how many leading tokens are equal, at most so many."""
    width = min(a.shape[1], b.shape[1])
    equal = (a[:, :width] == b[:, :width]) & (torch.arange(width) < most[:, None])
    return equal.long().cumprod(1).sum(1)


def _parting(
    into: Sequence[Sequence[int]],
    out_of: Sequence[Sequence[int]],
    row: int,
    decode: Callable[[list[int]], str],
) -> str:
    a, b = list(into[row]), list(out_of[row])
    part = next((at for at, pair in enumerate(zip(a, b, strict=False)) if len({*pair}) > 1), -1)
    part = part if part >= 0 else min(len(a), len(b))
    shown = [repr(decode(ids[max(part - 2, 0) : part + 4])) for ids in (a, b)]
    return (
        f"The prompts of pair {row} have {len(a)} and {len(b)} tokens; they part at position "
        f"{part}, around {shown[0]} and {shown[1]}. Token i of one does not stand for token i of "
        'the other then. Word the pair to equal lengths; or pass align="ends", which pairs what '
        "they share at both ends; or name spans that both have: scope=[steer.text(...), "
        "steer.at(-1)]."
    )
