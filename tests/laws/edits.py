"""Laws of the pure edit, on tensors alone: no model runs here."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import cast

import torch
from torch import Tensor

import steer
from steer import Step
from steer.interventions.recipe import Recipe, walk
from steer.protocols import Intervention
from tests.laws.interventions import KEEPING, WITHOUT_STRENGTH, Setting, Wanted, make
from tests.laws.running import gap, same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = (3, 4, 5)
N_TOKENS = 4


def law_an_edit_is_pure(setting: Setting, name: str) -> None:
    """The input and the recipe's own tensors keep their bits; shape, dtype and device are kept."""
    item = make(name, Wanted(setting, ROWS))
    held = [(tensor, tensor.clone()) for tensor in _tensors(item)]
    for dtype in DTYPES:
        h, step = _stream(setting, dtype), _step(setting, item)
        before = h.clone()
        after = item.edit(h, step)
        alike = after.dtype == dtype and after.shape == h.shape and after.device == h.device
        assert alike, f"{name} turns {dtype} {list(h.shape)} into {after.dtype} {list(after.shape)}"
        assert same_bits(h, before), f"{name} writes into its {dtype} input"
        assert bool(torch.isfinite(after).all()), f"{name} makes {dtype} NaN or infinite"
    assert all(same_bits(*pair) for pair in held), f"{name} writes into its own tensors"


def law_an_edit_edits(setting: Setting, name: str) -> None:
    """What is not made to keep the stream changes every token, with its gate open."""
    item = make(name, Wanted(setting, ROWS))
    h = _stream(setting, torch.float32)
    after = item.edit(h, _step(setting, item))
    if name in KEEPING:
        assert same_bits(after, h), f"{name} changes the stream"
    else:
        assert bool((after != h).any(-1).all()), f"{name} leaves tokens as they were"


def law_strength_0_keeps_the_bits(setting: Setting, name: str) -> None:
    """Strength 0 selects the untouched bits, -0.0 too, also inside When and PreserveNorm."""
    if name in WITHOUT_STRENGTH:
        return
    item = make(name, Wanted(setting, ROWS, strength=0.0))
    read = steer.Read(setting.reads, setting.probe)
    wrapped = [item, steer.PreserveNorm(item), steer.When(read, steer.PreserveNorm(item), 0.0)]
    for dtype in DTYPES:
        h = _stream(setting, dtype)
        for each in wrapped:
            after = each.edit(h, _step(setting, each))
            assert same_bits(after, h), f"{name} at strength 0 in {each!r} changes {dtype} bits"


def law_a_row_of_strength_0_keeps_its_bits(setting: Setting, name: str) -> None:
    """A tensor of strengths leaves the rows that have 0 alone, to the bit, and edits the others."""
    if name in WITHOUT_STRENGTH or name not in _PLAIN:
        return
    item = make(name, Wanted(setting, ROWS))
    amount = torch.tensor([0.0, 1.0, 0.0], device=setting.lm.device)
    mixed = replace(cast("steer.Add", item), strength=amount)  # any of them: all have a strength
    for dtype in DTYPES:
        h = _stream(setting, dtype)
        after = mixed.edit(h, _step(setting, mixed))
        assert same_bits(after[::2], h[::2]), f"{name}: rows of strength 0 change {dtype} bits"
        assert bool((after[1] != h[1]).any()), f"{name}: the row of strength 1 is not edited"


def law_a_gathered_token_is_edited_as_in_its_row(setting: Setting, name: str) -> None:
    """Editing tokens one by one gives what editing whole rows gives."""
    item = make(name, Wanted(setting, ROWS))
    if any(isinstance(part, steer.Custom) for part in walk(item)):
        return  # told to be given whole rows
    h, step = _stream(setting, torch.float32), _step(setting, item)
    row, column = torch.meshgrid(torch.arange(len(ROWS)), torch.arange(N_TOKENS), indexing="ij")
    row, column = row.flatten().flip(0), column.flatten().flip(0)
    alone = item.edit(h[row, column][:, None], step.gather(row, column))[:, 0]
    together = item.edit(h, step)[row, column]
    # Matrix products of other shapes add up in another order: rounding of fp32 sums of 64 terms.
    limit = 1e-5 * float(together.abs().max())
    assert gap(alone, together) <= limit, f"{name} edits a token otherwise than its row"


EDIT_LAWS = (
    law_an_edit_is_pure,
    law_an_edit_edits,
    law_strength_0_keeps_the_bits,
    law_a_row_of_strength_0_keeps_its_bits,
    law_a_gathered_token_is_edited_as_in_its_row,
)
"""Each takes a setting and the name of one factory."""

_PLAIN = frozenset(
    {
        "add",
        "ablate",
        "clamp",
        "clamp-rows",
        "scale",
        "scale-rows",
        "rotate",
        "rotate-rows",
        "affine",
        "follow-rows",
        "dual-rows",
        "move-to",
        "move-to-transport",
        "move-to-rows",
        "move-along",
        "move-along-replace",
        "move-along-rows",
        "snap",
    }
)
"""Factories whose value has a field `strength` of its own."""


def _stream(setting: Setting, dtype: torch.dtype) -> Tensor:
    """Return [row, pos, d_model] states, with exact zeros of both signs among them."""
    h = setting.states[: len(ROWS) * N_TOKENS].unflatten(0, (len(ROWS), N_TOKENS)).to(dtype)
    h = h.clone()
    h[..., 3:20:2] = -0.0
    h[..., 4:20:2] = 0.0
    return h


def _step(setting: Setting, item: Intervention) -> Step:
    """Return a step in which every gate is open at every token."""
    device = setting.lm.device
    positions = torch.arange(N_TOKENS, device=device).expand(len(ROWS), N_TOKENS)
    n = torch.full((len(ROWS),), N_TOKENS, device=device)
    reads: dict[object, Tensor] = {}
    for part in walk(item):
        for read, latch in part.reads() if isinstance(part, Recipe) else ():
            width = 1 if latch == "prompt" else N_TOKENS
            reads[read, latch] = torch.full((len(ROWS), width), 1e3, device=device)
        evidence = getattr(part, "evidence", None)
        if isinstance(evidence, steer.belief.Count):
            reads[evidence, "prompt"] = torch.full((len(ROWS), 1), 2.0, device=device)
    rows = torch.arange(len(ROWS), device=device)
    return Step(positions, rows, n, "prompt", None, (positions - 1).clamp(0, 1), reads)


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield every tensor that a recipe holds directly or through what it wraps."""
    for part in walk(value):
        for field in fields(cast("steer.Add", part)):
            held = getattr(part, field.name)
            if isinstance(held, Tensor):
                yield held
