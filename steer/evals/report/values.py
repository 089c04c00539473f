"""The report: frozen numbers by name, the curves behind them, and what made them."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import cast

from steer.errors import SpecError
from steer.spec import canonical

FORMAT, VERSION = "steer.Report", 1
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and the ends of its 95 % interval; None where there is none."""

    value: float | None
    lo: float | None = None
    hi: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return {value, lo, hi}; what is not a finite number is None."""
        return {name: _finite(getattr(self, name)) for name in ("value", "lo", "hi")}

    def __str__(self) -> str:
        """Print `0.43 [0.21, 0.66]`."""
        if self.value is None:
            return "unscored"
        if self.lo is None or self.hi is None:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.lo:.3g}, {self.hi:.3g}]"


@dataclass(frozen=True, slots=True)
class Curve:
    """A dose-response: means over items at each factor of the plan's own strength."""

    title: str
    unit: str
    factors: tuple[float, ...]
    lines: Mapping[str, tuple[Interval, ...]]
    """By arm: the plan, and its controls."""

    def to_json(self) -> dict[str, Json]:
        """Return plain values."""
        lines: dict[str, Json] = {
            name: [cast("Json", one.to_json()) for one in line] for name, line in self.lines.items()
        }
        return {
            "title": self.title,
            "unit": self.unit,
            "factors": list(self.factors),
            "lines": lines,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation of a plan found. Every effect stands beside its controls."""

    plan: str
    """The plan's digest."""
    manifest: Mapping[str, object]
    """What ran: plan, model, tokenizer, libraries, seeds."""
    numbers: Mapping[str, Interval]
    """By name, such as `sycophancy.effect`; read by policies."""
    controls: Mapping[str, Interval]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What could not be measured, and why; what does not hold."""
    settings: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the content of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "plan": self.plan,
            "manifest": dict(self.manifest),
            "numbers": {name: one.to_json() for name, one in self.numbers.items()},
            "controls": {name: one.to_json() for name, one in self.controls.items()},
            "curves": {name: one.to_json() for name, one in self.curves.items()},
            "notes": list(self.notes),
            "settings": dict(self.settings),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON."""
        target = Path(path)
        text = json.dumps(json.loads(canonical(self.to_json())), indent=1)
        target.write_text(text + "\n", encoding="utf-8")
        return target

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield each number and control with its interval, as text."""
        for name, one in self.numbers.items():
            yield name, str(one)
        for name, one in self.controls.items():
            yield f"{name} (control)", str(one)

    def __repr__(self) -> str:
        """Print the numbers, one a line."""
        width = max((len(name) for name, _ in self.rows()), default=0)
        lines = [f"Report of plan {self.plan[:16]}"]
        lines += [f"  {name:<{width}}  {told}" for name, told in self.rows()]
        return "\n".join([*lines, *(f"  ! {note}" for note in self.notes)])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """Return the report of a file.

        Raises:
            SpecError: no such file, or it is no report.
        """
        source = Path(path)
        try:
            found = json.loads(source.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SpecError(
                f"{source} is not a report: {error}. Name the file that `steer evaluate` wrote."
            ) from None
        wanted = {"format": FORMAT, "version": VERSION}
        if not isinstance(found, dict) or {k: found.get(k) for k in wanted} != wanted:
            raise SpecError(
                f"{source} is not a report of this version. Name the file that `steer evaluate` "
                "wrote, or evaluate the plan again."
            )
        try:
            return _parsed(found)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SpecError(
                f"{source} has the form of a report, but not its content ({error!r}). It was "
                "changed after it was written. Evaluate the plan again."
            ) from None


def _parsed(found: Mapping[str, object]) -> Report:
    def intervals(name: str) -> dict[str, Interval]:
        given = cast("Mapping[str, Mapping[str, float | None]]", found[name])
        return {key: _interval(one) for key, one in given.items()}

    curves = {}
    for name, one in cast("Mapping[str, Mapping[str, object]]", found["curves"]).items():
        lines = cast("Mapping[str, list[Mapping[str, float | None]]]", one["lines"])
        curves[name] = Curve(
            str(one["title"]),
            str(one["unit"]),
            tuple(float(f) for f in cast("list[float]", one["factors"])),
            {arm: tuple(_interval(i) for i in line) for arm, line in lines.items()},
        )
    plan = found["plan"]
    if not isinstance(plan, str):
        raise TypeError("the plan's digest is no text")
    return Report(
        plan,
        dict(cast("Mapping[str, object]", found["manifest"])),
        intervals("numbers"),
        intervals("controls"),
        curves,
        tuple(str(note) for note in cast("list[str]", found["notes"])),
        dict(cast("Mapping[str, Json]", found["settings"])),
    )


def _interval(given: Mapping[str, float | None]) -> Interval:
    values = [given[name] for name in ("value", "lo", "hi")]
    bad = [v for v in values if v is not None and not isinstance(v, int | float)]
    if bad or len(given) != len(values):
        raise TypeError(f"{dict(given)!r} is no interval")
    return Interval(*values)


def _finite(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else float(value)
