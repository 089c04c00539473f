"""The law of training: its algebra, its turn in closed form, and planted laws found again."""

import math
from dataclasses import replace

import pytest
import torch

import steer
from steer.errors import BeliefError
from steer.odds.bits import complexity
from steer.odds.rational import Rational, Trained, fit_rational, nearest_mixture, weights_of

LAW = Rational(alpha=0.4, beta=0.3, gamma=0.06)
STEPS = torch.tensor([10.0, 30, 100, 300, 1000, 3000])
BITS = torch.tensor([[900.0 + 120 * d, 1000.0, 200.0] for d in (2, 8, 32, 128)])
LOSSES = torch.tensor([[1.0 + 0.05 * k, 1.4, 2.0] for k in range(4)])


def planted(gen: torch.Generator, law: Rational, *, mean: bool = False) -> Trained:
    """Return models that are the law's mixtures exactly."""
    raw = torch.randn(4, 3, 20, 5, 1 if mean else 6, generator=gen).double()
    predicted = raw if mean else (2 * raw).softmax(-1)
    empty = torch.zeros(4, 6, *predicted.shape[2:])
    readout = "mean" if mean else "probabilities"
    data = Trained(empty, predicted, STEPS, BITS, LOSSES, readout, 0.5 if mean else 1.0)
    model = data.mixed(weights_of(law, data))
    return Trained(model, predicted, STEPS, BITS, LOSSES, readout, data.noise)


def test_log_odds_of_two_predictors_are_the_law_of_beliefs():
    # The same algebra as steering and evidence: prior odds plus gamma * n**(1 - alpha).
    bits, losses = torch.tensor([4000.0, 900.0]), torch.tensor([1.0, 1.5])
    logs = LAW.log_weights(STEPS, bits, losses)
    prior = -math.log(2) * (4000.0**LAW.beta - 900.0**LAW.beta)
    belief = steer.belief.Belief(a=0.0, b=prior, gamma=LAW.gamma * 0.5, alpha=LAW.alpha)
    torch.testing.assert_close(logs[:, 0] - logs[:, 1], belief.log_odds(STEPS, 0.0))
    when = LAW.transition(bits, losses)
    torch.testing.assert_close(when, belief.crossover(0.0))


def test_at_the_transition_both_weigh_the_same_and_more_training_favours_the_lower_loss():
    bits, losses = torch.tensor([3000.0, 1000.0]), torch.tensor([1.0, 1.5])
    when = LAW.transition(bits, losses)
    steps = torch.stack([when / 2, when, when * 2])
    odds = LAW.log_weights(steps, bits, losses).diff(dim=-1)[:, 0]
    assert float(odds[0]) > 0 > float(odds[2])
    assert abs(float(odds[1])) < 1e-9


def test_there_is_no_transition_without_a_gain_and_none_to_wait_for_without_a_cost():
    assert float(LAW.transition([3000.0, 1000.0], [1.5, 1.5])) == math.inf
    assert float(LAW.transition([900.0, 1000.0], [1.0, 1.5])) == 0.0


def test_context_adds_evidence_of_its_own():
    law = Rational(LAW.alpha, LAW.beta, LAW.gamma, gamma_context=0.5)
    bits, losses = torch.tensor([900.0, 900.0]), torch.tensor([1.0, 1.0])
    logs = law.log_weights(0.0, bits, losses, context=torch.tensor([0.2, 0.8]), items=16.0)
    assert float(logs[0] - logs[1]) == pytest.approx(
        0.5 * 16**0.6 * 0.6, rel=1e-7
    )  # fp32 numbers were given


@pytest.mark.parametrize("mean", [False, True])
def test_a_planted_law_is_found(gen: torch.Generator, mean: bool):
    law = fit_rational(planted(gen, LAW, mean=mean))
    assert law.alpha == pytest.approx(LAW.alpha, abs=0.01)
    assert law.beta == pytest.approx(LAW.beta, abs=0.01)
    data = planted(gen, LAW, mean=mean)
    assert float(data.divergence(data.mixed(weights_of(law, data))).max()) < 1e-4


def in_context(gen: torch.Generator, law: Rational) -> Trained:
    """Return the same with losses within the context, which differ by row and position."""
    data = planted(gen, law)
    losses = torch.rand(4, 3, 20, 5, generator=gen).double().cumsum(-1)
    items = torch.arange(5.0)
    data = replace(data, context=losses / items.clamp(min=1.0), items=items)
    return replace(data, model=data.mixed(weights_of(law, data)))


