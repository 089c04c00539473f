"""Passes outside generate: decode loops, declared prompts, embeddings, masks, chunks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import steer
from steer.interventions import Add, Read, When
from steer.passes import CACHE_NAMES, cache_of_generate
from steer.scopes import parse_scope
from steer.sites import Site

SITE = Site(1, "resid_post")
ROW = [5, 6, 7, 8, 9, 10, 11, 12]
N_PROMPT = 5


def an_add(lm: "steer.LM", scope: "steer.Scope") -> Add:
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    return Add(SITE, v, 2.0, scope)


@torch.no_grad()
def by_positions(lm: "steer.LM", row: list[int], positions: set[int]) -> Tensor:
    """Return the logits of one row with the vector added by a plain hook at these positions."""
    v = 2.0 * an_add(lm, steer.ALL).direction
    where = torch.tensor([[[p in positions] for p in range(len(row))]])
    block = lm.model.get_submodule(lm.registry.layout.blocks + ".1")

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        new = torch.where(where, h + v, h)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = block.register_forward_hook(hook)
    logits = lm.model(input_ids=torch.tensor([row])).logits[0]
    handle.remove()
    return logits


SCOPES = {
    "ALL": {0, 1, 2, 3, 4, 5, 6, 7},
    "PROMPT": {0, 1, 2, 3, 4},
    "LAST": {4},
    "GENERATED": {5, 6, 7},
    "OUTPUT": {4, 5, 6, 7},
    "at(6)": {6},
    "at(-2)": {3},
    "span(3, 7)": {3, 4, 5, 6},
    "~FIRST & PROMPT": {1, 2, 3, 4},
}


@torch.no_grad()
def decoded(lm: "steer.LM", cuts: list[int], cache: Any, *, left: int = 0) -> Tensor:
    """Run one row in pieces over a cache, padded on the left; return its logits [pos, vocab]."""
    ids = torch.tensor([[0] * left + ROW])
    mask = torch.tensor([[0] * left + [1] * len(ROW)])
    ends = [left + cut for cut in cuts]
    found = []
    start = 0
    for end in [*ends, left + len(ROW)]:
        out = lm.model(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, start:end],
            use_cache=True,
            **{cache_of_generate(lm.model): cache},
        )
        found.append(out.logits[0])
        start = end
    return torch.cat(found)[left:]


@pytest.mark.parametrize("left", [0, 3])
@pytest.mark.parametrize("cuts", [[5, 6, 7], [2, 4, 5, 6], [4, 7], [6]], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_decode_loop_of_the_users_own_with_a_declared_prompt(lm, scope, cuts, left):
    plan = [an_add(lm, parse_scope(scope))]
    with lm.attached(plan) as run:
        run.prompt([N_PROMPT])
        found = decoded(lm, cuts, DynamicCache(config=lm.model.config), left=left)
    expected = by_positions(lm, ROW, SCOPES[scope])
    # A cache holds the same numbers, summed in another order: fp32, four blocks.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert run.receipt[0].edited.tolist() == [len(SCOPES[scope])]
    assert run.receipt[0].seen.tolist() == [len(ROW)]


def test_every_family_counts_positions_over_its_cache(any_lm):
    with any_lm.attached([an_add(any_lm, steer.OUTPUT)]) as run:
        run.prompt([N_PROMPT])
        found = decoded(any_lm, [3, 5, 6], DynamicCache(config=any_lm.model.config), left=2)
    expected = by_positions(any_lm, ROW, SCOPES["OUTPUT"])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_static_cache_is_counted_as_well(lm):
    cache = StaticCache(config=lm.model.config, max_cache_len=16)
    with lm.attached([an_add(lm, steer.at(6))]) as run:
        run.prompt([N_PROMPT])
        found = decoded(lm, [5, 6, 7], cache)
    torch.testing.assert_close(found, by_positions(lm, ROW, {6}), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("default:.past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_both_names_of_the_cache_are_counted(lm, name):
    if name == CACHE_NAMES[0] and cache_of_generate(lm.model) != name:
        name = cache_of_generate(lm.model)  # a transformers that knows the old name only
    with lm.attached([an_add(lm, steer.at(6))]) as run, torch.no_grad():
        run.prompt([len(ROW)])
        cache = lm.model(input_ids=torch.tensor([ROW[:5]]), use_cache=True)[1]
        found = lm.model(input_ids=torch.tensor([ROW[5:]]), **{name: cache}).logits[0]
    torch.testing.assert_close(found, by_positions(lm, ROW, {6})[5:], rtol=1e-3, atol=1e-4)
    assert run.receipt[0].edited.tolist() == [1]


def continued(lm: "steer.LM", scope: "steer.Scope") -> Tensor:
    with torch.no_grad():
        cache = lm.model(input_ids=torch.tensor([ROW[:5]]), use_cache=True)[1]
        with lm.attached([an_add(lm, scope)]):
            return lm.model(
                input_ids=torch.tensor([ROW[5:]]), **{cache_of_generate(lm.model): cache}
            ).logits[0]


def test_over_a_cache_without_a_declared_prompt_positions_still_count_from_its_start(lm):
    found = continued(lm, steer.at(6))
    torch.testing.assert_close(found, by_positions(lm, ROW, {6})[5:], rtol=1e-3, atol=1e-4)
    found = continued(lm, steer.ALL)
    torch.testing.assert_close(found, by_positions(lm, ROW, {5, 6, 7})[5:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scope", ["PROMPT", "LAST", "GENERATED", "OUTPUT", "at(-1)"])
def test_over_a_cache_a_scope_that_needs_the_prompt_is_an_error_until_it_is_declared(lm, scope):
    match = r"depends on where the prompt ends.*continues a cache.*run\.prompt\(lengths\)"
    with pytest.raises(steer.ScopeError, match=match):
        continued(lm, parse_scope(scope))
    assert lm.registry.live == 0


def test_a_new_pass_without_a_cache_begins_anew_under_the_same_declaration(lm):
    expected = by_positions(lm, ROW, {4})
    with lm.attached([an_add(lm, steer.LAST)]) as run:
        run.prompt([N_PROMPT])
        for _ in range(2):
            found = decoded(lm, [5, 6], DynamicCache(config=lm.model.config))
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert run.receipt[0].edited.tolist() == [2]


def test_a_declared_prompt_may_be_shorter_than_the_pass(lm):
    with lm.attached([an_add(lm, steer.GENERATED)]) as run, torch.no_grad():
        run.prompt([3])
        found = lm.model(input_ids=torch.tensor([ROW])).logits[0]
    expected = by_positions(lm, ROW, {3, 4, 5, 6, 7})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_text_is_found_in_the_prompt_of_a_decode_loop(lm):
    ids = lm.tokenizer("it was May and after May")["input_ids"]
    may = next(i for i, token in enumerate(lm.tokens(ids)) if token == " May")
    with lm.attached([an_add(lm, steer.text("May") | steer.LAST)]) as run, torch.no_grad():
        run.prompt([len(ids) - 1])
        cache = lm.model(input_ids=torch.tensor([ids[:-1]]), use_cache=True)[1]
        lm.model(input_ids=torch.tensor([ids[-1:]]), **{cache_of_generate(lm.model): cache})
    assert run.receipt[0].edited.tolist() == [2]
    assert may < len(ids) - 2


def test_text_beyond_the_first_chunk_of_a_prompt_is_an_error_and_not_a_miss(lm):
    ids = torch.tensor([lm.tokenizer("it was good after May and")["input_ids"]])

    def block() -> None:
        with lm.attached([an_add(lm, steer.text("May", missing="skip"))]) as run:
            run.prompt([ids.shape[1]])
            cache = lm.model(input_ids=ids[:, :3], use_cache=True)[1]
            lm.model(input_ids=ids[:, 3:], **{cache_of_generate(lm.model): cache})

    with pytest.raises(steer.ScopeError, match=r"needs the token ids"):
        block()


class Sum:
    """A probe: the sum of the entries."""

    def scores(self, x: Tensor) -> Tensor:
        """Return the sum over the last axis."""
        return x.sum(-1)


@pytest.mark.parametrize("opens", [True, False])
def test_a_gate_latched_on_a_declared_prompt_holds_over_the_cache(lm, opens):
    gate = When(Read(SITE, Sum()), an_add(lm, steer.OUTPUT), above=-9e9 if opens else 9e9)
    with lm.attached([gate]) as run:
        run.prompt([N_PROMPT])
        found = decoded(lm, [2, 5, 6, 7], DynamicCache(config=lm.model.config))
    expected = by_positions(lm, ROW, SCOPES["OUTPUT"] if opens else set())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_gate_whose_prompt_ended_before_the_plan_came_is_refused(lm):
    gate = When(Read(SITE, Sum()), an_add(lm, steer.ALL), above=0.0)
    with torch.no_grad():
        cache = lm.model(input_ids=torch.tensor([ROW[:5]]), use_cache=True)[1]

    def block() -> None:
        with lm.attached([gate]) as run:
            run.prompt([N_PROMPT])
            lm.model(input_ids=torch.tensor([ROW[5:]]), **{cache_of_generate(lm.model): cache})

    with pytest.raises(steer.PlanError, match=r"ended before the plan was attached.*run\.prompt"):
        block()


# -- a single pass -----------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["ALL", "PROMPT", "LAST", "OUTPUT", "at(-3)", "at(2)"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_outside_generate_a_pass_is_all_prompt_whatever_its_padding(any_lm, scope, side):
    chosen: dict[str, Callable[[int], set[int]]] = {
        "ALL": lambda n: set(range(n)),
        "PROMPT": lambda n: set(range(n)),
        "LAST": lambda n: {n - 1},
        "OUTPUT": lambda n: {n - 1},
        "at(-3)": lambda n: {n - 3},
        "at(2)": lambda _: {2},
    }
    rows = [ROW, ROW[2:6]]
    ids = torch.zeros(2, 8, dtype=torch.long)
    mask = torch.zeros(2, 8, dtype=torch.long)
    for at, row in enumerate(rows):
        place = slice(8 - len(row), None) if side == "left" else slice(0, len(row))
        ids[at, place], mask[at, place] = torch.tensor(row), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    plan = [an_add(any_lm, parse_scope(scope))]
    with any_lm.attached(plan) as run, torch.no_grad():
        out = any_lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for at, row in enumerate(rows):
        expected = by_positions(any_lm, row, chosen[scope](len(row)))
        torch.testing.assert_close(out[at][mask[at].bool()], expected, rtol=1e-3, atol=1e-4)
    assert run.receipt[0].edited.tolist() == [len(chosen[scope](len(row))) for row in rows]


def test_embeddings_have_positions_but_no_prompt_until_it_is_declared(lm):
    embeds = lm.model.get_input_embeddings()(torch.tensor([ROW])).detach()

    def block(scope: "steer.Scope", lengths: list[int] | None) -> Tensor:
        with lm.attached([an_add(lm, scope)]) as run, torch.no_grad():
            if lengths is not None:
                run.prompt(lengths)
            return lm.model(inputs_embeds=embeds).logits[0]

    close = torch.testing.assert_close
    close(block(steer.at(3), None), by_positions(lm, ROW, {3}), rtol=1e-5, atol=1e-5)
    close(block(steer.LAST, [6]), by_positions(lm, ROW, {5}), rtol=1e-5, atol=1e-5)
    with pytest.raises(steer.ScopeError, match=r"given inputs_embeds.*run\.prompt"):
        block(steer.LAST, None)
    with pytest.raises(steer.ScopeError, match=r"needs the token ids"):
        block(steer.text("May"), [6])


def test_a_mask_of_four_axes_says_nothing_of_padding(lm):
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()

    def block(scope: "steer.Scope") -> Tensor:
        with lm.attached([an_add(lm, scope)]), torch.no_grad():
            return lm.model(input_ids=torch.tensor([ROW]), attention_mask=mask).logits[0]

    expected = by_positions(lm, ROW, {3})
    torch.testing.assert_close(block(steer.at(3)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        steer.ScopeError, match=r"attention mask that is not \[batch, tokens so far"
    ):
        block(steer.LAST)


def test_packed_rows_count_columns_once_they_are_declared(lm):
    ids = torch.tensor([ROW])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    with lm.attached([an_add(lm, steer.at(6))]) as run, torch.no_grad():
        run.prompt([8])
        lm.model(input_ids=ids, position_ids=positions)
    assert run.receipt[0].edited.tolist() == [1]


def test_the_stack_may_be_called_by_itself_and_with_positional_ids(lm):
    add = an_add(lm, steer.LAST)
    with torch.no_grad():
        bare = lm.model.model(torch.tensor([ROW])).last_hidden_state
        with lm.attached([add]) as run:
            moved = lm.model.model(torch.tensor([ROW])).last_hidden_state
    assert torch.equal(moved[:, :7], bare[:, :7])
    assert not torch.equal(moved[:, 7], bare[:, 7])
    assert run.receipt[0].edited.tolist() == [1]


# -- logits for some columns -------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([2, 7]), 0], ids=str)
def test_an_edit_of_logits_meets_its_tokens_when_only_some_columns_are_computed(lm, keep):
    v = torch.ones(lm.registry.layout.d_vocab)
    columns = list(range(8))[-keep:] if isinstance(keep, int) else keep.tolist()
    plan = [Add(Site.logits(), v, scope=steer.LAST)]
    with torch.no_grad():
        bare = lm.model(input_ids=torch.tensor([ROW]), logits_to_keep=keep).logits[0]
        with lm.attached(plan):
            moved = lm.model(input_ids=torch.tensor([ROW]), logits_to_keep=keep).logits[0]
    assert len(bare) == len(columns)
    for at, column in enumerate(columns):
        expected = bare[at] + v if column == 7 else bare[at]
        assert torch.equal(moved[at], expected)


@pytest.mark.parametrize("latch", ["prompt", "token"])
def test_a_gate_read_in_the_stream_opens_an_edit_of_the_logits_in_generation(lm, latch):
    favourite = 17
    push = torch.zeros(lm.registry.layout.d_vocab)
    push[favourite] = 1e4
    read = Read(SITE, Sum(), scope=steer.ALL if latch == "token" else steer.PROMPT)
    add = Add(Site.logits(), push, scope=steer.OUTPUT)
    plan = [When(read, add, above=-9e9, latch=latch)]
    out = lm.generate([ROW, ROW[2:5]], plan, max_new_tokens=3)
    assert out.tokens == [[favourite] * 3] * 2
    closed = [When(read, add, above=9e9, latch=latch)]
    bare = lm.generate([ROW, ROW[2:5]], max_new_tokens=3)
    assert lm.generate([ROW, ROW[2:5]], closed, max_new_tokens=3).tokens == bare.tokens
