"""The oracle of generation: a dense loop with hooks of its own, and nothing of steer in it.

One row at a time, no padding, no cache: the whole sequence is run again for every token, so a
column is a position and an edit "at position p" is `h[p]`. What generate does in any of its modes,
steered, has to equal this.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Edit = Callable[[Tensor, int], Tensor]
"""(h [pos, d_model], tokens of the prompt) -> h; the rows of h are the positions 0, 1, ..."""


@dataclass(frozen=True)
class Written:
    """What the loop wrote: new token ids, and the logits [step, vocab] each was chosen by."""

    tokens: list[int]
    logits: Tensor


class Dense:
    """The loop, and the hooks by which it edits block outputs."""

    @staticmethod
    def blocks(model: Any) -> nn.ModuleList:
        """Return the blocks of the six families, by hand."""
        for stack in ("model", "transformer", "gpt_neox"):
            if hasattr(model, stack):
                inner = getattr(model, stack)
                return inner.h if stack == "transformer" else inner.layers
        raise AssertionError(f"where are the blocks of {type(model).__name__}?")

    @contextmanager
    def editing(self, model: Any, edits: Sequence[tuple[int, Edit]], n: int) -> Iterator[None]:
        """Edit block outputs while whole unpadded sequences run, in every row alike."""

        def hook_of(edit: Edit) -> Callable[..., Any]:
            def hook(_module: nn.Module, _args: object, out: Any) -> Any:
                h = out if isinstance(out, Tensor) else out[0]
                new = torch.stack([edit(row.clone(), n) for row in h])
                return new if isinstance(out, Tensor) else (new, *out[1:])

            return hook

        blocks = self.blocks(model)
        handles = [blocks[at].register_forward_hook(hook_of(edit)) for at, edit in edits]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def forward(
        self, model: Any, ids: Sequence[int], edits: Sequence[tuple[int, Edit]], n: int
    ) -> Tensor:
        """Return logits [pos, vocab] of one row whose first n tokens are the prompt."""
        with self.editing(model, edits, n):
            return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]

    @torch.no_grad()
    def state(self, model: Any, ids: Sequence[int], layer: int) -> Tensor:
        """Return [pos, d_model], the unedited output of a block."""
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _args: object, out: Any) -> None:
            kept.append(out if isinstance(out, Tensor) else out[0])

        handle = self.blocks(model)[layer].register_forward_hook(keep)
        try:
            model(input_ids=torch.tensor([list(ids)]), use_cache=False)
        finally:
            handle.remove()
        return kept[0][0]

    def greedy(
        self,
        model: Any,
        prompt: Sequence[int],
        edits: Sequence[tuple[int, Edit]],
        n_new: int,
        end: int | None = None,
    ) -> Written:
        """Return the greedy continuation of one prompt, up to and with the end token."""
        ids, logits = list(prompt), []
        while len(logits) < n_new and not (logits and ids[-1] == end):
            logits.append(self.forward(model, ids, edits, len(prompt))[-1])
            ids.append(int(logits[-1].argmax()))
        return Written(ids[len(prompt) :], torch.stack(logits))


@pytest.fixture(scope="session")
def dense() -> Dense:
    """Return the oracle."""
    return Dense()
