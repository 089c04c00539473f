"""Several concepts fitted at once: planted laws, two concepts against one belief, refusals."""

import itertools

import pytest
import torch

import steer
from steer.belief import Concepts, fit_concepts
from steer.errors import BeliefError

NAMES = ("red", "green", "blue")
PLANTED = Concepts(
    NAMES,
    [[1.2, 0.0], [-0.4, 0.6], [-0.8, -0.6]],
    [0.5, -0.2, -0.3],
    [0.9, 0.5, 1.3],
    [0.4, 0.1, 0.6],
)


def crossed() -> tuple[torch.Tensor, torch.Tensor]:
    """Return evidence [n, 3] and strengths [n, 2], every amount with every strength."""
    amounts = list(itertools.product((0.0, 1.0, 4.0, 16.0), repeat=3))
    strengths = [(0.0, 0.0), (1.0, 0.0), (-1.0, 1.0), (0.0, -1.0)]
    rows = list(itertools.product(amounts, strengths))
    n, m = zip(*rows, strict=True)
    return torch.tensor(n).double(), torch.tensor(m).double()


def close(found: Concepts, expected: Concepts, within: float) -> None:
    for name in ("a", "b", "gamma", "alpha"):
        torch.testing.assert_close(
            getattr(found.centred(), name), getattr(expected.centred(), name), atol=within, rtol=0
        )


def test_planted_concepts_are_found_from_their_probabilities():
    n, m = crossed()
    close(fit_concepts(NAMES, n, m, PLANTED.posterior(n, m)), PLANTED, 1e-4)


def test_the_order_of_rows_and_the_unit_of_strength_do_not_matter(gen: torch.Generator):
    n, m = crossed()
    p = PLANTED.posterior(n, m)
    found = fit_concepts(NAMES, n, m, p)
    order = torch.randperm(len(n), generator=gen)
    again = fit_concepts(NAMES, n[order], m[order], p[order])
    assert again.digest == found.digest
    scaled = fit_concepts(NAMES, n, m * 50, p)
    torch.testing.assert_close(
        torch.as_tensor(scaled.a) * 50, torch.as_tensor(found.a), atol=1e-9, rtol=1e-9
    )


def test_two_concepts_with_evidence_for_one_are_a_belief():
    grid = torch.meshgrid(
        torch.tensor([0.0, 1, 4, 16, 64]), torch.linspace(-1, 1, 5), indexing="ij"
    )
    n, m = (x.flatten().double() for x in grid)
    truth = steer.belief.Belief(a=2.0, b=-1.5, gamma=0.7, alpha=0.5)
    p = truth.posterior(n, m)
    belief = steer.belief.fit(n, m, p, outcome_is="probability", smoothing=1e-9)
    # The other concept's evidence varies as well, and is found to count for nothing.
    other = n.roll(7)
    found = fit_concepts(("yes", "no"), torch.stack([n, other], 1), m, torch.stack([p, 1 - p], 1))
    odds = found.log_odds("yes", torch.stack([n, other], 1), m[:, None])
    torch.testing.assert_close(odds, belief.log_odds(n, m), atol=2e-3, rtol=0)


def test_counts_recover_the_law_within_their_noise(gen: torch.Generator):
    n, m = crossed()
    p = PLANTED.posterior(n, m)
    drawn = torch.multinomial(p, 400, replacement=True, generator=gen)
    counts = torch.nn.functional.one_hot(drawn, 3).sum(1)
    found = fit_concepts(NAMES, n, m, counts, outcome_is="counts")
    # 102,400 choices: standard errors of a few hundredths at most.
    close(found, PLANTED, 0.12)
    # The law: no parameters are likelier than the fitted ones, the true ones included.
    found_log, true_log = ((counts * x.posterior(n, m).log()).sum() for x in (found, PLANTED))
    assert float(found_log) > float(true_log)


def test_what_cannot_be_fitted_is_refused_by_name():
    n, m = crossed()
    p = PLANTED.posterior(n, m)
    with pytest.raises(BeliefError, match=r"concept 'green'.*gamma and alpha are not identified"):
        fit_concepts(NAMES, n * torch.tensor([1.0, 0.0, 1.0]), m, p)
    with pytest.raises(BeliefError, match=r"a\[1\] is not identified"):
        fit_concepts(NAMES, n, m * torch.tensor([1.0, 0.0]), p)
    with pytest.raises(BeliefError, match="sum to"):
        fit_concepts(NAMES, n, m, p / 2)
    with pytest.raises(BeliefError, match="shapes"):
        fit_concepts(NAMES, n[:, :2], m, p)
    with pytest.raises(BeliefError, match="cannot be negative"):
        fit_concepts(NAMES, -n, m, p)
    with pytest.raises(BeliefError, match="not finite"):
        fit_concepts(NAMES, n, m, p * torch.nan)
    with pytest.raises(BeliefError, match="no counts at all"):
        fit_concepts(NAMES, n, m, 0 * p, outcome_is="counts")
