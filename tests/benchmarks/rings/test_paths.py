import math

import numpy as np
import pytest
import torch

import manifolds
import steer
from benchmarks.rings import measure
from benchmarks.rings.arms import ARMS
from benchmarks.rings.measure import Walk, geometric_mixtures, heat_map, mixture_gap, passed
from benchmarks.rings.order import Order
from benchmarks.rings.paths import (
    N_POINTS,
    fit_ring,
    lengths,
    on_centroid_chord,
    on_chord,
    on_manifold,
    on_permuted_ring,
    on_random_path,
    on_random_path_of_length,
    points_of,
    steerable,
    steps_of,
)
from benchmarks.rings.reading import Bins, Reading

PERIOD, WIDTH = 12, 7
ORDER = Order(PERIOD)
SITE = steer.Site(0, "resid_post")


@pytest.fixture(scope="module")
def reading():
    """12 concepts on a circle of radius 5 in a plane of 7 dimensions, 3 contexts with offsets."""
    chooser = torch.Generator().manual_seed(0)
    context, concept = torch.cartesian_prod(torch.arange(3), torch.arange(PERIOD)).unbind(-1)
    plane = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=chooser))[0]
    angle = concept * 2 * math.pi / PERIOD
    states = 5 * (angle.cos()[:, None] * plane[0] + angle.sin()[:, None] * plane[1])
    states = states + plane[2] * (context[:, None] - 1.0)
    natural = torch.full((36, PERIOD + 1), 0.01)
    natural[torch.arange(36), concept] = 1 - 0.12
    rows = [[1, 2, 3]] * 36
    return Reading(rows, context, concept, {SITE: states}, natural, torch.ones(36).bool())


@pytest.fixture(scope="module")
def ring(reading):
    return fit_ring(reading, SITE, ORDER)


