"""The chart laws are worth something: every planted bug breaks the law named beside it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import manifolds
from manifolds import nearest_many as search
from manifolds import surface as surfaces
from manifolds.axes import Axes
from tests.manifolds import test_chart_laws as laws

Plant = Callable[[pytest.MonkeyPatch], None]


def _no_refinement(m: pytest.MonkeyPatch) -> None:
    m.setattr(search, "_STEPS", 0)
    m.setattr(search, "_POLISH", 0)


def _one_start(m: pytest.MonkeyPatch) -> None:
    def first(target: Tensor, points: Tensor, axes: Axes, counts: tuple[int, ...]) -> Tensor:
        del points, axes, counts
        return torch.zeros(len(target), 1, dtype=torch.long)

    m.setattr(search, "_local_minima", first)


def _no_second_derivatives_in_the_gradient(m: pytest.MonkeyPatch) -> None:
    original = search._differentiable

    def flat(u: Tensor, target: Tensor, jet: Any, axes: Axes) -> Tensor:
        def straight(at: Tensor) -> search.Bent:
            bent = jet(at)
            return bent._replace(second=torch.zeros_like(bent.second))

        return original(u, target, straight, axes)

    m.setattr(search, "_differentiable", flat)


def _tangent_backwards(m: pytest.MonkeyPatch) -> None:
    original = manifolds.Surface.tangent
    m.setattr(manifolds.Surface, "tangent", lambda self, u: -original(self, u))


def _path_stops_early(m: pytest.MonkeyPatch) -> None:
    original = surfaces.along
    m.setattr(surfaces, "along", lambda start, way, n: original(start, 0.9 * way, n))


def _arc_is_its_chord(m: pytest.MonkeyPatch) -> None:
    def chord(self: manifolds.Surface, u0: Tensor, u1: Tensor) -> Tensor:
        return (self.decode(u1) - self.decode(u0)).norm(dim=-1)

    m.setattr(manifolds.Surface, "arc_length", chord)


def _flatten_does_nothing(m: pytest.MonkeyPatch) -> None:
    m.setattr(manifolds.Surface, "flatten", lambda self, x: x + 0 * self.subspace.mean)


def _rows_share_an_answer(m: pytest.MonkeyPatch) -> None:
    original = manifolds.Surface.encode

    def encode(self: manifolds.Surface, x: Tensor) -> Tensor:
        found = original(self, x)
        return (
            found.reshape(-1, self.dim)[:1]
            .expand(found.reshape(-1, self.dim).shape)
            .reshape(found.shape)
        )

    m.setattr(manifolds.Surface, "encode", encode)


def _subspace_has_no_mean(m: pytest.MonkeyPatch) -> None:
    original = manifolds.Subspace.embed
    m.setattr(manifolds.Subspace, "embed", lambda self, c: original(self, c) - self.mean)


def _periods_are_forgotten(m: pytest.MonkeyPatch) -> None:
    m.setattr(Axes, "wrap", lambda self, u: u + 0 * self.lower)


PLANTED: dict[str, tuple[Plant, str, Callable[[Any], None]]] = {
    "no refinement": (
        _no_refinement,
        "sheet",
        laws.test_encode_recovers_the_coordinates_of_a_point_of_the_shape,
    ),
    "one start for all": (
        _one_start,
        "torus",
        laws.test_nothing_nearby_or_far_is_nearer_than_encode,
    ),
    "Gauss-Newton gradient": (
        _no_second_derivatives_in_the_gradient,
        "cubic sheet",
        laws.test_encode_has_the_gradient_of_finite_differences,
    ),
    "tangent backwards": (
        _tangent_backwards,
        "cylinder",
        laws.test_the_tangent_agrees_with_finite_differences,
    ),
    "path stops early": (
        _path_stops_early,
        "cylinder",
        laws.test_a_path_starts_and_ends_where_told,
    ),
    "arc is its chord": (
        _arc_is_its_chord,
        "torus",
        laws.test_arc_length_is_the_limit_of_small_steps,
    ),
    "flatten does nothing": (
        _flatten_does_nothing,
        "sheet",
        laws.test_flattening_keeps_points_of_the_chart_and_all_that_is_off_its_subspace,
    ),
    "rows share an answer": (
        _rows_share_an_answer,
        "sheet",
        laws.test_a_batch_is_its_rows_one_by_one,
    ),
    "no mean": (
        _subspace_has_no_mean,
        "flat",
        laws.test_rotating_shifting_and_scaling_the_space_does_so_to_the_fit,
    ),
    "periods are forgotten": (
        _periods_are_forgotten,
        "torus",
        laws.test_a_turn_more_is_the_same_place_and_coordinates_lie_within_one_turn,
    ),
}


@pytest.mark.parametrize("name", list(PLANTED))
def test_a_planted_bug_breaks_its_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, shape, law = PLANTED[name]
    case = next(case for case in laws.CASES if case.name == shape)
    law(case)
    plant(monkeypatch)
    with pytest.raises((AssertionError, manifolds.ManifoldError)):
        law(case)
