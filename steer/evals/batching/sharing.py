"""What all prompts of a batch begin with is run once, where no plan of the batch looks at it.

Evaluations put the same instructions and examples before every question. Their keys and values are
the same in every row, so one row of them is enough, as long as no intervention edits or reads a
token of them. The rows are then laid out as [shared][padding][own].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from steer.bookkeeping import Pass, Sequences
from steer.context import Run
from steer.errors import SteerError
from steer.evals.batching.asked import Asked
from steer.generation import pad_token
from steer.interventions.recipe import Recipe, walk
from steer.lm import LM
from steer.passes import cache_name, cache_of_generate
from steer.protocols import Intervention
from steer.scopes import Scope
from steer.tokens import Prompt, Tokens

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


def beginning_of(lm: LM, rows: Sequence[Asked]) -> Beginning | None:
    """Return the run beginning of a batch, or None where there is none to share."""
    n = common([row.ids for row in rows])
    if len(rows) < 2 or n < FEWEST or not _bears_gaps(lm) or _looked_at(lm, rows, n):
        return None
    cache = DynamicCache(config=lm.model.config)
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None  # a sliding window counts columns, and padding would take part of it
    _run(lm, rows[0].ids[:n], cache)
    cache.batch_repeat_interleave(len(rows))
    ids, mask = laid_out([row.ids for row in rows], n, pad_token(lm.tokenizer))
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


def _looked_at(lm: LM, rows: Sequence[Asked], n: int) -> bool:
    """Whether an intervention edits or reads one of the first n tokens of some row."""
    for at, row in enumerate(rows):
        if not row.plan:
            continue
        ids = torch.tensor([list(row.ids)])
        prompt = Prompt(torch.ones_like(ids, dtype=torch.bool), ids)
        positions = prompt.positions(0, len(row.ids))
        alone = torch.tensor([at])
        tokens = Tokens(positions, alone, prompt.lengths, ids, prompt, lm.registry.decode)
        try:
            chosen = [scope.select(tokens) for item in row.plan for scope in _scopes(item)]
        except SteerError:
            return True  # a scope that the row lacks: the batch itself says so
        if any(bool(one[:, :n].any()) for one in chosen):
            return True
    return False


def _scopes(item: Intervention) -> Iterator[Scope]:
    """Yield the scopes of all that an intervention edits and reads."""
    for part in walk(item):
        reads = [read for read, _ in part.reads()] if isinstance(part, Recipe) else []
        for one in (part, *reads):
            scope = getattr(one, "scope", None)
            if isinstance(scope, Scope):
                yield scope


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
