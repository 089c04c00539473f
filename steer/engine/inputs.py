"""What the passes of a chunk are given, and how their results go back to whole cells."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.bookkeeping import Sequences
from steer.engine.base import Base, in_scope, prompt_of
from steer.engine.packed import Packed, sight_of
from steer.engine.plan import Chunk
from steer.engine.prefix import Prefix
from steer.engine.starts import Cells
from steer.passes import cache_name


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """One pass."""

    prompts: Tensor
    """[row]: number of the prompt within the part."""
    sequences: Sequences
    arguments: dict[str, object]
    prefix: Prefix | Packed | None
    wanted: Tensor
    """[column] bool: columns of the pass that hold a token in scope."""


def inputs_of(
    chunk: Chunk, cells: Cells, base: Base, n_prompts: int, names: Mapping[str, object]
) -> Inputs:
    """Return what the model is called with for the rows of a chunk.

    Args:
        chunk: its rows.
        cells: all cells of the part.
        base: what the prompts left.
        n_prompts: prompts of the sweep.
        names: the arguments that the model's forward takes.
    """
    part, prompts = base.part, cells.prompts[chunk.cells]
    assert cells.now.tokens.arms is not None
    assert base.scope is not None
    arms = cells.now.tokens.arms[chunk.cells]
    if chunk.back is not None:
        assert base.cache is not None
        sight = sight_of(chunk, prompts, part.mask)
        columns = part.columns - 1 - chunk.back
        places = part.lengths[prompts] - 1 - chunk.back
        sequences = Sequences(
            prompt_of(part, prompts, part.columns),
            part.rows[prompts],
            n_prompts,
            arms=arms,
            places=places[:, None],
        )
        arguments: dict[str, object] = {"input_ids": part.ids[prompts, columns][:, None]}
        if not bool(sight.real.all()):
            arguments["attention_mask"] = sight.real.long()
        if "position_ids" in names:
            arguments["position_ids"] = places[:, None]
        prefix: Prefix | Packed | None = Packed(base.cache, sight)
        wanted = torch.ones(1, dtype=torch.bool)
    else:
        before = part.columns - chunk.tokens
        prefix = None
        if base.cache is not None and bool(part.mask[prompts, :before].any()):
            prefix = Prefix(base.cache, before)
        seen = chunk.tokens if prefix is None else part.columns
        sequences = Sequences(
            prompt_of(part, prompts, seen), part.rows[prompts], n_prompts, arms=arms
        )
        arguments = part.arguments(prompts, chunk.tokens, seen, names)
        wanted = base.scope[prompts][:, -chunk.tokens :].any(0)
    arguments |= {
        "use_cache": prefix is not None,
        cache_name(names): None if prefix is None else prefix.cache(),
    }
    return Inputs(prompts, sequences, arguments, prefix, wanted)


def whole_cells(chunk: Chunk, cells: Cells, base: Base, taken: Tensor, mask: Tensor) -> Tensor:
    """Return [cell, n, ...] of the distinct cells: what is measured, at all tokens in scope.

    Tokens in scope before the arm's start have the values of the prompts as they are.

    Args:
        chunk: the rows that ran.
        cells: all cells of the part.
        base: what the prompts left.
        taken: [row, column, ...], what the pass gave.
        mask: [row, column] bool, its tokens in scope.
    """
    assert base.scope is not None
    assert base.read is not None
    prompts = cells.prompts[chunk.distinct]
    one_each = bool((base.scope.sum(1) == 1).all())
    if chunk.back is not None:
        row = mask[:, 0].nonzero()[:, 0]
        cell = chunk.cells.unique(return_inverse=True)[1][row]
        if one_each:  # every cell's own token, in the order of the cells
            return taken.index_select(0, row[torch.argsort(cell)].to(taken.device))
        column = base.part.columns - 1 - chunk.back[row]
        place = base.scope.cumsum(1)[cells.prompts[chunk.cells[row]], column] - 1
        own = taken[row.to(taken.device), 0]
    else:
        found = in_scope(taken, mask)
        if one_each:
            return found
        n_own = mask.sum(1)
        cell, at = (torch.arange(found.shape[1]) < n_own[:, None]).nonzero(as_tuple=True)
        place = (base.scope[prompts].sum(1) - n_own)[cell] + at
        own = found[cell.to(found.device), at.to(found.device)]
    values = base.read[prompts.to(base.read.device)]
    device = values.device
    return values.index_put((cell.to(device), place.to(device)), own.to(device))
