"""Run one task on one model and write its result: the only place that writes results."""

import importlib.metadata
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome, Result
from benchmarks.task import Options, Task

PACKAGES = (
    "manifold-steer",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "transformer-lens",
    "nnsight",
)


def run_task(task: Task, lm: steer.LM, options: Options, *, model: str) -> Result:
    """Return the result of a task on a loaded model.

    Raises:
        BenchmarkError: the task left out a control that it declares.
    """
    start = time.perf_counter()
    outcome = task.measure(lm, options)
    missing = [name for name in task.controls if name not in outcome.controls]
    if missing:
        raise BenchmarkError(
            f"The task {task.name} declares the controls {', '.join(task.controls)} but measured "
            f"no {', '.join(missing)}. A result without its controls is not reported. Measure "
            "them, or return them as UNSCORED where they cannot be."
        )
    seconds = time.perf_counter() - start
    provenance = _provenance(task, lm, options, outcome, seconds)
    return Result(task.name, model, outcome.numbers, outcome.controls, provenance, outcome.tables)


def require_writable(path: Path) -> None:
    """Refuse a place where no result can be written, before minutes are spent on one.

    Raises:
        BenchmarkError: it is a folder, or its folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as bad:
        raise BenchmarkError(
            f"{path.parent} cannot be made ({bad}). Choose another --out."
        ) from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BenchmarkError(
            f"{path} cannot be written: it is a folder, or its folder is not writable. Choose "
            "another --out, as FILE.json."
        )


def write_result(result: Result, path: Path) -> None:
    """Write a result, whole or not at all.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file, whole or not at all: a run that is interrupted leaves the old one as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _provenance(
    task: Task, lm: steer.LM, options: Options, outcome: Outcome, seconds: float
) -> dict[str, Any]:
    return {
        "question": task.question,
        "paper": task.paper,
        "model": _model(lm),
        "options": asdict(options),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": _hardware(lm),
        "wall_seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "specs": dict(outcome.specs),
    }


def _model(lm: steer.LM) -> dict[str, Any]:
    facts = asdict(lm.provenance)
    return {**facts, "printed": str(lm.provenance), "n_layers": lm.n_layers, "d_model": lm.d_model}


def _versions() -> dict[str, str]:
    known = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {name: known.get(name, "not installed") for name in PACKAGES}


def _hardware(lm: steer.LM) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else None
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(lm.device),
        "gpu": gpu,
    }
