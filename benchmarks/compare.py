"""Two results side by side: which numbers moved by more than their intervals allow."""

from dataclasses import dataclass

from rich.table import Table

from benchmarks.errors import BenchmarkError
from benchmarks.result import Result
from benchmarks.stats import UNSCORED, Number


@dataclass(frozen=True, slots=True)
class Row:
    """One number in two results."""

    name: str
    a: Number
    b: Number
    control: bool

    @property
    def verdict(self) -> str:
        """Say whether the intervals overlap; an interval is no test, so no more than that."""
        if self.a.value is None or self.b.value is None:
            return "unscored"
        if self.a == self.b:
            return "equal"
        if None in (self.a.lo, self.a.hi, self.b.lo, self.b.hi):
            return "no interval"
        assert self.a.lo is not None
        assert self.a.hi is not None
        assert self.b.lo is not None
        assert self.b.hi is not None
        if self.a.hi < self.b.lo:
            return "higher"
        return "lower" if self.b.hi < self.a.lo else "overlap"


def compare(a: Result, b: Result) -> list[Row]:
    """Return every number and control of either result.

    Raises:
        BenchmarkError: the results are of different tasks.
    """
    if a.task != b.task:
        raise BenchmarkError(
            f"One result is of the task {a.task!r} and the other of {b.task!r}, whose numbers do "
            "not mean the same. Compare two results of one task."
        )
    rows = []
    for control, first, second in (
        (False, a.numbers, b.numbers),
        (True, a.controls, b.controls),
    ):
        names = dict.fromkeys((*first, *second))
        rows += [
            Row(name, first.get(name, UNSCORED), second.get(name, UNSCORED), control)
            for name in names
        ]
    return rows


def differing_settings(a: Result, b: Result) -> list[str]:
    """Return what the runs did not have in common besides the model: seeds, limits, versions."""
    found = []
    for part in ("options", "versions"):
        first, second = a.provenance.get(part, {}), b.provenance.get(part, {})
        for key in dict.fromkeys((*first, *second)):
            if first.get(key) != second.get(key):
                found.append(f"{key}: {first.get(key)} / {second.get(key)}")
    return found


def comparison_table(a: Result, b: Result) -> Table:
    """Return the comparison as a table for the terminal."""
    table = Table(title=f"{a.task}: {a.model} / {b.model}", title_justify="left")
    table.add_column("number", overflow="fold")
    table.add_column(f"A  {a.model}")
    table.add_column(f"B  {b.model}")
    table.add_column("B against A")
    for row in compare(a, b):
        name = f"{row.name} (control)" if row.control else row.name
        table.add_row(name, str(row.a), str(row.b), row.verdict)
    return table


def numbers_table(result: Result) -> Table:
    """Return one result as a table for the terminal."""
    table = Table(title=f"{result.task} on {result.model}", title_justify="left")
    for heading in ("number", "value", "95 % interval"):
        table.add_column(heading)
    for kind, numbers in (("", result.numbers), (" (control)", result.controls)):
        for name, number in numbers.items():
            value = "unscored" if number.value is None else f"{number.value:.4g}"
            known = number.lo is not None and number.hi is not None
            interval = f"{number.lo:.3g} to {number.hi:.3g}" if known else ""
            table.add_row(name + kind, value, interval)
    return table
