"""The published questions whose answer is a concept some steps on: weekdays, months, ages.

`Q: What day is two days after Monday?`. The prompts of Wurgaft et al. 2026 (arXiv:2605.05115). The
concept of a prompt is its answer and the context is the number added, so prompts of one answer
share neither words nor number. We differ in what is held out: theirs fits the manifold on the
prompts it steers, ours on other numbers, so that no test prompt has a part in it.
"""

from dataclasses import dataclass

from benchmarks.data.rings import COUNT, DAY_NAMES, MONTH_NAMES, Concepts

DAY = "Q: What day is {number} days after {entity}?\nA:"
MONTH = "Q: What month is {number} months after {entity}?\nA:"
AGE = (
    "Alice is {entity} years old. Bob is {number} years older than Alice. Q: How old is Bob?\n"
    "A: Bob is "
)


@dataclass(frozen=True, slots=True)
class Added:
    """A number to be added, and the question that asks for the sum."""

    template: str
    number: int
    written: str
    """The number as the question writes it."""

    def prompt(self, concepts: Concepts, concept: int) -> str | None:
        """Return the question whose answer is a concept; None where nothing to add to is left."""
        start = concept - self.number
        if concepts.closed:
            return self._filled(concepts.concepts[start % len(concepts)])
        items = (*concepts.before, *concepts.concepts)
        at = len(concepts.before) + start
        return self._filled(items[at]) if at >= 0 else None

    def _filled(self, entity: str) -> str:
        return self.template.format(entity=entity, number=self.written)


def _added(template: str, numbers: range, *, words: bool) -> tuple[Added, ...]:
    return tuple(Added(template, n, COUNT[n - 1] if words else str(n)) for n in numbers)


def _words(template: str) -> tuple[tuple[Added, ...], tuple[Added, ...]]:
    """Return the odd numbers to fit with and the even ones to test with."""
    return (
        _added(template, range(1, 8, 2), words=True),
        _added(template, range(2, 8, 2), words=True),
    )


WEEKDAY_SUMS = Concepts("weekdays", DAY_NAMES, *_words(DAY), abbreviated=True)
MONTH_SUMS = Concepts("months", MONTH_NAMES, *_words(MONTH), abbreviated=True)
AGES = Concepts(
    "ages",
    tuple(str(age) for age in range(10, 101)),
    _added(AGE, range(1, 11, 2), words=False),
    _added(AGE, range(2, 11, 2), words=False),
    closed=False,
    before=tuple(str(age) for age in range(1, 10)),
)
"""Results 10 to 100 of ages 1 to 99 and numbers 1 to 10."""
