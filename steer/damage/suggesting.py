"""The strength at which a plan costs a stated number of nats."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import isfinite, sqrt
from typing import Any, cast

import torch

from steer.damage.bound import variances
from steer.damage.diverging import Texts, measured, texts_of
from steer.errors import PlanError
from steer.interventions.arithmetic import Relative
from steer.interventions.linear import Add, Rotate
from steer.interventions.plans import as_items
from steer.interventions.scaled import scaled
from steer.lm import LM
from steer.prompts import Prompts
from steer.protocols import Intervention
from steer.scopes import FIRST, Scope

FINE = 0.02
"""The search ends within this share below the budget."""
AT_ONCE = 4
"""Factors that one pass measures."""
OCTAVES = 12
"""How often the largest factor is doubled before the search gives up."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A strength, and what it costs.

    Measured is a quantile over tokens of the KL from the model as it is, in nats.
    """

    factor: float
    """Of the plan's own strengths."""
    strength: float | None
    """Of the intervention, in its own units (of Relative: multiples of the norm); None of a plan
    of several."""
    kl: float
    """What was measured at this factor: at most the budget."""
    budget: float
    quantile: float
    reached: bool
    """False where the budget is never reached: `factor` is then where the search ended."""
    bound: float
    """The factor at which the quadratic bound reaches the budget; inf where nothing changes."""
    derivative: str
    """How the bound was found: jvp or difference."""
    course: tuple[tuple[float, float], ...]
    """Every (factor, nats) that was measured, by factor."""
    n_tokens: int

    def plan(self, plan: Sequence[Intervention]) -> list[Intervention]:
        """Return a plan at this factor of its strengths."""
        return scaled(plan, self.factor)

    def __repr__(self) -> str:
        """Say it in one sentence."""
        what = f"factor {self.factor:.4g}"
        if self.strength is not None:
            what = f"strength {self.strength:.4g}"
        share = f"{100 * self.quantile:g} % of {self.n_tokens} tokens move by at most {self.kl:.3g}"
        told = f"Suggestion: {what}, at which {share} nats"
        if not self.reached:
            return f"{told}; the budget of {self.budget:g} is never reached"
        return f"{told} (budget {self.budget:g}; the quadratic bound says factor {self.bound:.4g})"


def suggest_strength(
    lm: LM,
    intervention: Intervention | Sequence[Intervention],
    prompts: Prompts,
    *,
    kl: int | float = 1.0,
    quantile: int | float = 0.95,
    scope: Scope = ~FIRST,
    max_new_tokens: int = 0,
    at_most: int | float | None = None,
) -> Suggestion:
    """Return the strength at which a plan's damage reaches a budget for the first time.

    Damage is a quantile over tokens of KL(model as it is || steered), as in steering-lite's
    calibration (worst 5 % of tokens at most 1 nat); theirs begins at a guess, ours at the second-
    order bound, and the real KL decides: along doublings up to the first crossing, then between.
    Counted are the tokens from the first one on that the plan can change.

    Args:
        lm: the model.
        intervention: one, or a plan whose strengths are multiplied by one factor. Its sign is kept.
        prompts: ordinary texts; a few hundred tokens.
        kl: the budget in nats.
        quantile: over tokens.
        scope: the tokens that count.
        max_new_tokens: measure so many greedy tokens too, for plans that act on generated ones.
        at_most: the largest factor. None is no limit for additions and rotations, and for what
            goes towards a target (an ablation, a move) the factor that makes the whole way.

    Raises:
        PlanError: no prompt; a budget or a quantile out of range; a strength of 0 or one for each
            row; an intervention without a strength; a plan that acts on no token of the prompts.
        SteerError: it does not fit the model.

    >>> import steer, torch
    >>> lm = steer.load("tiny-llama")
    >>> add = steer.Add(steer.Site(2), torch.ones(lm.d_model))
    >>> steer.suggest_strength(lm, add, ["one two three four"], kl=0.1).reached
    True
    """
    plan, own = _plan_of(intervention)
    if not (isfinite(kl) and kl > 0) or not 0 < quantile <= 1:
        raise PlanError(
            f"The budget is {kl!r} nats at the quantile {quantile!r}. A budget is above 0 (1 nat "
            "is much), a quantile above 0 and at most 1 (0.95)."
        )
    limit = _whole_way(plan) if at_most is None else float(at_most)
    if not limit > 0:
        raise PlanError(f"at_most is {limit!r}: the search needs a factor above 0 to end at.")
    texts = texts_of(lm, prompts, max_new_tokens)
    variance, derivative = variances(lm, texts, plan, scope)
    spread = float(variance.quantile(quantile)[0])
    bound = sqrt(2 * kl / spread) if spread > 0 else float("inf")
    search = _Search(lm, texts, plan, scope, float(quantile), float(kl))
    start = bound if isfinite(bound) else 1.0
    low, high = _crossing(search, start, limit)
    if high is not None:
        low = _between(search, low, high)
    return Suggestion(
        low,
        None if own is None else own * low,
        search.known[low],
        float(kl),
        float(quantile),
        high is not None,
        bound,
        derivative,
        tuple(sorted(search.known.items())),
        variance.nats.shape[1],
    )


