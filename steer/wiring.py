"""From plans to operations at taps: everything that can be refused is refused here, at attach.

Pure: takes plans and a layout, touches no module. Reads come just before the first intervention
that needs them, so that a reading sees the stream as that intervention would. Interventions of one
kind that belong to different rows become one tensor operation (`steer.interventions.stacked`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.admission import (
    blame,
    check_order,
    check_widths,
    outcomes_of,
    reads_of,
    refuse_pattern,
    refuse_read_only,
    sites_of,
)
from steer.errors import PlanError
from steer.interventions.believed import Believed, Control, Forecast
from steer.interventions.gates import Monitor, Read, When
from steer.interventions.patch import Patch
from steer.interventions.plans import Plan, Rows, items_of
from steer.interventions.recipe import Recipe, on_device, row_counts_of, walk
from steer.interventions.stacked import Stack, exact_signature, signature, stack
from steer.interventions.wrap import Custom
from steer.models.layout import Layout, Tap
from steer.protocols import Intervention
from steer.scopes import Scope, require_scope
from steer.sites import AnySite, Site, require_sites


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One operation at its tap: an intervention, or several of one kind, each for its own rows."""

    lines: tuple[int, ...]
    """The line in the receipt of each member."""
    site: AnySite
    item: Intervention
    asked: tuple[tuple[Scope, Tensor | None], ...]
    """The scopes of the members, each with the rows [arm, batch] that ask for it; None: all."""
    member: Tensor | None
    """[arm, batch] on the host: which member each row has, -1 for none; None: all have the one."""
    stack: Stack | None
    """How a row finds its values in `item`, where it stands for several."""
    whole: bool
    """Must be given whole rows (Custom), not gathered tokens."""
    gates: tuple[When, ...]
    monitor: Read | None
    patches: tuple[Patch, ...]
    believed: Believed | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One Read at its tap."""

    site: AnySite
    read: Read
    latched: bool
    """Some gate needs its value at the end of the prompt."""
    rows: Tensor | None = None
    """[arm, batch] bool on the host: the rows whose plans need it; None means every row."""
    notes: tuple[tuple[int, Tensor | None], ...] = ()
    """Lines of the receipt to which its values belong as the outcome, each with its rows."""


Op = Edit | Reading
Key = tuple[str, str]
"""(module path, side): what one hook serves."""


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """A plan wired to a model: what each hook has to do, in order."""

    items: tuple[Intervention, ...]
    """The receipt's lines: the user's interventions in order, each once in every arm."""
    arms: tuple[int, ...]
    """The arm of each line."""
    taps: Mapping[AnySite, Tap]
    ops: Mapping[Key, tuple[Op, ...]]
    """By hook, ordered by site in the pass and then by the plan."""
    bases: frozenset[str]
    """Blocks whose input must be kept for resid_mid."""
    n_rows: int | None
    """Rows of the batch where the plan fixes it."""
    row_counts: tuple[tuple[str, int], ...]

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Every edit, hook by hook."""
        return tuple(op for ops in self.ops.values() for op in ops if isinstance(op, Edit))


DeviceOf = Callable[[Tap], torch.device]


def wire(plan: Plan, layout: Layout, device_of: DeviceOf) -> Wiring:
    """Return the wiring of a plan.

    Raises:
        SiteNotFound: a site that the model lacks.
        WidthMismatch: a tensor of another width than its site.
        PlanError: a gate that reads later than it must act; a malformed plan.
    """
    return wire_arms([plan], layout, device_of)


