import dataclasses

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome
from benchmarks.task import Registry, Task, task


def _task(controls=("nothing",)):
    return Task("Does it?", lambda _lm, _options: Outcome({}, {}), controls)


def test_a_decorated_function_becomes_a_frozen_task_of_its_name():
    registry = Registry()

    @task(paper="arXiv:1", cost="none", registry=registry)
    def walking():
        return _task()

    assert walking is registry.get("walking")
    assert (walking.name, walking.paper, walking.cost) == ("walking", "arXiv:1", "none")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(walking, "name", "running")  # noqa: B010


def test_a_second_task_of_one_name_is_refused():
    registry = Registry()
    registry.add("walking", _task())
    with pytest.raises(BenchmarkError, match="two tasks named 'walking'"):
        registry.add("walking", _task())


def test_a_task_without_a_control_is_refused():
    with pytest.raises(BenchmarkError, match="declares no control"):
        Registry().add("walking", _task(controls=()))


def test_a_frozen_registry_takes_no_more_tasks():
    with pytest.raises(BenchmarkError, match="after the command had started"):
        Registry(frozen=True).add("walking", _task())


def test_an_unknown_name_is_answered_with_near_names():
    registry = Registry()
    registry.add("weekdays", _task())
    with pytest.raises(BenchmarkError, match=r"no task 'weekday'\. Did you mean weekdays\?"):
        registry.get("weekday")
