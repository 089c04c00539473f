"""One behaviour under a plan: its dose-response, beside its controls."""

from collections.abc import Mapping, Sequence

import numpy as np

from steer.evals.measuring.choices import BASE, Measured, Values, measure_choices
from steer.evals.measuring.controls import PLAN, RANDOM, Arm, by_name, name_of
from steer.evals.measuring.findings import Findings, apart, envelope
from steer.evals.measuring.rendering import has_template
from steer.evals.report.effects import anti_steerable, effect, mean, means, shuffled, slopes
from steer.evals.report.values import Curve, Interval
from steer.evals.tasks.items import Choice, Task
from steer.lm import LM
from steer.protocols import Intervention

UNIT = "change of the target's log-odds, nats"
"""From the model as it is, question by question: its interval is that of the plan's doing, and not
of how much questions differ."""


def measure_behaviour(
    lm: LM,
    task: Task,
    items: Sequence[Choice],
    arms: Mapping[Arm, list[Intervention]],
    others: Sequence[list[Intervention]],
    *,
    seed: int,
) -> Findings:
    """Return what the plan does to one behaviour.

    Args:
        lm: the model.
        task: which.
        items: its questions.
        arms: the plan and its random control at every factor but 0.
        others: the plan along further random directions, at its own strength.
        seed: of the bootstrap.

    Raises:
        SteerError: the plan does not fit, or never fires on a question.
    """
    extra = {f"other {at}": plan for at, plan in enumerate(others)}
    asked = {"form": task.form, "per_token": task.per_token}
    found = measure_choices(lm, items, {**by_name(arms), **extra}, **asked)
    factors = sorted({0.0, *(factor for _, factor in arms)})
    own, away = (_by_factor(found, name, factors) for name in (PLAN, RANDOM))
    base, chosen = found.of(BASE)
    name = task.name
    numbers = {
        f"{name}.base": mean(base, seed=seed),
        f"{name}.effect": effect(own, factors, seed=seed),
        f"{name}.chosen_base": mean(chosen, seed=seed),
        f"{name}.chosen": mean(found.of(name_of(PLAN, 1.0))[1], seed=seed),
        f"{name}.slope": mean(slopes(own, factors), seed=seed),
        f"{name}.anti_steerable": anti_steerable(own, factors, seed=seed),
    }
    randoms = [found.of(arm)[0] - base for arm in (name_of(RANDOM, 1.0), *extra)]
    controls = {
        f"{name}.effect_random": envelope(randoms, seed=seed),
        f"{name}.effect_shuffled": shuffled(own, factors, seed=seed),
        f"{name}.slope_random": mean(slopes(away, factors), seed=seed),
        f"{name}.anti_steerable_random": anti_steerable(away, factors, seed=seed),
    }
    if task.instruction:
        told = measure_choices(lm, items, {}, instruction=task.instruction, **asked)
        controls[f"{name}.effect_prompt"] = mean(told.of(BASE)[0] - base, seed=seed)
    if task.form == "chat" and has_template(lm):
        pair = {PLAN: arms[PLAN, 1.0]}
        plain = measure_choices(lm, items, pair, form="plain", per_token=task.per_token)
        change = plain.of(PLAN)[0] - plain.of(BASE)[0]
        numbers[f"{name}.effect_plain"] = mean(change, seed=seed)
    curve = Curve(
        f"{name}: {task.means}",
        f"{UNIT}{', per token' if task.per_token else ''}",
        tuple(factors),
        {PLAN: means(own - base, seed=seed), RANDOM: means(away - base, seed=seed)},
    )
    notes = judged(name, numbers[f"{name}.effect"], controls)
    return Findings(numbers, controls, {name: curve}, {}, notes)


def judged(name: str, found: Interval, controls: Mapping[str, Interval]) -> tuple[str, ...]:
    """Return in words what an effect is not, where it is not."""
    random = controls[f"{name}.effect_random"]
    told = []
    if not apart(found, random):
        told.append(
            f"{name}: the effect ({found}) does not stand out from that of random directions of "
            f"equal norm ({random})."
        )
    chance = controls[f"{name}.effect_shuffled"]
    inside = (
        found.value is not None
        and chance.lo is not None
        and chance.hi is not None
        and chance.lo <= found.value <= chance.hi
    )
    if inside:
        told.append(f"{name}: the effect is within what shuffled labels give ({chance}).")
    return tuple(told)


def _by_factor(found: Measured, name: str, factors: Sequence[float]) -> Values:
    rows = [found.of(BASE if f == 0 else name_of(name, f))[0] for f in factors]
    return np.stack(rows)
