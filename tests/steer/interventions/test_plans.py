"""Plans: lists in order, rows apart."""

import pytest
import torch

import steer
from steer.interventions import Ablate, Add, Rows, Scale
from steer.interventions.plans import as_items, items_of
from steer.sites import Site

SITE = Site(1, "resid_post")
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]


def an_add(lm: "steer.LM", seed: int, scale: float = 1.0) -> Add:
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))
    return Add(SITE, v, scale)


def test_a_list_applies_in_order(lm):
    add, half = an_add(lm, 0), Scale(SITE, 0.5)
    bare = lm.capture(PROMPTS, [SITE])[SITE]
    first = lm.capture(PROMPTS, [SITE], plan=[add, half])[SITE]
    second = lm.capture(PROMPTS, [SITE], plan=[half, add])[SITE]
    torch.testing.assert_close(first, 0.5 * (bare + add.direction), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second, 0.5 * bare + add.direction, rtol=1e-5, atol=1e-5)


def test_sites_are_served_in_the_order_of_the_pass_whatever_the_order_of_the_list(lm):
    early, late = Add(Site(0), torch.ones(lm.d_model)), Scale(Site(2), 0.5)
    assert torch.equal(lm.logits(PROMPTS, [early, late]), lm.logits(PROMPTS, [late, early]))


def test_each_row_has_its_own_plan_and_rows_without_one_keep_their_bits(any_lm):
    a, b = an_add(any_lm, 0, 2.0), Ablate(SITE, torch.eye(any_lm.d_model)[:3])
    rows = Rows([[a], [], [b, a]])
    found = any_lm.logits(PROMPTS, rows)
    bare = any_lm.logits(PROMPTS)
    if any_lm.provenance.name == "tiny-mixtral":
        # An expert multiplies all the tokens sent to it at once: more of them, other rounding.
        torch.testing.assert_close(found[1], bare[1], rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(found[1], bare[1])
    for at, plan in enumerate(([a], [], [b, a])):
        alone = any_lm.logits([PROMPTS[at]], plan)
        torch.testing.assert_close(found[at], alone[0], rtol=1e-4, atol=1e-5)
    assert float((found[0] - bare[0]).abs().max()) > 0.1


def test_the_same_object_in_several_rows_is_one_line_and_one_operation(lm):
    a, b = an_add(lm, 0), an_add(lm, 1)
    wiring = lm.registry.wire(Rows([[a, b], [a], []]))
    assert wiring.items == (a, b)
    assert len(wiring.edits) == 2
    assert [edit.member.tolist() for edit in wiring.edits if edit.member is not None] == [
        [[0, 0, -1]],
        [[0, -1, -1]],
    ]
    with lm.attached(Rows([[a, b], [a], []])) as run:
        ids = torch.tensor([[5, 6, 7]] * 3)
        lm.model(input_ids=ids)
    assert run.receipt[0].edited.tolist() == [3, 3, 0]
    assert run.receipt[1].edited.tolist() == [3, 0, 0]


def test_the_same_object_twice_in_a_list_is_applied_twice(lm):
    add = an_add(lm, 0)
    twice = lm.capture(PROMPTS, [SITE], plan=[add, add])[SITE]
    double = lm.capture(PROMPTS, [SITE], plan=[2 * add])[SITE]
    torch.testing.assert_close(twice, double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_order_of_a_row_is_kept_also_where_rows_order_shared_objects_differently(lm, order):
    add, half = an_add(lm, 0), Scale(SITE, 0.5)
    mine = [(add, half)[at] for at in order]
    rows = Rows([[add, half], [half, add], mine])
    found = lm.capture(PROMPTS, [SITE], plan=rows)[SITE]
    for at, plan in enumerate(rows.plans):
        alone = lm.capture([PROMPTS[at]], [SITE], plan=list(plan))[SITE]
        torch.testing.assert_close(found[at], alone[0], rtol=1e-5, atol=1e-5)


def test_beams_and_return_sequences_expand_each_rows_own_plan(lm):
    rows = Rows([[an_add(lm, 0, 3.0)], [], [an_add(lm, 1, 3.0)]])
    beams = lm.generate(PROMPTS, rows, max_new_tokens=4, num_beams=2, num_return_sequences=2)
    for at, plan in enumerate(rows.plans):
        alone = lm.generate(
            [PROMPTS[at]], list(plan), max_new_tokens=4, num_beams=2, num_return_sequences=2
        )
        assert beams.tokens[2 * at : 2 * at + 2] == alone.tokens


def test_an_empty_plan_is_the_model_itself(lm):
    assert torch.equal(lm.logits(PROMPTS, []), lm.logits(PROMPTS))
    assert torch.equal(lm.logits(PROMPTS, Rows([[], [], []])), lm.logits(PROMPTS))
    with lm.attached([]) as run:
        pass
    assert str(run.receipt) == "Nothing was attached; 0 forward passes ran."


def test_items_come_with_their_rows():
    a, b = Scale(SITE, 1.0), Scale(SITE, 2.0)
    assert list(items_of([a, b])) == [(a, None), (b, None)]
    assert list(items_of(Rows([[a], [], [b, a]]))) == [(a, 0), (b, 2), (a, 2)]
    assert as_items((a, b)) == (a, b)
    assert repr(Rows([[a], [], [b]])) == "Rows(3 rows, 2 with interventions)"
    assert Rows([[a], []])[0] == (a,)
    assert len(Rows([[a], []])) == 2
