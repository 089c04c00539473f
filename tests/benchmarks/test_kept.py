"""The kept results can be read and drawn by the tasks that made them."""

from pathlib import Path

import pytest

import benchmarks.tasks
from benchmarks.result import read_result
from benchmarks.task import REGISTRY, Late

KEPT = sorted(Path(benchmarks.tasks.__file__).parent.parent.joinpath("expected").glob("*.json"))


@pytest.mark.parametrize("name", sorted(REGISTRY.tasks))
def test_the_picture_of_every_task_can_be_imported(name: str):
    draw = REGISTRY.tasks[name].draw
    assert draw is not None
    assert callable(draw.resolved() if isinstance(draw, Late) else draw)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_every_kept_result_draws(path: Path, tmp_path: Path):
    result = read_result(path)
    draw = REGISTRY.get(result.task).draw
    assert draw is not None
    written = draw(result, tmp_path / path.name)
    assert written
    assert all(file.stat().st_size > 1000 for file in written)
