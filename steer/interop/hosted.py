"""A plan at work inside another library's hooks: the passes are opened by our registry, the tensors
come from the other library, and the edits are our own `edit(h, step)`, applied by `steer.running`.
"""

from itertools import groupby

import torch
from torch import Tensor

from steer.context import PASS, Run
from steer.models.layout import Layout
from steer.running import Pass
from steer.wiring import Key, Op


def current_pass(run: Run) -> Pass | None:
    """Return the pass that is open in this context under a run, or None outside of any."""
    now, runs = PASS.get().get(id(run.registry), (None, ()))
    return now if run.open and any(other is run for other in runs) else None


def serve(run: Run, layout: Layout, key: Key, whole: Tensor, now: Pass) -> Tensor:
    """Return a hook's tensor after every operation of the plan at that hook.

    The same steps as `HookRegistry` takes at its own taps, for one run and without takers.
    """
    new = whole
    for site, ops in groupby(run.work.wiring.ops.get(key, ()), key=_site):
        tap = layout.tap(site)
        base = None if tap.base is None else now.bases[tap.base]
        part = tap.view.get(new)
        before = part if base is None else base + part
        h = before
        for op in ops:
            h = run.work.apply(op, h, now)
        if h is not before:
            changed = h if base is None else torch.where(h == before, part, part + (h - before))
            new = tap.view.put(new, changed)
    if key[1] == "input" and key[0] in run.bases:
        now.bases[key[0]] = new
    return new


def _site(op: Op) -> object:
    return op.site


def kept_columns(now: Pass, n_columns: int) -> Pass:
    """Return the pass restricted to its last columns, where logits exist only for those."""
    width = now.tokens.positions.shape[1]
    if n_columns == width:
        return now
    return Pass(now.tokens.columns(slice(width - n_columns, None)), now.sequences, reads={})