@pytest.fixture(scope="module")
def steps(reading):
    return steps_of(reading, ORDER, PERIOD // 2)


def test_all_paths_share_their_ends(ring, steps):
    ends = steps.per_path(on_manifold(ring, steps))[:, [0, -1]]
    for points in (
        on_chord(ring, steps),
        on_centroid_chord(ring, steps),
        on_random_path(ring, steps, 0),
    ):
        torch.testing.assert_close(steps.per_path(points)[:, [0, -1]], ends, atol=1e-4, rtol=1e-4)


def test_the_ring_keeps_its_radius_and_the_chord_passes_the_centre(ring, steps):
    middle = N_POINTS // 2
    # A cubic spline through 12 points of a circle is within 1e-3 of it.
    radius = steps.per_path(on_manifold(ring, steps)).norm(dim=-1)
    torch.testing.assert_close(radius, torch.full_like(radius, 5.0), atol=0.01, rtol=0)
    assert float(steps.per_path(on_chord(ring, steps))[:, middle].norm(dim=-1).max()) < 1e-3


def test_a_random_path_leaves_the_chord_as_far_as_the_ring_does_at_right_angles(ring, steps):
    chord = on_chord(ring, steps)
    ours = on_random_path(ring, steps, 3) - chord
    bend = on_manifold(ring, steps) - chord
    torch.testing.assert_close(ours.norm(dim=-1), bend.norm(dim=-1), atol=1e-4, rtol=1e-4)
    along = steps.per_path(chord)[:, -1] - steps.per_path(chord)[:, 0]
    across = (steps.per_path(ours) * along[:, None]).sum(-1)
    assert float(across.abs().max()) < 1e-3


def test_a_random_path_of_equal_length_is_as_long_as_the_rings_own_and_shares_its_direction():
    # A ring that leaves its plane, so that the random path without the condition is shorter.
    chooser = torch.Generator().manual_seed(4)
    concept = torch.arange(PERIOD).repeat(3)
    bumpy = torch.randn(PERIOD, WIDTH, generator=chooser)[concept]
    reading = Reading(
        [[1]] * 36,
        torch.arange(3).repeat_interleave(PERIOD),
        concept,
        {SITE: bumpy},
        torch.full((36, PERIOD + 1), 1 / 13),
        torch.ones(36).bool(),
    )
    ring, steps = fit_ring(reading, SITE, ORDER), steps_of(reading, ORDER, 6)
    chord = on_chord(ring, steps)
    wanted = lengths(on_manifold(ring, steps), steps)
    equal, plain = on_random_path_of_length(ring, steps, 3), on_random_path(ring, steps, 3)
    torch.testing.assert_close(lengths(equal, steps), wanted, atol=1e-3, rtol=1e-4)
    assert float((lengths(plain, steps) / wanted).mean()) < 0.9
    inner = torch.cat([steps.waypoint(i) for i in range(1, N_POINTS - 1)])
    same = torch.cosine_similarity((equal - chord)[inner], (plain - chord)[inner], dim=-1)
    torch.testing.assert_close(same, torch.ones_like(same), atol=1e-4, rtol=0)


def test_a_permuted_ring_starts_where_the_real_one_does_and_ends_at_a_centroid(ring, steps):
    points = steps.per_path(on_permuted_ring(ring, steps, 0))
    starts = ring.centroids[steps.per_path(steps.start)[:, 0]]
    torch.testing.assert_close(points[:, 0], starts, atol=1e-4, rtol=1e-4)
    gaps = (points[:, -1:] - ring.centroids).norm(dim=-1).min(1).values
    assert float(gaps.max()) < 1e-3
    assert not torch.allclose(points, steps.per_path(on_manifold(ring, steps)), atol=0.5)


def _only(plan):
    assert len(plan) == 1
    return plan[0]


def test_every_arm_makes_a_plan_with_one_entry_per_row(ring, steps, reading):
    rows = torch.tensor([0, 5, 20])
    for name, arm in ARMS.items():
        only = _only(arm(ring, steps, reading.states[SITE], 0)(rows))
        assert isinstance(only, steer.MoveTo | steer.Patch)
        assert set(only.row_counts().values()) == {3}, name


def test_the_subspace_arms_keep_what_is_off_the_subspace_and_the_replaced_ones_do_not(
    ring, steps, reading
):
    states = reading.states[SITE]
    rows = torch.arange(N_POINTS)
    off = torch.linalg.qr(torch.cat([ring.curve.subspace.basis, torch.eye(WIDTH)]).T)[0][
        :, ring.curve.subspace.k :
    ]
    own = states[steps.case[rows]]
    for name, keeps in (("chord", True), ("manifold_replaced", False), ("chord_replaced", False)):
        patch = _only(ARMS[name](ring, steps, states, 0)(rows))
        assert isinstance(patch, steer.Patch)
        h = own if patch.subspace is None else own - own @ patch.subspace.T @ patch.subspace
        h = patch.values if patch.subspace is None else h
        kept = torch.allclose(h @ off, own @ off, atol=1e-4)
        assert kept == keeps, name


def test_the_concepts_passed_are_those_between_the_ends(steps):
    on = steps.per_path(steps.passed)[0]
    assert on.tolist() == [-1, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, -1]


def test_the_probability_of_passing_is_read_at_the_concept_as_it_is_passed(steps):
    # An output that is certain of the concept nearest to the path's position passes all of them.
    at = steps.u.round().long() % PERIOD
    sure = torch.nn.functional.one_hot(at, PERIOD + 1).float()
    assert passed(Walk(steps, steps.per_path(sure))).tolist() == [1.0] * 36
    stuck = torch.nn.functional.one_hot(steps.start, PERIOD + 1).float()
    assert passed(Walk(steps, steps.per_path(stuck))).tolist() == [0.0] * 36


def test_the_heat_map_counts_concepts_from_the_start_and_puts_other_last(steps):
    stuck = 0.75 * torch.nn.functional.one_hot(steps.start, PERIOD + 1).float()
    stuck[:, -1] += 0.25
    shown = np.array(heat_map(Walk(steps, steps.per_path(stuck))))
    assert shown.shape == (PERIOD + 1, N_POINTS)
    assert np.array_equal(shown[0], np.full(N_POINTS, 0.75))
    assert np.array_equal(shown[-1], np.full(N_POINTS, 0.25))
    assert shown[1:-1].max() == 0


def test_the_geometric_mixture_is_the_normalised_weighted_product_of_the_ends():
    first, last = torch.randn(2, 1, 9, generator=torch.Generator().manual_seed(0))
    p, q = first[0].softmax(-1), last[0].softmax(-1)
    t = 1 / (N_POINTS - 1)
    product = p ** (1 - t) * q**t
    each = Bins(tuple(torch.tensor([token]) for token in range(9)))
    found = geometric_mixtures(first, last, each)
    torch.testing.assert_close(found[0, 1, :9], product / product.sum())


def test_the_mixture_gap_of_a_path_that_is_its_own_mixture_is_zero():
    bins = Bins((torch.tensor([0, 3]), torch.tensor([5])))
    ends = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0, 1, N_POINTS)[:, None]
    straight = (1 - t) * ends[0] + t * ends[1]
    outputs = bins.probabilities(straight)[None]
    mixture = geometric_mixtures(ends[:1], ends[1:], bins)
    # Square roots of probabilities a few 1e-7 apart.
    assert float(mixture_gap(outputs, mixture)) < 1e-4


