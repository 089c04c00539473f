"""PreserveNorm, Redirect and Custom."""

import pytest
import torch
from torch import Tensor

import steer
from steer.errors import PlanError
from steer.interventions import Add, Custom, PreserveNorm, Redirect, Scale
from steer.sites import Site
from steer.step import Step

SITE = Site(1, "resid_post")
H = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
V = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
STEP = Step(torch.arange(3).expand(2, 3), torch.arange(2))


def test_the_edited_token_has_the_norm_it_had_before():
    found = PreserveNorm(Add(SITE, V, 3.0)).edit(H, STEP)
    moved = H + 3 * V
    expected = moved / moved.norm(dim=-1, keepdim=True) * H.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.norm(dim=-1), H.norm(dim=-1), rtol=1e-12, atol=0)


def test_scaling_within_it_does_nothing_but_turn_round():
    torch.testing.assert_close(PreserveNorm(Scale(SITE, 3.0)).edit(H, STEP), H)
    torch.testing.assert_close(PreserveNorm(Scale(SITE, -3.0)).edit(H, STEP), -H)


def test_tokens_that_the_inner_edit_leaves_alone_keep_their_bits():
    amount = torch.tensor([0.0, 2.0])
    h = H.to(torch.bfloat16)
    h[0, 0, 0] = -0.0
    found = PreserveNorm(Add(SITE, V, amount)).edit(h, STEP)
    assert torch.equal(found[0].view(torch.int16), h[0].view(torch.int16))
    assert bool((found[1] != h[1]).any())
    assert found.dtype == h.dtype


def test_a_token_that_became_zero_stays_as_it_was():
    found = PreserveNorm(Scale(SITE, 0.0)).edit(H, STEP)
    assert torch.equal(found, H)
    assert bool(torch.isfinite(found).all())


def test_it_acts_where_the_inner_intervention_does():
    inner = Add(SITE, V, scope=steer.LAST)
    assert PreserveNorm(inner).site == SITE
    assert PreserveNorm(inner).scope == steer.LAST
    assert repr(PreserveNorm(inner)).startswith("PreserveNorm(Add(blocks.1")


def test_a_custom_function_keeps_the_dtype_of_the_stream():
    found = Custom(SITE, lambda h, _: h.double() * 2).edit(H.to(torch.bfloat16), STEP)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, H.to(torch.bfloat16) * 2)


def test_a_custom_function_is_given_whole_rows_and_edits_its_scope_only(lm):
    shapes: list[tuple[int, ...]] = []

    def double(h: Tensor, step: Step) -> Tensor:
        shapes.append(tuple(h.shape))
        assert step.positions.shape == h.shape[:2]
        return 2 * h

    rows = [[5, 6, 7, 8], [9, 10]]
    bare = lm.capture(rows, [SITE], scope=steer.ALL)
    custom = Custom(SITE, double, scope=steer.LAST)
    moved = lm.capture(rows, [SITE], scope=steer.ALL, plan=[custom])
    assert shapes == [(2, 4, lm.d_model)]
    for row, last in ((0, 3), (1, 1)):
        assert torch.equal(moved[SITE][row, last], 2 * bare[SITE][row, last])
        assert torch.equal(moved[SITE][row, :last], bare[SITE][row, :last])


def test_a_custom_function_knows_tokens_phase_and_prompt(lm):
    seen: list[tuple[str, list[int], list[int]]] = []

    def note(h: Tensor, step: Step) -> Tensor:
        assert step.token_ids is not None
        assert step.prompt_lengths is not None
        seen.append((step.phase, step.positions[0].tolist(), step.prompt_lengths.tolist()))
        assert step.generated.tolist() == [[p >= 3 for p in step.positions[0].tolist()]]
        return h

    out = lm.generate([[5, 6, 7]], [Custom(SITE, note)], max_new_tokens=3)
    assert seen == [
        ("prompt", [0, 1, 2], [3]),
        ("generated", [3], [3]),
        ("generated", [4], [3]),
    ]
    assert len(out.tokens[0]) == 3


def test_a_custom_function_cannot_be_saved():
    with pytest.raises(steer.SpecError, match=r"code|function"):
        Custom(SITE, lambda h, _: h).spec()


def test_an_intervention_of_the_users_own_class_needs_no_import(lm):
    class Shift:
        site = SITE
        scope = steer.LAST

        def edit(self, h: Tensor, step: Step) -> Tensor:
            """Add one."""
            assert step.positions.shape == h.shape[:2]
            return h + 1

    rows = [[5, 6, 7, 8], [9, 10]]
    mine = lm.logits(rows, [Shift()])
    ours = lm.logits(rows, [Add(SITE, torch.ones(lm.d_model), scope=steer.LAST)])
    torch.testing.assert_close(mine, ours, rtol=1e-5, atol=1e-5)


def test_redirect_goes_as_far_as_the_inner_edit_along_its_own_direction():
    direction = torch.randn(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inner = Scale(SITE, 3.0)  # how far differs from token to token
    found = Redirect(inner, 5 * direction).edit(H, STEP)
    moved, far = found - H, (inner.edit(H, STEP) - H).norm(dim=-1)
    torch.testing.assert_close(moved.norm(dim=-1), far)
    along = (moved @ direction) / direction.norm()
    torch.testing.assert_close(along, far)


def test_redirect_leaves_alone_what_the_inner_edit_leaves_alone():
    found = Redirect(Scale(SITE, 1.0), V).edit(H, STEP)
    assert torch.equal(found, H)


def test_redirect_refuses_no_direction():
    with pytest.raises(PlanError, match=r"direction of Redirect is zero.*points somewhere"):
        Redirect(Scale(SITE, 2.0), torch.zeros(4))
