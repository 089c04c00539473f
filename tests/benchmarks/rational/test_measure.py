"""Rational in-context learning: the stacked transformers, the tasks, and what is reported."""

from dataclasses import replace

import pytest
import torch

from benchmarks.rational import measure
from benchmarks.rational.settings import SETTINGS, Setting, Urns
from benchmarks.rational.strategies import strategies, trained_data
from benchmarks.rational.train import Recipe, chosen, loss_of, trained
from benchmarks.rational.transformer import Shape, initial, outputs
from steer.odds.rational import Rational, nearest_mixture, weights_of

RECIPE = Recipe(diversities=(2, 8, 32), steps=(2, 3, 4), n_rows=8)
TURNS = replace(RECIPE, diversities=(2, 4, 8, 16), steps=(8, 16, 32, 64, 128, 256, 512))


def test_stacked_transformers_equal_each_one_alone_and_see_no_future(gen: torch.Generator):
    shape = Shape(3, 5, 4, 6, d_model=16)
    weights = {name: x + 0.1 * torch.randn(x.shape) for name, x in initial(shape, gen).items()}
    inputs = torch.randn(3, 2, 6, 5, generator=gen)
    whole = outputs(weights, inputs, shape)
    for at in range(3):
        one = {name: x[at : at + 1] for name, x in weights.items()}
        torch.testing.assert_close(outputs(one, inputs[at : at + 1], shape)[0], whole[at])
    changed = torch.cat([inputs[:, :, :4], inputs[:, :, 4:] + 1.0], dim=2)
    torch.testing.assert_close(outputs(weights, changed, shape)[:, :, :4], whole[:, :, :4])


def test_models_of_one_stack_learn_as_if_alone(gen: torch.Generator):
    # The loss is a sum over models and Adam acts on each number: no gradient crosses.
    shape = Shape(2, 9, 8, 32, d_model=16)
    weights = {name: x.requires_grad_() for name, x in initial(shape, gen).items()}
    setting = Urns()
    pool = setting.pool(4, gen)
    batch = setting.sequences(chosen(pool, (2, 4), 4, gen), gen)
    loss_of(outputs(weights, batch.inputs, shape), batch, setting).backward()
    both = weights["up"].grad
    assert both is not None
    one = {name: x[:1].detach().requires_grad_() for name, x in weights.items()}
    first = replace(batch, inputs=batch.inputs[:1], targets=batch.targets[:1])
    loss_of(outputs(one, first.inputs, replace(shape, n_models=1)), first, setting).backward()
    alone = one["up"].grad
    assert alone is not None
    torch.testing.assert_close(both[:1], alone)


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])
def test_memorising_beats_generalising_on_few_tasks_and_ties_on_many(
    setting: Setting, gen: torch.Generator
):
    pool = setting.pool(2048, gen)
    recipe = replace(RECIPE, diversities=(8, 2048))
    tests = setting.sequences(chosen(pool, recipe.diversities, 16, gen), gen)
    seen = strategies(setting, pool, recipe, tests, gen)
    lost = seen.losses[:, 1] - seen.losses[:, 0]
    assert float(lost[0]) > 0.01
    assert float(lost[1]) < 0.7 * float(lost[0])
    assert bool((seen.losses[:, 2] > seen.losses[:, 1]).all())
    assert float(seen.bits[1, 0]) > 20 * float(seen.bits[1, 1])


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])
def test_training_moves_the_models_and_every_number_is_there(
    setting: Setting, gen: torch.Generator
):
    pool = setting.pool(32, gen)
    tests = setting.sequences(chosen(pool, RECIPE.diversities, 8, gen), gen)
    model = trained(setting, pool, RECIPE, tests, gen).double()
    assert float((model[:, 1] - model[:, 0]).abs().max()) > 1e-3
    seen = strategies(setting, pool, RECIPE, tests, gen)
    data = trained_data(setting, seen, RECIPE, model)
    outcome = measure.scored(data, data, RECIPE.diversities, 0)
    assert set(outcome.controls) == set(measure.CONTROLS)
    assert float(outcome.numbers["kl_best_each"].value or 0.0) <= float(
        outcome.numbers["kl_generalised"].value or 0.0
    )


def test_models_that_follow_the_law_are_found_to_with_their_transitions(gen: torch.Generator):
    setting, law = Urns(), Rational(alpha=0.3, beta=0.5, gamma=3.0)
    pool = setting.pool(16, gen)
    tests = setting.sequences(chosen(pool, TURNS.diversities, 12, gen), gen)
    seen = strategies(setting, pool, TURNS, tests, gen)
    # Bits that keep the constant out of the way: the turn is between the other two.
    bits = torch.tensor([[1600.0 + 100 * k**2, 1500.0, 1500.0] for k in range(4)])
    seen = replace(seen, bits=bits)
    empty = torch.zeros(4, 7, *seen.predicted.shape[2:])
    data = trained_data(setting, seen, TURNS, empty)
    data = replace(data, model=data.mixed(weights_of(law, data)))
    outcome = measure.scored(data, data, TURNS.diversities, 0)
    share = outcome.numbers["law_over_best_alone"].value
    assert share is not None
    assert share < 0.01
    fixed = outcome.controls["fixed_mixture_over_law"].value
    assert fixed is not None
    assert fixed > 3
    when = measure.transitions(nearest_mixture(data), data.steps)
    said = law.transition(data.bits[:, :2], data.losses[:, :2])
    have = torch.isfinite(when)
    assert int(have.sum()) >= 2
    # Weights far below the others' are found to within a few percent only.
    assert float((when[have] / said[have]).log2().abs().max()) < 0.3


def test_exponents_are_slopes_and_too_few_turns_are_unscored():
    diversity = torch.tensor([4.0, 8.0, 16.0, 32.0]).double()
    found = measure.exponents(3 * diversity**1.5, 2 * diversity**1.2, diversity, 0)
    assert found["exponent_measured"].value == pytest.approx(1.5)
    assert found["exponent_predicted"].value == pytest.approx(1.2)
    nothing = torch.full((4,), torch.nan).double()
    assert measure.exponents(nothing, diversity, diversity, 0)["exponent_measured"].value is None
