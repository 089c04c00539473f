"""A plan at work: no silent no-op, exact selection, isolation of rows and tokens."""

import pytest
import torch
from torch import Tensor

import steer
from steer.interventions import Add, Custom, Rows
from steer.sites import Site

SITE = Site(1, "resid_post")
ROWS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]


def an_add(lm: "steer.LM", scope: "steer.Scope" = steer.ALL) -> Add:
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    return Add(SITE, v, 2.0, scope)


def bits(values: Tensor) -> Tensor:
    return values.view({2: torch.int16, 4: torch.int32}[values.element_size()])


def test_a_plan_of_which_one_never_fired_says_which_site_and_why(lm):
    plan = [an_add(lm), Add(Site(2), torch.ones(lm.d_model), scope=steer.GENERATED)]

    def block() -> None:
        with lm.attached(plan):
            lm.model(input_ids=torch.tensor([ROWS[0]]))

    match = (
        r"Add\(blocks\.2\.resid_post.* at blocks\.2\.resid_post never fired: none of the 5 tokens "
        r"seen was in its scope.*Check the scope"
    )
    with pytest.raises(steer.NeverFired, match=match):
        block()


def test_a_row_without_its_own_tokens_is_enough_to_fire_elsewhere(lm):
    add = an_add(lm, steer.at(4, missing="skip"))
    out = lm.generate(ROWS[:2], [add], max_new_tokens=1)
    assert out.receipt[0].edited.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_out_of_scope_and_padding_keep_their_bits(dtype):
    lm = steer.load("tiny-llama", dtype=dtype)
    bare = lm.capture(ROWS, [SITE], scope=steer.ALL)
    scope = steer.LAST | steer.FIRST
    moved = lm.capture(ROWS, [SITE], scope=steer.ALL, plan=[an_add(lm, scope)])
    assert bare.mask is not None
    for row, ids in enumerate(ROWS):
        for p in range(len(ids)):
            same = torch.equal(bits(moved[SITE][row, p]), bits(bare[SITE][row, p]))
            assert same == (p not in (0, len(ids) - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_one_batch_are_isolated_to_the_bit(dtype):
    lm = steer.load("tiny-llama", dtype=dtype)
    ids = torch.tensor([row[:3] for row in ROWS])

    def logits(plan: "steer.Plan") -> Tensor:
        with lm.attached(plan), torch.no_grad():
            return lm.model(input_ids=ids).logits

    add = an_add(lm)
    bare, every = logits([]), logits([add])
    some = logits(Rows([[add], [], [add]]))
    assert torch.equal(bits(some[1]), bits(bare[1]))
    assert torch.equal(bits(some[[0, 2]]), bits(every[[0, 2]]))


def test_gathered_tokens_and_whole_rows_give_the_same_edit(lm):
    # Custom is given whole rows, everything else the tokens in scope only.
    v = 2.0 * an_add(lm).direction
    scope = steer.span(1, 3)
    gathered = lm.capture(ROWS, [SITE], scope=steer.ALL, plan=[an_add(lm, scope)])
    whole = lm.capture(
        ROWS, [SITE], scope=steer.ALL, plan=[Custom(SITE, lambda h, _: h + v, scope=scope)]
    )
    assert torch.equal(bits(gathered[SITE]), bits(whole[SITE]))


def test_a_change_of_batch_size_inside_one_block_is_counted_row_by_row(lm):
    with lm.attached([an_add(lm)]) as run:
        lm.model(input_ids=torch.tensor([[5, 6]]))
        lm.model(input_ids=torch.tensor([[5, 6], [7, 8], [9, 10]]))
        lm.model(input_ids=torch.tensor([[5, 6], [7, 8]]))
    assert run.receipt[0].edited.tolist() == [6, 4, 2]
    assert run.receipt[0].seen.tolist() == [6, 4, 2]
    assert run.receipt.n_passes == 3


def test_an_edit_that_returns_the_state_itself_counts_as_no_edit(lm):
    with lm.attached([Custom(SITE, lambda h, _: h)]) as run:
        lm.model(input_ids=torch.tensor([ROWS[0]]))
    assert run.receipt[0].edited.tolist() == [0]
    assert run.receipt[0].eligible.tolist() == [5]


def test_an_error_of_an_edit_leaves_the_model_clean(lm):
    def broken(_h: Tensor, _: "steer.Step") -> Tensor:
        raise ZeroDivisionError("in the middle of a pass")

    def block() -> None:
        with lm.attached([Custom(SITE, broken)]):
            lm.model(input_ids=torch.tensor([ROWS[0]]))

    with torch.no_grad():
        before = lm.model(input_ids=torch.tensor([ROWS[0]])).logits
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        block()
    assert lm.registry.live == 0
    with torch.no_grad():
        assert torch.equal(lm.model(input_ids=torch.tensor([ROWS[0]])).logits, before)


def test_a_readings_graph_is_not_kept_and_edits_of_a_gradient_run_are_differentiable(lm):
    embeds = lm.model.get_input_embeddings()(torch.tensor([ROWS[0]])).detach().requires_grad_()
    with lm.attached([an_add(lm, steer.at(2))]) as run:
        run.prompt([5])
        lm.model(inputs_embeds=embeds).logits[0, -1, 0].backward()
    assert embeds.grad is not None
    assert bool(embeds.grad.any())
    lm.model.zero_grad(set_to_none=True)
