"""What a local task asks: frozen items, and the task that they belong to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from steer.evals.tasks.wheels import Source

Kind = Literal["behaviour", "capability", "text", "refusal"]
Format = Literal["chat", "plain"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A question and what may follow it; `target` is the option whose log-odds are measured."""

    key: str
    """Items of one key are one question in several orders; their values are averaged."""
    question: str
    options: tuple[str, ...]
    """Continuations, exactly as they are appended."""
    target: int
    lead: str = ""
    """What the answer begins with, before any option: "(" where options are letters."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request that is answered freely."""

    text: str
    harmful: bool = False


Items = Sequence[Choice] | Sequence[Prompt] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Task:
    """One local task: where its data lies, how it is read, what a rise of its value means."""

    name: str
    kind: Kind
    means: str
    """What a larger value is, in a few words."""
    sources: tuple[Source, ...]
    parse: Callable[[Sequence[bytes]], Items]
    """The files of `sources`, in their order -> items; pure."""
    instruction: str = ""
    """Asks for the behaviour in words: the prompt baseline. Empty where there is none."""
    form: Format = "chat"
    """Whether questions are rendered by the model's chat template, where it has one."""
    per_token: bool = False
    """Whether options are compared by the mean over their tokens; by the sum otherwise."""
    harmful: bool = False
    """Whether its data holds harmful requests: measured only when asked for by name."""

    def __repr__(self) -> str:
        """Say the name, what it means and where it comes from."""
        wheels = ", ".join(dict.fromkeys(source.wheel.requirement for source in self.sources))
        return f"Task({self.name}: {self.means}; from {wheels})"
