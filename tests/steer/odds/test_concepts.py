"""Several concepts: the softmax by hand, the two-concept case as a Belief, what cannot be told."""

from typing import cast

import numpy as np
import pytest
import torch
from scipy.special import softmax

import steer
from steer.belief import Belief, Concepts

THREE = Concepts(
    ("a", "b", "c"),
    [[2.0, 0.0], [-1.0, 0.5], [0.0, -0.5]],
    [0.0, 1.0, -1.0],
    [0.8, 1.2, 0.5],
    [0.6, 0.3, 0.0],
)
N = torch.tensor([[0.0, 0, 0], [4, 0, 1], [16, 32, 64]]).double()
M = torch.tensor([[0.0, 0.0], [0.5, -1.0], [-0.3, 2.0]]).double()


def test_the_posterior_is_scipys_softmax_of_the_formula():
    a = np.array([[2.0, 0.0], [-1.0, 0.5], [0.0, -0.5]])
    g = np.where(N > 0, N.clamp(min=1e-9).numpy() ** (1 - np.array([0.6, 0.3, 0.0])), 0.0)
    weights = M.numpy() @ a.T + [0.0, 1.0, -1.0] + np.array([0.8, 1.2, 0.5]) * g
    np.testing.assert_allclose(THREE.posterior(N, M), softmax(weights, axis=-1), rtol=1e-12)


def test_log_odds_are_those_of_one_against_all_others():
    p = THREE.posterior(N, M)
    for at, name in enumerate(THREE.names):
        torch.testing.assert_close(THREE.log_odds(name, N, M), torch.logit(p[:, at]))


def test_two_concepts_are_a_belief():
    two = Concepts(("yes", "no"), [[1.5], [-0.5]], [-2.0, 0.0], [0.8, 0.0], [0.6, 0.0])
    one = Belief(a=2.0, b=-2.0, gamma=0.8, alpha=0.6)
    n, m = torch.tensor([0.0, 1, 8, 50]).double(), torch.tensor([0.0, -1, 0.5, 1]).double()
    evidence = torch.stack([n, torch.zeros_like(n)], dim=1)
    torch.testing.assert_close(two.log_odds("yes", evidence, m[:, None]), one.log_odds(n, m))


def test_more_evidence_raises_its_own_concept_and_lowers_the_others():
    more = N + torch.tensor([0.0, 5, 0])
    change = THREE.posterior(more, M) - THREE.posterior(N, M)
    assert (change[:, 1] > 0).all()
    assert (change[:, [0, 2]] < 0).all()


def test_what_all_concepts_share_cannot_be_told_and_is_centred_away():
    a, b = torch.as_tensor(THREE.a) + 7.0, torch.as_tensor(THREE.b) - 3.0
    shifted = Concepts(THREE.names, a, b, THREE.gamma, THREE.alpha)
    torch.testing.assert_close(shifted.posterior(N, M), THREE.posterior(N, M))
    torch.testing.assert_close(
        torch.as_tensor(shifted.centred().a), torch.as_tensor(THREE.centred().a)
    )


def test_concepts_survive_a_file(tmp_path):
    steer.save(THREE, tmp_path / "three.safetensors")
    again = cast("Concepts", steer.load_artifact(tmp_path / "three.safetensors"))
    assert again.digest == THREE.digest
    assert torch.equal(again.posterior(N, M), THREE.posterior(N, M))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Concepts(("a",), [[1.0]], [0.0], [1.0], [0.5]), "at least two"),
        (
            lambda: Concepts(("a", "b"), [[1.0]], [0.0, 0.0], [1.0, 1.0], [0.5, 0.5]),
            "2 concepts need",
        ),
        (
            lambda: Concepts(("a", "b"), [[1.0], [0.0]], [0.0, 0.0], [-1.0, 1.0], [0.0, 0.0]),
            "not negative",
        ),
        (lambda: THREE.posterior([1.0, 2.0]), "3 concepts"),
        (lambda: THREE.posterior([1.0, 2, 3], 0.5), "of which vector"),
        (lambda: THREE.posterior([1.0, 2, 3], [0.5]), "2 vectors"),
        (lambda: THREE.log_odds("d", N), "no concept 'd'"),
    ],
)
def test_mistakes_are_refused(call, says):
    with pytest.raises(steer.BeliefError, match=says):
        call()
