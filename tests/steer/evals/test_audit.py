"""The log: what is written can be read, and nothing else passes for it."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import steer
from steer.cli import main
from steer.evals import (
    Manifest,
    Refused,
    evidence_of,
    manifest_of,
    open_log,
    require_fired,
    resume_log,
    verify,
)
from steer.evals.chain import parse

MANIFEST = Manifest("a" * 64, {"name": "m"}, {"class": "t"}, {"torch": "2"}, (1, 2))


def written(path: Path, n: int = 4) -> str:
    with open_log(path, MANIFEST) as log:
        for i in range(n):
            log.append("generation", {"sample": str(i), "score": i / 3})
    return log.head


def test_a_closed_log_verifies_and_its_records_are_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    head = written(path)
    found = verify(path, head=head)
    assert found.ok
    assert (found.state, found.records, found.head) == ("whole", 6, head)
    records = [parse(line) for line in path.read_bytes().splitlines()]
    assert [r.kind for r in records if r] == ["open", *["generation"] * 4, "close"]
    second = records[2]
    assert second is not None
    assert second.body == {"sample": "1", "score": 1 / 3}
    opened = records[0]
    assert opened is not None
    manifest = opened.body["manifest"]
    assert isinstance(manifest, dict)
    assert Manifest.from_json(manifest) == MANIFEST


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    written(path)
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in (1, 32):
            changed = bytearray(data)
            changed[at] ^= bit
            path.write_bytes(bytes(changed))
            assert not verify(path).ok, (at, bit)


def test_every_lost_doubled_or_exchanged_record_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    written(path)
    lines = _lines(path)
    n = len(lines)
    changed = [lines[:i] + lines[i + 1 :] for i in range(n)]
    changed += [lines[: i + 1] + lines[i:] for i in range(n)]
    for i in range(n):
        for j in range(i):
            order = list(lines)
            order[i], order[j] = order[j], order[i]
            changed.append(order)
    for each in changed:
        path.write_bytes(b"".join(each))
        assert not verify(path).ok


def test_a_log_that_was_forged_from_some_record_on_has_another_head(tmp_path: Path) -> None:
    path, forged = tmp_path / "log.jsonl", tmp_path / "forged.jsonl"
    head = written(path)
    with open_log(forged, MANIFEST) as log:
        for i in range(4):
            log.append("generation", {"sample": str(i), "score": 1.0})
    assert verify(forged).ok
    found = verify(forged, head=head)
    assert not found.ok
    assert "is not in it" in found.problem


def test_records_taken_from_the_end_show_where_the_head_is_known(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    head = written(path)
    path.write_bytes(b"".join(_lines(path)[:-2]))
    assert verify(path).state == "unclosed"
    assert not verify(path).ok
    assert not verify(path, head=head).ok


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_run_killed_within_a_record_verifies_up_to_the_one_before(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "log.jsonl"
    written(path)
    lines = _lines(path)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:-cut])
    found = verify(path)
    assert (found.state, found.records) == ("unclosed", 3)
    assert found.tail_bytes == len(lines[3]) - cut
    with resume_log(path, MANIFEST) as log:
        log.append("generation", {"sample": "again"})
    after = verify(path, head=log.head)
    assert after.ok
    # What was torn stays in the file, and its hash is kept: it cannot be changed unseen either.
    data = bytearray(path.read_bytes())
    data[sum(map(len, lines[:3])) + 5] ^= 1
    path.write_bytes(bytes(data))
    assert not verify(path).ok


def test_a_killed_process_leaves_a_log_that_verifies(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = (
        "import sys, itertools\n"
        "from steer.evals import Manifest, open_log\n"
        "log = open_log(sys.argv[1], Manifest(None, {}, {}, {}, ()))\n"
        "for i in itertools.count():\n"
        "    log.append('generation', {'sample': str(i), 'text': 'x' * 500})\n"
        "    print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = verify(path)
    assert found.state == "unclosed"
    # What append had returned for is on the disk: the opening and all that was told.
    assert found.records >= told[-1] + 2
    with resume_log(path, Manifest(None, {}, {}, {}, ())) as log:
        pass
    assert verify(path, head=log.head).ok


def test_an_exception_is_noted_and_the_log_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with pytest.raises(RuntimeError), open_log(path, MANIFEST):
        raise RuntimeError("out of memory")
    assert verify(path).ok
    note = parse(path.read_bytes().splitlines()[1])
    assert note is not None
    assert note.body == {"error": "RuntimeError", "message": "out of memory"}


def test_threads_write_whole_records_in_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path, MANIFEST) as log:

        def write(k: int) -> None:
            for i in range(20):
                log.append("note", {"thread": k, "i": i})

        threads = [threading.Thread(target=write, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = verify(path)
    assert found.ok
    assert found.records == 122


def test_a_full_disk_leaves_a_log_that_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    log = open_log(path, MANIFEST)
    with monkeypatch.context() as broken:

        def full(_: int) -> None:
            raise OSError("no space left")

        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            log.append("note", {})
    with pytest.raises(Refused):
        log.append("note", {})
    with resume_log(path, MANIFEST) as again:
        again.append("note", {})
    assert verify(path, head=again.head).ok


def test_another_run_may_not_go_on_with_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    written(path)
    path.write_bytes(b"".join(_lines(path)[:-1]))
    other = Manifest("b" * 64, MANIFEST.model, MANIFEST.tokenizer, MANIFEST.libraries, (1, 2))
    before = path.read_bytes()
    with pytest.raises(Refused) as caught:
        resume_log(path, other)
    assert caught.value.reason == "wrong_plan"
    assert path.read_bytes() == before


def test_what_is_no_json_leaves_nothing_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path, MANIFEST) as log:
        before = path.read_bytes()
        for bad in ({"x": float("nan")}, {"x": object()}):
            with pytest.raises(steer.SteerError):
                log.append("note", bad)
        assert path.read_bytes() == before
    assert verify(path).ok


def test_what_may_not_be_written_is_refused_by_its_code(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def reason(call: object) -> str:
        with pytest.raises(Refused) as caught:
            call()  # type: ignore[operator]
        return caught.value.reason

    log = open_log(path, MANIFEST)
    assert reason(lambda: open_log(path, MANIFEST)) == "log_in_use"
    log.close()
    assert reason(lambda: log.append("note", {})) == "log_closed"
    assert reason(lambda: open_log(path, MANIFEST)) == "log_exists"
    assert reason(lambda: resume_log(path, MANIFEST)) == "log_closed"
    lines = _lines(path)
    path.write_bytes(lines[0].replace(b"torch", b"porch"))
    assert reason(lambda: resume_log(path, MANIFEST)) == "log_broken"


def test_random_bytes_are_broken_logs_and_never_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    written(path)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 9)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
        path.write_bytes(bytes(data))
        if bytes(data) != whole:
            assert not verify(path).ok
    for odd in (b"", b"\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"n":NaN}\n', b"\xff\xfe\n"):
        path.write_bytes(odd)
        assert verify(path).state == "broken"


def test_the_command_says_the_verdict_and_exits_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    head = written(path)
    assert main(["audit", "verify", str(path), "--head", head]) == 0
    assert "whole: 6 records verify" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["audit", "verify", str(path)]) == 1
    assert "as a killed run leaves it" in capsys.readouterr().out
    assert main(["audit", "verify", str(tmp_path / "none")]) == 2
    assert "There is no log" in capsys.readouterr().err


@pytest.fixture(scope="module")
def lm() -> steer.LM:
    return steer.load("tiny-llama")


def test_evidence_is_the_receipt_row_by_row(lm: steer.LM, tmp_path: Path) -> None:
    add = steer.Add(steer.Site(1, "resid_post"), torch.ones(lm.d_model), 2.0, scope=steer.at(4))
    rows = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9]]
    with lm.attached([add]) as run, torch.no_grad():
        lm.model(**lm.tokenizer.pad({"input_ids": rows}, return_tensors="pt"))
    line = run.receipt[0]
    for row in (0, 1):
        (told,) = evidence_of(run.receipt, row)
        assert told["seen"] == len(rows[row])
        assert (told["eligible"], told["edited"]) == (1, 1)
        assert told["relative_size"] == pytest.approx(float(line.relative_size[row]))
        json.dumps(told, allow_nan=False)
    require_fired(run.receipt)
    path = tmp_path / "log.jsonl"
    with open_log(path, manifest_of(lm, [add])) as log:
        log.generation(run.receipt, 1, sample="s", verdict="C")
    record = parse(path.read_bytes().splitlines()[1])
    assert record is not None
    assert record.body["did"] == evidence_of(run.receipt, 1)
    assert record.body["plan"] == log.manifest.plan


def test_a_row_in_which_nothing_fired_is_refused(lm: steer.LM) -> None:
    scope = steer.at(5, missing="skip")
    add = steer.Add(steer.Site(1, "resid_post"), torch.ones(lm.d_model), 2.0, scope=scope)
    rows = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9]]
    with lm.attached([add]) as run, torch.no_grad():
        lm.model(**lm.tokenizer.pad({"input_ids": rows}, return_tensors="pt"))
    require_fired(run.receipt, [0])
    with pytest.raises(Refused, match=r"rows \[1\]") as caught:
        require_fired(run.receipt)
    assert caught.value.reason == "never_fired"
