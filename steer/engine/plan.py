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

    def token_blocks(self, top: int, idle: int) -> int:
        """Return tokens times blocks below `top`; `idle` tokens where no row has begun."""
        return sum(self.tokens * n or idle for n in self.begun[:top])


def chunks_of(starts: Starts, n_layers: int, most_rows: Callable[[int], int]) -> list[Chunk]:
    """Return the passes that run every live cell once.

    Args:
        starts: where each cell begins.
        n_layers: blocks of the model.
        most_rows: how many rows of so many tokens fit into memory (at least 1).
    """
    chunks: list[Chunk] = []
    for tokens in sorted(set(starts.tokens.tolist()) - {0}):
        cells = (starts.tokens == tokens).nonzero()[:, 0]
        order = torch.argsort(starts.block[cells], stable=True)
        for part in cells[order].split(even(len(cells), most_rows(tokens))):
            chunks.append(Chunk(part, tokens, begun_by(starts.block[part], n_layers)))
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
