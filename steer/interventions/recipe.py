"""What every concrete intervention shares: identity, and the questions a registry asks of it.

The one base class of the package. Its methods are implemented once and are never overridden by
flags; a user's own class need not inherit (see `steer.protocols.Intervention`, or use Custom).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from html import escape
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from steer import spec as specs
from steer.protocols import Intervention
from steer.sites import AnySite

T = TypeVar("T")


class Recipe:
    """Identity of a frozen intervention: spec, digest, what a notebook shows."""

    __slots__ = ()

    def spec(self) -> dict[str, object]:
        """Return the plain dict with tensors from which `steer.load_artifact` rebuilds it.

        Raises:
            SpecError: it holds something that cannot be saved (a function).
        """
        return specs.encode(self)

    @property
    def digest(self) -> str:
        """sha256 over tensors, site, scope, order and strengths."""
        return specs.digest(self.spec())

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    def widths(self) -> Mapping[str, int]:
        """Return name -> size of what must be as wide as the site."""
        return {}

    def row_counts(self) -> Mapping[str, int]:
        """Return name -> length of what has one entry per row of the batch."""
        return {}

    def reads(self) -> Sequence[tuple[Any, str]]:
        """Return the (Read, latch) pairs whose values its edit looks up in the step."""
        return ()

    def parts(self) -> Sequence[object]:
        """Return the wrapped interventions and reads, innermost values that a registry must see."""
        return ()


class Movable(Protocol):
    """A probe or manifold that can change its device."""

    def to(self, device: torch.device) -> object:
        """Return the value on another device."""
        ...


def on_device(value: T, device: torch.device, seen: dict[int, object]) -> T:
    """Return a frozen value with every tensor on a device, sharing parts that were shared.

    A probe or manifold moves by its own `to`; everything else is kept. `seen` maps the id of a
    value already moved to its copy, so that one Read in two gates stays one Read.
    """
    if id(value) in seen:
        return cast("T", seen[id(value)])
    moved: object = value
    if isinstance(value, Tensor):
        moved = value.to(device)
    elif isinstance(value, tuple):
        moved = tuple(on_device(part, device, seen) for part in value)
    elif is_dataclass(value) and isinstance(value, Recipe | Shared):
        moved = _moved_fields(value, device, seen)
    elif callable(getattr(value, "to", None)) and not isinstance(value, type):
        moved = cast("Movable", value).to(device)
    seen[id(value)] = moved
    return cast("T", moved)


class Shared:
    """Marks frozen parts of recipes (Read, Relative-like values) whose tensors move with them."""

    __slots__ = ()


def _moved_fields(value: Any, device: torch.device, seen: dict[int, object]) -> object:
    changed = {}
    for f in fields(value):
        if not f.init:
            continue
        before = getattr(value, f.name)
        after = on_device(before, device, seen)
        if after is not before:
            changed[f.name] = after
    return replace(value, **changed) if changed else value


def walk(item: object) -> Iterator[object]:
    """Yield an intervention and all that it wraps, outermost first."""
    yield item
    if isinstance(item, Recipe):
        for part in item.parts():
            yield from walk(part)


def widths_of(item: Intervention, site: AnySite) -> Iterator[tuple[str, int]]:
    """Yield what must be as wide as a site, through all wrappers at that site."""
    for part in walk(item):
        if isinstance(part, Recipe) and getattr(part, "site", site) == site:
            yield from part.widths().items()


def row_counts_of(item: Intervention) -> Iterator[tuple[str, int]]:
    """Yield what must be as long as the batch, through all wrappers."""
    for part in walk(item):
        if isinstance(part, Recipe):
            yield from part.row_counts().items()


def batch_length(**values: object) -> dict[str, int]:
    """Return name -> length for the values that are tensors [batch]."""
    return {name: v.shape[0] for name, v in values.items() if isinstance(v, Tensor) and v.ndim == 1}
