from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import norm, vonmises

import manifolds
from benchmarks.planted.measure import CONTROLS, found_in, numbers_of
from benchmarks.planted.model import Recipe, fit_chart
from benchmarks.planted.paths import along
from benchmarks.planted.shapes import (
    FLOOR,
    LINE,
    RING,
    SHAPES,
    TORUS,
    answers,
    difference,
    prompts,
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_place_of_a_prompt_is_the_mean_of_its_hints(shape):
    rows, places = prompts(shape)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:200]
    for row, place in zip(rows[chosen].tolist(), places[chosen], strict=True):
        for axis, closed in enumerate(shape.closed):
            hints = row[axis * shape.hints : (axis + 1) * shape.hints]
            told = np.array(hints) - axis * shape.size
            if closed:
                step = (told - told[0] + shape.size // 2) % shape.size - shape.size // 2
                told = told[0] + step
            gap = abs(float(place[axis]) - told.mean())
            assert min(gap, abs(shape.size - gap) if closed else gap) < 1e-5


def test_all_prompts_differ():
    for shape in SHAPES:
        rows, _ = prompts(shape)
        assert len(rows.unique(dim=0)) == len(rows)


def test_answers_on_a_ring_are_a_von_mises_bump_over_a_floor():
    turn = 2 * np.pi / RING.size
    kappa = 1 / (RING.width * turn) ** 2
    bump = vonmises.pdf(turn * np.arange(RING.size), kappa, loc=turn * 22.7)
    expected = (1 - FLOOR) * bump / bump.sum() + FLOOR / RING.size
    found = answers(RING, torch.tensor([[22.7]], dtype=torch.float64))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_answers_on_a_line_are_a_normal_bump_over_a_floor():
    bump = norm.pdf(np.arange(LINE.size), 1.3, LINE.width)
    expected = (1 - FLOOR) * bump / bump.sum() + FLOOR / LINE.size
    found = answers(LINE, torch.tensor([[1.3]], dtype=torch.float64))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_answers_on_a_torus_are_products_over_a_floor():
    turn = 2 * np.pi / TORUS.size
    kappa = 1 / (TORUS.width * turn) ** 2
    sides = [
        vonmises.pdf(turn * np.arange(TORUS.size), kappa, loc=turn * place) for place in (9.5, 3.0)
    ]
    bump = np.array([a * b for a, b in product(*sides)])
    expected = (1 - FLOOR) * bump / bump.sum() + FLOOR / TORUS.n_answers
    found = answers(TORUS, torch.tensor([[9.5, 3.0]], dtype=torch.float64))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_difference_goes_the_shorter_way_round_and_straight_on_a_line():
    u, v = torch.tensor([[23.5]]), torch.tensor([[0.5]])
    assert float(difference(RING, u, v)) == -1.0
    assert float(difference(LINE, u, v)) == 23.0


def test_a_random_path_is_as_long_as_the_manifold_path_and_starts_where_it_does():
    angle = torch.arange(24) * 2 * torch.pi / 24
    draw = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(16, 4, generator=draw))[0]
    flat = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], 1)
    chart = fit_chart(RING, flat @ frame.T, torch.arange(24.0)[:, None])
    u = torch.linspace(0, 11, 20)[:, None, None].expand(-1, 2, 1)
    own, turned = (along(arm, chart, chart, u, seed=1) for arm in ("manifold", "random_path"))
    lengths = [x.diff(dim=0).norm(dim=-1).sum(0) for x in (own, turned)]
    torch.testing.assert_close(turned[0], own[0])
    torch.testing.assert_close(*lengths)
    assert float((turned[-1] - own[-1]).norm(dim=-1).min()) > 0.5


def test_a_chord_is_straight_between_the_ends_of_the_manifold_path():
    angle = torch.arange(24) * 2 * torch.pi / 24
    chart = fit_chart(
        RING, torch.stack([angle.cos(), angle.sin(), 0 * angle], 1), torch.arange(24.0)[:, None]
    )
    u = torch.linspace(0, 12, 21)[:, None, None]
    own, chord = (along(arm, chart, chart, u, seed=0) for arm in ("manifold", "chord"))
    torch.testing.assert_close(chord[10, 0], (own[0, 0] + own[-1, 0]) / 2)
    assert float(chord[10, 0].norm()) < 1e-3


@pytest.mark.slow
def test_a_short_training_gives_every_number_and_control_and_energies_that_add_up():
    recipe = Recipe(steps=60, n_layers=1)
    found = found_in(RING, recipe, 0)
    numbers, controls = numbers_of([found], 0)
    assert {f"ring_{name}" for name in controls} == {c for c in CONTROLS if c[:4] == "ring"}
    assert all(number.value is not None for number in {**numbers, **controls}.values())
    for arm, profile in found.profile.items():
        grid = found.distant[arm]
        weights = np.isfinite(grid)
        assert sum(profile) == pytest.approx(grid[weights].mean(), rel=1e-6)


def test_the_planted_charts_are_those_of_the_library():
    _, places = prompts(TORUS)
    angle = places * 2 * torch.pi / TORUS.size
    x = torch.cat([angle.cos(), angle.sin()], 1)
    chart = fit_chart(TORUS, x, places)
    assert isinstance(chart, manifolds.Surface)
    assert chart.periods == (10, 10)
    gap = difference(TORUS, chart.encode(x[:50]), places[:50])
    assert float(gap.abs().max()) < 1e-3
