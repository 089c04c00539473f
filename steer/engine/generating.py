"""Sweeps during generation: arms as rows of one cached batch that shares the prompts' prefill.

The prompts run once; each row's own prefill begins at its arm's first edit, and all rows decode
together, each under its own plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from steer.bookkeeping import Pass, Sequences
from steer.context import Run
from steer.engine.base import Asked, Base, Part, prompt_of, run_base
from steer.engine.climb import Climber
from steer.engine.plan import even, parts_of
from steer.engine.starts import Cells, cells_of, starts_of
from steer.engine.work import Task
from steer.generation import Generations, LogProbs, generate_declared
from steer.passes import cache_of_generate
from steer.sites import Site


def generate_cells(
    task: Task, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], seed: int | None
) -> list[Generations]:
    """Return the generations of every arm, one text per prompt each.

    Raises:
        NeverFired: an intervention of some arm saw no token in scope.
    """
    recorder, n = LogProbs(), len(task.rows)
    run = task.registry.climbing(task.wiring, [(Site.logits(), recorder.take)], None)
    longest = max(len(row) for row in task.rows) + int(options["max_new_tokens"])
    one = task.memory.kept(longest, 0, 1) + task.memory.row(longest, longest, 1)
    most = task.memory.budget // (2 * one)
    if most < 1:
        task.memory.refuse(2 * one)
    found: dict[tuple[int, int], tuple[list[int], Tensor | None]] = {}
    for numbers in parts_of([len(row) for row in task.rows], most * longest):
        part = Part.of(numbers, task.rows, task.pad)
        rows = [task.rows[at] for at in numbers]
        cells = cells_of(task.registry, part.rows, rows, task.n_arms, n)
        base, tokens = _begun(task, part, cells)
        for count in sorted(set(tokens.tolist())):
            mine = (tokens == count).nonzero()[:, 0]
            for group in mine.split(even(len(mine), most)):
                declared, cache = _declared(task, part, cells, base, (group, count))
                _count_shared(run, cells, group, count)
                run.start()
                try:
                    made = generate_declared(
                        task.registry, tokenizer, declared, {**options, **cache}, seed, recorder
                    )
                finally:
                    run.stop()
                found |= _by_cell(declared, made)
    run.work.require_fired()
    receipts = [
        replace(receipt, note=task.whole) for receipt in run.work.receipts(range(task.n_arms))
    ]
    return [_of_arm(arm, n, found, receipts[arm], tokenizer) for arm in range(task.n_arms)]


def _begun(task: Task, part: Part, cells: Cells) -> tuple[Base | None, Tensor]:
    """Return the base pass, and how many tokens of its prompt each cell runs itself."""
    if task.whole:
        return None, cells.lengths
    asked = Asked(task.scope, Site.logits(), (), task.patches)
    with torch.no_grad():
        base = run_base(task.registry, part, asked, Climber(task.n_layers), len(task.rows))
    starts = starts_of(task.wiring, cells, base, task.read, task.scope, task.n_layers)
    return base, starts.tokens.clamp(min=1)  # the last token runs in any case: it makes the first


def _declared(
    task: Task, part: Part, cells: Cells, base: Base | None, group: tuple[Tensor, int]
) -> tuple[Sequences, dict[str, object]]:
    """Return the rows of one generation, and the cache of what they share with the prompts."""
    numbers, tokens = group
    prompts = cells.prompts[numbers]
    before = part.columns - tokens
    shared = base is not None and bool(part.mask[prompts, :before].any())
    cache: dict[str, object] = {}
    if shared and base is not None and base.cache is not None:
        held = [
            (_own(layer.keys, prompts, before), _own(layer.values, prompts, before))  # type: ignore[union-attr]
            for layer in base.cache.layers
        ]
        cache = {cache_of_generate(task.registry.model): DynamicCache(held)}
    seen = part.columns if shared else int(cells.lengths[numbers].max())
    arms = cells.now.tokens.arms
    assert arms is not None
    prompt = prompt_of(part, prompts, seen)
    declared = Sequences(prompt, part.rows[prompts], len(task.rows), arms=arms[numbers])
    return declared, cache


def _own(states: Tensor | None, prompts: Tensor, n_columns: int) -> Tensor:
    assert states is not None
    return states[..., :n_columns, :].index_select(0, prompts.to(states.device))


def _count_shared(run: Run, cells: Cells, numbers: Tensor, tokens: int) -> None:
    """Count the tokens before each row's own, which nothing changes, as seen."""
    held, now = cells.now.tokens, cells.now
    shared = held.positions < (cells.lengths - tokens)[:, None]
    alone = torch.zeros(len(cells.prompts), dtype=torch.bool)
    alone[numbers] = True
    fresh = shared & alone[:, None]
    counted = Pass(held.counting(fresh), now.sequences)
    run.work.count(counted)


def _by_cell(
    declared: Sequences, made: tuple[list[list[int]], list[Tensor] | None]
) -> dict[tuple[int, int], tuple[list[int], Tensor | None]]:
    tokens, log_probs = made
    assert declared.arms is not None
    keys = zip(declared.arms.tolist(), declared.row_ids.tolist(), strict=True)
    return {
        key: (tokens[at], None if log_probs is None else log_probs[at])
        for at, key in enumerate(keys)
    }


def _of_arm(
    arm: int,
    n: int,
    found: Mapping[tuple[int, int], tuple[list[int], Tensor | None]],
    receipt: Any,
    tokenizer: PreTrainedTokenizerBase,
) -> Generations:
    mine: Sequence[tuple[list[int], Tensor | None]] = [found[arm, row] for row in range(n)]
    texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens, _ in mine]
    log_probs = [log for _, log in mine if log is not None]
    return Generations(texts, [tokens for tokens, _ in mine], log_probs or None, receipt)
