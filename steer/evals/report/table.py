"""The table of a report's numbers, each with its controls, as HTML. Grouped by task."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import isfinite
from typing import NamedTuple

from steer.evals.report.values import Interval, Report

HEAD = """<thead><tr><th scope="col">number</th><th scope="col">value [95 % interval]</th>
<th scope="col" class="bar">beside its controls; the thin line is 0</th></tr></thead>"""


class Row(NamedTuple):
    """One line of the table."""

    name: str
    found: Interval
    stem: str
    """How its name begins: the task's for a number, the number's for a control."""
    control: bool


Group = tuple[Row, ...]
"""A number and its controls, or a control whose number is not in the report."""


def groups(report: Report) -> Mapping[str, Sequence[Group]]:
    """Return the groups by task, what stands before a name's first dot.

    The order is that of the names, not of the report's mappings, which a file does not keep: tasks
    with an effect stand first, and so does the effect in its task.
    """
    members: dict[str, list[Row]] = {
        name: [Row(name, _finite(found), _task(name), False)]
        for name, found in report.numbers.items()
    }
    for name, found in sorted(report.controls.items()):
        owner = owner_of(name, report)
        stem = f"{owner}_" if name.startswith(f"{owner}_") else _task(name)
        members.setdefault(owner, []).append(Row(name, _finite(found), stem, True))
    tasks: dict[str, list[Group]] = {}
    moved = {_task(name) for name in report.numbers if name == f"{_task(name)}effect"}
    for owner in sorted(members, key=lambda name: _rank(name, moved)):
        tasks.setdefault(_task(owner).removesuffix(".") or owner, []).append(tuple(members[owner]))
    return tasks


def owner_of(control: str, report: Report) -> str:
    """Return the number that a control belongs to, or its own name: NAME_random is of NAME."""
    owners = (n for n in report.numbers if control == n or control.startswith(f"{n}_"))
    return max(owners, key=len, default=control)


def table(report: Report) -> str:
    """Return the table, one body for each number with its controls."""
    bodies = []
    for task, found in groups(report).items():
        label = f'<th scope="rowgroup" colspan="3">{escape(task)}</th>'
        bodies.append(f'<tbody class="task"><tr>{label}</tr></tbody>')
        for group in found:
            lines = "\n".join(_lines(group))
            bodies.append(f"<tbody>{lines}</tbody>")
    return '<table class="numbers">' + "\n".join([HEAD, *bodies]) + "</table>"


def interval_html(found: Interval) -> str:
    """Return an interval whose text is that of `str`, its point in the same place in each row."""
    found = _finite(found)
    if found.value is None:
        return f'<span class="unscored">{found}</span>'
    value, space, ends = str(found).partition(" ")
    whole, dot, rest = value.partition(".")
    shown = f'<span class="whole">{whole}</span><span class="rest">{dot}{rest}</span>'
    return f'<span class="value">{shown}</span>{space}<span class="ends">{ends}</span>'


def _lines(group: Group) -> Iterator[str]:
    ends = [x for row in group for x in _ends(row.found)]
    # A value alone would be a dot at the end of its own scale, which shows nothing.
    span = (min(0.0, *ends), max(0.0, *ends)) if len(ends) > 1 else (0.0, 0.0)
    for row in group:
        stem, rest = escape(row.stem), escape(row.name.removeprefix(row.stem))
        name = f'<span class="stem">{stem}</span>{rest}'
        kind, tag = ("control", " <em>control</em>") if row.control else ("own", "")
        yield (
            f'<tr class="{kind}"><th scope="row">{name}{tag}</th>'
            f'<td class="interval">{interval_html(row.found)}</td>'
            f'<td class="bar">{_bar(row.found, span)}</td></tr>'
        )


def _bar(found: Interval, span: tuple[float, float]) -> str:
    """Return a picture of an interval, from 2 to 98 of 100 for the span of its group."""
    reach = span[1] - span[0]
    if found.value is None or not 0 < reach < float("inf"):
        return ""

    def at(value: float) -> str:
        return f"{2 + 96 * (value - span[0]) / reach:.2f}"

    parts = [f'<path class="zero" d="M{at(0.0)} 0V16"/>']
    if found.lo is not None and found.hi is not None:
        parts.append(f'<path class="reach" d="M{at(found.lo)} 8H{at(found.hi)}"/>')
    # A line of no length with round ends: a dot that stays round when the picture is stretched.
    parts.append(f'<path class="point" d="M{at(found.value)} 8h0"/>')
    opening = '<svg viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">'
    return f"{opening}{''.join(parts)}</svg>"


def _ends(found: Interval) -> list[float]:
    return [x for x in (found.value, found.lo, found.hi) if x is not None]


def _finite(found: Interval) -> Interval:
    """Return an interval as a file would hold it: what is not a finite number is unscored."""
    ends = (x if x is not None and isfinite(x) else None for x in (found.value, found.lo, found.hi))
    return Interval(*ends)


def _task(name: str) -> str:
    task, dot, _ = name.partition(".")
    return task + dot if dot else ""


def _rank(name: str, moved: set[str]) -> tuple[bool, str, bool, str]:
    task = _task(name)
    return task not in moved, task or name, name != f"{task}effect", name
