"""What a report says, in plain sentences: what the plan moves, beside what its controls move."""

from collections.abc import Iterator, Sequence, Sized

from steer.evals.report.table import Group, groups
from steer.evals.report.values import Interval, Report

DIGITS = 12
"""So many digits of a digest name a plan to a reader."""


def summary(report: Report, model: str) -> str:
    """Return one paragraph of text, not yet HTML."""
    return " ".join(_sentences(report, model))


def _sentences(report: Report, model: str) -> Iterator[str]:
    effects = [group for found in groups(report).values() for group in found if _is_effect(group)]
    yield f"This is what the plan {report.plan[:DIGITS]} did in {model}."
    if not effects:
        yield "The report holds no effect."
    for group in effects:
        yield from _effect(group, report)
    every = [*report.numbers.values(), *report.controls.values()]
    unscored = sum(one.to_json()["value"] is None for one in every)
    told = {0: "all are scored", 1: "1 is unscored"}.get(unscored, f"{unscored} are unscored")
    numbers, controls = _count(report.numbers, "number"), _count(report.controls, "control")
    yield f"Of {numbers} and {controls}, {told}."


def _is_effect(group: Group) -> bool:
    return not group[0].control and group[0].name == f"{group[0].stem}effect"


def _effect(group: Group, report: Report) -> Iterator[str]:
    own, *rows = group
    task = own.stem.removesuffix(".") or own.name
    if own.found.value is None:
        yield f"Its effect on {task} is unscored."
        return
    curve = report.curves.get(task)
    controls = {row.name.removeprefix(row.stem): row.found for row in rows}
    unit = f" ({curve.unit})" if curve else ""
    if not controls:
        yield f"It moves {task} by {own.found}{unit}. No control stands beside it."
    else:
        told = _listed([f"{name} {found}" for name, found in controls.items()])
        yield f"It moves {task} by {own.found}{unit}; its controls: {told}."
    yield from _standing(own.found, controls)


def _standing(found: Interval, controls: dict[str, Interval]) -> Iterator[str]:
    """Say whether an interval is clear of 0 and of its controls."""
    if found.lo is None or found.hi is None:
        yield "It has no interval, so nothing says how sure it is."
        return
    yield f"Its interval {'holds' if found.lo <= 0 <= found.hi else 'leaves out'} 0."
    scored = {name: one for name, one in controls.items() if one.value is not None}
    met = [name for name, one in scored.items() if _overlap(found, one)]
    if met:
        yield f"It overlaps that of {_listed(met)}."
    elif scored:
        yield f"It is clear of that of {_listed(list(scored))}."


def _overlap(one: Interval, other: Interval) -> bool:
    (a, b), (c, d) = _reach(one), _reach(other)
    return a <= d and c <= b


def _reach(found: Interval) -> tuple[float, float]:
    value = 0.0 if found.value is None else found.value
    return value if found.lo is None else found.lo, value if found.hi is None else found.hi


def _count(found: Sized, word: str) -> str:
    return f"{len(found)} {word}{'' if len(found) == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
