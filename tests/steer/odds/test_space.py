"""Ratings, embeddings, agreement and side effects against enumeration, scipy and planted truth."""

from itertools import permutations

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance as spd
import scipy.stats
import sklearn.decomposition
import torch

from steer.errors import BeliefError
from steer.odds.mantel import mantel
from steer.odds.space import (
    distances,
    embed_distances,
    embed_states,
    entanglement,
    hellinger_distances,
    ratings,
    trajectory,
)


def points(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=(n, d)))


# -- ratings -------------------------------------------------------------------------------------


def test_a_rating_is_the_expected_digit_over_ten_whatever_the_mass_of_the_digits():
    p = np.zeros((1, 2, 1, 11))
    p[0, 0, 0, [2, 8]] = 0.25
    p[0, 1, 0, :] = 0.01
    assert ratings(p).flatten().tolist() == pytest.approx([0.5, 0.5])
    path = trajectory(p)
    assert path.mass.flatten().tolist() == pytest.approx([0.5, 0.11])
    # Two spikes .3 from their middle; the uniform distribution on 0, .1, ... 1.
    assert path.spread.flatten().tolist() == pytest.approx([0.3, 0.1 * np.sqrt((11**2 - 1) / 12)])


def test_ratings_may_stand_for_other_numbers():
    assert float(ratings([0.1, 0.0, 0.3], values=[-1, 0, 1])) == pytest.approx(0.5)


def test_a_path_moves_by_the_distance_of_its_ratings():
    p = torch.zeros(1, 3, 2, 2)
    for t, (a, b) in enumerate([(0.0, 0.0), (0.3, 0.4), (0.3, 1.0)]):
        p[0, t, 0] = torch.tensor([1 - a, a])
        p[0, t, 1] = torch.tensor([1 - b, b])
    path = trajectory(p)
    assert path.steps()[0].tolist() == pytest.approx([0.5, 0.6])
    assert path.points()[1].tolist() == pytest.approx([0.3, 0.4])


def test_ratings_without_meaning_are_refused():
    with pytest.raises(BeliefError, match=r"A probability is -1\. Give probabilities, not logits"):
        ratings([[-1.0, 2.0]])
    with pytest.raises(BeliefError, match="1 of the distributions have no mass"):
        ratings([[0.0, 0.0], [0.5, 0.1]])
    with pytest.raises(BeliefError, match=r"There are 2 rating tokens and values of the shape \[3"):
        ratings([0.5, 0.5], values=[0, 1, 2])
    with pytest.raises(BeliefError, match=r"\[text, time, concept, rating\]"):
        trajectory(torch.ones(2, 3, 11))


# -- embeddings ----------------------------------------------------------------------------------


def test_hellinger_distances_are_those_of_normalised_roots():
    p = np.random.default_rng(0).random((6, 5))
    q = p / p.sum(1, keepdims=True)
    oracle = spd.squareform(spd.pdist(np.sqrt(q))) / np.sqrt(2)
    assert np.allclose(hellinger_distances(p), oracle, rtol=1e-12, atol=1e-15)
    apart = hellinger_distances([[1.0, 0.0], [0.0, 3.0]])
    assert float(apart[0, 1]) == pytest.approx(1.0)


def test_flat_distances_come_back_exactly():
    x = points(9, 3, 1)
    found = embed_distances(distances(x), 3)
    assert torch.allclose(found.distances(), distances(x), atol=1e-10)
    assert found.share == pytest.approx(1.0)
    assert found.negative_share < 1e-12
    assert torch.allclose(found.points.mean(0), torch.zeros(3).double(), atol=1e-12)


def test_a_ring_of_distances_is_no_flat_space_and_says_so():
    n = torch.arange(8)
    around = (n[:, None] - n).abs()
    d = torch.minimum(around, 8 - around).double()
    centre = np.eye(8) - 1 / 8
    oracle = scipy.linalg.eigvalsh(-centre @ d.numpy() ** 2 @ centre / 2)[::-1]
    found = embed_distances(d, 2)
    assert np.allclose(found.eigenvalues, oracle, atol=1e-10)
    assert found.negative_share == pytest.approx(-oracle[oracle < 0].sum() / abs(oracle).sum())
    assert found.negative_share > 0.02
    # The ring itself is in the plane of the first two axes: all points equally far from the middle.
    assert torch.allclose(found.points.norm(dim=1), found.points[0].norm(), rtol=1e-6)


