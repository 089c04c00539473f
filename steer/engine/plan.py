"""Which rows run together: cells sorted by the block at which they begin, cut into chunks.

Pure. A cell is one arm at one prompt. Cells with the same number of tokens to run share passes, as
a pass is a rectangle; within a pass each block runs on the rows that have begun by then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Starts:
    """Where each cell begins; all tensors [cell] on the host."""

    block: Tensor
    """The block before which its first edit (or reading) lies: 0 to n_layers."""
    tokens: Tensor
    """Tokens from its first edit to the end of its prompt; 0 for a cell that is not run."""

    def minimum(self, top: int) -> int:
        """Return the token-blocks up to a block that no exact method can avoid."""
        return int(((top - self.block).clamp(min=0) * self.tokens).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """The rows of one pass."""

    cells: Tensor
    """[row]: cell numbers, in the order in which they begin."""
    tokens: int
    """Columns of the pass."""
    begun: tuple[int, ...]
    """For each block (and after the last one) how many rows have begun by then."""
    back: Tensor | None = None
    """[row]: how many tokens of the prompt come after the one token that the row is (see `packed`);
    None where a row is a whole suffix."""

    @property
    def distinct(self) -> Tensor:
        """[cell]: each cell once."""
        return self.cells if self.back is None else self.cells.unique()

    def token_blocks(self, top: int, idle: int) -> int:
        """Return tokens times blocks below `top`; `idle` tokens where no row has begun."""
        return sum(self.tokens * n or idle for n in self.begun[:top])


SMALL = 512
"""Tokens: a pass of fewer costs its calls more than its sums."""


def chunks_of(
    starts: Starts, n_layers: int, most_rows: Callable[[int], int], *, pack: bool = False
) -> list[Chunk]:
    """Return the passes that run every live cell once.

    Args:
        starts: where each cell begins.
        n_layers: blocks of the model.
        most_rows: how many rows of so many tokens fit into memory (at least 1).
        pack: run few suffixes of several lengths in one pass, one token a row.
    """
    lengths, counts = starts.tokens[starts.tokens > 0].unique(return_counts=True)
    few = lengths[lengths * counts <= SMALL]
    chunks: list[Chunk] = []
    if pack and len(few) > 1 and int(few.max()) < most_rows(1):
        chunks += _packed(starts, few, n_layers, most_rows(1) - int(few.max()))
        lengths = lengths[lengths * counts > SMALL]
    for tokens in lengths.tolist():
        cells = (starts.tokens == tokens).nonzero()[:, 0]
        order = torch.argsort(starts.block[cells], stable=True)
        for part in cells[order].split(even(len(cells), most_rows(tokens))):
            chunks.append(Chunk(part, tokens, begun_by(starts.block[part], n_layers)))
    return chunks


def _packed(starts: Starts, lengths: Tensor, n_layers: int, most: int) -> list[Chunk]:
    cells = torch.isin(starts.tokens, lengths).nonzero()[:, 0]
    cells = cells[torch.argsort(starts.block[cells], stable=True)]
    tokens = starts.tokens[cells]
    before = tokens.cumsum(0) - tokens
    part = before // even(int(tokens.sum()), most)  # a cell's tokens attend to each other: one pass
    chunks = []
    for at in part.unique():
        mine, n = cells[part == at], tokens[part == at]
        rows = mine.repeat_interleave(n)
        back = torch.arange(len(rows)) - (n.cumsum(0) - n).repeat_interleave(n)
        chunks.append(Chunk(rows, 1, begun_by(starts.block[rows], n_layers), back))
    return chunks


def even(n: int, most: int) -> int:
    """Return the size of parts of about equal size, none above the most."""
    parts = -(-n // most)
    return -(-n // parts)


def begun_by(block: Tensor, n_layers: int) -> tuple[int, ...]:
    """Return for 0 .. n_layers how many rows begin there or before."""
    blocks = torch.arange(n_layers + 1)
    return tuple((block[:, None] <= blocks).sum(0).tolist())


def parts_of(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Return the prompts in parts of similar length, each of at most so many padded tokens."""
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    parts: list[list[int]] = []
    for at in order:
        if not parts or (len(parts[-1]) + 1) * lengths[at] > most_tokens:
            parts.append([])
        parts[-1].append(at)
    return [sorted(part) for part in parts]
