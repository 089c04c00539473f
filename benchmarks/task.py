"""Tasks: frozen values made by decorated functions, and the registry that knows them by name.

    @task(paper="arXiv:2605.05115", cost="smollm2-135m: 1 min on 2 cores")
    def months() -> Task:
        return Task(question="...", measure=..., controls=("random_path_over_manifold",))

What a task returns is in `result`; what runs it is in `run`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.result import Outcome, Result


@dataclass(frozen=True, slots=True)
class Options:
    """What may vary between two runs of a task on a model."""

    seed: int = 0
    limit: int | None = None
    """How much of the data to use, in the task's own units; None is all of it."""


Measure = Callable[[steer.LM, Options], Outcome]
Draw = Callable[[Result, Path], list[Path]]
"""Draws a result beside the JSON file of the given path; returns what it wrote."""


@dataclass(frozen=True, slots=True)
class Late:
    """A Draw that is imported when it draws: matplotlib is in the extra `plots`.

    Numbers can be had without it. `path` is "module:function".
    """

    path: str

    def resolved(self) -> Draw:
        """Return the function itself."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)

    def __call__(self, result: Result, path: Path) -> list[Path]:
        """Draw."""
        return self.resolved()(result, path)


@dataclass(frozen=True, slots=True)
class Task:
    """A question, how it is measured, and the controls without which it has no answer."""

    question: str
    measure: Measure
    controls: tuple[str, ...]
    """Names of the controls that every result of this task must have."""
    draw: Draw | None = None
    name: str = ""
    paper: str = ""
    cost: str = ""


@dataclass(slots=True)
class Registry:
    """Tasks by name. Filled while modules are imported, frozen when a command starts."""

    tasks: dict[str, Task] = field(default_factory=dict)
    frozen: bool = False

    def add(self, name: str, made: Task) -> None:
        """Register a task.

        Raises:
            BenchmarkError: the name is taken, the registry is frozen, or there is no control.
        """
        if self.frozen:
            raise BenchmarkError(
                f"The task {name!r} was declared after the command had started, so not every part "
                "of it would know the task. Declare it in a module and name that with --import."
            )
        if name in self.tasks:
            raise BenchmarkError(
                f"There are two tasks named {name!r}, and a result must say which one made it. "
                "Rename one of them."
            )
        if not made.controls:
            raise BenchmarkError(
                f"The task {name!r} declares no control, and an effect without one is no evidence. "
                "Measure something that should show nothing, and name it in `controls`."
            )
        self.tasks[name] = made

    def get(self, name: str) -> Task:
        """Return the task of this name.

        Raises:
            BenchmarkError: there is none; near names are offered.
        """
        if name not in self.tasks:
            near = get_close_matches(name, list(self.tasks), n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise BenchmarkError(
                f"There is no task {name!r}.{hint} The tasks are {', '.join(sorted(self.tasks))}; "
                "--import MODULE adds others."
            )
        return self.tasks[name]


REGISTRY = Registry()
"""The tasks of this process."""


def task(
    *, paper: str, cost: str, registry: Registry = REGISTRY
) -> Callable[[Callable[[], Task]], Task]:
    """Return a decorator that turns a function into the task it describes, and registers it.

    The name is the function's.

    Args:
        paper: what it measures after, as arXiv:NUMBER.
        cost: on what, and how long: "smollm2-135m: 1 min on 2 cores".
        registry: where it goes; that of the process by default.
    """

    def declare(describe: Callable[[], Task]) -> Task:
        name = describe.__name__
        made = replace(describe(), name=name, paper=paper, cost=cost)
        registry.add(name, made)
        return made

    return declare
