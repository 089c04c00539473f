"""`evaluate`: a plan on the local tasks, as one report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from types import MappingProxyType
from typing import cast

from tqdm.auto import tqdm

from steer.errors import PlanError, SteerError
from steer.evals.manifest import manifest_of, plan_digest
from steer.evals.measuring.behaviour import measure_behaviour
from steer.evals.measuring.controls import PLAN, RANDOM, Arm, plans_of, redirected, takes_strength
from steer.evals.measuring.findings import NOTHING, Findings, together
from steer.evals.measuring.side_effects import (
    measure_capability,
    measure_direction,
    measure_monitors,
    measure_passages,
    measure_refusals,
)
from steer.evals.refusals import Refused
from steer.evals.report.values import Json, Report
from steer.evals.tasks.items import Choice, Items, Kind, Prompt, Task
from steer.evals.tasks.table import TASKS, items_of, task
from steer.interventions.gates import Monitor
from steer.interventions.plans import Plan, Rows
from steer.lm import LM
from steer.protocols import Intervention

FACTORS = (-1.0, -0.5, 0.0, 0.5, 1.0)
LIMIT = 32
N_RANDOM = 3
N_DIRECTION = 64
"""Requests of each kind for the refusal direction."""
Part = Callable[[], Findings]
FIRST_NUMBER: Mapping[Kind, str] = MappingProxyType(
    {
        "behaviour": "effect",
        "capability": "accuracy_change",
        "text": "nats_change",
        "refusal": "rate_change",
    }
)
"""What is unscored where a task of a kind could not be measured."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an evaluation measures; the same settings and seed give the same report."""

    tasks: tuple[str | Task, ...] = tuple(name for name, one in TASKS.items() if not one.harmful)
    """Local tasks by name, or your own: Task("kind", "behaviour", "is kind", (), lambda _: own)."""
    limit: int = LIMIT
    """Questions, passages or requests of each task."""
    factors: tuple[int | float, ...] = FACTORS
    """Of the plan's own strength; 0 and 1 are always among them."""
    seed: int = 0
    most_false: float = 0.05
    """The false-positive rate for which a monitor's threshold is calibrated."""
    refusal_direction: bool = True
    """Whether the cosine with the refusal direction is measured; it reads harmful requests."""
    data: Mapping[str, Items] = field(default_factory=dict)
    """Items in place of a task's own, by its name: your own questions, or no network."""


def evaluate(
    lm: LM,
    plan: Plan,
    settings: Settings = Settings(),
) -> Report:
    """Return the report of a plan: what it moves, beside its controls, and what it costs.

    Of each behaviour: the dose-response with bootstrap intervals over questions, the per-question
    slope and the share of questions that it moves the wrong way (Tan et al. 2024,
    arXiv:2407.12404), against random directions of equal norm, shuffled labels, and an instruction
    in words. Then accuracy, likelihood and KL on held-out text, declined requests, repetition, the
    cosine with the refusal direction, and the ROC of each Monitor in the plan. What could not be
    measured is a note and an unscored number, never a number of the unsteered model.

    Args:
        lm: the model.
        plan: interventions for one row, each with an identity (a spec).
        settings: tasks, questions, factors, seed.

    Raises:
        SteerError: the plan does not fit the model.
        PlanError: Rows; a plan that only reads; factors that are not finite; no task, or a name
            twice.
        SpecError: an unknown task; a plan with something that has no identity, such as Custom.
        ModelNotFound: data that cannot be fetched; before anything runs.
        Refused: never_fired, where no behaviour could be measured.
    """
    if isinstance(plan, Rows):
        raise PlanError(
            "Rows has one plan for each row, and an evaluation asks one plan about many. Evaluate "
            "its plans one by one."
        )
    digest = plan_digest(list(plan))  # refused before anything runs
    lm.registry.wire(list(plan))
    chosen = _chosen(settings.tasks)
    items = {one.name: _items(one, settings) for one in chosen}
    factors = _factors(plan, settings.factors)
    arms = plans_of(lm, plan, factors, seed=settings.seed)
    parts = _parts(lm, plan, settings, [(one, items[one.name]) for one in chosen], arms)
    found = [_tried(number, part) for number, part in tqdm(parts, desc="evaluate", delay=2)]
    _require_scored(chosen, found)
    every = together(found)
    return Report(
        digest,
        manifest_of(lm, list(plan), seeds=[settings.seed]).to_json(),
        every.numbers,
        every.controls,
        every.curves,
        every.notes,
        _told(settings, chosen, list(items.values()), factors, every),
    )