def wire_arms(arms: Sequence[Plan], layout: Layout, device_of: DeviceOf) -> Wiring:
    """Return the wiring of several plans, of which each row of a pass follows one.

    Raises:
        SteerError: as `wire`; says which intervention.
    """
    places = _Places(layout, device_of)
    lines = _lines(arms)
    for arm, items in enumerate(lines):
        for at, item in enumerate(items.values()):
            with blame(item, at, arm if len(arms) > 1 else None):
                places.admit(item)
    keys = [(arm, key) for arm, found in enumerate(lines) for key in found]
    number = {key: line for line, key in enumerate(keys)}
    lengths = {len(plan) for plan in arms if isinstance(plan, Rows)}
    if len(lengths) > 1:
        raise PlanError(
            f"The arms hold Rows of {sorted(lengths)} plans, but all are for the same prompts. "
            "Give every Rows one plan for each prompt."
        )
    shape = (len(arms), max(lengths, default=1))
    ops: list[Op] = []
    for group in _grouped(arms, places):
        mine = [number[at[0][0], id(item)] for item, at in group]
        ops += places.operations(group, mine, shape)
    items = tuple(item for found in lines for item in found.values())
    counts = dict.fromkeys(pair for item in items for pair in row_counts_of(item))
    return Wiring(
        items,
        tuple(arm for arm, _ in keys),
        places.taps,
        _by_hook(_merge_reads(ops), places.taps),
        frozenset(tap.base for tap in places.taps.values() if tap.base is not None),
        lengths.pop() if lengths else None,
        tuple(counts),
    )


def _lines(arms: Sequence[Plan]) -> list[dict[int, Intervention]]:
    # The receipt's lines follow each plan, row by row; the operations are grouped across rows.
    return [{id(item): item for item, _ in items_of(plan)} for plan in arms]


Shape = tuple[int, int]
"""(arms, rows of the batch; 1 where every row of an arm has the same plan)."""
Member = tuple[Intervention, list[tuple[int, int | None]]]
"""An intervention, and the (arm, row) that have it; row None: every row of the arm."""


class _Places:
    """The taps of the sites met so far, and the interventions moved to their devices."""

    def __init__(self, layout: Layout, device_of: DeviceOf) -> None:
        self.layout, self.device_of = layout, device_of
        self.taps: dict[AnySite, Tap] = {}
        self.moved: dict[int, Intervention] = {}
        self._seen: dict[torch.device, dict[int, object]] = {}
        self._reads: dict[int, object] = {}

    def admit(self, item: Intervention) -> None:
        """Check one intervention against the model and move it."""
        if id(item) in self.moved:
            return
        require_sites([item.site])
        require_scope(item.scope, type(item).__name__)
        for site in sites_of(item):
            refuse_pattern(site)
            self.taps.setdefault(site, self.layout.tap(site))
        refuse_read_only(item, self.taps[item.site])
        check_widths(item, self.layout)
        check_order(item)
        for read in [*(read for read, _ in reads_of(item)), *outcomes_of(item)]:
            place = self.device_of(self.taps[read.site])
            self._reads.setdefault(id(read), on_device(read, place, {}))
        here = self.device_of(self.taps[item.site])
        shared = self._seen.setdefault(here, dict(self._reads))
        shared.update(self._reads)
        self.moved[id(item)] = on_device(item, here, shared)

    def operations(self, group: Sequence[Member], lines: Sequence[int], shape: Shape) -> list[Op]:
        """Return the readings that a group of stackable interventions needs, then its edit."""
        everywhere = shape[0] == 1 and len(group) == 1 and group[0][1] == [(0, None)]
        member = None if everywhere else _table(group, shape)
        rows = None if member is None else member >= 0
        items = [self.moved[id(item)] for item, _ in group]
        ops: list[Op] = [
            Reading(read.site, read, latch == "prompt", rows)
            for item in items
            for read, latch in reads_of(item)
        ]
        outcomes: list[Op] = [
            Reading(read.site, read, False, rows, ((line, rows),))
            for item, line in zip(items, lines, strict=True)
            for read in outcomes_of(item)
        ]
        found = None
        if len({id(item) for item in items}) > 1:
            found = stack(items, self.device_of(self.taps[items[0].site]))
        asked: dict[Scope, Tensor | None] = {}
        for at, item in enumerate(items):
            mine = None if member is None else member == at
            known = asked.get(item.scope)
            asked[item.scope] = mine if known is None or mine is None else known | mine
        item = items[0] if found is None else found.item
        edit = _edit(item, tuple(lines), tuple(asked.items()), member, found)
        return [*ops, edit, *outcomes]