def test_weights_within_the_context_are_those_of_the_law_row_by_row(gen: torch.Generator):
    law = replace(LAW, gamma_context=0.7)
    data = in_context(gen, law)
    assert data.context is not None
    logs = law.log_weights(
        STEPS[4], BITS[2], LOSSES[2], context=data.context[2, :, 7, 3], items=3.0
    )
    torch.testing.assert_close(weights_of(law, data)[2, 4, 7, 3], logs.exp())
    # Before the first item there is no evidence in context, whatever the losses hold there.
    torch.testing.assert_close(
        weights_of(law, data)[:, :, 5, 0], weights_of(law, data.plain())[:, :]
    )


def test_a_planted_law_of_training_and_context_is_found(gen: torch.Generator):
    law = replace(LAW, gamma_context=0.7)
    data = in_context(gen, law)
    found = fit_rational(data)
    assert found.gamma_context == pytest.approx(0.7, rel=0.02)
    assert found.alpha == pytest.approx(LAW.alpha, abs=0.01)
    apart = data.divergence(data.mixed(weights_of(found, data)))
    alone = data.divergence(data.mixed(weights_of(fit_rational(data.plain()), data.plain())))
    assert float(apart.max()) < float(alone.mean()) / 50


def test_a_law_without_context_stays_one_where_context_says_nothing(gen: torch.Generator):
    data = in_context(gen, LAW)
    found = fit_rational(data)
    weighed = found.gamma_context * 4 ** (1 - found.alpha)
    assert weighed < 0.02
    assert found.beta == pytest.approx(LAW.beta, abs=0.01)


def test_a_fit_on_some_cells_predicts_the_others(gen: torch.Generator):
    data = planted(gen, LAW)
    cells = (torch.arange(4)[:, None] + torch.arange(6)) % 2 == 0
    law = fit_rational(data, cells=cells)
    apart = data.divergence(data.mixed(weights_of(law, data)))
    assert float(apart[~cells].max()) < 1e-3
    assert float(data.alone().amin(-1)[~cells].mean()) > 0.02


@pytest.mark.parametrize("mean", [False, True])
def test_the_nearest_mixture_of_each_cell_is_the_one_that_made_it(gen: torch.Generator, mean: bool):
    data = planted(gen, LAW, mean=mean)
    found = nearest_mixture(data)
    torch.testing.assert_close(found, weights_of(LAW, data), atol=5e-3, rtol=0)


def test_the_divergence_of_means_is_that_of_normals(gen: torch.Generator):
    data = planted(gen, LAW, mean=True)
    other = data.predicted[:, :1]
    ours = torch.distributions.Normal(data.model, 0.5)
    theirs = torch.distributions.Normal(other.expand_as(data.model), 0.5)
    expected = torch.distributions.kl_divergence(ours, theirs).mean((-3, -2, -1))
    torch.testing.assert_close(data.divergence(other), expected)


def test_more_tasks_to_remember_take_more_bits(gen: torch.Generator):
    tasks = torch.rand(256, 8, generator=gen)
    bits = [complexity(tasks[:n], "return tasks", step=1 / 64) for n in (1, 16, 64, 256)]
    assert bits == sorted(bits)
    # Uniform numbers on a grid of 64 hold 6 bits each: no compressor gets below that, nor far off.
    assert 6 * 2048 * 0.9 < bits[-1] - bits[0] < 6 * 2048 * 1.6
    assert complexity(torch.zeros(256, 8), "return tasks", step=1 / 64) < bits[1]


def test_impossible_laws_and_arrays_that_do_not_fit_are_refused(gen: torch.Generator):
    with pytest.raises(BeliefError, match="alpha is below 1"):
        Rational(alpha=1.2, beta=0.3, gamma=1.0)
    data = planted(gen, LAW)
    with pytest.raises(BeliefError, match="do not fit"):
        Trained(data.model, data.predicted, STEPS[:3], BITS, LOSSES)
    with pytest.raises(BeliefError, match="not finite"):
        Trained(data.model * torch.nan, data.predicted, STEPS, BITS, LOSSES)
    with pytest.raises(BeliefError, match="Give both"):
        replace(data, items=torch.arange(5.0))
    few = torch.zeros(4, 6, dtype=torch.bool)
    with pytest.raises(BeliefError, match="at least four"):
        fit_rational(data, cells=few)
