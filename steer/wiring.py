"""From a plan to operations at taps: everything that can be refused is refused here, at attach.

Pure: takes a plan and a layout, touches no module. Reads come just before the first intervention
that needs them, so that a reading sees the stream as that intervention would.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.errors import PlanError, SpecError, SteerError, WidthMismatch
from steer.interventions.gates import Monitor, Read, When
from steer.interventions.patch import Patch
from steer.interventions.plans import Plan, Rows, items_of
from steer.interventions.recipe import Recipe, on_device, row_counts_of, walk, widths_of
from steer.interventions.wrap import Custom
from steer.models.layout import Layout, Tap
from steer.protocols import Intervention
from steer.scopes import GENERATED, require_scope
from steer.sites import AnySite, Site, require_sites


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One intervention at its tap, for all rows or for some."""

    line: int
    """Its line in the receipt."""
    site: AnySite
    item: Intervention
    rows: Tensor | None
    """[batch] bool on the host: the rows it belongs to; None means every row."""
    whole: bool
    """Must be given whole rows (Custom), not gathered tokens."""
    gates: tuple[When, ...]
    monitor: Read | None
    patches: tuple[Patch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One Read at its tap."""

    site: AnySite
    read: Read
    latched: bool
    """Some gate needs its value at the end of the prompt."""
    rows: Tensor | None = None
    """[batch] bool on the host: the rows whose plans need it; None means every row."""


Op = Edit | Reading
Key = tuple[str, str]
"""(module path, side): what one hook serves."""


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """A plan wired to a model: what each hook has to do, in order."""

    items: tuple[Intervention, ...]
    """The receipt's lines: the user's interventions in order, each once."""
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


def wire(plan: Plan, layout: Layout, device_of: Callable[[Tap], torch.device]) -> Wiring:
    """Return the wiring of a plan.

    Raises:
        SiteNotFound: a site that the model lacks.
        WidthMismatch: a tensor of another width than its site.
        PlanError: a gate that reads later than it must act; a malformed plan.
    """
    taps: dict[AnySite, Tap] = {}
    # The receipt's lines follow the plan, row by row; the operations are grouped across rows.
    items = list({id(item): item for item, _ in items_of(plan)}.values())
    lines = {id(item): line for line, item in enumerate(items)}
    ops: list[Op] = []
    seen: dict[torch.device, dict[int, object]] = {}
    reads: dict[int, object] = {}
    members = _grouped(plan)
    for item, rows in members:
        require_sites([item.site])
        require_scope(item.scope, type(item).__name__)
        with _blame(item, lines[id(item)]):
            for site in _sites(item):
                refuse_pattern(site)
                taps.setdefault(site, layout.tap(site))
            refuse_read_only(item, taps[item.site])
            _check_widths(item, layout)
            _check_order(item)
        for part in walk(item):
            for read, _ in part.reads() if isinstance(part, Recipe) else ():
                place_of_read = device_of(taps[read.site])
                reads.setdefault(id(read), on_device(read, place_of_read, {}))
        here = device_of(taps[item.site])
        shared = seen.setdefault(here, dict(reads))
        shared.update(reads)
        on_site = on_device(item, here, shared)
        for part in walk(on_site):
            for read, latch in part.reads() if isinstance(part, Recipe) else ():
                ops.append(Reading(read.site, read, latch == "prompt", rows))
        ops.append(_edit(on_site, lines[id(item)], rows))
    counts = tuple(pair for item in items for pair in row_counts_of(item))
    return Wiring(
        tuple(items),
        taps,
        _by_hook(_merge_reads(ops), taps),
        frozenset(tap.base for tap in taps.values() if tap.base is not None),
        len(plan) if isinstance(plan, Rows) else None,
        counts,
    )


def _grouped(plan: Plan) -> list[tuple[Intervention, Tensor | None]]:
    # Rows that hold the same object at the same place in their lists share one operation.
    if not isinstance(plan, Rows):
        return [(item, None) for item, _ in items_of(plan)]
    grouped: list[tuple[Intervention, Tensor | None]] = []
    depth = max((len(items) for items in plan.plans), default=0)
    for slot in range(depth):
        rows_of: dict[int, tuple[Intervention, list[int]]] = {}
        for row, items in enumerate(plan.plans):
            if slot < len(items):
                rows_of.setdefault(id(items[slot]), (items[slot], []))[1].append(row)
        for item, rows in rows_of.values():
            member = torch.zeros(len(plan), dtype=torch.bool)
            member[rows] = True
            grouped.append((item, member))
    return grouped


class _blame:
    """Say which intervention of the plan an error is about."""

    def __init__(self, item: Intervention, place: int) -> None:
        self.item, self.place = item, place

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SteerError):
            what = f"Intervention {self.place} of the plan, {self.item!r}: {error}"
            raise type(error)(what) from None


def refuse_pattern(site: AnySite) -> None:
    """Refuse to write an attention pattern.

    Raises:
        PlanError: says what to edit instead.
    """
    if isinstance(site, Site) and site.component == "pattern":
        raise PlanError(
            f"{site} can be read by lm.capture but not written: the fused kernel makes it inside "
            "and takes no weights. Edit q or k before it, or z after it."
        )


def refuse_read_only(item: Intervention, tap: Tap) -> None:
    """Refuse an edit of a tensor that nothing downstream uses: it would do nothing.

    Raises:
        PlanError: with the layout's reason.
    """
    if tap.read_only is not None and not isinstance(item, Monitor):
        raise PlanError(
            f"{item.site} can be read but not written: {tap.read_only}. An edit there would "
            "silently do nothing. Edit an earlier site."
        )


def _sites(item: Intervention) -> list[AnySite]:
    sites = [item.site]
    for part in walk(item):
        if isinstance(part, Recipe):
            sites += [read.site for read, _ in part.reads()]
    return sites


def _check_widths(item: Intervention, layout: Layout) -> None:
    found = [(item.site, what, size) for what, size in widths_of(item, item.site)]
    for part in walk(item):
        for read, _ in part.reads() if isinstance(part, Recipe) else ():
            size = getattr(read.probe, "d_model", None)
            found += [] if size is None else [(read.site, "the probe", size)]
    for site, what, size in found:
        width = layout.width(site)
        if width is not None and size != width:
            origins = [origin for _, origin in _origins(item)]
            said = f" (its origin says {dict(origins[0])})" if origins else ""
            raise WidthMismatch(
                f"{what} has {size} entries but {site} is {width} wide in {layout.name}. It was "
                f"probably fitted on another model or site{said}. Refit it on activations captured "
                "from this model at this site."
            )


def _origins(item: Intervention) -> Iterator[tuple[object, Mapping[str, object]]]:
    # Of what was fitted on activations: the manifold of an intervention, the probe of a read.
    for part in walk(item):
        reads = part.reads() if isinstance(part, Recipe) else ()
        for fitted in (getattr(part, "manifold", None), *(read.probe for read, _ in reads)):
            origin = getattr(fitted, "origin", None)
            if isinstance(origin, Mapping):
                yield fitted, origin


def check_origins(items: Sequence[Intervention], weights: Callable[[], str], name: str) -> None:
    """Refuse what says that it was fitted on other weights; what says nothing is not checked.

    Raises:
        SpecError: names both.
    """
    claims = [
        (item, fitted, origin)
        for item in items
        for fitted, origin in _origins(item)
        if origin.get("weights") is not None
    ]
    mine = weights() if claims else ""
    for item, fitted, origin in claims:
        if origin["weights"] != mine:
            raise SpecError(
                f"{item!r} holds {fitted!r}, which was fitted on {origin.get('model', 'a model')} "
                f"with weights {origin['weights']}, but {name} has weights {mine}. Directions and "
                "shapes of one model mean nothing in another. Refit it on activations of this "
                "model, or, if you mean it, drop the claim with "
                "dataclasses.replace(fitted, origin=None)."
            )


def _check_order(item: Intervention) -> None:
    for part in walk(item):
        if not isinstance(part, When):
            continue
        read, acts = part.read.site, part.inner.site
        if not isinstance(read, Site) or not isinstance(acts, Site) or read.order <= acts.order:
            continue
        if part.latch == "prompt" and part.inner.scope == GENERATED:
            continue  # decided by the prompt's own pass, acts in later ones
        raise PlanError(
            f"The gate reads {read}, which a pass computes after {acts}, where it must act. Its "
            "value would come too late. Read at the same site or an earlier one, or latch on the "
            "prompt and act on GENERATED tokens only."
        )


def _edit(item: Intervention, line: int, rows: Tensor | None) -> Edit:
    parts = list(walk(item))
    return Edit(
        line,
        item.site,
        item,
        rows,
        any(isinstance(p, Custom) or not isinstance(p, Recipe) for p in parts),
        tuple(p for p in parts if isinstance(p, When)),
        item.read if isinstance(item, Monitor) else None,
        tuple(p for p in parts if isinstance(p, Patch)),
    )


def _merge_reads(ops: Sequence[Op]) -> list[Op]:
    # One Read is computed once, where it is first needed, and latched if any gate latches it.
    latched = {id(op.read) for op in ops if isinstance(op, Reading) and op.latched}
    rows: dict[int, Tensor | None] = {}
    for op in (op for op in ops if isinstance(op, Reading)):
        known = rows.get(id(op.read), op.rows)
        rows[id(op.read)] = None if known is None or op.rows is None else known | op.rows
    merged: list[Op] = []
    done: set[int] = set()
    for op in ops:
        if isinstance(op, Reading):
            if id(op.read) in done:
                continue
            done.add(id(op.read))
            op = Reading(op.site, op.read, id(op.read) in latched, rows[id(op.read)])
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
