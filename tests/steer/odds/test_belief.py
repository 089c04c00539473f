"""The law: against closed forms, scipy's root finder, finite differences, and its own laws."""

import math
from typing import cast

import pytest
import torch
from scipy.optimize import brentq

import steer
from steer.belief import Belief, Decay

PLAIN = Belief(a=2.0, b=-3.0, gamma=1.2, alpha=0.4)
LAWS = {
    "plain": PLAIN,
    "boxcox": Belief(a=2.0, b=-3.0, gamma=1.2, alpha=1.0, form="boxcox"),
    "decay": Belief(a=2.0, b=-1.0, gamma=1.2, alpha=0.4, decay=Decay(2.0, 3.0)),
    "bounded": Belief(a=2.0, b=-3.0, gamma=1.2, alpha=0.4, floor=0.05, ceiling=0.9),
}
each = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
N = torch.tensor([0.0, 0.5, 1, 2, 7, 30, 200]).double()
M = torch.tensor([-0.9, -0.3, 0.0, 0.2, 0.8]).double()


def test_the_law_is_the_papers_formula():
    for n in N.tolist():
        for m in M.tolist():
            wanted = 2.0 * m - 3.0 + 1.2 * (n**0.6 if n else 0.0)
            assert math.isclose(float(PLAIN.log_odds(n, m)), wanted, abs_tol=1e-12)


@each
def test_more_evidence_never_lowers_its_own_concept(law):
    odds = law.log_odds(N[:, None], M)
    assert (odds.diff(dim=0) > 0).all()


@each
def test_the_posterior_and_the_log_odds_are_one_statement(law):
    p = law.posterior(N[:, None], M)
    torch.testing.assert_close(torch.logit(p), law.log_odds(N[:, None], M), rtol=1e-4, atol=1e-9)
    assert (p >= law.floor).all()
    assert (p <= law.ceiling).all()


@each
def test_strength_zero_is_the_unsteered_curve(law):
    assert torch.equal(law.log_odds(N, 0.0), law.log_odds(N))


@each
def test_the_crossover_is_where_a_root_finder_finds_it(law):
    for m in (-0.4, 0.0, 0.3):
        root = cast("float", brentq(lambda n, m=m: float(law.log_odds(n, m)), 0, 1e6, xtol=1e-12))
        assert math.isclose(float(law.crossover(m)), root, rel_tol=1e-7)
    easy = 3.0 if law.decay is None else 1.0
    assert float(law.crossover(easy)) == 0.0


@each
def test_the_boundary_is_where_a_root_finder_finds_it(law):
    for n in (1.0, 2.0, 3.0):
        root = cast("float", brentq(lambda m, n=n: float(law.log_odds(n, m)), -1.9, 2.5))
        assert math.isclose(float(law.boundary(n)), root, rel_tol=1e-6, abs_tol=1e-9)


@each
def test_slopes_are_those_of_finite_differences(law):
    m, step = 0.1, 1e-5
    secant = float(law.crossover(m + step) - law.crossover(m - step)) / (2 * step)
    assert math.isclose(float(law.boundary_slope(m)), secant, rel_tol=1e-5)
    n = float(law.crossover(m))
    secant = float(law.posterior(n + step, m) - law.posterior(n - step, m)) / (2 * step)
    assert math.isclose(float(law.slope_at_boundary(m)), secant, rel_tol=1e-5)


def test_the_slopes_of_the_plain_law_are_the_closed_forms():
    a, b, gamma, alpha, m = 2.0, -3.0, 1.2, 0.4, 0.5
    n = (-(a * m + b) / gamma) ** (1 / (1 - alpha))
    bend = -(a / gamma) / (1 - alpha) * (-(a * m + b) / gamma) ** (alpha / (1 - alpha))
    assert math.isclose(float(PLAIN.boundary_slope(m)), bend, rel_tol=1e-9)
    flip = gamma * (1 - alpha) * n**-alpha / 4
    assert math.isclose(float(PLAIN.slope_at_boundary(m)), flip, rel_tol=1e-9)


@each
def test_the_strength_for_a_target_reaches_it(law):
    targets = law.log_odds(N[1:5], torch.tensor([-0.8, 0.4, 0.7, -0.2]).double())
    found = law.strength_for(targets, N[1:5])
    torch.testing.assert_close(law.log_odds(N[1:5], found), targets)


