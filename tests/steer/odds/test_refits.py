"""Bootstraps of fading, bounded and several-vector laws: refits against reweighing and truth."""

import pytest
import torch

from steer.belief import Belief, Data, Decay, bootstrap, data_of
from steer.odds.refits import parameters, refitted

EVIDENCE = torch.tensor([0.0, 1, 4, 16, 64]).double()
STRENGTH = torch.linspace(-1, 1, 5).double()


def observed(law: Belief, n_questions: int, trials: int, gen: torch.Generator) -> Data:
    grid = torch.meshgrid(EVIDENCE, STRENGTH, torch.arange(n_questions).double(), indexing="ij")
    n, m, question = (x.flatten() for x in grid)
    p = law.posterior(n, m)
    counts = (torch.rand(trials, len(n), generator=gen).double() < p).sum(0)
    return data_of(n, m, counts, trials=trials, outcome_is="counts", question=question)


def test_refits_of_the_plain_law_are_what_reweighing_gives(gen: torch.Generator):
    data = observed(Belief(a=2.0, b=-2.0, gamma=0.8, alpha=0.6), 8, 20, gen)
    data = Data(data.evidence, data.strength, data.outcome, data.weight, data.kind)
    fast = bootstrap(data, resamples=25)
    unit = torch.arange(len(data))
    drawn = torch.randint(len(data), (25, len(data)), generator=torch.Generator().manual_seed(0))
    _, slow = refitted(data, unit, drawn, decay=False, bounded=False, form="power")
    for name, values in slow.items():
        ends = values.quantile(torch.tensor([0.025, 0.975]).double())
        width = fast[name].hi - fast[name].lo
        assert abs(float(ends[0]) - fast[name].lo) < 0.05 * width
        assert abs(float(ends[1]) - fast[name].hi) < 0.05 * width


@pytest.mark.slow
def test_intervals_of_floor_ceiling_and_decay_are_as_wide_as_fits_of_new_data(
    gen: torch.Generator,
):
    law = Belief(a=4.0, b=-1.0, gamma=0.8, alpha=0.5, floor=0.1, ceiling=0.85)
    found = bootstrap(observed(law, 20, 40, gen), bounded=True, resamples=40)
    again = [bootstrap(observed(law, 20, 40, gen), bounded=True, resamples=1) for _ in range(25)]
    for name in ("a", "floor", "ceiling"):
        spread = float(torch.tensor([one[name].value for one in again]).std())
        assert 0.5 < (found[name].hi - found[name].lo) / (4 * spread) < 2.0


def test_several_vectors_and_decay_have_intervals_by_name(gen: torch.Generator):
    grid = torch.meshgrid(EVIDENCE, STRENGTH, STRENGTH, indexing="ij")
    n, first, second = (x.flatten() for x in grid)
    law = Belief(a=torch.tensor([2.0, -1.0]), b=-1.0, gamma=0.8, alpha=0.5)
    m = torch.stack([first, second], 1)
    odds = law.log_odds(n, m) + 0.1 * torch.randn(len(n), generator=gen).double()
    found = bootstrap(data_of(n, m, odds), resamples=60)
    assert set(found) == {"a0", "a1", "b", "gamma", "alpha"}
    # A balanced design: the standard error of a slope is that of its own regression.
    for name, truth, column in (("a0", 2.0, first), ("a1", -1.0, second)):
        error = 0.1 / float(column.square().sum().sqrt())
        assert abs(found[name].value - truth) < 4 * error
        assert 0.6 < (found[name].hi - found[name].lo) / (2 * 1.96 * error) < 1.5
    fading = Belief(a=2.0, b=-1.0, gamma=0.8, alpha=0.5, decay=Decay(1.5, 1.5))
    odds = fading.log_odds(n, first) + 0.05 * torch.randn(len(n), generator=gen).double()
    widths = bootstrap(data_of(n, first, odds), decay=True, resamples=20)
    assert {"decay_below", "decay_above"} < set(widths)
    assert widths["decay_above"].lo < 1.5 < widths["decay_above"].hi


def test_parameters_are_named_as_the_law_has_them():
    plain = parameters(Belief(a=1.0, b=0.0, gamma=0.3, alpha=0.5))
    assert plain == {"a": 1.0, "b": 0.0, "gamma": 0.3, "alpha": 0.5}
    bounded = parameters(Belief(a=1.0, b=0.0, gamma=0.3, alpha=0.5, ceiling=0.9, spread=0.2))
    assert (bounded["floor"], bounded["ceiling"], bounded["spread"]) == (0.0, 0.9, 0.2)
