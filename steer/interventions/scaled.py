"""Plans made of plans: every strength times one factor."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

from torch import Tensor

from steer.errors import PlanError
from steer.interventions.arithmetic import Relative
from steer.interventions.believed import Forecast
from steer.interventions.gates import Monitor
from steer.protocols import Intervention


def scaled(plan: Sequence[Intervention], factor: float) -> list[Intervention]:
    """Return the plan with every strength times one factor; what only reads is left as it is.

    With 0 nothing is left but what reads: the model as it is.

    Raises:
        PlanError: an intervention takes no strength (Patch, Snap, Scale by itself, a controller).
    """
    if factor == 0:
        return [item for item in plan if isinstance(item, Monitor | Forecast)]
    return [_scaled(item, factor) for item in plan]


def _scaled(item: Intervention, factor: float) -> Intervention:
    if isinstance(item, Monitor | Forecast):
        return item
    known = {one.name for one in fields(cast("Any", item))}
    if "inner" in known:
        inner = cast("Intervention", getattr(item, "inner"))  # noqa: B009 - not in the Protocol
        return replace(cast("Any", item), inner=_scaled(inner, factor))
    if "strength" not in known:
        raise PlanError(
            f"{item!r} takes no strength, so it cannot be done {factor:g} times. It is done or "
            "not: compare it with the empty plan, or leave it out of the dose-response."
        )
    strength = cast("float | Tensor | Relative", getattr(item, "strength"))  # noqa: B009
    more = (
        Relative(strength.multiple * factor)
        if isinstance(strength, Relative)
        else strength * factor
    )
    return replace(cast("Any", item), strength=more)
