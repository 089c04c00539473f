"""Interventions as the contents of fixed buffers: what a compiled graph can be steered by.

An intervention that is affine in each token's state becomes a row of numbers (`Terms`); `Buffers`
hold them at fixed addresses and apply them. No model, no hook: `steer.compiled` registers
`Buffers.edited` at the sites. What runs inside a graph is marked no_type_check, because a run-time
checker of shapes cannot be traced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast, no_type_check

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions.arithmetic import Number, Relative, Strength, precise
from steer.interventions.linear import Ablate, Add, Affine, Clamp, Rotate, Scale
from steer.interventions.plans import Plan, Rows, as_items
from steer.protocols import Intervention
from steer.sites import Site


class Terms(NamedTuple):
    """One affine edit: h + strength * (gain h + length shift + (h read^T + offset) write).

    length is the token's own norm where `relative`, else 1. The first axis is one entry for each
    row of the batch, or a single one for all rows.
    """

    strength: Tensor
    """[row]; 0 selects the untouched bits."""
    relative: Tensor
    """[row] bool."""
    gain: Tensor
    """[row, d]: the factor of each coordinate, less 1."""
    shift: Tensor
    """[row, d]"""
    read: Tensor
    """[row, k, d]"""
    offset: Tensor
    """[row, k]"""
    write: Tensor
    """[row, k, d]"""


def lower(item: Intervention, width: int, dtype: torch.dtype) -> Terms:
    """Return the terms of an intervention at a site of this width, on the host.

    Raises:
        PlanError: it is not affine in each token's state.
    """
    rule = RULES.get(type(item))
    if rule is None:
        raise refusal(item)
    return rule(item, width, dtype)


def refusal(item: Intervention) -> PlanError:
    """Return the error that says why an intervention cannot run compiled."""
    return PlanError(
        f"{item!r} cannot run compiled: a compiled graph is steered by the contents of buffers, "
        "and those hold only what is affine in each token's own state "
        f"({', '.join(kind.__name__ for kind in RULES)}). Use lm.attached(plan) or "
        "lm.generate(prompts, plan), which run every kind."
    )


def _terms(
    width: int,
    dtype: torch.dtype,
    *,
    strength: Strength = 1.0,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    read: Tensor | None = None,
    offset: Tensor | None = None,
    write: Tensor | None = None,
) -> Terms:
    # What is not given is absent: zero.
    relative = isinstance(strength, Relative)
    amount = strength.multiple if isinstance(strength, Relative) else strength
    none = torch.zeros(1, 0, width)

    def host(values: Tensor | Number | None, like: Tensor) -> Tensor:
        return torch.as_tensor(like if values is None else values).detach().to("cpu", dtype)

    k = 0 if read is None else read.shape[-2]
    return Terms(
        host(amount, none).reshape(-1),
        torch.tensor([relative]),
        host(gain, torch.zeros(1, width)),
        host(shift, torch.zeros(1, width)),
        host(read, none),
        host(offset, torch.zeros(1, k)),
        host(write, none),
    )


def _column(values: Number | Tensor, dtype: torch.dtype) -> Tensor:
    # [row, 1], or [1, 1] for a number.
    return torch.as_tensor(values).detach().to("cpu", dtype).reshape(-1, 1)


def _add(item: Add, width: int, dtype: torch.dtype) -> Terms:
    direction = precise(item.direction)
    if isinstance(item.strength, Relative):
        direction = direction / direction.norm()
    return _terms(width, dtype, strength=item.strength, shift=direction[None])


def _ablate(item: Ablate, width: int, dtype: torch.dtype) -> Terms:
    basis = item.basis[None]
    return _terms(width, dtype, strength=item.strength, read=basis, write=-basis)


def _clamp(item: Clamp, width: int, dtype: torch.dtype) -> Terms:
    basis = item.direction[None, None]
    offset = -_column(item.to, dtype)
    return _terms(width, dtype, strength=item.strength, read=basis, offset=offset, write=-basis)


def _scale(item: Scale, width: int, dtype: torch.dtype) -> Terms:
    gain = (_column(item.factor, dtype) - 1.0).expand(-1, width)
    return _terms(width, dtype, strength=item.strength, gain=gain)


def _rotate(item: Rotate, width: int, dtype: torch.dtype) -> Terms:
    # The strength multiplies the angle, so it is in the numbers; an angle of 0 writes zeros.
    assert not isinstance(item.strength, Relative)
    turn = _column(item.angle, dtype) * _column(item.strength, dtype)
    cos, sin = turn.cos() - 1, turn.sin()
    plane = item.plane.detach().to("cpu", dtype)
    mixed = torch.cat([cos, sin, -sin, cos], dim=1).reshape(-1, 2, 2)
    return _terms(width, dtype, read=plane[None], write=mixed @ plane)


def _affine(item: Affine, width: int, dtype: torch.dtype) -> Terms:
    gain = precise(item.scale).to(dtype)[None] - 1.0
    return _terms(width, dtype, strength=item.strength, gain=gain, shift=item.shift[None])


RULES: dict[type, Callable[[Any, int, torch.dtype], Terms]] = {
    Add: _add,
    Ablate: _ablate,
    Clamp: _clamp,
    Scale: _scale,
    Rotate: _rotate,
    Affine: _affine,
}


@no_type_check
def moved(h: Tensor, mask: Tensor, terms: Terms) -> Tensor:
    """Return h [row, pos, d] with the edit where the mask [row, pos] says so.

    Everywhere else, and where the strength or the delta is 0, the bits of h are selected.
    """
    x = h.to(terms.gain.dtype)
    length = torch.where(terms.relative[:, None], x.norm(dim=-1), 1.0)
    delta = terms.gain[:, None] * x + length[..., None] * terms.shift[:, None]
    if terms.read.shape[1]:
        seen = x @ terms.read.transpose(1, 2) + terms.offset[:, None]
        delta = delta + seen @ terms.write
    small = (terms.strength[:, None, None] * delta).to(h.dtype)
    chosen = (mask & (terms.strength != 0)[:, None])[..., None]
    return torch.where(chosen & (small != 0), h + small, h)


@dataclass(frozen=True, slots=True, eq=False)
class Buffers:
    """The numbers of one site, at addresses that never change: a compiled graph reads them.

    The first axis counts slots: edits one after the other. The second is the row of the batch.
    """

    mask: Tensor
    """[slot, row, pos] bool: the tokens of the pass to edit."""
    strength: Tensor
    relative: Tensor
    gain: Tensor
    shift: Tensor
    read: Tensor
    offset: Tensor
    write: Tensor
    n_edited: Tensor
    """[slot, row]: tokens whose bits were changed, since `clear`."""
    size: Tensor
    """[slot, row]: sum of |change| / |state before| over them."""

    @classmethod
    def beside(cls, mask: Tensor, width: int, rank: int, dtype: torch.dtype) -> "Buffers":
        """Return empty buffers beside a mask [slot, row, pos]."""

        def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            made = torch.zeros(*mask.shape[:2], *shape, dtype=kind, device=mask.device)
            return fixed(made)

        return cls(
            fixed(mask),
            zeros(),
            zeros(kind=torch.bool),
            zeros(width),
            zeros(width),
            zeros(rank, width),
            zeros(rank),
            zeros(rank, width),
            zeros(kind=torch.float32),
            zeros(kind=torch.float32),
        )

    def clear(self) -> None:
        """Set everything to 0: no edit, nothing counted."""
        for f in fields(self):
            getattr(self, f.name).zero_()

    def put(self, slot: int, rows: Tensor, terms: Terms) -> None:
        """Write terms into one slot, for some rows [n] of the batch."""
        for name, values in zip(Terms._fields, terms, strict=True):
            buffer: Tensor = getattr(self, name)[slot]
            for_each = values.shape[0] > 1
            to = rows[rows < values.shape[0]] if for_each else rows
            mine = (values[to] if for_each else values).to(buffer.device)
            part = buffer[:, : mine.shape[1]] if name in ("read", "offset", "write") else buffer
            part[to.to(buffer.device)] = mine.expand(len(to), *mine.shape[1:])

    @no_type_check
    def edited(self, h: Tensor) -> Tensor:
        """Return h [row, pos, d] after every slot, and count what changed."""
        n_rows, n_columns = h.shape[:2]
        for slot in range(self.mask.shape[0]):
            terms = Terms(*[getattr(self, name)[slot, :n_rows] for name in Terms._fields])
            new = moved(h, self.mask[slot, :n_rows, :n_columns], terms)
            before, after = h.detach().float(), new.detach().float()
            change = (after - before).norm(dim=-1)
            ratio = torch.where(change > 0, change / before.norm(dim=-1).clamp(min=1e-30), 0.0)
            self.n_edited[slot, :n_rows].add_((change > 0).float().sum(1))
            self.size[slot, :n_rows].add_(ratio.sum(1))
            h = new
        return h


def fixed(buffer: Tensor) -> Tensor:
    """Mark a tensor as one that keeps its address.

    CUDA graphs would else copy it in at every step, and refuse to write it.
    """
    torch._dynamo.mark_static_address(buffer)
    return buffer


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One intervention in one slot of its site, for some rows."""

    item: Intervention
    line: int
    """Its line in the receipt."""
    site: Site
    slot: int
    rows: Tensor
    """[n]: rows of the user's batch."""
    every: bool
    """It is meant for every row."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes for which a session has buffers.

    Raises:
        PlanError: a size below 1.
    """

    batch: int
    tokens: int
    slots: int
    rank: int

    def __post_init__(self) -> None:
        """Check the sizes."""
        for f in fields(self):
            if getattr(self, f.name) < 1:
                raise PlanError(
                    f"{f.name}={getattr(self, f.name)} leaves no room for any edit: it is a size "
                    "of buffers. Give a number from 1 up."
                )