def _grouped(arms: Sequence[Plan], places: _Places) -> list[list[Member]]:
    # Interventions at the same place in the lists of different rows are one group if they stack.
    alike_if = signature if len(arms) > 1 else exact_signature
    groups: list[list[Member]] = []
    lists = [
        plan.plans if isinstance(plan, Rows) else (tuple(item for item, _ in items_of(plan)),)
        for plan in arms
    ]
    for slot in range(max((len(items) for plans in lists for items in plans), default=0)):
        found: dict[object, dict[tuple[int, int], Member]] = {}
        for arm, plans in enumerate(lists):
            for row, items in enumerate(plans):
                if slot < len(items):
                    item = items[slot]
                    alike = found.setdefault(alike_if(places.moved[id(item)]), {})
                    _, at = alike.setdefault((arm, id(item)), (item, []))
                    at.append((arm, row if isinstance(arms[arm], Rows) else None))
        groups += [list(alike.values()) for alike in found.values()]
    return groups


def _table(group: Sequence[Member], shape: Shape) -> Tensor:
    """Return [arm, batch]: the number of each row's member, -1 for none."""
    table = torch.full(shape, -1)
    for at, (_, found) in enumerate(group):
        for arm, row in found:
            table[arm, slice(None) if row is None else row] = at
    return table


def _edit(
    item: Intervention,
    lines: tuple[int, ...],
    asked: tuple[tuple[Scope, Tensor | None], ...],
    member: Tensor | None,
    found: Stack | None,
) -> Edit:
    parts = list(walk(item))
    return Edit(
        lines,
        item.site,
        item,
        asked,
        member,
        found,
        any(isinstance(p, Custom) or not isinstance(p, Recipe) for p in parts),
        tuple(p for p in parts if isinstance(p, When)),
        item.read if isinstance(item, Monitor) else None,
        tuple(p for p in parts if isinstance(p, Patch)),
        next((p for p in parts if isinstance(p, Control | Forecast)), None),
    )


def _merge_reads(ops: Sequence[Op]) -> list[Op]:
    # One Read is computed once, where it is first needed, and latched if any gate latches it.
    latched = {id(op.read) for op in ops if isinstance(op, Reading) and op.latched}
    rows: dict[int, Tensor | None] = {}
    for op in (op for op in ops if isinstance(op, Reading)):
        known = rows.get(id(op.read), op.rows)
        rows[id(op.read)] = None if known is None or op.rows is None else known | op.rows
    notes: dict[int, tuple[tuple[int, Tensor | None], ...]] = {}
    for op in (op for op in ops if isinstance(op, Reading)):
        notes[id(op.read)] = notes.get(id(op.read), ()) + op.notes
    merged: list[Op] = []
    done: set[int] = set()
    for op in ops:
        if isinstance(op, Reading):
            if id(op.read) in done:
                continue
            done.add(id(op.read))
            key = id(op.read)
            op = Reading(op.site, op.read, key in latched, rows[key], notes[key])
        merged.append(op)
    return merged


def _by_hook(ops: Sequence[Op], taps: Mapping[AnySite, Tap]) -> dict[Key, tuple[Op, ...]]:
    hooks: dict[Key, list[Op]] = {}
    for op in ops:
        tap = taps[op.site]
        hooks.setdefault((tap.path, tap.side), []).append(op)
    return {key: tuple(sorted(found, key=_in_pass)) for key, found in hooks.items()}


def _in_pass(op: Op) -> tuple[float, int]:
    # sorted() is stable: within a site the plan's order is kept. Raw sites come before named ones.
    return op.site.order if isinstance(op.site, Site) else (-2.0, 0)
