"""What an edit may know of the pass in which it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The tokens that an edit is given, all tensors on the device of the edited tensor.

    Rows here are the rows of the tensor given to `edit`, which may be a gathered subset: use
    `rows` to look up what belongs to a row of the user's batch. Every edit of this package acts on
    each token alone, so that whole rows and single gathered tokens give the same result.
    """

    positions: Tensor
    """[row, pos]: position in the row's own tokens, -1 for padding."""
    rows: Tensor
    """[row]: the row of the user's batch."""
    prompt_lengths: Tensor | None = None
    """[row]: tokens of the prompt; None where it cannot be told."""
    phase: str = "prompt"
    """'generated' when every token of the pass was generated, else 'prompt'."""
    token_ids: Tensor | None = None
    """[row, pos]; None where the model was given embeddings."""
    rank: Tensor | None = None
    """[row, pos]: how many tokens of the row's scope come before this one (for Patch)."""
    reads: Mapping[object, Tensor] = field(default_factory=dict)
    """Read -> [row, pos] values so far, or [row, 1] once latched; NaN before the first token."""

    @property
    def mask(self) -> Tensor:
        """[row, pos] bool: real tokens."""
        return self.positions >= 0

    @property
    def generated(self) -> Tensor:
        """[row, pos] bool: tokens after the prompt; all False where its end is unknown."""
        if self.prompt_lengths is None:
            return torch.zeros_like(self.positions, dtype=torch.bool)
        return self.positions >= self.prompt_lengths[:, None]

    def of_row(self, values: Tensor, like: Tensor) -> Tensor:
        """Return values[rows] shaped to broadcast over `like` [row, pos, ..., width].

        `values` is [batch] or [batch, width]: one number or one vector for each row of the batch.
        """
        mine = values[self.rows]
        middle = [1] * (like.ndim - mine.ndim)
        if mine.ndim == 1:
            return mine.reshape(-1, *middle)
        return mine.reshape(mine.shape[0], *middle, *mine.shape[1:])

    def vector(self, values: Tensor, like: Tensor) -> Tensor:
        """Return [width] as it is, or the rows' own vectors of [batch, width] shaped as `like`."""
        return values if values.ndim == 1 else self.of_row(values, like)

    def basis(self, values: Tensor, like: Tensor) -> Tensor:
        """Return [k, width] as it is, or of [batch, k, width] the rows' own, to be matmul'ed."""
        if values.ndim == 2:
            return values
        mine = values[self.rows]
        return mine.reshape(mine.shape[0], *[1] * (like.ndim - 3), *mine.shape[1:])

    def gather(self, row: Tensor, column: Tensor) -> "Step":
        """Return the step of chosen tokens, each as a row of its own with one token."""

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[row, column][:, None]

        def pick_read(values: Tensor) -> Tensor:
            return values[row, column if values.shape[1] > 1 else 0][:, None]

        lengths = self.prompt_lengths
        return replace(
            self,
            positions=self.positions[row, column][:, None],
            rows=self.rows[row],
            prompt_lengths=None if lengths is None else lengths[row],
            token_ids=pick(self.token_ids),
            rank=pick(self.rank),
            reads={read: pick_read(values) for read, values in self.reads.items()},
        )
