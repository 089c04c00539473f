"""What a measure is given beside the logits: which arm and which prompt each row is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.errors import PlanError


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The rows that a measure is given; all tensors on the host."""

    arms: Tensor
    """[row]: which arm; -1 for the prompts as they are."""
    rows: Tensor
    """[row]: which prompt."""
    mask: Tensor | None = None
    """[row, n] bool: real tokens, where the scope holds several per row; None for one each."""
    positions: Tensor | None = None
    """[row] or [row, n]: positions in the prompt's own tokens, -1 where there is none."""


Measure = Callable[[Tensor, Batch], Tensor]
"""(logits, batch) -> one number (or one tensor) for each row. The logits are [row, vocab], or
[row, n, vocab] where the scope holds several tokens per row."""


def checked(values: Tensor, batch: Batch) -> Tensor:
    """Return a measure's values on the host.

    Raises:
        PlanError: not one value (or tensor) per row.
    """
    n = len(batch.rows)
    if not isinstance(values, Tensor) or values.ndim == 0 or values.shape[0] != n:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise PlanError(
            f"The measure returned {found} for {n} rows. Rows are arms and prompts mixed, so a "
            "mean over them would mean nothing. Return one value for each row: reduce over the "
            "vocabulary (dim=-1), not over rows."
        )
    return values.detach().cpu()


def assembled(found: Sequence[tuple[Tensor, Tensor]], n: int) -> Tensor:
    """Return [n, ...] from (numbers, values) pairs that hold each number once."""
    numbers = torch.cat([cells for cells, _ in found])
    values = torch.cat([values for _, values in found])
    return values.new_empty(n, *values.shape[1:]).index_put((numbers,), values)