def places_of(
    plan: Plan, lines: Sequence[Intervention], sites: Sequence[Site], limits: Limits
) -> list[Place]:
    """Return where each intervention of a plan goes: the first free slot of its site in each row.

    Raises:
        PlanError: a kind that cannot run compiled, a site that was not asked for, more edits at
            one site or more plans than there is room for.
    """
    number = {id(item): line for line, item in enumerate(lines)}
    for item in lines:
        if type(item) not in RULES:
            raise refusal(item)
        if item.site not in sites:
            raise PlanError(
                f"{item!r} acts at {item.site}, but this session was opened for "
                f"{', '.join(map(str, sites))}. A compiled graph holds only what was there when it "
                "was made. Name every site in steer.compiled(lm, sites)."
            )
    if isinstance(plan, Rows):
        limits_exceeded("rows", len(plan), limits.batch, "batch")
        lists = [(torch.tensor([row]), items) for row, items in enumerate(plan.plans)]
    else:
        lists = [(torch.arange(limits.batch), as_items(plan))]
    found: dict[tuple[int, int], list[Tensor]] = {}
    known = {id(item): item for item in lines}
    for rows, items in lists:
        used: dict[object, int] = {}
        for item in items:
            slot = used.get(item.site, 0)
            used[item.site] = slot + 1
            found.setdefault((id(item), slot), []).append(rows)
        for site, n in used.items():
            limits_exceeded(f"edits at {site}", n, limits.slots, "slots")
    every = not isinstance(plan, Rows)
    return [
        Place(known[key], number[key], cast("Site", known[key].site), slot, torch.cat(rows), every)
        for (key, slot), rows in found.items()
    ]


def limits_exceeded(what: str, n: int, limit: int, name: str) -> None:
    """Refuse what does not fit into the buffers.

    Raises:
        PlanError: names the limit.
    """
    if n > limit:
        raise PlanError(
            f"{n} {what} were asked for, but this session has room for {limit}: its buffers keep "
            f"their addresses, so they cannot grow. Use steer.compiled(lm, sites, {name}={n})."
        )
