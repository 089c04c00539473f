"""The arithmetic of edits: exact zeros, fp32 inside, deltas cast once."""

import pytest
import torch

import steer
from steer.interventions.arithmetic import (
    Relative,
    add_delta,
    as_basis,
    as_strength,
    as_vector,
    coordinates,
    precise,
    scaled,
    within,
)
from steer.step import Step

STEP = Step(torch.zeros(2, 1, dtype=torch.long), torch.tensor([1, 0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_zero_delta_keeps_minus_zero(dtype):
    h = torch.tensor([-0.0, 0.0, 1.5], dtype=dtype)
    found = add_delta(h, torch.zeros(3))
    assert found.dtype == dtype
    assert found.signbit().tolist() == [True, False, False]


def test_a_delta_too_small_for_the_dtype_changes_no_bit():
    h = torch.tensor([-0.0, 256.0], dtype=torch.bfloat16)
    found = add_delta(h, torch.tensor([1e-45, 1e-3]))
    assert found.signbit().tolist() == [True, False]
    assert found[1] == 256.0


@pytest.mark.parametrize("strength", [0.0, Relative(0.0), torch.zeros(2)], ids=str)
def test_strength_zero_selects_the_state_even_beside_infinite_deltas(strength):
    h = torch.tensor([[[-0.0, 2.0]], [[3.0, 4.0]]])
    found = scaled(h, torch.full((2,), float("inf")), strength, STEP)
    assert torch.equal(found.view(torch.int32), h.view(torch.int32))


def test_a_strength_for_each_row_is_looked_up_by_row():
    h = torch.zeros(2, 1, 3)
    found = scaled(h, torch.ones(3), torch.tensor([5.0, 7.0]), STEP)
    assert found[:, 0, 0].tolist() == [7.0, 5.0]


def test_half_precision_is_lifted_and_double_is_left_alone():
    assert precise(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert precise(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
    assert precise(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_a_basis_spans_what_was_given_with_orthonormal_rows_in_order():
    rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = as_basis(rows, "x")
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(basis[0], rows[0] / rows[0].norm())
    torch.testing.assert_close(rows @ basis.T @ basis, rows)
    assert bool((rows * basis).sum(1).gt(0).all())  # each points along its own row
    assert torch.equal(as_basis(basis, "x"), basis)


def test_coordinates_and_points_are_inverse_within_the_span():
    basis = as_basis(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), "x")
    c = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(coordinates(within(c, basis), basis), c)


@pytest.mark.parametrize("n", [2, 5])
def test_dependent_directions_are_refused(n):
    rows = torch.ones(n, 6)
    rows[-1, 0] += 1e-9
    with pytest.raises(
        steer.PlanError, match=rf"x holds {n} directions that are linearly dependent"
    ):
        as_basis(rows, "x")


def test_strengths_are_numbers_or_one_for_each_row():
    assert as_strength(2, "x") == 2.0
    assert as_strength(torch.tensor(2.0), "x") == 2.0
    per_row = as_strength(torch.tensor([1.0, 2.0]).requires_grad_(), "x")
    assert isinstance(per_row, torch.Tensor)
    assert not per_row.requires_grad
    with pytest.raises(steer.PlanError, match="The strength of x has shape"):
        as_strength(torch.ones(1, 2), "x")


def test_vectors_have_one_axis():
    assert as_vector(torch.ones(3), "x").shape == (3,)
    with pytest.raises(steer.WidthMismatch, match=r"x has shape \(1, 3\).*one direction"):
        as_vector(torch.ones(1, 3), "x")
