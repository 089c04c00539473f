"""Files: one safetensors file for each saved value, tensors by path and the spec in its header.

Nothing is unpickled and nothing is imported because a file says so; what a spec is stands in
`steer.spec`, the allow-list in `steer.kinds`. A file appears whole or not at all.
"""

import json
import os
import secrets
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from steer.errors import SpecError, did_you_mean
from steer.kinds import check_known, rebuild
from steer.kinds import kinds as installed_kinds
from steer.spec import canonical, fingerprint, is_fingerprint, spec_of

FORMAT = "manifold-steer"
FORMAT_VERSION = 1

_RUNS_CODE = "unpickling it would run whatever code the file holds"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive (as torch.save and numpy.savez write)", _RUNS_CODE),
    (b"\x80\x02", "a pickle of protocol 2 (as older torch.save writes)", _RUNS_CODE),
    (b"\x80\x03", "a pickle of protocol 3", _RUNS_CODE),
    (b"\x80\x04", "a pickle of protocol 4", _RUNS_CODE),
    (b"\x80\x05", "a pickle of protocol 5", _RUNS_CODE),
    (b"\x1f\x8b", "gzip data", "it may hold anything"),
    (b"\x93NUMPY", "a numpy array", "it has no spec"),
    (b"GGUF", "a GGUF file", "it holds a model or a control vector, which steer.interop reads"),
    (b"\x89HDF", "an HDF5 file", "it has no spec"),
    (b"{", "JSON text", "it has no tensors and no header"),
)
"""First bytes of what people try to load, its name, and why it is not read."""


def save(
    obj: object, path: str | os.PathLike[str], *, kinds: Mapping[str, type] | None = None
) -> Path:
    """Write a value, or a list of interventions as one plan, to one safetensors file.

    The file is written beside its place and moved there when it is whole, so that a failure
    leaves what was there before.

    Args:
        obj: anything with a spec: an intervention, a plan, a probe, a manifold, a belief.
        path: where to; an existing file is replaced.
        kinds: the allow-list; None is what the installed packages declare.

    Raises:
        SpecError: something in it cannot be saved or could not be rebuilt; no such folder.
        OSError: the file system refuses.
    """
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise SpecError(
            f"Cannot save to {target}: {target.parent} is no folder, or {target} is one itself. "
            "Only the file is made, never folders. Make the folder, and name a file in it."
        )
    spec = spec_of(obj)
    check_known(spec, installed_kinds() if kinds is None else kinds)
    text = canonical(spec)
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "digest": sha256(text.encode()).hexdigest(),
        "spec": text,
    }
    # clone: safetensors refuses tensors that share memory, as a basis and its first row do.
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in _leaves(spec, "")}
    _write_whole(target, safetensors_bytes(tensors, metadata=header))
    return target


def load_artifact(
    path: str | os.PathLike[str], *, kinds: Mapping[str, type] | None = None
) -> object:
    """Return the value that `save` wrote, checked against its digest; tensors are on the CPU.

    Raises:
        SpecError: no such file, not safetensors (a pickle above all), truncated, changed after it
            was written, of a newer version, or of a kind that is not installed.
    """
    source = Path(path)
    _check_readable(source)
    try:
        with safe_open(source, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            # clone: get_tensor may map the file, which can be replaced later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise SpecError(
            f"{source} is not a whole safetensors file: {error}. It is truncated, corrupted or of "
            "another format. Copy it again, or save the value again."
        ) from None
    return rebuild(_checked_spec(source, header, tensors), kinds=kinds)


def _leaves(node: object, path: str) -> list[tuple[str, Tensor]]:
    """Return every tensor of a spec with its path, keys and indices joined by slashes."""
    if isinstance(node, Tensor):
        return [(path, node)]
    return [leaf for name, item in _children(node, path) for leaf in _leaves(item, name)]


