import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from manifolds import ManifoldError, fit_curve
from manifolds.discovery.couplings import coactivation, cosine, ising
from manifolds.discovery.groups import By, discover_groups

RING, COMPACT, ALONE = range(10), range(10, 13), range(13, 21)
TRUTH = [0] * 10 + [1] * 3 + [-1] * 8


def _dictionary(seed: int, n: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes, decoder and angle: ten atoms tile a ring, three go together, eight do not."""
    rng = np.random.default_rng(seed)
    angle = rng.random(n) * 2 * np.pi
    centres = np.arange(10) * 2 * np.pi / 10
    ring = np.maximum(np.cos(angle[:, None] - centres) - 0.6, 0) * (rng.random(n) < 0.4)[:, None]
    compact = (rng.random(n) < 0.3)[:, None] * (rng.random((n, 3)) < 0.8) * rng.random((n, 3))
    alone = (rng.random((n, 8)) < 0.15) * rng.random((n, 8))
    atoms = rng.normal(size=(21, 48)) / 48**0.5
    plane = np.linalg.qr(rng.normal(size=(48, 2)))[0].T
    atoms[:10] = np.stack([np.cos(centres), np.sin(centres)], 1) @ plane + 0.02 * atoms[:10]
    return np.concatenate([ring, compact, alone], 1), atoms, angle


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("by", ["ising", "coactivation"])
def test_the_groups_of_a_simulated_dictionary_are_found(by: By, seed: int) -> None:
    codes, atoms, _ = _dictionary(seed)
    found = discover_groups(codes, atoms, by=by)
    assert adjusted_rand_score(TRUTH, found.labels.numpy()) > 0.95
    assert found.confidence.min() > 0.99
    assert (found.strength > found.null).all()


def test_the_published_penalty_lets_noise_through_on_few_samples() -> None:
    codes, atoms, _ = _dictionary(0)
    found = discover_groups(codes, atoms, alpha=0.01)
    assert adjusted_rand_score(TRUTH, found.labels.numpy()) < 0.5


def test_cosine_finds_the_ring_whose_atoms_share_a_plane() -> None:
    codes, atoms, _ = _dictionary(0)
    found = discover_groups(codes, atoms, by="cosine")
    assert tuple(RING) in found.members


def test_louvain_cuts_a_ring_into_arcs_but_mixes_no_groups() -> None:
    codes, atoms, _ = _dictionary(0)
    found = discover_groups(codes, atoms, cluster="louvain")
    assert tuple(COMPACT) in found.members
    assert all(set(group) <= set(RING) for group in found.members if group != tuple(COMPACT))


def test_shuffled_codes_have_no_groups() -> None:
    codes, atoms, _ = _dictionary(0)
    shuffled = np.random.default_rng(5).permuted(codes, axis=0)
    named = [group for group in discover_groups(shuffled, atoms, by="coactivation").members]
    # The cut is the largest of 5 x 210 shuffled couplings; 1 of 6 times another pair is above it.
    assert sum(map(len, named)) <= 2


def test_the_span_of_a_group_holds_its_manifold() -> None:
    codes, atoms, angle = _dictionary(0)
    found = discover_groups(codes, atoms, by="coactivation")
    ring = found.members.index(tuple(RING))
    assert found.spans is not None
    span = found.spans[ring]
    written = torch.from_numpy(codes[:, :10] @ atoms[:10])
    assert (span.flatten(written) - written).norm() < 0.05 * written.norm()
    lit = torch.from_numpy(codes[:, :10].sum(1) > 0)
    bins = np.round(angle * 12 / (2 * np.pi)) % 12
    curve = fit_curve(span.flatten(written)[lit], bins[lit.numpy()], period=12)
    assert curve.distance(written[lit]).mean() < 0.2 * written[lit].norm(dim=1).mean()


def test_a_chain_is_joined_at_its_ends_by_company_and_not_by_ising() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    a = rng.random(n) < 0.3
    b = np.where(rng.random(n) < 0.9, a, rng.random(n) < 0.3)
    c = np.where(rng.random(n) < 0.9, b, rng.random(n) < 0.3)
    others = rng.random((n, 4)) < 0.3
    codes = np.concatenate([np.stack([a, b, c], 1), others], 1).astype(float)
    company = discover_groups(codes, by="coactivation")
    coupled = discover_groups(codes, by="ising")
    assert company.couplings[0, 2] > company.threshold
    assert coupled.couplings[0, 2] < coupled.threshold
    assert coupled.couplings[0, 1] > 5 * coupled.threshold
    assert coupled.couplings[1, 2] > 5 * coupled.threshold


def test_the_couplings_are_those_of_scikit_learn() -> None:
    codes, _, _ = _dictionary(2, n=600)
    # Features that meet: where two never do, the weight runs far out and neither solver gets there.
    on = codes[:, 10:17] > 0
    b = np.zeros((7, 7))
    for i in range(7):
        others = [j for j in range(7) if j != i]
        model = LogisticRegression(
            l1_ratio=1.0, C=1.0, solver="saga", max_iter=20000, tol=1e-8, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            b[i, others] = model.fit(on[:, others], on[:, i]).coef_[0]
    ours = ising(torch.from_numpy(on), alpha=1.0)
    assert np.abs(ours.numpy() - (b + b.T) / 8).max() < 1e-4


def test_ising_recovers_the_couplings_that_made_the_samples() -> None:
    # Three spins, so all eight states can be listed; J in the form x_i x_j of spins -1 and 1.
    truth = torch.tensor([[0, 0.5, 0], [0.5, 0, 0.3], [0, 0.3, 0]]).double()
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).double()
    spins = 2 * states - 1
    weight = (torch.einsum("si,ij,sj->s", spins, truth, spins) / 2).exp()
    rng = torch.Generator().manual_seed(0)
    drawn = states[torch.multinomial(weight, 20000, replacement=True, generator=rng)] > 0
    # A quarter of the 0/1 weight is the coupling of spins; 20,000 draws leave 0.01.
    assert (ising(drawn, alpha=0.01) - truth).abs().max() < 0.03


def test_coactivation_and_cosine_are_what_they_say() -> None:
    on = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]) > 0
    assert coactivation(on)[0, 1] == pytest.approx((2 / 3 + 1) / 2)
    assert coactivation(on)[0, 2] == 0
    assert cosine(torch.tensor([[2.0, 0], [1, 1]]))[0, 1] == pytest.approx(0.5**0.5)


def test_bad_codes_say_why() -> None:
    codes, atoms, _ = _dictionary(0, n=200)
    with pytest.raises(ManifoldError, match="negative"):
        discover_groups(codes - 0.1)
    with pytest.raises(ManifoldError, match="No two of 4 features"):
        discover_groups(np.eye(4))
    with pytest.raises(ManifoldError, match="none was given"):
        discover_groups(codes, by="cosine")
    with pytest.raises(ManifoldError, match="the decoder 20 rows"):
        discover_groups(codes, atoms[:20])
    with pytest.raises(ManifoldError, match="1 draws"):
        discover_groups(codes, draws=1)
    with pytest.raises(ManifoldError, match="n_groups is 50"):
        discover_groups(codes, by="coactivation", n_groups=50)


def test_the_repr_says_sizes_and_confidence() -> None:
    codes, atoms, _ = _dictionary(0)
    told = repr(discover_groups(codes, atoms, by="coactivation"))
    assert "Groups(2 by coactivation" in told
    assert "confidence" in told
