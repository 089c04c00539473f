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
    told = {standing: _told(effects, report, standing) for standing in _STANDINGS}
    for standing, sentence in _STANDINGS.items():
        if told[standing]:
            yield sentence.format(_listed(told[standing]))
    costs = [f"{name} {report.numbers[name]}" for name in COSTS if name in report.numbers]
    if costs:
        yield f"What it costs: {_listed(costs)}."
    every = [*report.numbers.values(), *report.controls.values()]
    unscored = sum(one.to_json()["value"] is None for one in every)
    state = {0: "all are scored", 1: "1 is unscored"}.get(unscored, f"{unscored} are unscored")
    numbers, controls = _count(report.numbers, "number"), _count(report.controls, "control")
    yield f"Of {numbers} and {controls}, {state}."


_STANDINGS = {
    "clear": "Its effect stands out from all of its controls on {}.",
    "met": "It overlaps that of a control on {}.",
    "alone": "No control stands beside its effect on {}.",
    "unscored": "Its effect is unscored on {}.",
}
COSTS = (
    "perplexity.kl_p95",
    "perplexity.nats_change",
    "mmlu.accuracy_change",
    "over_refusal.rate_change",
)
"""What a reader asks for first; the table has all of them."""


def _is_effect(group: Group) -> bool:
    return not group[0].control and group[0].name == f"{group[0].stem}effect"


def _told(effects: Sequence[Group], report: Report, standing: str) -> list[str]:
    """Return the effects of one standing: the task, the value, and the control that is met."""
    found = []
    for group in effects:
        own, *rows = group
        task = own.stem.removesuffix(".") or own.name
        named = {row.name.removeprefix(row.stem): row.found for row in rows}
        # An instruction is a rival, not a null: to do as much as it does is no failure.
        scored = {n: one for n, one in named.items() if one.value is not None and n != "prompt"}
        met = [name for name, one in scored.items() if _overlap(own.found, one)]
        if _standing(own.found, scored, met) != standing:
            continue
        curve = report.curves.get(task)
        unit = f" {curve.unit.split(', ')[-1]}" if curve and standing == "clear" else ""
        beside = f" ({_listed(met)})" if met else ""
        found.append(task if standing == "unscored" else f"{task} {own.found}{unit}{beside}")
    return found


def _standing(own: Interval, scored: dict[str, Interval], met: Sequence[str]) -> str:
    if own.value is None:
        return "unscored"
    if not scored:
        return "alone"
    return "met" if met else "clear"


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
