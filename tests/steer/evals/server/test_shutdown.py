"""`steer serve` as a process of its own, told to stop while clients are waiting."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

import steer
from steer.evals import verify

N_CLIENTS = 24


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(address: str, at: int) -> tuple[str, int]:
    """Return ("answered" or "refused" or "closed", status)."""
    body = {"model": "tiny-llama@left", "prompt": f"a b {at}", "max_tokens": 400, "seed": at}
    try:
        got = httpx.post(f"{address}/completions", json=body, timeout=60)
    except httpx.HTTPError:
        return "closed", 0
    if got.status_code == 200:
        fired = [line["edited"] for line in got.json()["steer"]["receipt"]]
        return ("answered" if fired and all(fired) else "unsteered"), 200
    return "refused", got.status_code


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_under_load_ends_the_process_and_leaves_a_whole_log(tmp_path: Path, end: int):
    folder = tmp_path / "plans"
    folder.mkdir()
    lm = steer.load("tiny-llama")
    steer.save([steer.Add(steer.Site(2), torch.ones(lm.d_model))], folder / "left.safetensors")
    port, log = free_port(), tmp_path / "audit.jsonl"
    start = "import sys; from steer.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "serve", "--model", "tiny-llama", "--port", str(port)]
    command += ["--plans", str(folder), "--audit", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        address = f"http://127.0.0.1:{port}/v1"
        wait_for(address, process)
        with ThreadPoolExecutor(N_CLIENTS) as pool:
            waiting = [pool.submit(ask, address, at) for at in range(N_CLIENTS)]
            wait_until_answering(log)
            process.send_signal(end)
            found = Counter(one.result()[0] for one in waiting)
        _, errors = process.communicate(timeout=60)
    # What was asked before the signal is answered, refused or cut off: never unsteered.
    assert "unsteered" not in found
    assert sum(found.values()) == N_CLIENTS
    assert process.returncode == 0
    assert b"Traceback" not in errors
    verdict = verify(log)
    assert verdict.ok, verdict.problem
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) >= 1 + found["answered"]


def wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert process.poll() is None, (process.stderr and process.stderr.read()) or b""
        try:
            if httpx.get(f"{address}/models", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("the server never answered")


def wait_until_answering(log: Path) -> None:
    """Wait for the first record of an answer, or half a second: the batch is then at work."""
    for _ in range(10):
        if len(log.read_text().splitlines()) > 1:
            return
        time.sleep(0.05)
