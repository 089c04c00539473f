"""Equal damage: the factor of each plan's strength at which it costs the budget.

Damage is the 95th percentile over tokens of KL(model || steered), on ordinary text for what acts
everywhere. What acts on OUTPUT changes nothing before the last token of a prompt: its damage is
measured on the openings of the same texts and on some questions of the fit, with the model's own
greedy continuation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import steer
from benchmarks.methods.plans import AT_MOST, EVERYWHERE, OUTPUT_ARMS
from benchmarks.methods.questions import Behaviour, contexts
from steer.damage import Suggestion
from steer.evals.measuring.rendering import Row, passage
from steer.interventions.plans import Plan, as_items

BUDGET, QUARTER = 1.0, 0.25
"""Nats."""
QUANTILE = 0.95
"""Of the tokens."""
N_TOKENS, N_OPENING, N_NEW = 32, 12, 12


@dataclass(frozen=True, slots=True)
class Texts:
    """Token rows on which damage is measured."""

    whole: tuple[Row, ...]
    openings: tuple[Row, ...]
    """Prompts, after which tokens are generated."""


def texts_of(lm: steer.LM, texts: Sequence[str], behaviours: Sequence[Behaviour]) -> Texts:
    """Return the rows: of ordinary texts, and of one question of each behaviour's fit."""
    questions = [row for one in behaviours for row in contexts(lm, one.fit[:1], one.form)]
    return Texts(
        tuple(passage(lm, text, most=N_TOKENS) for text in texts),
        (*(passage(lm, text, most=N_OPENING) for text in texts), *questions),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A plan at its factor."""

    plan: Plan
    suggestion: Suggestion
    output: bool
    """Whether it acts on OUTPUT, which is measured on other tokens."""


def calibrated(
    lm: steer.LM, name: str, plan: Plan, texts: Texts, *, kl: float = BUDGET
) -> Calibrated:
    """Return a plan at the factor at which its damage reaches a budget, or as near as it gets."""
    output = name in OUTPUT_ARMS or name.startswith("random_output")
    items = as_items(plan)
    found = steer.suggest_strength(
        lm,
        items,
        list(texts.openings if output else texts.whole),
        kl=kl,
        quantile=QUANTILE,
        scope=EVERYWHERE,
        max_new_tokens=N_NEW if output else 0,
        at_most=AT_MOST.get(name),
    )
    return Calibrated(found.plan(items), found, output)


def all_calibrated(
    lm: steer.LM, plans: Mapping[str, Plan], texts: Texts, *, kl: float = BUDGET
) -> dict[str, Calibrated]:
    """Return all of some plans."""
    return {name: calibrated(lm, name, plan, texts, kl=kl) for name, plan in plans.items()}


def cost(lm: steer.LM, plan: Plan, texts: Texts) -> float:
    """Return the damage of a plan that acts everywhere, as it is."""
    found = steer.divergence(lm, list(texts.whole), [as_items(plan)], scope=EVERYWHERE)
    return float(found.quantile(QUANTILE)[0])
