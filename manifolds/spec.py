"""Identity of a fitted value: its canonical digest, the check before a rebuild, its HTML.

A spec is a plain nested dict of JSON values with torch tensors as leaves, plus `kind` and
`version`. Writing it to disk (JSON and safetensors) is `steer.save`; here it is only named.
"""

import hashlib
import json
from collections.abc import Mapping
from html import escape
from typing import TypeAlias

import torch
from torch import Tensor

from manifolds.errors import ManifoldError

Spec: TypeAlias = dict[str, object]
"""A nested dict of JSON values with tensors as leaves."""


def spec_digest(spec: Mapping[str, object]) -> str:
    """Return the sha256 of the spec's canonical JSON, as 64 hex digits.

    Keys are sorted, separators have no space, floats are written as Python's json writes them.
    A tensor stands as its dtype, shape and the sha256 of its contiguous bytes on the CPU, so the
    digest does not depend on the device.
    """
    text = json.dumps(_canonical(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_spec(spec: Mapping[str, object], kind: str, fields: frozenset[str]) -> None:
    """Refuse a spec that is not version 1 of `kind` with exactly these fields.

    Raises:
        ManifoldError: another kind, another version, a missing or an unknown field.
    """
    found, version = spec.get("kind"), spec.get("version")
    if found != kind or version != 1:
        raise ManifoldError(
            f"The spec says kind {found!r}, version {version!r}, but this is {kind}, version 1. "
            "It was saved from something else, or by a later release. Load it with the release "
            "that saved it, or refit."
        )
    missing, unknown = fields - spec.keys(), spec.keys() - fields - {"kind", "version"}
    if missing or unknown:
        raise ManifoldError(
            f"The spec of {kind} lacks {sorted(missing)} and has the unknown {sorted(unknown)}. "
            "It is truncated or was edited, so the fit it stood for cannot be rebuilt. Refit it."
        )


def json_values(value: object, name: str) -> dict[str, object]:
    """Return a deep copy of a mapping of JSON values.

    Raises:
        ManifoldError: the mapping holds something that JSON cannot write.
    """
    try:
        copied = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as reason:
        raise ManifoldError(
            f"{name} cannot be written as JSON: {reason}. It is saved with the fit, so it may hold "
            "only strings, numbers, booleans, None, lists and dicts. Convert the rest first."
        ) from None
    if not isinstance(copied, dict):
        raise ManifoldError(
            f"{name} is a {type(value).__name__}, not a mapping, so its entries have no names. "
            "Pass a dict of JSON values."
        )
    return copied


def html_table(title: str, entries: Mapping[str, object]) -> str:
    """Return a small HTML table, for notebooks."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
        for name, value in entries.items()
    )
    return f"<b>{escape(title)}</b><table>{rows}</table>"


def _canonical(value: object) -> object:
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return {
            "tensor": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "sha256": hashlib.sha256(raw.numpy().tobytes()).hexdigest(),
        }
    if isinstance(value, Mapping):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    return value
