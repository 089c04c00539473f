"""Suffixes of several lengths in one pass: every row is one token, and sees its own past.

A pass is a rectangle, so suffixes of different lengths would need padding or passes of their own.
Where there are few of them neither is cheap. Here a row of the pass is one token of one cell; the
cache hands each row the keys of its prompt before the suffix and of its own cell's tokens, which
are computed in the same call. All blocks then run once, and no token is computed in vain.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from steer.engine.plan import Chunk
from steer.sites import AnySite, Site
from steer.wiring import Edit, Wiring

MOST_COLUMNS = 64
"""A packed token has keys of its own for all that it sees: with long prompts that costs more than
the calls it saves."""


def packable(wiring: Wiring, read: AnySite, columns: int) -> bool:
    """Say whether every operation looks at one token alone, so that rows may be single tokens."""
    if columns > MOST_COLUMNS or not _of_a_token(read):
        return False
    return all(
        isinstance(op, Edit)
        and not op.whole
        and not op.gates
        and op.monitor is None
        and _of_a_token(op.site)
        for ops in wiring.ops.values()
        for op in ops
    )


def _of_a_token(site: AnySite) -> bool:
    return isinstance(site, Site) and site.component not in ("pattern", "router")


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What each row of a packed pass sees, right-aligned so that its own token is last."""

    where: Tensor
    """[row, column]: index into the prompts' keys, prompt by prompt, then the rows' own."""
    real: Tensor
    """[row, column] bool: a token, not padding."""


def sight_of(chunk: Chunk, prompts: Tensor, mask: Tensor) -> Sight:
    """Return what the rows of a packed chunk see.

    Args:
        chunk: its rows.
        prompts: [row], of which prompt each row is.
        mask: [prompt, column] bool, left-padded prompts.
    """
    assert chunk.back is not None
    n, (n_prompts, width) = len(chunk.cells), mask.shape
    cells, cell = chunk.cells.unique(return_inverse=True)
    own = torch.full((len(cells), width), -1)
    own[cell, width - 1 - chunk.back] = torch.arange(n)
    column = torch.arange(width) - chunk.back[:, None]
    real = column >= 0
    column = column.clamp(min=0)
    mine = own[cell].gather(1, column)
    shared = prompts[:, None] * width + column
    where = torch.where(mine >= 0, n_prompts * width + mine, shared)
    return Sight(where, real & mask[prompts].gather(1, column))


class PackedLayer(DynamicLayer):
    """One block's keys and values, given to each row as far as it sees."""

    def __init__(self, keys: Tensor, values: Tensor, sight: Sight) -> None:
        """Hold the prompts' keys and values [prompt, head, pos, d_head]; nothing is copied."""
        super().__init__()
        self._prompts, self._sight = (keys, values), sight
        # A row's own token is the last that it sees: so many come before it.
        self.keys, self.values = keys[..., :-1, :], values[..., :-1, :]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.begun = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Return what the rows see, their own tokens included; keeps nothing."""
        if not self.begun:
            return key_states, value_states
        where = self._sight.where[: self.begun].to(key_states.device)
        keys, values = self._prompts
        return _seen(keys, key_states, where), _seen(values, value_states, where)


def _seen(prompts: Tensor, own: Tensor, where: Tensor) -> Tensor:
    every = torch.cat([prompts.transpose(1, 2).flatten(0, 1), own[:, :, 0]])
    rows, columns = where.shape
    return every.index_select(0, where.flatten()).unflatten(0, (rows, columns)).transpose(1, 2)


class Packed:
    """The cache of one packed pass."""

    def __init__(self, cache: DynamicCache, sight: Sight) -> None:
        """Take views of a filled cache."""
        self.layers: list[PackedLayer] = []
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer)
            keys, values = layer.keys, layer.values
            assert keys is not None
            assert values is not None
            self.layers.append(PackedLayer(keys, values, sight))

    def cache(self) -> DynamicCache:
        """Return the cache to give to the model."""
        cache = DynamicCache()
        cache.layers[:] = self.layers
        return cache

    def begin(self, layer: int, prompts: Tensor) -> None:
        """Say how many rows a block is about to run; none: they see themselves alone."""
        if layer < len(self.layers):
            self.layers[layer].begun = len(prompts)
