"""Sweeps by hand-written hooks: a pass for every cell, or a batch of cells in every pass.

Each includes its own pass over the clean prompt. `last_only` asks the model for the logits of the
last token only (`logits_to_keep=1`), which a careful author does and most code does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.peers.hooks import Edit, input_edited, kept, output_edited, write

Metric = Callable[[Tensor], Tensor]
"""[row, vocab] logits of the last token to [row]."""
Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Two prompts [1, pos] that differ in one token, where to patch, and what to measure."""

    model: PreTrainedModel
    clean: Tensor
    corrupted: Tensor
    paths: Sequence[str]
    """A module of each block, whose input is patched."""
    metric: Metric


def path_loop(
    model: PreTrainedModel,
    ids: Tensor,
    path: str,
    points: Tensor,
    metric: Metric,
    *,
    last_only: bool,
) -> Run:
    """Return values [point, prompt]: for each point a pass of all prompts, written at the last."""

    def run() -> Tensor:
        values = []
        for point in points:
            with output_edited(model, path, write(-1, point)):
                values.append(metric(_last(model, ids, last_only=last_only)))
        return torch.stack(values)

    return run


def streams_loop(task: Task, *, last_only: bool) -> Run:
    """Return the map [layer, pos] of patching the stream into each block, a pass for each cell."""

    def run() -> Tensor:
        clean = _clean(task)
        rows = []
        for path in task.paths:
            edits = [write(at, clean[path][:, at]) for at in range(task.corrupted.shape[1])]
            rows.append(torch.cat([_cell(task, path, edit, last_only) for edit in edits]))
        return torch.stack(rows)

    return run


def streams_batched(task: Task, *, last_only: bool) -> Run:
    """Return the same map, all positions of a block as the rows of one pass."""
    n = task.corrupted.shape[1]
    ids = task.corrupted.expand(n, -1)
    every = torch.arange(n, device=ids.device)

    def run() -> Tensor:
        clean = _clean(task)

        def of_block(path: str) -> Tensor:
            def edit(h: Tensor) -> Tensor:
                h = h.clone()
                h[every, every] = clean[path][0]
                return h

            with input_edited(task.model, path, edit):
                return task.metric(_last(task.model, ids, last_only=last_only))

        return torch.stack([of_block(path) for path in task.paths])

    return run


def heads_loop(task: Task, n_heads: int, *, last_only: bool) -> Run:
    """Return the map [layer, head] of patching z at all positions, a pass for each cell."""

    def run() -> Tensor:
        clean = _clean(task)
        rows = []
        for path in task.paths:
            edits = [_head(clean[path], head, n_heads) for head in range(n_heads)]
            rows.append(torch.cat([_cell(task, path, edit, last_only) for edit in edits]))
        return torch.stack(rows)

    return run


def heads_batched(task: Task, n_heads: int, *, last_only: bool) -> Run:
    """Return the same map, all heads of a block as the rows of one pass."""
    ids = task.corrupted.expand(n_heads, -1)
    every = torch.arange(n_heads, device=ids.device)

    def run() -> Tensor:
        clean = _clean(task)

        def of_block(path: str) -> Tensor:
            def edit(z: Tensor) -> Tensor:
                split = z.clone().unflatten(-1, (n_heads, -1))
                source = clean[path].unflatten(-1, (n_heads, -1))
                split[every, :, every] = source[0].transpose(0, 1)
                return split.flatten(-2)

            with input_edited(task.model, path, edit):
                return task.metric(_last(task.model, ids, last_only=last_only))

        return torch.stack([of_block(path) for path in task.paths])

    return run


def _clean(task: Task) -> dict[str, Tensor]:
    with kept(task.model, task.paths, "input") as found:
        task.model(input_ids=task.clean, use_cache=False, logits_to_keep=1)
    return found


def _cell(task: Task, path: str, edit: Edit, last_only: bool) -> Tensor:
    with input_edited(task.model, path, edit):
        return task.metric(_last(task.model, task.corrupted, last_only=last_only))


def _head(clean: Tensor, head: int, n_heads: int) -> Edit:
    width = clean.shape[-1] // n_heads
    columns = slice(head * width, (head + 1) * width)

    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z[..., columns] = clean[..., columns]
        return z

    return edit


def _last(model: PreTrainedModel, ids: Tensor, *, last_only: bool) -> Tensor:
    # 0 stands for all logits, in transformers.
    out = model(input_ids=ids, use_cache=False, logits_to_keep=int(last_only))
    return out.logits[:, -1]
