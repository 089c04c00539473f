"""Identity of a fitted probe: the canonical digest of its spec, and plain JSON for its labels.

`steer` and `manifolds` compute the same digest; the packages never import each other, and a test
holds the three together. Writing to disk is `steer.save`.
"""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from probes.errors import ProbeError


def spec_digest(spec: Mapping[str, object]) -> str:
    """Return the sha256 of the spec's canonical JSON, tensors by dtype, shape and sha256.

    Device and memory layout do not enter.
    """
    text = json.dumps(
        spec, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_fingerprint
    )
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: object, name: str) -> object:
    """Return a deep copy in plain JSON values; numpy's and torch's scalars become Python's.

    Raises:
        ProbeError: something in it is not JSON.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_scalar))
    except (TypeError, ValueError) as error:
        raise ProbeError(
            f"{name} cannot be written as JSON: {error}. It is saved with the probe, so it may "
            "hold only strings, finite numbers, booleans, None, lists and dicts. Convert the rest."
        ) from None


def _fingerprint(tensor: object) -> dict[str, object]:
    """Return what stands for a tensor in canonical JSON."""
    assert isinstance(tensor, Tensor), f"a {type(tensor).__name__} in a spec"
    # reshape: a tensor without axes cannot be viewed as another dtype.
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return {
        "tensor": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(raw.numpy().tobytes()).hexdigest(),
    }


def _scalar(value: object) -> object:
    """Return the Python number of a numpy or torch scalar, the items of a mapping."""
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"a {type(value).__name__} is not JSON")
    return item()
