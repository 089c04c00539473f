"""The arms of an evaluation: a plan at factors of its strength, and random edits as large."""

from collections.abc import Mapping, Sequence

import torch

from steer.errors import PlanError
from steer.interventions.believed import Forecast
from steer.interventions.gates import Monitor
from steer.interventions.scaled import scaled
from steer.interventions.wrap import Redirect
from steer.lm import LM
from steer.protocols import Intervention

PLAN, RANDOM = "plan", "random"
Arm = tuple[str, float]
SEED = 0x5EED
"""Added to the seed: a user who drew the plan's own direction with seed 0 meets another one."""


def plans_of(
    lm: LM, plan: Sequence[Intervention], factors: Sequence[float], *, seed: int
) -> dict[Arm, list[Intervention]]:
    """Return the plan and its random control at each factor but 0, by (name, factor).

    The control moves each token exactly as far as the plan would, along one random direction for
    each site, and the other way for a negative factor.

    Raises:
        PlanError: the plan takes no strength, so it has no factors but 0 and 1; it only reads.
    """
    if all(isinstance(item, Monitor | Forecast) for item in plan):
        raise PlanError(
            f"The plan {list(plan)!r} only reads, so it has no effect that could be measured. Put "
            "the intervention that it watches beside it."
        )
    made: dict[Arm, list[Intervention]] = {}
    for factor in factors:
        if factor == 0:
            continue
        own = list(plan) if factor == 1 else scaled(plan, factor)
        away = own if factor > 0 else scaled(plan, -factor)
        made[PLAN, factor] = own
        made[RANDOM, factor] = redirected(lm, away, seed=seed, sign=1.0 if factor > 0 else -1.0)
    return made


def takes_strength(plan: Sequence[Intervention]) -> bool:
    """Whether every intervention of a plan can be done by more or less than once."""
    try:
        scaled(plan, 0.5)
    except PlanError:
        return False
    return True


def redirected(
    lm: LM, plan: Sequence[Intervention], *, seed: int, sign: float = 1.0
) -> list[Intervention]:
    """Return a plan with every write along a random direction; what only reads is left out.

    Raises:
        PlanError: a site without a fixed width, whose directions nobody can draw.
    """
    made: list[Intervention] = []
    drawn = torch.Generator().manual_seed(SEED + seed)
    for item in plan:
        if isinstance(item, Monitor | Forecast):
            continue
        width = lm.registry.layout.width(item.site)
        if width is None:
            raise PlanError(
                f"{item.site} has no fixed width, so no random direction of equal norm can be "
                "drawn for it, and its effect would stand without a control. Steer a stream site."
            )
        made.append(Redirect(item, sign * torch.randn(width, generator=drawn)))
    return made


def by_name(arms: Mapping[Arm, list[Intervention]]) -> dict[str, list[Intervention]]:
    """Return arms under one text each, for a sweep."""
    return {name_of(*arm): plan for arm, plan in arms.items()}


def name_of(name: str, factor: float) -> str:
    """Return the text of an arm."""
    return f"{name} at {factor:g}"