def test_states_are_embedded_on_their_principal_components():
    x = points(12, 7, 2).numpy() @ np.diag([5, 3, 2, 1, 1, 0.5, 0.1])
    found = embed_states(x, 3)
    oracle = sklearn.decomposition.PCA(3).fit(x)
    assert np.allclose(abs(found.points), abs(oracle.transform(x)), atol=1e-10)
    assert found.share == pytest.approx(oracle.explained_variance_ratio_.sum())
    # Principal components are the scaling of Euclidean distances.
    scaled = embed_distances(distances(x), 3)
    assert torch.allclose(found.points, scaled.points, atol=1e-8)


def test_signs_do_not_depend_on_the_solver():
    x = points(10, 4, 3)
    one, other = embed_states(x, 3), embed_states(-x, 3)
    largest = one.points.abs().argmax(0)
    assert (one.points[largest, torch.arange(3)] > 0).all()
    assert torch.allclose(one.points.abs(), other.points.abs(), atol=1e-10)


def test_embeddings_of_too_many_axes_are_refused():
    with pytest.raises(BeliefError, match="k is 4, but 4 centred samples span at most 3"):
        embed_distances(distances(points(4, 9, 0)), 4)
    with pytest.raises(BeliefError, match=r"\[sample, feature\] is needed"):
        embed_states(torch.zeros(2, 3, 4))


# -- agreement -----------------------------------------------------------------------------------


def test_the_correlation_is_that_of_the_pairs():
    a, b = distances(points(8, 3, 4)), distances(points(8, 2, 5))
    upper = np.triu_indices(8, 1)
    first, second = a.numpy()[upper], b.numpy()[upper]
    assert mantel(a, b, permutations=9).r == pytest.approx(np.corrcoef(first, second)[0, 1])
    tied = (3 * b).round()
    ranked = mantel(a, tied, permutations=9, ranks=True)
    oracle, _ = scipy.stats.spearmanr(first, tied.numpy()[upper])
    assert ranked.r == pytest.approx(oracle)


def test_the_null_is_that_of_every_permutation():
    x = points(6, 2, 6)
    a, b = distances(x), distances(x + 0.9 * points(6, 2, 7))
    upper = np.triu_indices(6, 1)
    every = np.array(
        [
            np.corrcoef(a.numpy()[upper], b.numpy()[np.ix_(order, order)][upper])[0, 1]
            for order in permutations(range(6))
        ]
    )
    found = mantel(a, b, permutations=20_000, seed=1)
    exact = (every >= found.r - 1e-12).mean()
    # Standard error of a share p of 20,000 draws.
    assert found.p == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000) + 1e-4)
    assert float(found.null.mean()) == pytest.approx(every.mean(), abs=0.01)
    assert float(found.null.std()) == pytest.approx(every.std(), abs=0.01)


def test_unrelated_distances_are_found_related_as_often_as_stated():
    found = [
        mantel(distances(points(7, 2, i)), distances(points(7, 2, 1000 + i)), permutations=199).p
        for i in range(400)
    ]
    # 95 % of 400 tests at 5 %: binomial limits 11 to 30.
    assert 9 <= sum(p <= 0.05 for p in found) <= 32
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.005


def test_equal_distances_agree_perfectly_and_beyond_chance():
    a = distances(points(10, 3, 8))
    found = mantel(a, 2 * a + 1 - torch.eye(10), permutations=999)
    assert found.r == pytest.approx(1.0)
    assert found.p == pytest.approx(1 / 1000)
    assert "r 1.000, p 0.001 one-sided, 10 things" in repr(found)


