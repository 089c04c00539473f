"""Many interventions of one kind as one: the values of each, looked up by row in one tensor edit.

Every kind can hold one value per row of the batch already. A stack is an ordinary intervention
whose rows are its members (or, where a member has one value per row of the batch itself, members
times rows); who applies it puts `Stack.rows` into the step. Pure; nothing here knows a model.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from steer.interventions.arithmetic import FEW, Relative
from steer.interventions.curved import MoveAlong, MoveTo, Snap
from steer.interventions.erase import Erase
from steer.interventions.gates import Monitor, When
from steer.interventions.linear import Ablate, Add, Affine, Clamp, Rotate, Scale
from steer.interventions.patch import Patch
from steer.interventions.wrap import PreserveNorm, Redirect
from steer.protocols import Intervention

Field = Callable[[Any, Any], tuple[Tensor, bool]]
"""(value, its intervention) -> the value as a tensor, and whether its first axis is the batch."""


def _number(value: object, _: object) -> tuple[Tensor, bool]:
    value = value.multiple if isinstance(value, Relative) else value
    if isinstance(value, Tensor):
        return value.double(), True
    # fp64: edits cast to their own precision, so nothing is lost on the way.
    return torch.tensor(float(cast("float", value)), dtype=torch.float64), False


def _plain(value: Tensor, _: object) -> tuple[Tensor, bool]:
    return value, False


def _source(value: Tensor, item: Patch) -> tuple[Tensor, bool]:
    return value, bool(item.row_counts())


def _per_row(value: Tensor, _: object) -> tuple[Tensor, bool]:
    return value, True


def _point(value: object, item: MoveTo | MoveAlong) -> tuple[Tensor, bool]:
    dim = item.manifold.dim
    if not isinstance(value, Tensor):
        number = torch.tensor(float(cast("float", value)), dtype=torch.float64)
        return (number if dim == 1 else number.expand(dim)), False
    return value.double(), value.ndim == (1 if dim == 1 else 2)


FIELDS: Mapping[type, Mapping[str, Field]] = {
    Add: {"direction": _plain, "strength": _number},
    Ablate: {"basis": _plain, "strength": _number},
    Clamp: {"direction": _plain, "to": _number, "strength": _number},
    Scale: {"factor": _number, "strength": _number},
    Rotate: {"plane": _plain, "angle": _number, "strength": _number},
    Affine: {"scale": _plain, "shift": _plain, "strength": _number},
    Patch: {"source": _source, "subspace": _plain, "counts": _per_row},
    MoveTo: {"u": _point, "strength": _number},
    MoveAlong: {"by": _point, "strength": _number},
    Snap: {"strength": _number},
    Erase: {"strength": _number},
    When: {"above": _number},
    PreserveNorm: {},
    Redirect: {"direction": _plain},
    Monitor: {},
}
"""What may differ between the members of a stack, kind by kind."""

SAME: Mapping[type, tuple[str, ...]] = {
    MoveTo: ("manifold", "mode"),
    MoveAlong: ("manifold", "mode"),
    Snap: ("manifold",),
    Erase: ("eraser",),
    When: ("read", "latch"),
    Monitor: ("read",),
}
"""What must be the same object (or equal text) in all members."""


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """One intervention that stands for several, and how a row finds its values."""

    item: Intervention
    n_rows: int
    """Rows of the batch that each member's values are for; 0 where they are for every row."""

    def rows(self, member: Tensor, rows: Tensor) -> Tensor:
        """Return [row]: where in the stack's values each row's own are."""
        return member * self.n_rows + rows if self.n_rows else member


def signature(item: Intervention) -> object:
    """Return what two interventions must share to be stacked; its own identity if it never can."""
    kind = type(item)
    if kind not in FIELDS:
        return (kind, id(item))
    values = tuple((name, _form(getattr(item, name), item, name)) for name in FIELDS[kind])
    inner = getattr(item, "inner", None)
    same = tuple(_identity(getattr(item, name)) for name in SAME.get(kind, ()))
    return (kind, item.site, values, same, None if inner is None else signature(inner))


def exact_signature(item: Intervention) -> object:
    """Return the signature, or the own identity where a stack's bits would depend on its size.

    Manifolds and wide subspaces multiply matrices, whose rounding depends on how many rows there
    are. Rows of one batch must not feel each other to the bit; arms of a sweep may.
    """
    inner: object = item
    while isinstance(inner, When | PreserveNorm | Redirect):
        inner = inner.inner
    wide = [getattr(inner, name, None) for name in ("basis", "subspace")]
    several = any(isinstance(rows, Tensor) and len(rows) > FEW for rows in wide)
    if several or hasattr(inner, "manifold"):
        return (type(item), id(item))
    return signature(item)


def _identity(value: object) -> object:
    return value if isinstance(value, str) else id(value)


def _form(value: object, item: object, name: str) -> object:
    # Numbers and [batch] tensors meet in one form; a Relative is another quantity.
    if value is None:
        return None
    tensor, per_row = FIELDS[type(item)][name](value, item)
    return (isinstance(value, Relative), tensor.shape[1 if per_row else 0 :], tensor.dtype)


def stack(items: Sequence[Intervention], device: torch.device) -> Stack:
    """Return one intervention, with its values on a device, for several of the same signature."""
    lengths = {len(value) for item in items for value in _batched(item)}
    assert len(lengths) <= 1
    n_rows = lengths.pop() if lengths else 0
    return Stack(_stacked(items, n_rows, device), n_rows)


def _batched(item: object) -> list[Tensor]:
    found = []
    for name, field in FIELDS[type(item)].items():
        value = getattr(item, name)
        if value is not None:
            tensor, per_row = field(value, item)
            found += [tensor] if per_row else []
    inner = getattr(item, "inner", None)
    return found if inner is None else found + _batched(inner)


def _stacked(items: Sequence[Intervention], n_rows: int, device: torch.device) -> Intervention:
    first = items[0]
    made = copy.copy(first)
    for name, field in FIELDS[type(first)].items():
        value = getattr(first, name)
        if value is None:
            continue
        every = torch.stack([_rows_of(getattr(item, name), item, field, n_rows) for item in items])
        values = (every.flatten(0, 1) if n_rows else every).to(device)
        new = Relative(values) if isinstance(value, Relative) else values
        object.__setattr__(made, name, new)  # the constructors take one value, not one per row
    if hasattr(first, "inner"):
        inner = [cast("When | PreserveNorm | Redirect", item).inner for item in items]
        object.__setattr__(made, "inner", _stacked(inner, n_rows, device))
    return made


def _rows_of(value: object, item: Intervention, field: Field, n_rows: int) -> Tensor:
    tensor, per_row = field(value, item)
    if not n_rows or per_row:
        return tensor
    return tensor.expand(n_rows, *tensor.shape)