def test_another_unit_of_strength_rescales_a_and_nothing_else():
    scaled = Belief(a=2.0 / 5, b=-3.0, gamma=1.2, alpha=0.4)
    torch.testing.assert_close(scaled.log_odds(N[:, None], 5 * M), PLAIN.log_odds(N[:, None], M))


def test_the_box_cox_form_is_continuous_at_alpha_one():
    near = Belief(a=0.0, b=0.0, gamma=1.0, alpha=1 - 1e-7, form="boxcox").log_odds(N)
    torch.testing.assert_close(near, torch.log1p(N), rtol=1e-5, atol=1e-9)
    at_one = LAWS["boxcox"]
    assert float(at_one.log_odds(0.0)) == -3.0


def test_several_vectors_add_up():
    both = Belief(a=torch.tensor([2.0, -1.0]), b=-3.0, gamma=1.2, alpha=0.4)
    m = torch.tensor([[0.5, 0.0], [0.5, 1.0]])
    torch.testing.assert_close(
        both.log_odds(4.0, m), PLAIN.log_odds(4.0, torch.tensor([0.5, 0.0])).double()
    )
    with pytest.raises(steer.BeliefError, match="2 vectors"):
        both.strength_for(0.0, 1.0)


def test_what_is_attainable_is_what_valid_strengths_reach():
    law = Belief(a=-2.0, b=0.0, gamma=1.0, alpha=0.5, valid=(-1.0, 0.5))
    low, high = law.attainable(torch.tensor([0.0, 4.0]))
    assert low.tolist() == [-1.0, 1.0]
    assert high.tolist() == [2.0, 4.0]
    with pytest.raises(steer.BeliefError, match=r"1 of 2 targets.*reach -1 to 2"):
        law.strength_for([2.5, 2.5], [0.0, 4.0])
    assert law.strength_for(2.5, 0.0, extrapolate=True) == -1.25


def test_steering_that_fades_has_a_top_beyond_which_nothing_is_reached():
    law = LAWS["decay"]
    with pytest.raises(steer.BeliefError, match="No strength brings"):
        law.strength_for(50.0, 1.0, extrapolate=True)


def test_the_phase_diagram_is_the_law_on_a_grid():
    grid = PLAIN.phase(N, M)
    assert grid.shape == (7, 5)
    assert grid[3, 1] == PLAIN.log_odds(N[3], M[1])


def test_a_belief_survives_a_file_with_its_digest(tmp_path):
    for name, law in LAWS.items():
        steer.save(law, tmp_path / f"{name}.safetensors")
        again = cast("Belief", steer.load_artifact(tmp_path / f"{name}.safetensors"))
        assert again.digest == law.digest
        assert torch.equal(again.log_odds(N, 0.3), law.log_odds(N, 0.3))
    assert len({law.digest for law in LAWS.values()}) == len(LAWS)


def test_a_belief_prints_its_law():
    assert repr(PLAIN) == "Belief(log o = 2 m -3 + 1.2 N^0.6)"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"gamma": -1.0}, "lower its own concept"),
        ({"alpha": 1.0}, "boxcox"),
        ({"b": float("nan")}, "finite"),
        ({"floor": 0.9, "ceiling": 0.2}, "floor below"),
    ],
)
def test_parameters_that_make_no_law_are_refused(values, says):
    with pytest.raises(steer.BeliefError, match=says):
        Belief(**{"a": 1.0, "b": 0.0, "gamma": 1.0, "alpha": 0.5, **values})


def test_negative_evidence_is_refused():
    with pytest.raises(steer.BeliefError, match="cannot be negative"):
        PLAIN.log_odds(torch.tensor([1.0, -2.0]))


def test_without_weight_of_evidence_there_is_a_boundary_only_in_strength():
    law = Belief(a=2.0, b=-1.0, gamma=0.0, alpha=0.5)
    found = law.crossover([0.2, 0.7])
    assert found.dtype == torch.float64
    assert found.tolist() == [math.inf, 0.0]
    assert law.boundary_slope([0.2, 0.7]).isnan().tolist() == [True, False]
    assert float(law.boundary(7.0)) == 0.5