def _children(node: object, path: str) -> list[tuple[str, object]]:
    """Return the items of a dict or list with their paths; other nodes have none."""
    if isinstance(node, Mapping):
        items = [(str(key), item) for key, item in node.items()]
    elif isinstance(node, list | tuple):
        items = [(str(i), item) for i, item in enumerate(node)]
    else:
        return []
    # As in JSON pointers: without it the keys "a/b" and "a" over "b" would be one path.
    escaped = [(key.replace("~", "~0").replace("/", "~1"), item) for key, item in items]
    return [(f"{path}/{key}" if path else key, item) for key, item in escaped]


def _write_whole(target: Path, data: bytes) -> None:
    """Write beside the target, then move into place; on any failure leave nothing."""
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        # "x", not a tempfile: the file gets the permissions that the user's umask gives.
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _check_readable(source: Path) -> None:
    """Refuse what is not there, and what shows by its first bytes that it is something else."""
    if not source.is_file():
        folder = source.parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise SpecError(
            f"There is no file {source}.{did_you_mean(source.name, names)} An artefact is one "
            "file, as steer.save wrote it. Check the path."
        )
    with source.open("rb") as file:
        head = file.read(9)
    # The header's length comes first in safetensors and can by chance be one of the magic numbers.
    is_header = 8 + int.from_bytes(head[:8], "little") <= source.stat().st_size
    if is_header and head[8:] == b"{":
        return
    for magic, name, reason in _MAGIC:
        if head.startswith(magic):
            raise SpecError(
                f"{source} is {name}, with the first bytes {head[: len(magic)]!r}. It is refused, "
                f"because {reason}. Load it with the program that wrote it, rebuild the value, "
                "and save it with steer.save, which writes safetensors."
            )


def _checked_spec(
    source: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Mapping[str, object]:
    """Return the spec with its tensors in place, if all of it is what was written."""
    if header.get("format") != FORMAT or not {"format_version", "digest", "spec"} <= header.keys():
        raise SpecError(
            f"{source} is a safetensors file without a spec of ours: it has {len(tensors)} tensors "
            f"and the header keys {', '.join(sorted(header)) or '(none)'}. It may be a model's "
            "weights; those are loaded by steer.load. Give a file that steer.save wrote."
        )
    if header["format_version"] != str(FORMAT_VERSION):
        raise SpecError(
            f"{source} has format version {header['format_version']}, but this installation reads "
            f"{FORMAT_VERSION}. A newer form may mean something else. Update manifold-steer."
        )
    text = header["spec"]
    found = sha256(text.encode()).hexdigest()
    if found != header["digest"]:
        raise _changed(source, "spec", header["digest"], found)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{source} has a spec that is not JSON: {error}. Save it again.") from error
    unused = set(tensors)
    spec = _filled(source, tree, "", tensors, unused)
    if unused or not isinstance(spec, dict):
        raise SpecError(
            f"{source} holds tensors that its spec does not name: {', '.join(sorted(unused))}. "
            "They were added after it was written. Save the value again."
        )
    return spec


def _filled(
    source: Path, node: object, path: str, tensors: Mapping[str, Tensor], unused: set[str]
) -> object:
    """Return a parsed node with each fingerprint replaced by its tensor, checked."""
    if is_fingerprint(node):
        if path not in tensors:
            raise SpecError(
                f"{source} lacks the tensor {path} that its spec names. It was cut out after it "
                "was written. Copy the file again, or save the value again."
            )
        found = fingerprint(tensors[path])
        if found != node:
            raise _changed(source, f"tensor {path}", node, found)
        unused.discard(path)
        return tensors[path]
    filled = {
        name: _filled(source, item, name, tensors, unused) for name, item in _children(node, path)
    }
    if isinstance(node, Mapping):
        return dict(zip(node, filled.values(), strict=True))
    return list(filled.values()) if isinstance(node, list) else node


def _changed(source: Path, what: str, expected: object, found: object) -> SpecError:
    """Return the error for a file whose content is not what its digest says."""
    return SpecError(
        f"The {what} of {source} was changed after it was written: expected {expected}, found "
        f"{found}. What it does is not what its digest promises. Get the file again from where "
        "it was made."
    )
