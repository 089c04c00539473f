"""`steer gate`: a report against stated limits. A number that is missing fails its limit."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from steer.errors import did_you_mean
from steer.evals.refusals import Refused
from steer.evals.report.values import Interval, Report

End = Literal["value", "lo", "hi"]
AREAS = ("effect", "utility", "robustness")
KEYS = frozenset({"number", "at_least", "at_most", "use"})


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit on one number of a report."""

    area: str
    number: str
    at_least: int | float | None = None
    at_most: int | float | None = None
    use: End | None = None
    """Which end of the interval is held against it. None takes the pessimistic one: `lo` for
    at_least, `hi` for at_most; the value where there is no interval."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A limit, and whether it is kept."""

    limit: Limit
    kept: bool
    told: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says: open if every limit is kept."""

    judged: tuple[Judged, ...]

    @property
    def ok(self) -> bool:
        """Whether the plan may pass."""
        return all(one.kept for one in self.judged)

    def __str__(self) -> str:
        """Print one line for each limit, and the verdict."""
        lines = [f"{'kept ' if one.kept else 'BROKEN'} {one.told}" for one in self.judged]
        n = sum(not one.kept for one in self.judged)
        return "\n".join([*lines, "PASS" if self.ok else f"FAIL: {n} of {len(lines)} limits"])


def gate(report: Report, limits: Sequence[Limit]) -> Verdict:
    """Return the verdict of some limits on a report."""
    return Verdict(tuple(_judged(report, limit) for limit in limits))


def read_policy(path: Path) -> tuple[Limit, ...]:
    """Return the limits of a policy file, TOML or JSON.

    A table for each area (effect, utility, robustness) with a list of limits:

        [[effect]]
        number = "sycophancy.effect"
        at_least = 0.5

    Raises:
        Refused: bad_policy: no such file, unknown words, a limit without a bound, or an area
            without a limit (a gate that asks nothing of an area would pass anything).
    """
    found = _read(path)
    unknown = sorted(set(found) - set(AREAS))
    if unknown:
        raise _bad(path, f"it has the area {unknown[0]!r}.{did_you_mean(unknown[0], AREAS)}")
    limits: list[Limit] = []
    for area in AREAS:
        given = found.get(area)
        if not isinstance(given, list) or not given:
            raise _bad(path, f"it has no limit on {area}, and what is not asked is not kept")
        limits += [_limit(path, area, one) for one in given]
    return tuple(limits)


def _read(path: Path) -> Mapping[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else _object(json.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(path, f"it cannot be read: {error}") from None


def _object(found: object) -> Mapping[str, object]:
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return cast("Mapping[str, object]", found)


def _limit(path: Path, area: str, given: object) -> Limit:
    if not isinstance(given, dict) or not set(given) <= KEYS or "number" not in given:
        raise _bad(path, f"a limit on {area} is {given!r}; it has the keys {sorted(KEYS)}")
    bounds = {name: given.get(name) for name in ("at_least", "at_most")}
    numbers = [b for b in bounds.values() if b is not None]
    fine = all(type(b) in (int, float) and b == b and abs(b) != float("inf") for b in numbers)
    if not numbers or not fine:
        raise _bad(path, f"the limit on {given['number']} has no number for at_least or at_most")
    use = given.get("use")
    if use not in (None, *get_args(End)) or not isinstance(given["number"], str):
        raise _bad(path, f"the limit on {given['number']!r} uses {use!r}: value, lo or hi")
    return Limit(area, given["number"], bounds["at_least"], bounds["at_most"], use)


def _judged(report: Report, limit: Limit) -> Judged:
    every = {**report.numbers, **report.controls}
    found = every.get(limit.number)
    said = f"{limit.area}: {limit.number}"
    if found is None:
        near = did_you_mean(limit.number, every)
        return Judged(limit, False, f"{said} is not in the report.{near}")
    kept, parts = True, []
    for bound, end in ((limit.at_least, "lo"), (limit.at_most, "hi")):
        if bound is None:
            continue
        value = _end(found, limit.use or cast("End", end))
        word = "at least" if end == "lo" else "at most"
        fine = value is not None and (value >= bound if end == "lo" else value <= bound)
        kept = kept and fine
        parts.append(f"{word} {bound:g}")
    return Judged(limit, kept, f"{said} = {found}, asked {' and '.join(parts)}")


def _end(found: Interval, use: End) -> float | None:
    value = cast("float | None", getattr(found, use))
    return found.value if value is None and found.value is not None else value


def require_of(report: Report, digest: str) -> None:
    """Refuse a report of another plan.

    Raises:
        Refused: wrong_plan.
    """
    if report.plan != digest:
        raise Refused(
            "wrong_plan",
            f"The report is of plan {report.plan[:16]}, and the gate is asked about "
            f"{digest[:16]}. What was measured of one says nothing of another. Evaluate it.",
        )


def _bad(path: Path, why: str) -> Refused:
    return Refused(
        "bad_policy",
        f"The policy {path} does not hold: {why}. A gate without stated limits lets everything "
        "through. Write one list of limits for each of effect, utility and robustness.",
    )
