"""What happens at each block of a pass whose rows begin at blocks of their own.

Rows are sorted by the block at which they begin. Before a block all that has the batch's rows is
narrowed to those that have begun; after it, the rows that begin next are added, with the states
that the prompts had there. The model's own forward does everything else: masks, rotary angles,
norms. Below the first start one token runs along, as attention can take none; its result is
dropped.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steer.bookkeeping import Pass
from steer.engine.packed import Packed
from steer.engine.plan import Chunk
from steer.engine.prefix import Prefix
from steer.module_io import first_tensor


class Climber:
    """The rows of the pass in progress; counts the token-blocks that really ran."""

    def __init__(
        self, top: int, known: frozenset[str] | None = None, *, one_token: bool = True
    ) -> None:
        """Start without a pass: everything that comes is counted and left as it is.

        Args:
            top: blocks that run; a pass may end at the input of the next.
            known: which arguments of a block hold one entry per row, as `found` said of an earlier
                pass; None to take everything whose first axis is as long as the batch.
            one_token: below the first start run one token, not one row.
        """
        self.executed = 0
        self.found: set[str] = set()
        self._top = top
        self._known = known
        self._one_token = one_token
        self._chunk: Chunk | None = None
        self._prompts = torch.zeros(0, dtype=torch.long)
        self._states: Mapping[int, Tensor] = {}
        self._prefix: Prefix | Packed | None = None

    def load(
        self,
        chunk: Chunk,
        prompts: Tensor,
        states: Mapping[int, Tensor],
        prefix: Prefix | Packed | None,
    ) -> None:
        """Take the next pass.

        Args:
            chunk: its rows.
            prompts: [row], of which prompt of the base pass each row is.
            states: block -> [prompt, column, ...], what entered it in the base pass.
            prefix: the keys and values of the columns before the pass; None where there are none.
        """
        self._chunk, self._prompts, self._states, self._prefix = chunk, prompts, states, prefix

    def enter(
        self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], now: Pass
    ) -> tuple[tuple[Any, ...], dict[str, Any], Pass]:
        """Return the arguments of a block narrowed to the rows that have begun."""
        chunk = self._chunk
        place, h = first_tensor(args, kwargs)
        if chunk is None:
            self._count(layer, h.shape[0] * h.shape[1])
            return args, kwargs, now
        begun = chunk.begun[layer]
        if not begun and self._one_token:
            self._count(layer, 1)
            if self._prefix is not None:
                self._prefix.begin(layer, self._prompts[:0])
            return *self._idle(args, kwargs, place, h), now.first(0)
        n = max(begun, 1)
        self._count(layer, n * h.shape[1])
        if self._prefix is not None:
            self._prefix.begin(layer, self._prompts[:n])
        if n < len(chunk.cells):
            args = tuple(self._narrowed(str(at), value, n) for at, value in enumerate(args))
            kwargs = {name: self._narrowed(name, value, n) for name, value in kwargs.items()}
            if isinstance(place, int):  # the states may hold fewer rows than the batch already
                args = (*args[:place], h[:n], *args[place + 1 :])
            else:
                kwargs[place] = h[:n]
        return args, kwargs, now.first(begun)

    def _count(self, layer: int, token_blocks: int) -> None:
        self.executed += token_blocks if layer < self._top else 0

    def leave(self, layer: int, h: Tensor, now: Pass) -> tuple[Tensor, Pass]:
        """Return a block's output with the rows that begin after it."""
        if self._chunk is None:
            return h, now
        before, after = self._chunk.begun[layer], self._chunk.begun[layer + 1]
        if after > before:
            new = self._joining(self._states[layer + 1], slice(before, after))
            h = torch.cat([h[:before], new.to(h.device)]) if before else new.to(h.device)
        return h, now.first(after)

    def _joining(self, states: Tensor, rows: slice) -> Tensor:
        assert self._chunk is not None
        prompts, back = self._prompts[rows].to(states.device), self._chunk.back
        if back is None:
            return states[:, -self._chunk.tokens :].index_select(0, prompts)
        return states[prompts, -1 - back[rows].to(states.device)][:, None]

    def _idle(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str, h: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments for the last token of the first row, which sees itself alone."""
        assert self._chunk is not None
        n = self._chunk.tokens
        args = tuple(_last_token(value, n) for value in args)
        kwargs = {name: _last_token(value, n) for name, value in kwargs.items()}
        if isinstance(place, int):
            return (*args[:place], h[:1, -1:], *args[place + 1 :]), kwargs
        return args, {**kwargs, place: h[:1, -1:]}

    def _narrowed(self, name: str, value: Any, n: int) -> Any:
        # Masks, positions and rotary angles may stand for all rows at once (first axis 1), and
        # another axis may by chance be as long as the batch: hence the names.
        if isinstance(value, Tensor):
            assert self._chunk is not None
            if value.ndim < 2 or value.shape[0] != len(self._chunk.cells):
                return value
            if self._known is not None and name not in self._known:
                return value
            self.found.add(name)
            return value[:n]
        if isinstance(value, tuple | list):
            parts = (self._narrowed(f"{name}.{at}", part, n) for at, part in enumerate(value))
            return type(value)(parts)
        if isinstance(value, dict):
            return {key: self._narrowed(f"{name}.{key}", part, n) for key, part in value.items()}
        return value


def _last_token(value: Any, n: int) -> Any:
    if isinstance(value, Tensor):
        if value.ndim == 4:  # a mask [row, head, query, key]
            return value[:1, :, -1:, -1:]
        if value.ndim >= 2 and value.shape[1] == n:  # positions and rotary angles
            return value[:1, -1:]
        return value
    if isinstance(value, tuple | list):
        return type(value)(_last_token(part, n) for part in value)
    if isinstance(value, dict):
        return {key: _last_token(part, n) for key, part in value.items()}
    return value