def _chosen(asked: Sequence[str | Task]) -> list[Task]:
    chosen = [one if isinstance(one, Task) else task(one) for one in asked]
    names = [one.name for one in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        told = f"{twice[0]!r} stands there twice" if twice else "there is none"
        raise PlanError(
            f"The tasks are {names}: {told}. A report has one set of numbers for each name. Name "
            "each task once, and a task of your own otherwise than the local ones."
        )
    return chosen


def _items(one: Task, settings: Settings) -> Items:
    given = settings.data.get(one.name)
    return items_of(one, settings.limit, seed=settings.seed) if given is None else given


def _factors(plan: Sequence[Intervention], asked: Sequence[int | float]) -> list[float]:
    if not takes_strength(plan):
        return [0.0, 1.0]
    if not all(isfinite(factor) for factor in asked):
        raise PlanError(
            f"The factors are {tuple(asked)}, of which some are no finite numbers, and no plan has "
            "such a strength. Give multiples of the plan's own: (-1, -0.5, 0, 0.5, 1)."
        )
    return sorted({0.0, 1.0, *(float(factor) for factor in asked)})


def _parts(
    lm: LM,
    plan: Sequence[Intervention],
    settings: Settings,
    asked: Sequence[tuple[Task, Items]],
    arms: Mapping[Arm, list[Intervention]],
) -> list[tuple[str, Part]]:
    """Return what is to be measured, by its first number, in the order of the report."""
    seed = settings.seed
    pair = {PLAN: arms[PLAN, 1.0], RANDOM: arms[RANDOM, 1.0]}
    others = [redirected(lm, plan, seed=seed + n) for n in range(1, N_RANDOM)]
    watched = any(isinstance(item, Monitor) for item in plan)
    parts: list[tuple[str, Part]] = []
    for one, items in asked:
        part = _part(lm, one, items, arms, others, pair, seed)
        parts.append((f"{one.name}.{FIRST_NUMBER[one.kind]}", part))
        if watched and _labelled(one, items):
            parts.append((f"{one.name}.monitor_auc", _watching(lm, one, items, plan, settings)))
    if settings.refusal_direction:
        twins = task("harmful_requests")
        prompts = settings.data.get(twins.name)
        if prompts is None:
            prompts = items_of(twins, 2 * N_DIRECTION, seed=seed)
        requests = cast("Sequence[Prompt]", prompts)
        parts.append(("refusal.cosine", lambda: measure_direction(lm, plan, requests)))
    return parts


def _part(
    lm: LM,
    one: Task,
    items: Items,
    arms: Mapping[Arm, list[Intervention]],
    others: Sequence[list[Intervention]],
    pair: Mapping[str, list[Intervention]],
    seed: int,
) -> Part:
    choices = cast("Sequence[Choice]", items)
    kinds: dict[str, Part] = {
        "behaviour": lambda: measure_behaviour(lm, one, choices, arms, others, seed=seed),
        "capability": lambda: measure_capability(lm, one, choices, pair, seed=seed),
        "text": lambda: measure_passages(lm, one, cast("Sequence[str]", items), pair, seed=seed),
        "refusal": lambda: measure_refusals(
            lm, one, cast("Sequence[Prompt]", items), pair, seed=seed
        ),
    }
    return kinds[one.kind]


def _labelled(one: Task, items: Items) -> bool:
    if one.kind == "refusal":
        return any(item.harmful for item in cast("Sequence[Prompt]", items))
    return one.kind == "behaviour"


def _watching(
    lm: LM, one: Task, items: Items, plan: Sequence[Intervention], settings: Settings
) -> Part:
    labelled = cast("Sequence[Choice] | Sequence[Prompt]", items)
    return lambda: measure_monitors(
        lm, one, labelled, plan, most_false=settings.most_false, seed=settings.seed
    )


def _tried(number: str, part: Part) -> Findings:
    """Return what a part found, or its first number unscored, and the reason."""
    try:
        return part()
    except SteerError as error:
        return Findings({number: NOTHING}, notes=(f"{number}: not measured. {error}",))


def _require_scored(chosen: Sequence[Task], found: Sequence[Findings]) -> None:
    if any(number.value is not None for part in found for number in part.numbers.values()):
        return
    notes = " ".join(note for part in found for note in part.notes)
    raise Refused(
        "never_fired",
        f"Nothing could be measured on {', '.join(one.name for one in chosen)}: {notes} A report "
        "without a number would let any policy's limits fail for the wrong reason. Mend the plan.",
    )


def _told(
    settings: Settings,
    chosen: Sequence[Task],
    asked: Sequence[Items],
    factors: Sequence[float],
    every: Findings,
) -> dict[str, Json]:
    sources: dict[str, Json] = {
        one.name: [f"{s.wheel.requirement} {s.member} sha256 {s.wheel.sha256}" for s in one.sources]
        if one.sources and one.name not in settings.data
        else f"the caller's, sha256 {sha256(repr(list(items)).encode()).hexdigest()}"
        for one, items in zip(chosen, asked, strict=True)
    }
    rocs: dict[str, Json] = {
        name: {"fpr": list(one.curve[0]), "tpr": list(one.curve[1])}
        for name, one in every.rocs.items()
    }
    return {
        "tasks": [one.name for one in chosen],
        "means": {one.name: one.means for one in chosen},
        "limit": settings.limit,
        "factors": list(factors),
        "seed": settings.seed,
        "most_false": settings.most_false,
        "sources": sources,
        "roc": rocs,
    }
