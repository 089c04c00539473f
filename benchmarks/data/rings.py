"""The months and the weekdays, and the contexts in which a model is asked to go on.

A context is a few words and a number of concepts: `The children sang: March, April, May,` is to go
on with June. Train and test contexts were written together, by one rule (a short neutral
introduction, then 4 to 6 concepts in order), and split before anything was steered.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Context:
    """An introduction, and how many concepts follow it."""

    introduction: str
    n_shown: int


@dataclass(frozen=True, slots=True)
class Ring:
    """Concepts in cyclic order, with the contexts to read them in and to be tested in."""

    name: str
    concepts: tuple[str, ...]
    train: tuple[Context, ...]
    test: tuple[Context, ...]

    def __len__(self) -> int:
        """Return how many concepts go once round."""
        return len(self.concepts)

    def prompt(self, context: Context, concept: int) -> str:
        """Return the text that is to go on with a concept."""
        n = context.n_shown
        shown = [self.concepts[(concept - n + i) % len(self)] for i in range(n)]
        return f"{context.introduction}{', '.join(shown)},"

    def spellings(self, concept: int) -> tuple[str, ...]:
        """Return how an answer may be spelt: whole or three letters, with or without a space.

        Lower case is left out: "may" and "march" are other words too.
        """
        name = self.concepts[concept]
        return tuple(dict.fromkeys((f" {name}", name, f" {name[:3]}", name[:3])))


TRAIN = (
    Context("In order: ", 4),
    Context("The teacher wrote on the board: ", 5),
    Context("We learned the names by heart: ", 4),
    Context("She read aloud: ", 5),
    Context("The list goes on: ", 6),
    Context("Fill in the next word: ", 4),
    Context("They come one after another: ", 5),
    Context("Printed along the top of the page: ", 4),
)
TEST = (
    Context("The sequence is ", 4),
    Context("Repeat after me: ", 5),
    Context("The children sang: ", 6),
    Context("It went like this: ", 5),
    Context("He recited ", 4),
    Context("First to last: ", 4),
    Context("On the wall hung a chart: ", 5),
    Context("What comes next? ", 4),
)

MONTHS = Ring(
    "months",
    (
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ),
    TRAIN,
    TEST,
)
WEEKDAYS = Ring(
    "weekdays",
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    TRAIN,
    TEST,
)
