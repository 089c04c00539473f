import numpy as np
import torch

from benchmarks.numbers import shapes
from benchmarks.numbers.counting import NUMBERS

_NUMBERS = torch.tensor(NUMBERS)


def _states(*columns: torch.Tensor) -> torch.Tensor:
    mix = torch.randn(len(columns), 40, generator=torch.Generator().manual_seed(0)).double()
    planted = torch.stack([c.double() for c in columns], 1) @ mix + 3
    # Components cannot be more than the states have directions.
    return planted + 1e-7 * torch.randn(planted.shape, generator=torch.Generator().manual_seed(1))


def test_a_planted_helix_is_predicted_for_numbers_that_were_not_seen():
    angle = 2 * torch.pi * _NUMBERS / 10
    slow = 2 * torch.pi * _NUMBERS / 100
    states = _states(_NUMBERS / 20, angle.cos(), angle.sin(), slow.cos(), slow.sin())
    points = shapes.left_out_points(states, _NUMBERS, seed=0)
    assert torch.allclose(points["helix"], states, atol=1e-4)
    assert torch.allclose(points["components"], states, atol=1e-4)
    spread = (states - states.mean(0)).norm()
    for other in ("polynomial", "circle", "line", "permuted"):
        assert (points[other] - states).norm() > 0.2 * spread


def test_a_planted_parabola_is_for_the_polynomial():
    a = (_NUMBERS - 50) / 50
    states = _states(a, a.square())
    points = shapes.left_out_points(states, _NUMBERS, seed=0)
    assert torch.allclose(points["polynomial"], states, atol=1e-4)
    assert (points["permuted"] - states).norm() > (points["helix"] - states).norm()


def test_the_last_digit_alone_is_for_the_circle_and_its_harmonics():
    digit = torch.nn.functional.one_hot(_NUMBERS % 10, 10)
    states = _states(*digit.T)
    points = shapes.left_out_points(states, _NUMBERS, seed=0)
    # Nine columns for ten digits: all but the alternating sum.
    left = (points["circle"] - states).norm() / (states - states.mean(0)).norm()
    assert left < 0.5
    assert (points["line"] - states).norm() > (points["circle"] - states).norm()


def test_every_shape_has_as_many_columns_as_the_helix_but_the_line():
    widths = {name: columns(_NUMBERS).shape[1] for name, columns in shapes.SHAPES.items()}
    assert widths == {"helix": 9, "polynomial": 9, "circle": 9, "line": 2}
    assert all(
        np.linalg.matrix_rank(columns(_NUMBERS).numpy()) == widths[name]
        for name, columns in shapes.SHAPES.items()
    )
