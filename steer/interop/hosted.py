"""A plan at work inside another library's hooks.

The passes are opened by our registry, the tensors come from the other library, and the edits are
our own `edit(h, step)`, applied by `steer.running`.
"""

from contextvars import Context
from itertools import groupby

import torch
from torch import Tensor

from steer.context import PASS, Run
from steer.models.layout import Layout
from steer.running import Pass
from steer.sites import AnySite
from steer.wiring import Key, Op


def current_pass(run: Run, context: Context | None = None) -> Pass | None:
    """Return the pass that is open under a run in a context (this one by default), or None."""
    held = PASS.get() if context is None else context.get(PASS, {})
    now, runs = held.get(id(run.registry), (None, ()))
    return now if run.open and any(other is run for other in runs) else None


def serve(run: Run, layout: Layout, key: Key, value: Tensor, now: Pass) -> Tensor:
    """Return a hook's tensor after every operation of the plan at that hook; itself if untouched.

    The same steps as `HookRegistry` takes at its own taps, for one run and without takers.
    """
    shape = now.tokens.positions.shape
    flat = value.ndim == 2 and value.shape[0] == shape[0] * shape[1]
    whole = new = value.unflatten(0, shape) if flat else value
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
    if new is whole:
        return value
    return new.flatten(0, 1) if flat else new


def _site(op: Op) -> AnySite:
    return op.site


def kept_columns(now: Pass, n_columns: int) -> Pass:
    """Return the pass restricted to its last columns, where logits exist only for those."""
    width = now.tokens.positions.shape[1]
    if n_columns == width:
        return now
    return Pass(now.tokens.columns(slice(width - n_columns, None)), now.sequences, reads={})
