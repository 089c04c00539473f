"""The audit log: append-only JSON lines, each with the hash of the one before.

A record is on the disk before `append` returns, so a killed run leaves a log that verifies up to
its last whole record. Nothing is ever written over: what a killed run had begun stays in the file,
and the record that resumes says what it was.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from filelock import FileLock, Timeout

from steer.evals.chain import START, Kind, Record, make, parse
from steer.evals.evidence import evidence_of
from steer.evals.manifest import Manifest, require_same
from steer.evals.refusals import Refused
from steer.evals.verification import read_chain, torn
from steer.receipt import Receipt


class AuditLog:
    """An open log. Made by `open_log` or `resume_log`; safe under threads; one writer at a time.

    Leaving `with` closes it, and after an exception first writes a note of that.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        lock: FileLock,
        manifest: Manifest,
        records: Sequence[Record] = (),
    ) -> None:
        """Take over an open file that ends with a whole record."""
        self.path = path
        self.manifest = manifest
        self._file = file
        self._lock = lock
        self._guard = threading.Lock()
        self._n = len(records)
        self._head = records[-1].hash if records else START
        self._closed = False

    @property
    def head(self) -> str:
        """The hash of the last record: keep it beside the result, and give it to `verify`."""
        return self._head

    def append(self, kind: Kind, body: Mapping[str, object]) -> Record:
        """Write one record, and return it once it is on the disk.

        Raises:
            Refused: log_closed.
            SpecError: the body has a value that is not JSON; nothing was written.
            OSError: the disk refuses; the log is given back, and `resume_log` goes on with it.
        """
        with self._guard:
            if self._closed:
                raise Refused(
                    "log_closed",
                    f"The log {self.path} was closed with {self._n} records, and nothing may "
                    "follow its end. Open another one.",
                )
            time = datetime.now(UTC).isoformat(timespec="microseconds")
            record = make(self._n, self._head, time, kind, body)
            try:
                self._file.write(record.line)
                self._file.flush()
                os.fsync(self._file.fileno())
            except BaseException:
                # A record may stand there in part: nothing may follow it but what resumes the log.
                self._give_back()
                raise
            self._n, self._head = self._n + 1, record.hash
            return record

    def generation(
        self,
        receipt: Receipt,
        row: int,
        *,
        sample: str,
        plan: str | None = None,
        verdict: str = "",
        extra: Mapping[str, object] | None = None,
    ) -> Record:
        """Write what a plan did to one row of a generation.

        Args:
            receipt: of the pass.
            row: of the batch.
            sample: what the row is in the evaluation.
            plan: the digest of the row's own plan; None for that of the manifest.
            verdict: what the evaluation made of it.
            extra: further JSON values.
        """
        body = {
            "plan": self.manifest.plan if plan is None else plan,
            "sample": sample,
            "verdict": verdict,
            "did": evidence_of(receipt, row),
            "extra": dict(extra or {}),
        }
        return self.append("generation", body)

    def close(self) -> str:
        """Write the end, give the file back, and return the head. Closing twice does nothing."""
        if not self._closed:
            self.append("close", {"records": self._n + 1})
            self._give_back()
        return self._head

    def _give_back(self) -> None:
        self._closed = True
        try:
            self._file.close()
        finally:
            self._lock.release()

    def __enter__(self) -> "AuditLog":
        """Return the log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; an exception is noted first."""
        del trace
        if kind is not None and not self._closed:
            self.append("note", {"error": kind.__name__, "message": str(error)})
        self.close()

    def __repr__(self) -> str:
        """Say where it is and how far it has come."""
        state = "closed" if self._closed else "open"
        return f"AuditLog({self.path}, {state}, {self._n} records, head {self._head[:12]})"


def open_log(path: str | os.PathLike[str], manifest: Manifest) -> AuditLog:
    """Begin a log with the manifest of the run.

    Raises:
        Refused: log_exists (an old log is never written over), or log_in_use.
    """
    target = Path(path)
    lock = _locked(target)
    try:
        file = target.open("xb")
    except FileExistsError:
        lock.release()
        raise Refused(
            "log_exists",
            f"There is a log {target} already, and a log is never written over. Take another "
            "name, or go on with it by resume_log.",
        ) from None
    except BaseException:
        lock.release()
        raise
    log = AuditLog(target, file, lock, manifest)
    log.append("open", {"manifest": manifest.to_json()})
    return log


def resume_log(path: str | os.PathLike[str], manifest: Manifest) -> AuditLog:
    """Go on with a log that a killed run left without an end.

    Raises:
        Refused: log_broken (what is there does not verify), log_closed, log_in_use, or the code
            of the part in which this run is not the one that the log was opened for.
    """
    target = Path(path)
    lock = _locked(target)
    try:
        data = target.read_bytes() if target.is_file() else b""
        chain = read_chain(data)
        if chain.verdict.state == "broken":
            raise Refused(
                "log_broken",
                f"The log {target} cannot be gone on with: {chain.verdict.problem}. What follows "
                "would vouch for what was changed. Keep it as it is, and open another one.",
            )
        if chain.verdict.state == "whole":
            raise Refused(
                "log_closed",
                f"The log {target} was closed with {chain.verdict.records} records. Open another.",
            )
        opened = chain.records[0].body.get("manifest")
        require_same(Manifest.from_json(opened if isinstance(opened, dict) else {}), manifest)
        tail = data[len(data) - chain.verdict.tail_bytes :] if chain.verdict.tail_bytes else b""
        file = target.open("ab")
    except BaseException:
        lock.release()
        raise
    log = AuditLog(target, file, lock, manifest, chain.records)
    if tail:
        # A record that lacks its newline alone was not acknowledged: it may not turn whole now.
        ending = b"~" if parse(tail) else b""
        file.write(ending + b"\n")
        tail += ending
    log.append("resume", {"manifest": manifest.to_json(), **(torn(tail) if tail else {})})
    return log


def _locked(target: Path) -> FileLock:
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Refused(
            "log_in_use",
            f"Another run is writing to {target}. Two writers would break the chain. Give each run "
            "a log of its own.",
        ) from None
    return lock
