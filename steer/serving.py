"""What one hook does with its tensor: the operations of every run at its taps, then the takers.

Used by our own hooks and inside other libraries' (`steer.interop`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from steer.bookkeeping import Pass
from steer.context import Run
from steer.models.layout import Tap
from steer.sites import AnySite, Site
from steer.wiring import Key, Op

Place = tuple[float, int, str]
"""Where in a pass a site is; sites that share a tensor at one place share a Place."""


def serve(key: Key, value: Tensor, now: Pass, runs: Sequence[Run]) -> Tensor:
    """Return a hook's tensor after every operation at that hook; itself if untouched."""
    shape = now.tokens.positions.shape
    flat = value.ndim == 2 and value.shape[0] == shape[0] * shape[1]
    h = value.unflatten(0, shape) if flat else value
    new = h
    ops = [op.site for run in runs for op in run.work.wiring.ops.get(key, ())]
    taken = [site for run in runs for site, _, _ in run.takers.get(key, ())]
    for place in sorted({_place(site) for site in (*ops, *taken)}):
        new = _serve_place(place, key, new, now, runs)
    if key[1] == "input" and any(key[0] in run.bases for run in runs):
        now.bases[key[0]] = new
    if new is h:
        return value
    return new.flatten(0, 1) if flat else new


def _serve_place(place: Place, key: Key, whole: Tensor, now: Pass, runs: Sequence[Run]) -> Tensor:
    # All heads and one head are the same place: in the order of the plan, and taken after it.
    for run in runs:
        for op in run.work.wiring.ops.get(key, ()):
            if _place(op.site) == place:
                whole = _apply(run, op, whole, now)
    for run in runs:
        for site, tap, taker in run.takers.get(key, ()):
            if _place(site) == place:
                taker(site, _value(tap, whole, now), now)
    return whole


def _apply(run: Run, op: Op, whole: Tensor, now: Pass) -> Tensor:
    tap = run.work.wiring.taps[op.site]
    before = _value(tap, whole, now)
    h = run.work.apply(op, before, now)
    if h is before:
        return whole
    if tap.base is not None:
        # resid_mid is a sum that no module returns: write the difference into its last summand.
        part = tap.view.get(whole)
        moved = part + (h - before)
        # A choice would cut the gradient of an edit that adds a zero; bits matter where none flows.
        h = moved if h.requires_grad else torch.where(h == before, part, moved)
    return tap.view.put(whole, h)


def _place(site: AnySite) -> Place:
    return (*site.order, "") if isinstance(site, Site) else (-2.0, 0, str(site))


def _value(tap: Tap, whole: Tensor, now: Pass) -> Tensor:
    part = tap.view.get(whole)
    return part if tap.base is None else now.bases[tap.base] + part
