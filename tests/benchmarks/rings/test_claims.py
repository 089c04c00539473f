"""Verdicts from made-up numbers of which it is known what they say."""

import pytest

from benchmarks.rings.claims import claims_of
from benchmarks.stats import Number

GOOD = {
    "energy_chord_over_manifold": Number(2.0, 1.7, 2.4),
    "energy_chord_over_manifold_replaced": Number(2.0, 1.7, 2.4),
    "energy_full_replace_over_manifold": Number(2.0, 1.7, 2.4),
    "energy_chord_over_manifold_adjacent": Number(1.2, 1.1, 1.3),
    "energy_chord_over_manifold_replaced_adjacent": Number(1.2, 1.1, 1.3),
    "isometry_manifold": Number(0.99),
    "isometry_chord": Number(0.8),
    "isometry_gap": Number(0.19, 0.15, 0.25),
    "natural_floor": Number(0.06, 0.05, 0.07),
    "pullback_r2": Number(0.9, 0.85, 0.95),
    "pullback_r2_gap": Number(0.5, 0.4, 0.6),
    "pullback_loss_over_chord": Number(0.1, 0.05, 0.2),
}
CONTROLS = {
    "energy_permuted_over_manifold": Number(1.4, 1.2, 1.7),
    "energy_random_length_over_manifold": Number(2.0, 1.7, 2.4),
    "energy_mixture_over_manifold": Number(1.5, 1.2, 1.7),
    "energy_chord_over_mixture": Number(1.3, 1.2, 1.4),
    "geometric_mixture_gap": Number(0.1, 0.08, 0.12),
    "pullback_r2_chord": Number(0.4, 0.3, 0.5),
    "pullback_r2_random": Number(0.3, 0.2, 0.4),
}


def test_numbers_that_meet_every_bound_fail_no_claim():
    claims = claims_of(GOOD, CONTROLS, 1.8)
    assert all(claim.holds for claim in claims)
    assert str(claims[0]).startswith("HOLDS: distant pairs")
    assert "2 [1.7, 2.4]" in str(claims[0])


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("energy_chord_over_manifold", Number(1.79, 1.5, 2.0)),
        ("energy_chord_over_manifold", Number(1.9, 0.99, 2.9)),
        ("energy_chord_over_manifold", Number(None)),
        ("energy_chord_over_manifold_adjacent", Number(1.1, 0.9, 1.3)),
        ("isometry_gap", Number(0.1, -0.01, 0.2)),
        ("pullback_r2_gap", Number(0.05, -0.02, 0.1)),
        ("geometric_mixture_gap", Number(0.065, 0.06, 0.08)),
        ("energy_permuted_over_manifold", Number(1.29, 1.2, 1.4)),
        ("energy_chord_over_mixture", Number(0.9, 0.8, 0.95)),
    ],
)
def test_one_number_short_of_its_bound_fails_one_claim(name, number):
    numbers = GOOD | ({name: number} if name in GOOD else {})
    controls = CONTROLS | ({name: number} if name in CONTROLS else {})
    claims = claims_of(numbers, controls, 1.8)
    assert sum(not claim.holds for claim in claims) == 1


def test_outputs_that_equal_the_mixture_are_said_to_be_read_out_geometry_only():
    claims = claims_of(GOOD, CONTROLS | {"geometric_mixture_gap": Number(0.01, 0.0, 0.02)}, 1.8)
    failed = [claim for claim in claims if not claim.holds]
    assert "equal: only read-out geometry" in failed[0].seen
