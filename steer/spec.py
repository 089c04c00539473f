"""Identity: the canonical spec of a value and its digest.

A spec is a plain tree of JSON values with tensors allowed as leaves; every value in it is a dict
with "kind" and "version". How a value is rebuilt stands in `steer.kinds`, files in
`steer.artifacts`. `probes` and `manifolds` compute the same digest in a few lines of their own,
as the packages never import each other; a test holds the three together.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from steer.errors import SpecError
from steer.sites import ModuleSite, Site

GROUP = "manifold_steer.kinds"
"""Entry point group that feeds the allow-list: name is the kind, value is the class."""
VERSION = 1
"""Version of a kind that does not say its own by a class attribute `version`."""
SITE, PLAN = "steer.Site", "steer.Plan"
_PLACEHOLDER = frozenset({"tensor", "shape", "sha256"})


def spec_of(value: object) -> dict[str, object]:
    """Return the spec of a value, or of a list of interventions as one plan.

    A value's own `spec()` is asked first; without one, `encode` writes its fields down.

    Raises:
        SpecError: something in it cannot be saved: a function, a number that is not finite.
    """
    if isinstance(value, list | tuple):
        items = [_node(item, f"{PLAN}[{i}]") for i, item in enumerate(value)]
        return {"kind": PLAN, "version": VERSION, "interventions": items}
    node = _node(value, type(value).__name__)
    if isinstance(node, dict) and "kind" in node:
        return node
    raise SpecError(
        f"A {type(value).__name__} has no spec: it has neither a method spec() nor a kind. A file "
        "must say what is to be rebuilt from it. Save an intervention, a plan, a probe, a "
        "manifold, a belief or activations."
    )


def encode(value: object) -> dict[str, object]:
    """Return the spec of a dataclass with a class attribute `kind`, written field by field.

    Fields that are not arguments of the constructor are derived and left out. This is what a
    value's own `spec()` calls, so the outermost `spec()` is not asked; nested ones are.

    Raises:
        SpecError: a field that cannot be saved, named by its path.
    """
    kind = getattr(type(value), "kind", None)
    if not is_dataclass(value) or isinstance(value, type) or not isinstance(kind, str):
        return spec_of(value)
    spec: dict[str, object] = {"kind": kind, "version": version_of(type(value))}
    for field in fields(value):
        if field.init:
            spec[field.name] = _node(getattr(value, field.name), f"{kind}.{field.name}")
    return spec


def digest(spec: Mapping[str, object]) -> str:
    """Return the sha256 of the canonical JSON of a spec, in hexadecimal.

    Device and memory layout do not enter; dtype, shape and every bit of a tensor do.

    Raises:
        SpecError: a number in the spec is not finite, or a leaf is neither JSON nor a tensor.
    """
    return hashlib.sha256(canonical(spec).encode()).hexdigest()


def canonical(spec: Mapping[str, object]) -> str:
    """Return the JSON text that is hashed: keys sorted, no spaces, tensors by their own sha256."""
    try:
        return json.dumps(
            spec, sort_keys=True, separators=(",", ":"), allow_nan=False, default=fingerprint
        )
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"This spec has no canonical form: {error}. Only finite numbers, strings, booleans, "
            "None, lists, dicts with string keys and tensors have one. Replace the other value."
        ) from error


def fingerprint(tensor: object) -> dict[str, object]:
    """Return what stands for a tensor in canonical JSON: dtype, shape and the sha256 of its bytes.

    Raises:
        TypeError: not a tensor.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"a {type(tensor).__name__} is neither JSON nor a tensor")
    return {
        "tensor": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(tensor_bytes(tensor)).hexdigest(),
    }


