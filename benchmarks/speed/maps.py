"""Patching maps: which state, and which head, carries the answer to the indirect-object question.

Wang et al. 2022 (arXiv:2211.00593). The clean prompt's activations are written into the corrupted
run, as TransformerLens' `patching` does; the metric is a logit difference at the last token.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.peers import sweeps, transformer_lens
from benchmarks.peers.bare import bare_twin
from benchmarks.result import Outcome
from benchmarks.speed.accounts import account, summed
from benchmarks.speed.harness import Pair, far, near, timed_outcome
from benchmarks.speed.inputs import forward, largest, worst
from benchmarks.stats import Number
from benchmarks.task import Options
from steer.interop import bridge_of
from steer.interventions.plans import Plan

CONTROLS = ("bare_over_bare",)
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Two rows of one length that differ in one token."""

    clean: list[int]
    corrupted: list[int]
    at: int
    """Where they differ: earlier positions are equal in both runs, so patching them does nothing.
    """

    def metric(self, logits: Tensor) -> Tensor:
        """Return [row]: the logit of the clean prompt's answer over the corrupted one's."""
        right, wrong = self.corrupted[self.at], self.clean[self.at]
        return logits[:, right] - logits[:, wrong]


def prompts_of(lm: steer.LM) -> Prompts:
    """Return the two prompts in a model's tokens.

    Where a tokenizer splits the names into unequal numbers of tokens, the corrupted prompt is the
    clean one with the first differing token exchanged: the work to be timed is the same.

    Raises:
        BenchmarkError: the tokenizer does not tell the prompts apart.
    """
    clean, corrupted = lm.rows([CLEAN, CORRUPTED])
    differing = [
        at for at, pair in enumerate(zip(clean, corrupted, strict=False)) if len({*pair}) > 1
    ]
    if not differing:
        raise BenchmarkError(
            f"The tokenizer of {lm.provenance.name} gives {CLEAN!r} and {CORRUPTED!r} the same "
            "tokens, so there is nothing to patch between them. Use another model."
        )
    at = differing[0]
    return Prompts(clean, [*clean[:at], corrupted[at], *clean[at + 1 :]], at)


@dataclass(frozen=True, slots=True, eq=False)
class Ways:
    """One map made in each way, [layer, pos] or [layer, head]."""

    swept: Callable[[], steer.Sweep]
    lens: Run
    loop: Run
    loop_last: Run
    batched: Run
    batched_last: Run


@torch.no_grad()
def measure_heatmap(lm: steer.LM, options: Options) -> Outcome:
    """Time the map of resid_pre, blocks by positions, made by steer.sweep and by others.

    All include the pass over the clean prompt; ours includes planning and the corrupted run's own
    pass as well.
    """
    prompts, model = prompts_of(lm), bare_twin(lm.model)
    sites = lm.sites("resid_pre")
    paths = [lm.registry.layout.tap(site).path for site in sites]
    task = _task(lm, model, prompts, paths)

    def arms() -> list[Plan]:
        acts = lm.capture([prompts.clean], sites, scope=steer.ALL)
        return [
            [steer.Patch(site, acts[site][:, at], scope=steer.at(at))]
            for site in sites
            for at in range(len(prompts.clean))
        ]

    bridge = bridge_of(lm)
    ways = Ways(
        lambda: _swept(lm, prompts, arms()),
        transformer_lens.patched_streams(bridge, task.clean, task.corrupted, _scalar(prompts)),
        sweeps.streams_loop(task, last_only=False),
        sweeps.streams_loop(task, last_only=True),
        sweeps.streams_batched(task, last_only=False),
        sweeps.streams_batched(task, last_only=True),
    )
    live = len(prompts.clean) - prompts.at
    closed = climbs(lm.n_layers) * live * (live + 1) // 2
    return _outcome(lm, model, ways, prompts, options, closed)


