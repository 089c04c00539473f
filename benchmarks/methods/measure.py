"""Numbers of `methods`: choose a block, fit, bring all to one budget, ask held-out questions."""

from collections.abc import Sequence

import steer
from benchmarks import stats
from benchmarks.methods import calibrating, questions
from benchmarks.methods.asking import ask
from benchmarks.methods.calibrating import (
    BUDGET,
    QUANTILE,
    QUARTER,
    Calibrated,
    Texts,
    all_calibrated,
    cost,
)
from benchmarks.methods.numbers import CONTROLS as CONTROLS
from benchmarks.methods.numbers import Compared, numbers_of, tables_of
from benchmarks.methods.plans import (
    EVERYWHERE,
    N_BINS,
    curve_of,
    mean_difference,
    methods,
    random_directions,
)
from benchmarks.methods.questions import Behaviour
from benchmarks.methods.states import States, read
from benchmarks.result import Outcome
from benchmarks.task import Options
from steer.interventions.plans import Plan, as_items
from steer.interventions.scaled import scaled

N_RANDOM, N_RANDOM_QUARTER = 4, 2
VALIDATED_AT = steer.Relative(0.1)
"""The strength at which blocks are compared: a share of each token's own norm."""


def measure_methods(lm: steer.LM, options: Options) -> Outcome:
    """Compare methods at equal damage; `--limit` is the number of held-out questions of each set.

    Raises:
        BenchmarkError: too few questions, or a tokenizer that splits the letters of answers.
    """
    behaviours = questions.load(options.limit, options.seed)
    return measured(lm, behaviours, questions.texts(options.seed), options.seed)


def measure_sentiment(lm: steer.LM, options: Options) -> Outcome:
    """Compare methods on what a model says next of a thing, good or bad; as `measure_methods`.

    Raises:
        BenchmarkError: a tokenizer that splits " good" or " bad", or too few questions.
    """
    behaviours = questions.load_sentiment(options.limit, options.seed)
    return measured(lm, behaviours, questions.texts(options.seed), options.seed)


def measured(
    lm: steer.LM, behaviours: Sequence[Behaviour], texts: Sequence[str], seed: int
) -> Outcome:
    """Return the same of given questions and ordinary texts."""
    sites = candidates(lm)
    states = [read(lm, one.fit, sites, one.form) for one in behaviours]
    validation = [
        validated(lm, one, known, sites) for one, known in zip(behaviours, states, strict=True)
    ]
    best = max(range(len(sites)), key=lambda at: sum(one[at] for one in validation))
    site = sites[best]
    rows = calibrating.texts_of(lm, texts, behaviours)
    random = randoms(lm, site, rows, seed)
    compared = [
        compare(lm, one, known.at(best), site, rows, random, seed)
        for one, known in zip(behaviours, states, strict=True)
    ]
    numbers, controls = numbers_of(compared, seed)
    tables = tables_of(compared, numbers, controls, seed) | {
        "site": str(site),
        "validation": {
            one.name: {str(site): effect for site, effect in zip(sites, effects, strict=True)}
            for one, effects in zip(behaviours, validation, strict=True)
        },
        "curves": {
            one.name: _curve(known.at(best)) for one, known in zip(behaviours, states, strict=True)
        },
    }
    return Outcome(numbers, controls, tables, _specs(behaviours, rows, site, compared))


def candidates(lm: steer.LM) -> list[steer.Site]:
    """Return the sites at a third, a half and two thirds of the depth."""
    layers = dict.fromkeys(lm.n_layers * k // 6 for k in (2, 3, 4))
    return [steer.Site(layer, "resid_post") for layer in layers]


def validated(
    lm: steer.LM, behaviour: Behaviour, states: States, sites: Sequence[steer.Site]
) -> list[float]:
    """Return by site the effect of the mean difference on the validation questions."""
    arms: dict[str, Plan] = {}
    for at, site in enumerate(sites):
        direction = mean_difference(states.positive[at], states.negative[at])
        arms[str(site)] = [steer.Add(site, direction, VALIDATED_AT, scope=EVERYWHERE)]
    answers = ask(lm, behaviour.validation, arms, behaviour.form)
    return [float(answers.effect(arm).mean()) for arm in arms]


def randoms(lm: steer.LM, site: steer.Site, rows: Texts, seed: int) -> dict[str, Calibrated]:
    """Return additions of random directions at the budgets: the same for all behaviours."""
    directions = random_directions(lm.d_model, N_RANDOM, seed)
    # As long as a state, so that the search begins at a factor that means something.
    directions = directions * lm.norm(site, [list(row) for row in rows.whole])
    plans: dict[str, Plan] = {
        f"random {k}": [steer.Add(site, one, scope=EVERYWHERE)] for k, one in enumerate(directions)
    }
    output: dict[str, Plan] = {
        f"random_output {k}": [steer.Add(site, one, scope=steer.OUTPUT)]
        for k, one in enumerate(directions)
    }
    quarter = {
        f"random_quarter {k}": plans[f"random {k}"] for k in range(min(N_RANDOM_QUARTER, N_RANDOM))
    }
    return (
        all_calibrated(lm, plans, rows)
        | all_calibrated(lm, output, rows)
        | all_calibrated(lm, quarter, rows, kl=QUARTER)
    )


def compare(
    lm: steer.LM,
    behaviour: Behaviour,
    states: States,
    site: steer.Site,
    rows: Texts,
    random: dict[str, Calibrated],
    seed: int,
) -> Compared:
    """Return what every arm does to the held-out questions of a behaviour."""
    plans = methods(states, site, seed)
    found = all_calibrated(lm, plans, rows) | random
    steady = {"mean_difference_quarter": plans["mean_difference"]}
    found |= all_calibrated(lm, steady, rows, kl=QUARTER)
    arms: dict[str, Plan] = {name: one.plan for name, one in found.items()}
    opposite = scaled(as_items(found["mean_difference"].plan), -1.0)
    arms["opposite"] = opposite
    answers = ask(lm, behaviour.held_out, arms, behaviour.form, behaviour.instruction)
    return Compared(behaviour.name, answers, found, cost(lm, opposite, rows))


def _curve(states: States) -> dict[str, object]:
    curve = curve_of(states)
    kept = ("explained", "leave_one_class_out", "residual_kept", "smoothing")
    return {"knots": curve.knots.tolist()} | {name: curve.diagnostics[name] for name in kept}


def _specs(
    behaviours: Sequence[Behaviour], rows: Texts, site: steer.Site, compared: Sequence[Compared]
) -> dict[str, object]:
    def count(items: Sequence[object]) -> int:
        return len({getattr(item, "key") for item in items})  # noqa: B009 - of any item

    return {
        "questions": {
            one.name: {
                "fit": count(one.fit),
                "validation": count(one.validation),
                "held_out": count(one.held_out),
            }
            for one in behaviours
        },
        "site": str(site),
        "scopes": {"all but the curve": repr(EVERYWHERE), "manifold": repr(steer.OUTPUT)},
        "budget": BUDGET,
        "quarter": QUARTER,
        "quantile": QUANTILE,
        "texts": {
            "ordinary": len(rows.whole),
            "tokens of each": calibrating.N_TOKENS,
            "openings and questions": len(rows.openings),
            "generated after each": calibrating.N_NEW,
        },
        "random_directions": N_RANDOM,
        "bins": N_BINS,
        "interval": f"{stats.LEVEL:.0%} bootstrap over questions; of random directions also over "
        "draws, one for each behaviour",
        "plans": {
            one.name: {name: repr(list(as_items(it.plan))) for name, it in one.calibrated.items()}
            for one in compared
        },
    }
