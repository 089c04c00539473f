"""The pretrained models that need no model hub: fetched and converted once, then cached.

The cache folder and the licence that must be accepted once. Which models there are is said in
`pinned`, fetching is in `wheels`, the conversion in `convert`.
"""

import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from steer.errors import ModelNotFound
from steer.models.convert import convert, publish, work_folder
from steer.models.pinned import CONVERSION, Embedded
from steer.models.provenance import Provenance
from steer.models.wheels import assemble, check_sha256, find_or_fetch, read_member


def cache_root() -> Path:
    """Return the folder of everything this package keeps: $XDG_CACHE_HOME/manifold-steer."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "manifold-steer"


def cached_folder(
    model: Embedded, *, accept_license: bool = False, allow_download: bool = True
) -> Path:
    """Return the folder of the converted model; fetch and convert it first if it is not there.

    Wheels that lie in `cache_root() / "wheels"` are used instead of the network.

    Raises:
        ModelNotFound: the licence is not accepted, a wheel cannot be had or is not the pinned
            one, or there is no room.
    """
    root = cache_root()
    folder = root / model.folder_name
    settle_licence(model, root, accept_license=accept_license)
    if not folder.is_dir():
        build(model, root, allow_download=allow_download)
    return folder


def settle_licence(model: Embedded, root: Path, *, accept_license: bool) -> None:
    """Refuse a model whose terms nobody accepted on this machine; remember an acceptance.

    Raises:
        ModelNotFound: the terms must be accepted and were not.
    """
    licence = model.licence
    if not licence.must_accept:
        return
    marker = root / f"{model.name}-licence-accepted"
    if marker.is_file():
        return
    if not accept_license:
        raise ModelNotFound(
            f"{model.name} comes under the {licence.name}, which nobody accepted on this machine "
            f"yet. It is not loaded before that. Read {licence.url}, then load it once with "
            "accept_license=True."
        )
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{licence.name}\n{licence.url}\n")


def build(model: Embedded, root: Path, *, allow_download: bool) -> None:
    """Fetch, check, assemble, convert and publish one model; leave nothing else behind."""
    work = work_folder(root)
    try:
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=work) as temporary:
            _build(model, root, work, Path(temporary), allow_download=allow_download)
        publish(work, root / model.folder_name, facts(model))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build(model: Embedded, root: Path, work: Path, fetched: Path, *, allow_download: bool) -> None:
    """Do the long steps, each under its progress bar or with a line that says what it is."""
    n_bytes = sum(wheel.n_bytes for wheel in model.wheels)
    _say(
        f"{model.name}: {len(model.wheels)} wheel(s), {n_bytes / 1e6:.0f} MB, licence "
        f"{model.licence.name} ({model.licence.url}); fetched and converted once, into {root}"
    )
    paths: dict[str, Path] = {}
    for wheel in model.wheels:
        paths[wheel.file_name] = find_or_fetch(
            wheel, root / "wheels", into=fetched, allow_download=allow_download, name=model.name
        )
    gguf = fetched / "model.gguf"
    assemble([(paths[file_name], member) for file_name, member in model.pieces.items()], gguf)
    check_sha256(gguf, model.gguf_sha256, name=model.name)
    _say(f"{model.name}: converting {model.quantisation}, to fp32 safetensors (about a minute)")
    convert(gguf, work, digits_alone=model.digits_alone)
    if model.licence.member is not None:
        text = read_member(paths[model.wheels[0].file_name], model.licence.member)
        (work / f"LICENCE{Path(model.licence.member).suffix}").write_bytes(text)


def facts(model: Embedded) -> dict[str, object]:
    """Return what provenance.json says of a converted model."""
    return {
        "name": model.name,
        "quantisation": model.quantisation,
        "licence": asdict(model.licence),
        "gguf_sha256": model.gguf_sha256,
        "wheels": [asdict(wheel) for wheel in model.wheels],
        "conversion": CONVERSION,
    }


def provenance_of(model: Embedded, *, dtype: str) -> Provenance:
    """Return the provenance of a loaded embedded model."""
    return Provenance(
        name=model.name,
        source="wheel",
        dtype=dtype,
        revision=model.gguf_sha256,
        quantisation=model.quantisation,
        licence=model.licence.name,
        wheels=model.wheels,
    )


def _say(line: str) -> None:
    """Write one line to stderr without tearing a progress bar."""
    tqdm.write(line, file=sys.stderr)