@dataclass(slots=True, eq=False)
class _Search:
    """Measures factors, each once."""

    lm: LM
    texts: Texts
    plan: Sequence[Intervention]
    scope: Scope
    quantile: float
    budget: float
    known: dict[float, float] = field(default_factory=lambda: {0.0: 0.0})

    def measure(self, factors: Sequence[float]) -> list[float]:
        """Return the damage at some factors, in as few passes as they fill."""
        new = [factor for factor in factors if factor not in self.known]
        if new:
            arms = [scaled(self.plan, factor) for factor in new]
            found = measured(self.lm, self.texts, lambda _: arms, self.scope)
            values = found.quantile(self.quantile).tolist()
            self.known.update(zip(new, values, strict=True))
        return [self.known[factor] for factor in factors]


def _crossing(search: _Search, start: float, limit: float) -> tuple[float, float | None]:
    """Return the last factor within the budget before the first one above it, and that one.

    Doublings from an eighth of the bound: the KL of a rotation rises and falls again, and a search
    that begins beyond its first crossing would find another one.
    """
    low, at = 0.0, min(start / 8, limit)
    for _ in range(-(-(OCTAVES + 3) // AT_ONCE)):
        factors = [min(at * 2**i, limit) for i in range(AT_ONCE)]
        for factor, nats in zip(factors, search.measure(factors), strict=True):
            if nats > search.budget:
                return low, factor
            low = factor
        if low >= limit:
            return low, None
        at = 2 * low
    return low, None


def _between(search: _Search, low: float, high: float) -> float:
    """Return the factor just below the first crossing between two."""
    for _ in range(8):
        if search.known[low] >= (1 - FINE) * search.budget or high - low < 1e-6 * high:
            break
        step = (high - low) / (AT_ONCE + 1)
        factors = [low + step * (i + 1) for i in range(AT_ONCE)]
        for factor, nats in zip(factors, search.measure(factors), strict=True):
            if nats > search.budget:
                high = factor
                break
            low = factor
    return low


def _plan_of(
    given: Intervention | Sequence[Intervention],
) -> tuple[tuple[Intervention, ...], float | None]:
    """Return the plan, and the strength of a lone intervention."""
    lone = isinstance(given, Intervention)
    plan = (given,) if lone else as_items(given)
    own = [_strength(item) for item in plan]
    if not any(strength for strength in own if strength is not None):
        raise PlanError(
            f"{plan!r} has no strength but 0, so no factor of it does anything. Give it a strength "
            "of 1, or of the sign that is meant."
        )
    return plan, own[0] if lone else None


def _strength(item: Intervention) -> float | None:
    """Return an intervention's strength, of Relative the multiple; None where it only wraps."""
    known = {one.name for one in fields(cast("Any", item))}
    if "inner" in known:
        return _strength(getattr(item, "inner"))  # noqa: B009 - not in the Protocol
    strength = getattr(item, "strength", None)
    if isinstance(strength, Relative):
        strength = strength.multiple
    if isinstance(strength, torch.Tensor):
        raise PlanError(
            f"{item!r} has one strength for each of {len(strength)} rows. One factor is looked for "
            "over all prompts: give it a number."
        )
    return None if strength is None else float(strength)


def _whole_way(plan: Sequence[Intervention]) -> float:
    """Return the factor at which what goes towards a target has gone the whole way."""
    inner = [_unwrapped(item) for item in plan]
    ways = [
        1 / abs(strength)
        for item in inner
        if not isinstance(item, Add | Rotate) and (strength := _strength(item))
    ]
    return min(ways, default=float("inf"))


def _unwrapped(item: Intervention) -> Intervention:
    known = {one.name for one in fields(cast("Any", item))}
    return _unwrapped(getattr(item, "inner")) if "inner" in known else item  # noqa: B009
