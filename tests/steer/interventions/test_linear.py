"""Linear interventions against closed forms in fp64, with strengths, rows, heads and dtypes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer.interventions import Ablate, Add, Affine, Clamp, Relative, Rotate, Scale
from steer.sites import Site
from steer.step import Step

SITE = Site(1, "resid_post")
D = 12


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def a_step(rows: list[int] | None = None, n: int = 5) -> Step:
    rows = rows or [0, 1, 2]
    return Step(torch.arange(n).expand(len(rows), n), torch.tensor(rows))


def orthonormal(k: int, seed: int) -> Tensor:
    q, r = torch.linalg.qr(draw(D, k, seed=seed))
    return (q * r.diagonal().sign()).T


H = draw(3, 5, D, seed=1)
V = draw(D, seed=2)
UNIT = V / V.norm()
BASIS = draw(3, D, seed=3)
PROJECTOR = torch.linalg.pinv(BASIS) @ BASIS
PLANE = draw(2, D, seed=4)
E1 = PLANE[0] / PLANE[0].norm()
E2 = (PLANE[1] - (PLANE[1] @ E1) * E1) / (PLANE[1] - (PLANE[1] @ E1) * E1).norm()


def turned(h: Tensor, angle: Tensor | float) -> Tensor:
    x, y = h @ E1, h @ E2
    angle = torch.as_tensor(angle, dtype=h.dtype)
    new_x = x * angle.cos() - y * angle.sin()
    new_y = x * angle.sin() + y * angle.cos()
    return h + (new_x - x)[..., None] * E1 + (new_y - y)[..., None] * E2


CLOSED: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "Add": (Add(SITE, V), lambda h: h + V),
    "Ablate": (Ablate(SITE, BASIS), lambda h: h - h @ PROJECTOR),
    "Ablate one": (Ablate(SITE, V), lambda h: h - (h @ UNIT)[..., None] * UNIT),
    "Clamp": (Clamp(SITE, V, to=1.5), lambda h: h + (1.5 - h @ UNIT)[..., None] * UNIT),
    "Scale": (Scale(SITE, 0.3), lambda h: 0.3 * h),
    "Affine": (Affine(SITE, UNIT, V), lambda h: UNIT * h + V),
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("strength", [1.0, -0.5, 2.5])
def test_strength_interpolates_between_the_state_and_the_closed_form(name, strength):
    item, closed = CLOSED[name]
    found = replace(item, strength=strength).edit(H, a_step())
    torch.testing.assert_close(found, H + strength * (closed(H) - H), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CLOSED)
def test_each_row_of_the_batch_has_its_own_strength(name):
    item, closed = CLOSED[name]
    amount = torch.tensor([0.5, 0.0, -2.0, 9.0], dtype=torch.float64)
    rows = [2, 0, 1]
    found = replace(item, strength=amount).edit(H, a_step(rows))
    expected = H + amount[rows][:, None, None] * (closed(H) - H)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[2], H[2]) == (rows[2] == 1)


@pytest.mark.parametrize("angle", [0.0, 0.4, torch.pi, -7.0])
@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_rotation_turns_within_its_plane_and_keeps_the_norm(angle, strength):
    found = Rotate(SITE, PLANE, angle=angle, strength=strength).edit(H, a_step())
    torch.testing.assert_close(found, turned(H, angle * strength), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.norm(dim=-1), H.norm(dim=-1), rtol=1e-12, atol=1e-12)


def test_rotation_goes_from_the_first_direction_towards_the_second():
    found = Rotate(SITE, PLANE, angle=torch.pi / 2).edit(E1.expand(1, 1, D), a_step([0], 1))
    torch.testing.assert_close(found[0, 0], E2, rtol=1e-12, atol=1e-12)


def test_rotation_takes_an_angle_and_a_strength_for_each_row():
    angle = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    strength = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    rows = [1, 2, 0]
    found = Rotate(SITE, PLANE, angle=angle, strength=strength).edit(H, a_step(rows))
    for at, row in enumerate(rows):
        expected = turned(H[at], float(angle[row] * strength[row]))
        torch.testing.assert_close(found[at], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[1], H[1])


def test_targets_and_factors_for_each_row():
    values = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rows = [2, 2, 1]
    clamped = Clamp(SITE, V, to=values).edit(H, a_step(rows))
    want = values[rows][:, None].expand(3, 5)
    torch.testing.assert_close(clamped @ UNIT, want, rtol=1e-12, atol=1e-12)
    scaled = Scale(SITE, values).edit(H, a_step(rows))
    torch.testing.assert_close(scaled, H * values[rows][:, None, None], rtol=1e-12, atol=1e-12)


def test_relative_strength_is_in_multiples_of_each_tokens_own_norm():
    found = Add(SITE, 5 * V, Relative(0.3)).edit(H, a_step())
    expected = H + 0.3 * H.norm(dim=-1, keepdim=True) * UNIT
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_ablation_leaves_nothing_in_the_subspace_and_twice_is_once():
    item = Ablate(SITE, BASIS)
    once = item.edit(H, a_step())
    assert float((once @ BASIS.T).abs().max()) < 1e-12
    torch.testing.assert_close(item.edit(once, a_step()), once, rtol=1e-12, atol=1e-12)


def test_a_basis_need_not_be_orthonormal_and_its_span_is_what_counts():
    mixed = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [3.0, 0.0, 1.0]]).double() @ BASIS
    first, second = Ablate(SITE, BASIS), Ablate(SITE, mixed)
    torch.testing.assert_close(first.edit(H, a_step()), second.edit(H, a_step()))
    assert torch.equal(Ablate(SITE, first.basis).basis, first.basis)


def test_the_length_of_a_clamped_direction_does_not_matter():
    long, short = Clamp(SITE, 7 * V, to=2.0), Clamp(SITE, V, to=2.0)
    torch.testing.assert_close(long.edit(H, a_step()), short.edit(H, a_step()))


def test_algebra_of_add_acts_on_the_strength():
    add = Add(SITE, V, 2.0)
    assert (3 * add).strength == 6.0
    assert (add * 0.5).strength == 1.0
    assert (-add).strength == -2.0
    assert (2 * replace(add, strength=Relative(0.25))).strength == Relative(0.5)
    per_row = -replace(add, strength=torch.tensor([1.0, -2.0]))
    assert isinstance(per_row.strength, Tensor)
    assert per_row.strength.tolist() == [-1.0, 2.0]
    both = Add(SITE, V, 2.0).edit((-add).edit(H, a_step()), a_step())
    torch.testing.assert_close(both, H, rtol=1e-12, atol=1e-12)


ALL_ITEMS = {
    **{name: item for name, (item, _) in CLOSED.items()},
    "Rotate": Rotate(SITE, PLANE, 1.0),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ALL_ITEMS)
def test_the_dtype_is_kept_and_only_the_delta_is_rounded(name, dtype):
    item = ALL_ITEMS[name]
    h = H.to(dtype)
    found = item.edit(h, a_step())
    assert found.dtype == dtype
    # Exact: the delta in fp64 from the same rounded h, cast once, added in the stream's dtype.
    exact = item.edit(h.double(), a_step()) - h.double()
    step = torch.finfo(dtype).eps * (h.abs().double() + 2 * exact.abs())
    assert bool(((found.double() - (h.double() + exact)).abs() <= step + 1e-6).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL_ITEMS)
def test_strength_zero_returns_the_same_bits(name, dtype):
    h = H.to(dtype)
    h[0, 0, 0], h[0, 0, 1] = -0.0, 0.0
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[h.element_size()]
    for zero in (0.0, torch.zeros(3)):
        found = replace(ALL_ITEMS[name], strength=zero).edit(h, a_step())
        assert torch.equal(found.view(bits), h.view(bits))


@pytest.mark.parametrize("name", ALL_ITEMS)
def test_the_input_and_the_fields_are_never_written_to(name):
    item, h = ALL_ITEMS[name], H.clone()
    before = {
        name: value.clone()
        for name in item.__dataclass_fields__
        if isinstance(value := getattr(item, name, None), Tensor)
    }
    item.edit(h, a_step())
    assert torch.equal(h, H)
    for field, value in before.items():
        assert torch.equal(getattr(item, field), value)


@pytest.mark.parametrize("name", ALL_ITEMS)
def test_heads_are_edited_each_on_its_own(name):
    h = draw(3, 5, 4, D, seed=9)
    found = ALL_ITEMS[name].edit(h, a_step())
    for head in range(4):
        expected = ALL_ITEMS[name].edit(h[:, :, head], a_step())
        torch.testing.assert_close(found[:, :, head], expected, rtol=1e-12, atol=1e-12)


def test_fields_are_detached_from_any_graph():
    v = V.clone().requires_grad_()
    assert not Add(SITE, v).direction.requires_grad
    assert not Ablate(SITE, v).basis.requires_grad
    assert not Clamp(SITE, v, to=1.0).direction.requires_grad


def test_reprs_say_site_strength_scope_and_sizes_but_no_numbers_of_the_vector():
    assert repr(Add(SITE, torch.ones(4), 2)) == (
        "Add(blocks.1.resid_post, strength=2, scope=ALL, norm=2, d=4)"
    )
    assert repr(Ablate(SITE, BASIS, scope=steer.LAST)).endswith("scope=LAST, k=3, d=12)")
    assert "to=[3 rows]" in repr(Clamp(SITE, V, to=torch.ones(3)))
    assert "strength=Relative(multiple=0.3)" in repr(Add(SITE, V, Relative(0.3)))
    assert "angle=0.5" in repr(Rotate(SITE, PLANE, 0.5))
    assert "<code>Scale(" in Scale(SITE, 0.5)._repr_html_()