def is_fingerprint(node: object) -> bool:
    """Return whether a node of parsed canonical JSON stands for a tensor."""
    return isinstance(node, Mapping) and node.keys() == _PLACEHOLDER


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the contiguous bytes of a tensor, the same on every device."""
    # reshape: a tensor without axes cannot be viewed as another dtype.
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def version_of(cls: type) -> int:
    """Return the newest version of a kind that its class can read."""
    version = getattr(cls, "version", VERSION)
    return version if isinstance(version, int) else VERSION


def _node(value: object, where: str) -> object:
    """Return one node of the spec tree."""
    if value is None or isinstance(value, bool | str):
        return value
    # Before the plain kinds: a value may also be a mapping, as Activations are.
    own = getattr(value, "spec", None)
    if callable(own) and not isinstance(value, type):
        return _foreign(own(), where)
    for kind, convert in _LEAVES:
        if isinstance(value, kind):
            return convert(value, where)
    if (
        is_dataclass(value)
        and not isinstance(value, type)
        and isinstance(getattr(type(value), "kind", None), str)
    ):
        return encode(value)
    raise _unsavable(value, where)


def _foreign(spec: object, where: str) -> dict[str, object]:
    """Return what a value's own `spec()` gave, checked like everything else."""
    node = _node(spec, where)
    if isinstance(node, dict) and isinstance(node.get("kind"), str) and "version" in node:
        return node
    raise SpecError(
        f"spec() of {where} returned no dict with 'kind' and 'version'. A reader could not tell "
        "what to rebuild. Return both, beside the fields."
    )


def _tensor(value: Tensor, where: str) -> Tensor:
    """Return a tensor whose bytes can be hashed and written."""
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        raise SpecError(
            f"{where} is a tensor of layout {value.layout} on {value.device}. It has no plain "
            "bytes to hash or write. Give a dense tensor with values."
        )
    return value


def _integer(value: Integral, where: str) -> int:
    """Return a plain int: numpy's integers are not JSON."""
    del where
    return int(value)


def _real(value: Real, where: str) -> float:
    """Return a plain finite float."""
    number = float(value)
    if not math.isfinite(number):
        raise SpecError(
            f"{where} is {number}. JSON has no such number, and no reader would agree on it. "
            "Give a finite number."
        )
    return number


def _sequence(value: Sequence[object], where: str) -> list[object]:
    """Return the encoded items of a list or tuple."""
    return [_node(item, f"{where}[{i}]") for i, item in enumerate(value)]


def _mapping(value: Mapping[object, object], where: str) -> dict[str, object]:
    """Return the encoded items of a mapping with string keys."""
    if value.keys() == _PLACEHOLDER or any(not isinstance(key, str) or not key for key in value):
        raise SpecError(
            f"{where} has the keys {', '.join(map(repr, value))}. Keys must be non-empty strings, "
            "and 'tensor', 'shape' and 'sha256' together stand for a tensor. Rename the keys."
        )
    return {str(key): _node(item, f"{where}.{key}") for key, item in value.items()}


def _site(value: Site | ModuleSite, where: str) -> dict[str, object]:
    """Return the spec of a site: its printed name says all."""
    del where
    return {"kind": SITE, "version": VERSION, "name": str(value)}


_LEAVES: tuple[tuple[type | tuple[type, ...], Callable[..., object]], ...] = (
    (Tensor, _tensor),
    (Integral, _integer),
    (Real, _real),
    ((list, tuple), _sequence),
    (Mapping, _mapping),
    ((Site, ModuleSite), _site),
)


def _unsavable(value: object, where: str) -> SpecError:
    """Return the error for a value that has no canonical form."""
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__name__)
        return SpecError(
            f"{where} is the function or class {name}, which cannot be saved, served or evaluated. "
            "Code has no canonical form, and reading it back would run whatever a file says. Use "
            f"it in this process, or write a frozen dataclass with a kind, declared as an entry "
            f"point of the group {GROUP}."
        )
    return SpecError(
        f"{where} is a {type(value).__name__}, which cannot be saved: it has neither a method "
        "spec() nor a class attribute kind. A file could not say what to rebuild. Give its class "
        f"a kind, and declare it as an entry point of the group {GROUP}."
    )
