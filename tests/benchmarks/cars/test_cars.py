from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from scipy.stats import norm

from benchmarks.cars.driving import GRID, HIGH, LOW, PIXELS, WIDTH, drive, picture, targets
from benchmarks.cars.measure import CONTROLS, found_in, numbers_of
from benchmarks.cars.model import Recipe, expected, read, world
from benchmarks.cars.paths import ADJACENT, ARMS, N_POINTS, outputs, pairs, ways


@pytest.fixture(scope="module")
def small():
    return world(Recipe(drives=300, steps=60), 0, held_out=60)


def test_a_drive_is_what_gymnasium_does_with_the_pedals_that_were_seen():
    drives = drive(3, 5)
    env: Any = gymnasium.make("MountainCar-v0").unwrapped
    low, high = np.array(LOW), np.array(HIGH)
    for i in range(3):
        env.state = drives.states[i, 0].double().numpy() * (high - low) + low
        for t in range(drives.states.shape[1] - 1):
            env.state = env.step(int(drives.seen[i, t, PIXELS:].argmax()))[0]
            share = (np.array(env.state) - low) / (high - low)
            np.testing.assert_allclose(drives.states[i, t + 1], share, atol=1e-3)
            np.testing.assert_allclose(drives.after[i, t], share, atol=1e-3)


def test_a_picture_is_brightest_where_the_car_is_and_says_nothing_of_its_speed():
    at = torch.tensor([0.0, 0.5, 1.0])
    assert picture(at).argmax(-1).tolist() == [0, (PIXELS - 1) // 2, PIXELS - 1]
    drives = drive(200, 0)
    pixels = drives.seen[:, 0, :PIXELS]
    speed = drives.states[:, 0, 1]
    # Least squares on half of the drives does not tell the speed of the other half from one picture
    weights = torch.linalg.lstsq(pixels[:100], speed[:100, None] - 0.5).solution
    left = (speed[100:, None] - 0.5 - pixels[100:] @ weights).square().mean()
    assert left > 0.9 * (speed[100:] - 0.5).square().mean()


def test_targets_are_the_masses_of_a_normal_law_within_the_bins():
    state = torch.tensor([0.31, 0.77], dtype=torch.float64)
    sides = []
    for share, count in zip(state.tolist(), GRID, strict=True):
        edges = norm.cdf(np.linspace(0, 1, count + 1), share, WIDTH / count)
        sides.append(np.diff(edges) / np.diff(edges).sum())
    np.testing.assert_allclose(targets(state), np.outer(*sides).ravel(), atol=1e-6)
    assert float((expected(targets(state).float()) - state).abs().max()) < 0.02


def test_the_network_is_read_and_written_through_its_module(small):
    states, said = read(small.lm, small.drives)
    with torch.no_grad():
        own = small.network.rnn(small.drives.seen)[0]
        logits = small.network(small.drives.seen)
    torch.testing.assert_close(states, own)
    torch.testing.assert_close(said, logits.softmax(-1))
    assert small.lm.registry.live == 0


def test_the_true_states_written_in_their_own_place_change_nothing(small):
    many = pairs(small, ADJACENT, 5)
    start = many.states[:, :1].expand(-1, N_POINTS, -1)
    said = outputs(small, many, start)
    plain = small.outputs[many.drive, 8]
    torch.testing.assert_close(said, plain[:, None].expand_as(said), atol=1e-5, rtol=1e-4)


def test_all_ways_but_the_permuted_start_where_the_manifold_does_and_end_as_they_say(small):
    many = pairs(small, ADJACENT, 5)
    found = ways(small, many, tuple(ARMS), seed=0)
    own = found["manifold"]
    for arm in ("geodesic", "chord", "pulled", "pulled_from_manifold", "random_path", "physical"):
        torch.testing.assert_close(found[arm][:, 0], own[:, 0], atol=1e-3, rtol=1e-3)
    for arm in ("geodesic", "chord", "pulled", "pulled_from_manifold", "physical"):
        torch.testing.assert_close(found[arm][:, -1], own[:, -1], atol=1e-3, rtol=1e-3)
    lengths = [x.diff(dim=1).norm(dim=-1).sum(1) for x in (own, found["random_path"])]
    torch.testing.assert_close(*lengths)
    middle = (own[:, 0] + own[:, -1]) / 2
    torch.testing.assert_close(found["chord"][:, N_POINTS // 2], middle)


def test_the_pulled_way_says_what_was_wanted_better_than_the_chord_from_which_it_began(small):
    many = pairs(small, ADJACENT, 5)
    found = ways(small, many, ("chord", "pulled"), seed=0)
    wanted = small.behavior.decode(small.behavior.path(*many.ends, N_POINTS)).sqrt()
    losses = {
        arm: float((outputs(small, many, x).sqrt() - wanted).square().sum())
        for arm, x in found.items()
    }
    assert losses["pulled"] < 0.9 * losses["chord"]


@pytest.mark.slow
def test_a_short_training_gives_every_number_and_control():
    found = found_in(world(Recipe(drives=400, steps=120), 0, held_out=120), 0)
    numbers, controls = numbers_of([found], 0)
    assert set(controls) == set(CONTROLS)
    assert all(number.value is not None for number in {**numbers, **controls}.values())
    own, permuted = numbers["position_error"].value, controls["position_error_permuted"].value
    assert own is not None
    assert permuted is not None
    assert own < permuted
