"""The records of an audit log: one JSON line each, with the hash of the one before."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from steer.spec import canonical

Kind = Literal["open", "generation", "note", "resume", "close"]
START = "0" * 64
"""What the first record has in the place of the hash before it."""
KEYS = frozenset({"n", "previous", "time", "kind", "body", "hash"})


@dataclass(frozen=True, slots=True)
class Record:
    """One whole record."""

    n: int
    """From 0."""
    previous: str
    time: str
    """UTC, ISO 8601."""
    kind: Kind
    body: Mapping[str, object]
    hash: str

    @property
    def line(self) -> bytes:
        """The bytes that stand in the file, with the end of the line."""
        return (canonical({**self._plain(), "hash": self.hash}) + "\n").encode()

    def _plain(self) -> dict[str, object]:
        return {
            "n": self.n,
            "previous": self.previous,
            "time": self.time,
            "kind": self.kind,
            "body": dict(self.body),
        }


def make(n: int, previous: str, time: str, kind: Kind, body: Mapping[str, object]) -> Record:
    """Return a record with its hash, over the canonical JSON of all that it says.

    Raises:
        SpecError: the body has a value that is not JSON, or a number that is not finite.
    """
    plain = {"n": n, "previous": previous, "time": time, "kind": kind, "body": dict(body)}
    text = canonical(plain)
    # What is read back is what was written: 1.0 and tuples become what JSON makes of them.
    body = cast("Mapping[str, object]", json.loads(text)["body"])
    return Record(n, previous, time, kind, body, hashlib.sha256(text.encode()).hexdigest())


def parse(line: bytes) -> Record | None:
    """Return the record of a line whose hash is that of its content, or None."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != KEYS:
        return None
    n, previous, time, kind, body = (found[k] for k in ("n", "previous", "time", "kind", "body"))
    if (
        type(n) is not int
        or not all(isinstance(value, str) for value in (previous, time, kind, found["hash"]))
        or kind not in get_args(Kind)
        or not isinstance(body, dict)
    ):
        return None
    try:
        made = make(n, previous, time, kind, body)
    except ValueError:
        return None
    # Byte for byte: another spelling of the same values is a change too.
    return made if made.hash == found["hash"] and made.line.rstrip(b"\n") == line else None
