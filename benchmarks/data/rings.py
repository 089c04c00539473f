"""Concepts in order, on rings and on lines, and the contexts in which a model is to go on.

A context is a few words and a number of concepts: `The children sang: March, April, May,` is to go
on with June. Train and test contexts were written together, by one rule (a short neutral
introduction, then 4 to 6 concepts in order), and split before anything was steered. Questions to
be answered by adding are in `benchmarks.arithmetic`.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Context(Protocol):
    """A way to ask for any concept."""

    def prompt(self, concepts: "Concepts", concept: int) -> str | None:
        """Return the text that is to go on with a concept; None where it cannot be asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Concepts:
    """Concepts in their order, with the contexts to read them in and to be tested in."""

    name: str
    concepts: tuple[str, ...]
    train: tuple[Context, ...]
    test: tuple[Context, ...]
    closed: bool = True
    """Whether the first one comes again after the last one."""
    before: tuple[str, ...] = ()
    """On a line, what is shown before the first concept: it needs something to follow."""
    shown: str = "{}"
    """How a concept is written in a list."""
    abbreviated: bool = False
    """Whether the first three letters are an answer as well."""
    target: float = 1.0
    """How many times the ring's energy the chord's is expected to be, on distant pairs."""

    def __len__(self) -> int:
        """Return how many concepts there are."""
        return len(self.concepts)

    def spellings(self, concept: int) -> tuple[str, ...]:
        """Return how an answer may be spelt: with or without a space, whole or abbreviated.

        Another case is left out: "may" and "march" are other words too.
        """
        name = self.concepts[concept]
        short = (f" {name[:3]}", name[:3]) if self.abbreviated else ()
        return tuple(dict.fromkeys((f" {name}", name, *short)))


@dataclass(frozen=True, slots=True)
class Listed:
    """An introduction, and how many concepts follow it: near the start of a line, fewer."""

    introduction: str
    n_shown: int

    def prompt(self, concepts: Concepts, concept: int) -> str:
        """Return the list that is to go on with a concept."""
        items = (*concepts.before, *concepts.concepts)
        end = len(concepts.before) + concept
        first = end - self.n_shown if concepts.closed else max(0, end - self.n_shown)
        listed = [concepts.shown.format(items[i % len(items)]) for i in range(first, end)]
        return f"{self.introduction}{', '.join(listed)},"


TRAIN = (
    Listed("In order: ", 4),
    Listed("The teacher wrote on the board: ", 5),
    Listed("We learned the names by heart: ", 4),
    Listed("She read aloud: ", 5),
    Listed("The list goes on: ", 6),
    Listed("Fill in the next word: ", 4),
    Listed("They come one after another: ", 5),
    Listed("Printed along the top of the page: ", 4),
)
TEST = (
    Listed("The sequence is ", 4),
    Listed("Repeat after me: ", 5),
    Listed("The children sang: ", 6),
    Listed("It went like this: ", 5),
    Listed("He recited ", 4),
    Listed("First to last: ", 4),
    Listed("On the wall hung a chart: ", 5),
    Listed("What comes next? ", 4),
)

MONTH_NAMES = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COUNT = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen"),
)

MONTHS = Concepts("months", MONTH_NAMES, TRAIN, TEST, abbreviated=True, target=1.5)
WEEKDAYS = Concepts("weekdays", DAY_NAMES, TRAIN, TEST, abbreviated=True, target=1.8)
LETTERS = Concepts(
    "letters", tuple("cdefghijklmnopqrstuvwxyz"), TRAIN, TEST[:4], closed=False, before=("a", "b")
)
"""Small ones, which the small models go on with more surely than with capitals. Half of the test
contexts, as there are twice as many letters as months."""
NUMBERS = Concepts("numbers", COUNT[2:], TRAIN, TEST, closed=False, before=COUNT[:2])
CLOCK = Concepts("hours", COUNT[:12], TRAIN, TEST, shown="{} o'clock")
