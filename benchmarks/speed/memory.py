"""Whether a sweep keeps to its budget of memory, by what the system says of a fresh process.

Not by tracemalloc, which sees Python's own allocations and none of torch's. A process of its own
has no past: torch returns to the system what it frees (large blocks are mapped one by one, see
ALLOCATOR), so the growth of the resident set is the memory in use. Linux can forget the peak of a
process (clear_refs); without that the peak would be that of loading the model, and the number is
unscored. On a GPU the peak is torch's own count.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.result import Json
from benchmarks.speed.inputs import block, directions, token_rows

BUDGET = 192 * 2**20
N_ARMS, N_PROMPTS, N_TOKENS = 128, 1, 128
"""More rows than the budget holds at one time, on smollm2-135m."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
ROOT = Path(__file__).parents[2]


def peak_over_budget(lm: steer.LM) -> tuple[float | None, Json]:
    """Return the peak growth of memory during a sweep over its budget, and what it is made of.

    Raises:
        BenchmarkError: the process that measures it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.speed.memory", folder, str(lm.device)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **ALLOCATOR},
            check=False,
        )
    if done.returncode != 0:
        raise BenchmarkError(
            f"The process that measures memory ended with {done.returncode}: "
            f"{done.stderr.strip()[-600:]}. Without it there is no budget_peak_ratio. Free some "
            "memory, or run the task where a second copy of the model fits."
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    growth = found["growth"]
    return (None if growth is None else growth / BUDGET), found


def measure_growth(lm: steer.LM) -> Json:
    """Return bytes: the peak growth during a sweep, the budget, and the sweep's own estimate."""
    _sweep(lm, 2).run()  # what torch sets up once is no part of the sweep
    sweep = _sweep(lm, N_ARMS)
    before = _start(lm.device)
    _ = sweep.values
    peak = _peak(lm.device)
    growth = None if before is None or peak is None else peak - before
    return {"growth": growth, "budget": BUDGET, "estimate": sweep.cost().bytes}


def _sweep(lm: steer.LM, n_arms: int) -> steer.Sweep:
    rows = token_rows(lm, N_PROMPTS, N_TOKENS, seed=5)
    site = steer.Site(block(lm, 15), "resid_post")
    scope = steer.at(N_TOKENS // 2)
    vectors = directions(lm, n_arms, length=10.0, seed=6)
    arms = [[steer.Add(site, vector, scope=scope)] for vector in vectors]
    return steer.sweep(lm, rows, arms, lambda logits, _: logits[:, 0], budget=BUDGET)


def _start(device: torch.device) -> int | None:
    """Forget the peak so far, and return what is in use; None where it cannot be forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return int(psutil.Process().memory_info().rss)


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    print(json.dumps(measure_growth(steer.load(sys.argv[1], device=sys.argv[2]))))
