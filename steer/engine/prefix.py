"""The keys and values of the prompts, shared by every row that runs from the middle of one.

Kept once per prompt. A row's own copy exists only while its block attends: the kernels take keys in
one piece, so prefix and suffix are joined there, and dropped after it.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class SharedLayer(DynamicLayer):
    """One block's keys and values [prompt, head, pos, d_head], looked up for the rows that run."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Hold the prefix; nothing is copied."""
        super().__init__()
        self.keys, self.values = keys, values
        self._prefix = (keys, values)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.prompts: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the rows' whole keys and values; keeps nothing."""
        assert self.prompts is not None
        if not len(self.prompts):
            return key_states, value_states
        rows = self.prompts.to(key_states.device)
        keys, values = self._prefix
        return _joined(keys, rows, key_states), _joined(values, rows, value_states)


def _joined(prefix: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    if prefix.shape[0] == 1:
        return torch.cat([prefix.expand(len(rows), -1, -1, -1), own], dim=-2)
    return torch.cat([prefix.index_select(0, rows), own], dim=-2)


class Prefix:
    """The prompts' cache cut off before the tokens that rows run themselves."""

    def __init__(self, cache: DynamicCache, n_columns: int) -> None:
        """Take views of the first columns of a filled cache."""
        self.layers: list[SharedLayer] = []
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer)
            keys, values = layer.keys, layer.values
            assert keys is not None
            assert values is not None
            self.layers.append(SharedLayer(keys[..., :n_columns, :], values[..., :n_columns, :]))

    def cache(self) -> DynamicCache:
        """Return the cache to give to the model."""
        cache = DynamicCache()
        cache.layers[:] = self.layers
        return cache

    def begin(self, layer: int, prompts: Tensor) -> None:
        """Say of which prompts the rows are that a block is about to run; none: no prefix."""
        if layer < len(self.layers):  # a base pass that was ended early filled no more
            self.layers[layer].prompts = prompts