def test_bins_sum_spellings_and_put_the_rest_into_other():
    bins = Bins((torch.tensor([0, 3]), torch.tensor([5])))
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    p = logits.softmax(-1)
    expected = torch.stack([p[:, 0] + p[:, 3], p[:, 5], p[:, [1, 2, 4, 6, 7, 8]].sum(-1)], -1)
    torch.testing.assert_close(bins.probabilities(logits), expected)
    sure = torch.nn.functional.one_hot(torch.tensor([3, 5, 7]), 9).float()
    assert bins.answers(sure).tolist() == [0, 1, -1]


def test_a_grid_has_no_number_where_there_is_no_case(reading):
    some = reading.where(reading.context != 1)
    shown = measure.grid(some, torch.ones(24), (PERIOD, 3))
    assert np.isnan(shown[:, 1]).all()
    assert (shown[:, [0, 2]] == 1).all()


@pytest.fixture(scope="module")
def line():
    """9 concepts equally spaced on a straight line of 7 dimensions; concept 4 is not known."""
    chooser = torch.Generator().manual_seed(7)
    context, concept = torch.cartesian_prod(torch.arange(2), torch.arange(9)).unbind(-1)
    along = torch.randn(WIDTH, generator=chooser)
    states = concept[:, None] * along + torch.randn(2, WIDTH, generator=chooser)[context]
    natural = torch.full((18, 10), 0.01)
    natural[torch.arange(18), concept] = 1 - 0.09
    whole = Reading([[1]] * 18, context, concept, {SITE: states}, natural, torch.ones(18).bool())
    return whole, whole.where(concept != 4)


def test_a_line_goes_up_or_down_to_known_ends_and_its_paths_are_straight(line):
    whole, known = line
    order = Order(9, closed=False)
    ring = fit_ring(known, SITE, order)
    assert ring.known.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    usable = steerable(whole, ring.known, order, 4)
    # 0 would end at 4, and so would 8, coming down: 4 is not known.
    assert sorted(set(whole.concept[usable].tolist())) == [1, 2, 3, 5, 6, 7]
    steps = steps_of(whole.where(usable), order, 4)
    ends = steps.per_path(steps.end)[:6, 0].tolist()
    assert ends == [5, 6, 7, 1, 2, 3]
    # Equal steps on a straight line: the spline, the chord and the centroids are all one.
    torch.testing.assert_close(on_manifold(ring, steps), on_chord(ring, steps), atol=1e-3, rtol=0)
    expected = ring.centroids[0] + steps.u[:, None] * (ring.centroids[1] - ring.centroids[0])
    torch.testing.assert_close(on_centroid_chord(ring, steps), expected, atol=1e-3, rtol=0)
    assert bool(torch.isfinite(on_permuted_ring(ring, steps, 0)).all())


def test_what_a_line_passes_is_counted_in_the_direction_of_the_path(line):
    whole, known = line
    order = Order(9, closed=False)
    usable = steerable(whole, fit_ring(known, SITE, order).known, order, 4)
    steps = steps_of(whole.where(usable), order, 4)
    sure = torch.nn.functional.one_hot(steps.u.round().long(), 10).float()
    walk = Walk(steps, steps.per_path(sure))
    assert passed(walk).tolist() == [1.0] * 12
    shown = np.array(heat_map(walk))
    names = measure.heat_names(order, 4)
    assert names == ["start", "+1", "+2", "+3", "+4", "elsewhere", "other"]
    assert shown.shape == (7, N_POINTS)
    assert [shown[i, 3 * i] for i in range(5)] == [1.0] * 5
    assert shown[5:].max() == 0


def test_distances_are_those_of_the_behaviour_in_both_units(reading):
    behavior = reading.behavior(ORDER)
    p = torch.rand(5, N_POINTS, PERIOD + 1, generator=torch.Generator().manual_seed(9))
    p = p / p.sum(-1, keepdim=True)
    found = measure.distances(p, behavior)
    expected = manifolds.energy(p.double(), behavior)
    torch.testing.assert_close(found.energy, expected.double(), atol=1e-6, rtol=1e-6)
    mean = behavior.distance(p.double(), "hellinger").mean(-1)
    torch.testing.assert_close(found.mean, mean.double(), atol=1e-6, rtol=1e-6)


def test_there_is_a_waypoint_between_any_two_concepts_of_a_long_path(line):
    whole, _ = line
    assert (points_of(1), points_of(6), points_of(12)) == (13, 13, 25)
    # 27 concepts of which nine have cases: enough to see which waypoints are whole.
    steps = steps_of(whole, Order(27, closed=False), 12)
    on = steps.per_path(steps.passed)[0].tolist()
    assert on == [-1, -1, *(at for z in range(1, 12) for at in (z, -1)), -1]
