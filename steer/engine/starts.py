"""Where each arm begins at each prompt, and which cells need not run at all.

An intervention that writes what is there already changes nothing, and neither does one after what
is measured: such cells have exactly the values of the prompts as they are (causal attention).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer.bookkeeping import Pass, Sequences
from steer.engine.base import Base
from steer.engine.plan import Starts
from steer.interventions.arithmetic import Relative
from steer.interventions.patch import Patch
from steer.registry import HookRegistry
from steer.scopes import Scope
from steer.sites import AnySite, Site
from steer.tokens import Prompt, Tokens
from steer.wiring import Edit, Op, Wiring


def block_of(site: AnySite, n_layers: int) -> int:
    """Return the block before which (or within which) a site lies; n_layers for the read-out."""
    if not isinstance(site, Site):
        return 0  # where a raw module stands in the pass is not known
    if site.component in ("ln_final", "logits"):
        return n_layers
    if site.layer is None:
        return 0
    return site.layer + 1 if site.component == "resid_post" else site.layer


def within_block(site: AnySite) -> bool:
    """Say whether a site lies inside its block, which must run for it (not before or after)."""
    if not isinstance(site, Site) or site.layer is None:
        return False
    return site.component not in ("resid_pre", "resid_post")


def comes_before(site: AnySite, read: AnySite) -> bool:
    """Say whether what happens at a site can be seen where it is measured."""
    if not isinstance(site, Site) or not isinstance(read, Site):
        return True
    return site.order <= read.order


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Every arm at every prompt of a part, arm by arm, as rows of one pass that is never run."""

    now: Pass
    prompts: Tensor
    """[cell]: number within the part."""
    lengths: Tensor
    """[cell]: tokens of the prompt."""


def cells_of(
    registry: HookRegistry,
    base_rows: Tensor,
    rows: Sequence[Sequence[int]],
    n_arms: int,
    n: int,
    declared: Tensor | None = None,
) -> Cells:
    """Return the cells of some prompts.

    Args:
        registry: decodes text scopes.
        base_rows: [prompt], their numbers among all prompts.
        rows: their token ids.
        n_arms: how many arms.
        n: how many prompts there are in all.
        declared: [prompt], tokens that count as prompt; None for all.
    """
    width = max(len(row) for row in rows)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(width) < lengths[:, None]
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    prompts = torch.arange(len(rows)).repeat(n_arms)
    arms = torch.arange(n_arms).repeat_interleave(len(rows))
    known = None if declared is None else declared[prompts]
    prompt = Prompt(mask[prompts], ids[prompts], known)
    tokens = Tokens(
        prompt.positions(0, width),
        base_rows[prompts],
        prompt.lengths,
        prompt.ids,
        prompt,
        registry.decode,
        arms=arms,
    )
    now = Pass(tokens, Sequences(prompt, tokens.rows, n, arms=arms))
    return Cells(now, prompts, lengths[prompts])


def starts_of(
    wiring: Wiring, cells: Cells, base: Base | None, read: AnySite, scope: Scope, n_layers: int
) -> Starts:
    """Return where each cell begins.

    Args:
        wiring: of all arms.
        cells: of the prompts of one part.
        base: what a Patch is compared with; None to take every Patch for alive.
        read: where it is measured.
        scope: at which tokens.
        n_layers: blocks of the model.
    """
    n = len(cells.prompts)
    block = torch.full((n,), n_layers)
    first = cells.lengths.clone()
    for op in (op for ops in wiring.ops.values() for op in ops):
        if not comes_before(op.site, read):
            continue
        mask = _live(op, cells, base)
        has = mask.any(1)
        place = block_of(op.site, n_layers)
        at = mask.to(torch.uint8).argmax(1)
        if not isinstance(op.site, Site):
            at = torch.zeros_like(first)  # nor is it known that it only looks back
        block = torch.where(has, block.clamp(max=place), block)
        first = torch.where(has, torch.minimum(first, at), first)
    measured = cells.now.select(scope, None).mask
    columns = torch.arange(measured.shape[1])
    last = torch.where(measured, columns, -1).max(1).values
    tokens = torch.where(first <= last, cells.lengths - first, 0)
    return Starts(block, tokens)


def _live(op: Op, cells: Cells, base: Base | None) -> Tensor:
    """Return [cell, pos] bool: tokens that an operation may change, or that it reads."""
    now = cells.now
    if not isinstance(op, Edit):
        return now.select(op.read.scope, op.rows).mask
    chosen = now.chosen(op).mask
    if isinstance(op.item, Patch) and base is not None and op.site in base.values:
        return chosen & _changed(op, op.item, cells, base)
    strength = getattr(op.item, "strength", 1.0)
    strength = strength.multiple if isinstance(strength, Relative) else strength
    if isinstance(strength, Tensor):
        rows = _places(op, now.tokens)
        return chosen & (strength.cpu()[rows] != 0)[:, None]
    return chosen if strength != 0 else torch.zeros_like(chosen)


def _places(op: Edit, tokens: Tokens) -> Tensor:
    """Return [cell]: where in an operation's row-wise values each cell's own are."""
    if op.stack is None:
        return tokens.rows
    assert op.member is not None
    return op.stack.rows(tokens.of(op.member).clamp(min=0), tokens.rows)


def _changed(op: Edit, patch: Patch, cells: Cells, base: Base) -> Tensor:
    """Return [cell, pos] bool: tokens in scope at which a patch differs from what is there."""
    now = cells.now
    row, column = now.chosen(op).mask.nonzero(as_tuple=True)
    before = base.at(op.site, cells.prompts[row], column)[:, None]
    step = now.step(before.device)
    if patch.tokens_per_row is not None:
        step = replace(step, rank=now.ranks(op).to(before.device))
    step = replace(step, rows=_places(op, now.tokens).to(before.device))
    there = step.gather(row.to(before.device), column.to(before.device))
    differs = _beyond_rounding(patch.edit(before, there), before).cpu()
    found = torch.zeros_like(now.chosen(op).mask)
    return found.index_put((row, column), differs)


ROUNDING = 2e-6
"""Of a token's norm: what fp32 states differ by when they were computed in another batch."""


def _beyond_rounding(after: Tensor, before: Tensor) -> Tensor:
    """Return [token] bool: another state, not the same one computed in another batch.

    A source is captured in a batch of its own, so that equal states may differ in their last bits.
    Half precision rounds so coarsely that only equal bits count as equal there.
    """
    change = (after.float() - before.float()).flatten(1).norm(dim=1)
    limit = ROUNDING if before.dtype.itemsize >= 4 else 0.0
    return ~(change <= limit * before.float().flatten(1).norm(dim=1))
