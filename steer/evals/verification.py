"""Is this audit log what was written? Finds any change, loss or reordering, and says where."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steer.errors import SpecError
from steer.evals.chain import START, Record, parse

State = Literal["whole", "unclosed", "broken"]


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict on a log."""

    state: State
    """whole: closed and unchanged. unclosed: unchanged up to its last whole record, but without an
    end, as a killed run leaves it, or one whose last records were taken away. broken: changed."""
    records: int
    """Whole records from the first on, up to the first fault."""
    head: str
    """The hash of the last of them."""
    problem: str = ""
    """Where and what the first fault is; of an unclosed log, what stands at its end."""
    tail_bytes: int = 0
    """Bytes after the last whole record: what a killed run had begun to write."""
    head_seen: bool | None = None
    """Whether the head that was asked for is the last record's; None if none was."""

    @property
    def ok(self) -> bool:
        """Whether nothing was changed, lost or reordered: closed, or up to the head asked for."""
        if self.head_seen is not None:
            return self.state != "broken" and self.head_seen
        return self.state == "whole"

    def __str__(self) -> str:
        """Say the verdict in one sentence."""
        told = f"{self.state}: {self.records} records verify, the last is {self.head[:16]}"
        return f"{told}. {self.problem}".rstrip(". ") + "."


def verify(path: str | os.PathLike[str], *, head: str | None = None) -> Verification:
    """Return the verdict on a log.

    The chain alone cannot show that its last records were taken away together with its end. The
    head that `AuditLog.close` returned, kept elsewhere (it stands beside the result), does.

    Args:
        path: of the log.
        head: the hash that its last record should have.

    Raises:
        SpecError: there is no such file.
    """
    source = Path(path)
    if not source.is_file():
        raise SpecError(f"There is no log {source}. Name the file that open_log was given.")
    found = read_chain(source.read_bytes())
    if head is None:
        return found.verdict
    verdict = found.verdict
    seen = verdict.head == head
    problem = verdict.problem
    if not seen and verdict.state != "broken":
        at = next((r.n for r in found.records if r.hash == head), None)
        problem = (
            f"The head {head[:16]} is not in it: records were taken away, or it is another log"
            if at is None
            else f"The head {head[:16]} is record {at}, and {verdict.records - 1 - at} follow it"
        )
    return Verification(
        verdict.state, verdict.records, verdict.head, problem, verdict.tail_bytes, seen
    )


@dataclass(frozen=True, slots=True)
class Chain:
    """The whole records of a log, and the verdict."""

    records: tuple[Record, ...]
    verdict: Verification


def read_chain(data: bytes) -> Chain:
    """Return the records of a log up to its first fault, and the verdict."""
    records: list[Record] = []
    lines = data.split(b"\n")
    tail = lines.pop()
    for at, line in enumerate(lines):
        record = parse(line)
        after = parse(lines[at + 1]) if record is None and at + 1 < len(lines) else None
        if record is None and after is not None and _resumes(after, line, records):
            continue
        problem = _problem(record, records, at)
        if problem:
            return _verdict(records, "broken", problem, 0)
        assert record is not None
        records.append(record)
    if not records:
        return _verdict(records, "broken", "It has no whole record", len(tail))
    if records[-1].kind == "close":
        if tail:
            return _verdict(records, "broken", f"{len(tail)} bytes follow its end", len(tail))
        return _verdict(records, "whole", "", 0)
    told = "It has no end, as a killed run leaves it"
    if tail:
        told += f"; the last {len(tail)} bytes are of a record that was not finished"
    return _verdict(records, "unclosed", told, len(tail))


def torn(line: bytes) -> dict[str, object]:
    """Return what a resume record says of the unfinished line before it."""
    return {"torn_bytes": len(line), "torn_sha256": hashlib.sha256(line).hexdigest()}


def _resumes(after: Record, line: bytes, records: list[Record]) -> bool:
    """Return whether a record vouches for the unfinished line before it."""
    said = {key: after.body.get(key) for key in ("torn_bytes", "torn_sha256")}
    return after.kind == "resume" and bool(records) and said == torn(line)


def _problem(record: Record | None, records: list[Record], at: int) -> str:
    """Return what is wrong with the record that comes next, or nothing."""
    if record is None:
        return f"Line {at + 1} is no record, or was changed: its hash is not that of its content"
    if records and records[-1].kind == "close":
        return f"Line {at + 1} follows the end of the log"
    n, previous = len(records), records[-1].hash if records else START
    if record.n != n:
        return f"Line {at + 1} is record {record.n}, where {n} should be: lost or reordered"
    if record.previous != previous:
        return f"Record {n} does not follow the one before it: that one was exchanged"
    if (record.kind == "open") != (n == 0):
        return f"Record {n} is of the kind {record.kind!r}, which cannot stand there"
    if record.kind == "close" and record.body.get("records") != n + 1:
        return f"The end speaks of {record.body.get('records')} records, and there are {n + 1}"
    return ""


def _verdict(records: list[Record], state: State, problem: str, tail: int) -> Chain:
    head = records[-1].hash if records else START
    return Chain(tuple(records), Verification(state, len(records), head, problem, tail))
