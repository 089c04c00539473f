"""Plans made of plans: every strength times a factor, and the control of a random direction."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions.arithmetic import Relative
from steer.interventions.believed import Forecast
from steer.interventions.gates import Monitor
from steer.interventions.linear import Ablate, Add, Clamp, Rotate
from steer.protocols import Intervention

DIRECTED = {Add: "direction", Clamp: "direction", Ablate: "basis", Rotate: "plane"}
"""The field that holds the directions of each kind that has some."""


def scaled(plan: Sequence[Intervention], factor: float) -> list[Intervention]:
    """Return the plan with every strength times one factor; what only reads is left as it is.

    With 0 nothing is left but what reads: the model as it is.

    Raises:
        PlanError: an intervention takes no strength (Patch, Snap, Scale by itself, a controller).
    """
    if factor == 0:
        return [item for item in plan if isinstance(item, Monitor | Forecast)]
    return [_scaled(item, factor) for item in plan]


def at_random(
    plan: Sequence[Intervention], sizes: Sequence[float], seed: int
) -> list[Intervention]:
    """Return the plan with random directions of equal norm in place of its own: the control.

    What has no direction (a move along a manifold, a gate's inner one) becomes the addition of a
    random direction that changes as much of each token's norm, at its site and in its scope.

    Args:
        plan: whose directions are replaced; what only reads is left out.
        sizes: of each intervention, what it changes, as a share of the token's norm (a receipt's
            relative_size).
        seed: of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    made: list[Intervention] = []
    for item, size in zip(plan, sizes, strict=True):
        if isinstance(item, Monitor | Forecast):
            continue
        made.append(_at_random(item, size, generator))
    return made


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


def _at_random(item: Intervention, size: float, generator: torch.Generator) -> Intervention:
    name = DIRECTED.get(type(item))
    if name is not None:
        own = cast("Tensor", getattr(item, name)).detach().float().cpu()
        drawn = torch.randn(own.shape, generator=generator)
        drawn = drawn * (own.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
        like = cast("Tensor", getattr(item, name))
        return replace(cast("Any", item), **{name: drawn.to(like)})
    width = _width(item)
    drawn = torch.randn(width, generator=generator)
    return Add(item.site, drawn / drawn.norm(), Relative(size), item.scope)


def _width(item: Intervention) -> int:
    """Return how many entries a state has, by the first tensor of the spec that says so."""
    found = _last_axes(cast("Any", item).spec())
    if not found:
        raise PlanError(
            f"{item!r} holds no tensor, so the width of its site is not known, and there is no "
            "random direction to compare it with. Leave it out of the control."
        )
    return max(found)


def _last_axes(node: object) -> list[int]:
    if isinstance(node, Tensor):
        return [node.shape[-1]] if node.ndim else []
    items: Sequence[object] = ()
    if isinstance(node, dict):
        items = list(node.values())
    elif isinstance(node, list | tuple):
        items = node
    return [axis for item in items for axis in _last_axes(item)]