def test_one_seed_gives_one_null_and_the_order_of_things_does_not_matter():
    a, b = distances(points(9, 3, 9)), distances(points(9, 3, 10))
    one, again = mantel(a, b, permutations=99, seed=3), mantel(a, b, permutations=99, seed=3)
    assert torch.equal(one.null, again.null)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    turned = mantel(a[order][:, order], b[order][:, order], permutations=99)
    assert turned.r == pytest.approx(one.r)


def test_matrices_that_cannot_be_compared_are_refused():
    a = distances(points(5, 2, 11))
    with pytest.raises(BeliefError, match=r"shapes \[5, 5\] and \[4, 4\]"):
        mantel(a, a[:4, :4])
    with pytest.raises(BeliefError, match="3 things can be ordered in so few ways"):
        mantel(a[:3, :3], a[:3, :3])
    with pytest.raises(BeliefError, match="All distances of one matrix are equal"):
        mantel(a, torch.ones(5, 5))
    with pytest.raises(BeliefError, match=r"second matrix is not symmetric .* pass ordered=True"):
        mantel(a, a.triu())
    with pytest.raises(BeliefError, match="first matrix has entries that are not finite"):
        mantel(a / 0, a)
    with pytest.raises(BeliefError, match="0 permutations make no null"):
        mantel(a, a, permutations=0)


# -- side effects --------------------------------------------------------------------------------


def planted(n_samples: int, noise: float) -> tuple[torch.Tensor, ...]:
    """Return ratings of six concepts on a circle; each vector moves neighbours along."""
    angle = torch.arange(6).double() * torch.pi / 3
    place = torch.stack([angle.cos(), angle.sin()], 1)
    effects = 0.1 * torch.cos(angle[:, None] - angle) + 0.02 * torch.eye(6).double()
    chance = torch.Generator().manual_seed(0)
    before = torch.rand(n_samples, 6, generator=chance).double()
    strength = torch.tensor([-1.0, 0.5, 2.0])
    moved = strength[None, :, None, None] * effects[:, None, None]
    error = noise * torch.randn(6, 3, n_samples, 6, generator=chance).double()
    return before, before + moved + error, strength, effects, distances(place)


def test_planted_side_effects_are_found_with_their_errors():
    before, after, strength, effects, _ = planted(400, 0.2)
    found = entanglement(before, after, strength)
    miss = (found.effects - effects) / found.error
    assert float(miss.abs().max()) < 4.5
    assert float(miss.square().mean()) == pytest.approx(1.0, abs=0.5)
    # The slope through the origin: noise / sqrt(sum of squared strengths * samples).
    assert float(found.error.mean()) == pytest.approx(0.2 / np.sqrt(5.25 * 400), rel=0.05)


def test_side_effects_follow_the_distance_of_the_concepts():
    before, after, strength, _, d = planted(5, 0.0)
    found = entanglement(before, after, strength)
    agreement = found.against(d, permutations=9999)
    assert agreement.r > 0.98
    # A hexagon has 12 symmetries among the 720 orders of its corners; 5 standard errors.
    assert agreement.p == pytest.approx(12 / 720, abs=0.0065)
    assert torch.allclose(found.relative().diagonal(), torch.ones(6).double())


def test_a_vector_may_have_strengths_of_its_own():
    before, after, strength, effects, _ = planted(3, 0.0)
    each = strength.expand(6, 3) * torch.arange(1, 7)[:, None]
    found = entanglement(before, after, each)
    assert torch.allclose(found.effects, effects / torch.arange(1, 7)[:, None], atol=1e-12)


def test_side_effects_that_cannot_be_told_are_refused():
    before, after, strength, _, _ = planted(3, 0.0)
    with pytest.raises(BeliefError, match="one vector for each rated concept"):
        entanglement(before, after[:5], strength)
    with pytest.raises(BeliefError, match=r"strength has the shape \[2\] for 3 strengths"):
        entanglement(before, after, strength[:2])
    with pytest.raises(BeliefError, match="Every strength of some vector is 0"):
        entanglement(before, after, torch.zeros(3))
    found = entanglement(before, before - (after - before), strength)
    with pytest.raises(BeliefError, match=r"vector of concept 0 changes .* own rating by -0\.12"):
        found.relative()
