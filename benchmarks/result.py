"""What a task returns and what a result file holds; reading and checking such files.

Writing them is in `run`. Tables and pictures are made from a `Result` only, so that whoever has
the file can make them again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.stats import Number

FORMAT = 1

Json = Any
"""What the json module can write; the shape is the task's own affair."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task measured."""

    numbers: Mapping[str, Number]
    controls: Mapping[str, Number]
    tables: Mapping[str, Json] = field(default_factory=dict)
    """What the pictures and the longer tables are made of."""
    specs: Mapping[str, Json] = field(default_factory=dict)
    """The settings and the interventions that made the numbers."""


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one task on one model."""

    task: str
    model: str
    numbers: Mapping[str, Number]
    controls: Mapping[str, Number]
    provenance: Mapping[str, Json]
    tables: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Return the content of the file."""
        return {
            "format": FORMAT,
            "task": self.task,
            "model": self.model,
            "numbers": {name: number.to_json() for name, number in self.numbers.items()},
            "controls": {name: number.to_json() for name, number in self.controls.items()},
            "provenance": dict(self.provenance),
            "tables": dict(self.tables),
        }


def read_result(path: Path) -> Result:
    """Return the result in a file.

    Raises:
        BenchmarkError: there is no such file, or it is not a result.
    """
    if not path.is_file():
        raise BenchmarkError(f"There is no result {path}. `python -m benchmarks run` writes one.")
    try:
        content = json.loads(path.read_text())
        return Result(
            content["task"],
            content["model"],
            _numbers(content["numbers"]),
            _numbers(content["controls"]),
            content["provenance"],
            content.get("tables", {}),
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as bad:
        raise BenchmarkError(
            f"{path} is not a result of the benchmarks ({type(bad).__name__}: {bad}): one has "
            "task, model, numbers, controls and provenance. Run the task again."
        ) from None


def _numbers(content: Mapping[str, Json]) -> dict[str, Number]:
    return {name: Number(n["value"], n["lo"], n["hi"]) for name, n in content.items()}
