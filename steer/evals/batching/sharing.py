"""What all prompts of a batch begin with is run once, where no plan of the batch looks at it.

Evaluations put the same instructions and examples before every question. Their keys and values are
the same in every row, so one row of them is enough, as long as no intervention edits or reads a
token of them. The rows are then laid out as [shared][padding][own].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from steer.bookkeeping import Pass, Sequences
from steer.context import Run
from steer.errors import SteerError
from steer.generation import pad_token
from steer.lm import LM
from steer.passes import cache_name, cache_of_generate
from steer.prompts import sequences_of
from steer.tokens import Tokens
from steer.wiring import Edit, Wiring

FEWEST = 16
"""Shared tokens below which the extra pass is not worth it."""


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """The first tokens of every row, run."""

    n: int
    ids: Tensor
    """[row, column]: shared tokens, padding, own tokens."""
    mask: Tensor
    """[row, column] bool."""
    options: dict[str, object]
    """For generate: the cache, one copy for each row."""


def beginning_of(lm: LM, wiring: Wiring, rows: Sequence[Sequence[int]]) -> Beginning | None:
    """Return the run beginning of a batch, or None where there is none to share.

    Args:
        lm: the model.
        wiring: of the batch's plans.
        rows: token ids of the prompts.
    """
    n = common(rows)
    if len(rows) < 2 or n < FEWEST or not _bears_gaps(lm):
        return None
    ids, mask = laid_out(rows, n, pad_token(lm.tokenizer))
    if _looked_at(lm, wiring, sequences_of(ids, mask, range(len(rows)), len(rows)), n):
        return None
    cache = DynamicCache(config=lm.model.config)
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None  # a sliding window counts columns, and padding would take part of it
    _run(lm, rows[0][:n], cache)
    cache.batch_repeat_interleave(len(rows))
    return Beginning(n, ids, mask, {cache_of_generate(lm.model): cache})


def common(rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all rows begin with; each keeps one of its own at least."""
    shortest = min(len(row) for row in rows) - 1
    first = rows[0]
    for at in range(shortest):
        if any(row[at] != first[at] for row in rows):
            return at
    return max(shortest, 0)


def laid_out(rows: Sequence[Sequence[int]], n: int, pad: int) -> tuple[Tensor, Tensor]:
    """Return (ids, mask) [row, column] with the padding between the shared and the own tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        own = torch.tensor(row[n:])
        ids[at, :n], mask[at, :n] = torch.tensor(row[:n]), True
        ids[at, width - len(own) :], mask[at, width - len(own) :] = own, True
    return ids, mask


def count(run: Run, declared: Sequences, n: int) -> None:
    """Count the shared tokens of every row as seen; inside the run."""
    assert declared.prompt is not None
    prompt = declared.prompt
    tokens = Tokens(prompt.positions(0, n), declared.row_ids, prompt.lengths)
    run.work.count(Pass(tokens, declared))


def _looked_at(lm: LM, wiring: Wiring, declared: Sequences, n: int) -> bool:
    """Whether anything is edited or read at one of the first n columns of some row."""
    assert declared.prompt is not None
    prompt = declared.prompt
    positions = prompt.positions(0, prompt.mask.shape[1])
    tokens = Tokens(
        positions, declared.row_ids, prompt.lengths, prompt.ids, prompt, lm.registry.decode
    )
    now = Pass(tokens, declared)
    ops = [op for found in wiring.ops.values() for op in found]
    if any(isinstance(op, Edit) and op.whole for op in ops):
        return True  # it is given whole rows, whatever its scope
    try:
        chosen = [
            now.chosen(op) if isinstance(op, Edit) else now.select(op.read.scope, op.rows)
            for op in ops
        ]
    except SteerError:
        return True  # a scope that a row lacks: the batch itself says so
    return any(bool(one.mask[:, :n].any()) for one in chosen)


def _bears_gaps(lm: LM) -> bool:
    """Whether the model tells distances by position ids, so that padding between tokens is none."""
    config = lm.model.config
    takes = "position_ids" in signature(type(lm.model).forward).parameters
    own = getattr(lm.model.generation_config, "cache_implementation", None)
    return takes and own is None and not getattr(config, "alibi", False)


def _run(lm: LM, ids: Sequence[int], cache: DynamicCache) -> None:
    """Fill a cache with the keys and values of one row."""
    stack = lm.registry.module(lm.registry.layout.stack)
    asked = {cache_name(signature(type(stack).forward).parameters): cache, "use_cache": True}
    with torch.no_grad():
        stack(input_ids=torch.tensor([list(ids)], device=lm.device), **asked)
    assert cache.get_seq_length() == len(ids)