@torch.no_grad()
def measure_heads(lm: steer.LM, options: Options) -> Outcome:
    """Time the map of head outputs, blocks by heads, z patched at all positions."""
    prompts, model = prompts_of(lm), bare_twin(lm.model)
    sites = lm.sites("z")
    n_heads = lm.registry.layout.n_heads
    paths = [lm.registry.layout.tap(site).path for site in sites]
    task = _task(lm, model, prompts, paths)

    def arms() -> list[Plan]:
        acts = lm.capture([prompts.clean], sites, scope=steer.ALL)
        return [
            [steer.Patch(steer.Site(site.layer, "z", head), acts[site][:, :, head])]
            for site in sites
            for head in range(n_heads)
        ]

    bridge = bridge_of(lm)
    ways = Ways(
        lambda: _swept(lm, prompts, arms()),
        transformer_lens.patched_heads(bridge, task.clean, task.corrupted, _scalar(prompts)),
        sweeps.heads_loop(task, n_heads, last_only=False),
        sweeps.heads_loop(task, n_heads, last_only=True),
        sweeps.heads_batched(task, n_heads, last_only=False),
        sweeps.heads_batched(task, n_heads, last_only=True),
    )
    live = len(prompts.clean) - prompts.at
    closed = climbs(lm.n_layers) * n_heads * live
    return _outcome(lm, model, ways, prompts, options, closed)


def climbs(n_layers: int) -> int:
    """Return the sum over all starting blocks of the blocks from there on."""
    return n_layers * (n_layers + 1) // 2


def _task(
    lm: steer.LM, model: PreTrainedModel, prompts: Prompts, paths: Sequence[str]
) -> sweeps.Task:
    clean, corrupted = (
        torch.tensor([row], device=lm.device) for row in (prompts.clean, prompts.corrupted)
    )
    return sweeps.Task(model, clean, corrupted, paths, prompts.metric)


def _swept(lm: steer.LM, prompts: Prompts, arms: Sequence[Plan]) -> steer.Sweep:
    def measure(logits: Tensor, _: object) -> Tensor:
        return prompts.metric(logits)

    return steer.sweep(lm, [prompts.corrupted], arms, measure, scope=steer.LAST)


def _scalar(prompts: Prompts) -> Callable[[Tensor], Tensor]:
    # TransformerLens hands over [batch, pos, vocab] and wants one number.
    return lambda logits: prompts.metric(logits[:, -1])[0]


def _outcome(
    lm: steer.LM,
    model: PreTrainedModel,
    ways: Ways,
    prompts: Prompts,
    options: Options,
    closed: int,
) -> Outcome:
    """Time every way.

    `closed`: token-blocks by the formula, every block with every position from the first differing
    token on. The live minimum is below it where a patch of block 0 writes an equal embedding.
    """
    found = account(lm, ways.swept())
    by_loop = ways.loop()

    def ours() -> Tensor:
        return ways.swept().values[:, 0].reshape(by_loop.shape)

    others = {"lens": ways.lens, "batched": ways.batched}
    made = ours()
    equality = {"loop": largest(made, by_loop)}
    equality |= {name: largest(made, run()) for name, run in others.items()}
    task_ids = torch.tensor([prompts.corrupted], device=lm.device)
    second = bare_twin(lm.model)
    n = far(options)
    pairs = {
        "lens_over_ours": Pair(ways.lens, ours, n),
        "loop_over_ours": Pair(ways.loop, ours, n),
        "loop_last_over_ours": Pair(ways.loop_last, ours, n),
        "batched_over_ours": Pair(ways.batched, ours, n),
        "batched_last_over_ours": Pair(ways.batched_last, ours, n),
        "bare_over_bare": Pair(forward(second, task_ids), forward(model, task_ids), near(options)),
    }
    return timed_outcome(
        pairs,
        options,
        device=lm.device,
        controls=CONTROLS,
        facts={
            "max_abs_diff": worst(equality),
            **summed([found]),
            "token_blocks_minimum": Number(float(closed)),
            "token_blocks_live_minimum": Number(float(found.minimum)),
        },
        tables={
            "equality": equality,
            "token_blocks": asdict(found),
            "range_of_the_map": [float(made.min()), float(made.max())],
        },
        specs={
            "clean": CLEAN,
            "corrupted": CORRUPTED,
            "tokens": len(prompts.clean),
            "live_tokens": len(prompts.clean) - prompts.at,
            "cells": list(by_loop.shape),
        },
    )
