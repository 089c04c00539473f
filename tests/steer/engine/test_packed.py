"""Suffixes of several lengths as single tokens: plan, sight, equality with the loop."""

import pytest
import torch
from torch import Tensor

import steer
from steer import LM, Site
from steer.engine.packed import sight_of
from steer.engine.plan import SMALL, Starts, chunks_of

PROMPTS = [[5, 17, 30, 44, 8], [60, 11, 33, 9, 21, 70, 4, 5], [12, 13]]


def whole(logits: Tensor, _: steer.Batch) -> Tensor:
    return logits


def positions_by_blocks(lm: LM) -> dict[str, list[steer.Add]]:
    direction = torch.linspace(-1, 1, lm.d_model)
    return {
        f"{block}:{place}": [
            steer.Add(Site(block), direction, 2.0, scope=steer.at(place, missing="skip"))
        ]
        for block in range(lm.n_layers)
        for place in (-1, -2, -3)
    }


def test_packed_suffixes_of_all_lengths_are_one_pass_of_exactly_the_closed_formula():
    block = torch.arange(30).repeat_interleave(5)
    tokens = torch.tensor([5, 4, 3, 2, 1]).repeat(30)
    (chunk,) = chunks_of(Starts(block, tokens), 30, lambda _: 1000, pack=True)
    assert chunk.token_blocks(30, 1) == 6975
    assert chunk.back is not None
    ran = sorted(zip(chunk.cells.tolist(), chunk.back.tolist(), strict=True))
    assert ran == [(cell, back) for cell in range(150) for back in range(int(tokens[cell]))]


def test_a_pack_is_cut_between_cells_and_long_groups_stay_rectangles(gen: torch.Generator):
    block = torch.randint(0, 13, (300,), generator=gen)
    tokens = torch.randint(0, 5, (300,), generator=gen)
    many = torch.full((SMALL,), 9)
    starts = Starts(torch.cat([block, torch.zeros_like(many)]), torch.cat([tokens, many]))
    chunks = chunks_of(starts, 12, lambda n: max(90 // n, 1), pack=True)
    packs = [chunk for chunk in chunks if chunk.back is not None]
    assert len(packs) > 2
    seen: set[int] = set()
    for chunk in packs:
        assert len(chunk.cells) <= 90
        assert not seen & set(chunk.cells.tolist())
        seen |= set(chunk.cells.tolist())
        cells, n = chunk.cells.unique(return_counts=True)
        assert (starts.tokens[cells] == n).all()
        assert torch.equal(chunk.distinct, cells)
    assert seen == set((tokens > 0).nonzero()[:, 0].tolist())
    assert all(chunk.tokens == 9 for chunk in chunks if chunk.back is None)


def test_each_row_sees_its_prompt_before_the_suffix_and_its_own_cell_in_it():
    # Prompts of 4 and 3 tokens; cell 0: last 2 tokens of prompt 0; cell 1: last 3 of prompt 1.
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    starts = Starts(torch.tensor([0, 1]), torch.tensor([2, 3]))
    (chunk,) = chunks_of(starts, 2, lambda _: 100, pack=True)
    sight = sight_of(chunk, torch.tensor([0, 1])[chunk.cells], mask)
    assert chunk.back is not None
    row_of = {
        (cell, 3 - back): 8 + row
        for row, (cell, back) in enumerate(
            zip(chunk.cells.tolist(), chunk.back.tolist(), strict=True)
        )
    }
    for row, (cell, back) in enumerate(zip(chunk.cells.tolist(), chunk.back.tolist(), strict=True)):
        own = 3 - back
        columns = [c for c in range(own + 1) if mask[cell, c]]
        wanted = [row_of.get((cell, c), cell * 4 + c) for c in columns]
        assert sight.where[row][sight.real[row]].tolist() == wanted
        assert sight.where[row, -1] == 8 + row


@torch.no_grad()
def test_packed_maps_equal_the_loop_of_whole_passes(any_lm: LM):
    prompts = PROMPTS[:2]
    arms = positions_by_blocks(any_lm)
    sweep = steer.sweep(any_lm, prompts, arms, whole)
    assert sweep.cost().passes == 1
    assert sweep.executed == sweep.cost().token_blocks
    for name, plan in arms.items():
        with any_lm.attached(plan):
            for at, row in enumerate(prompts):
                logits = any_lm.model(torch.tensor([row])).logits[0, -1]
                torch.testing.assert_close(sweep[name][at], logits, rtol=0, atol=2e-5)


def test_several_measured_tokens_come_back_in_their_places(any_lm: LM):
    scope = steer.span(-3, None, missing="skip")
    arms = positions_by_blocks(any_lm)
    sweep = steer.sweep(any_lm, PROMPTS, arms, whole, scope=scope)
    kept = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    for name, plan in arms.items():
        wanted = any_lm.logits(PROMPTS, plan, scope=scope)
        torch.testing.assert_close(sweep[name][kept], wanted[kept], rtol=0, atol=2e-5)


def test_receipts_of_packed_rows_count_cells_not_rows(lm: LM):
    arms = positions_by_blocks(lm)
    sweep = steer.sweep(lm, PROMPTS, arms, whole)
    for name, receipt in zip(sweep.names, sweep.receipts, strict=True):
        lacks = name.endswith("-3")
        assert receipt[0].seen.tolist() == [5, 8, 2]
        assert receipt[0].edited.tolist() == [1, 1, 0 if lacks else 1]
        assert (receipt[0].relative_size[:2] > 0).all()


@pytest.mark.parametrize("budget", [150_000, 400_000])
def test_packs_respect_a_budget(lm: LM, budget: int):
    arms = positions_by_blocks(lm)
    small = steer.sweep(lm, PROMPTS, arms, whole, budget=budget)
    large = steer.sweep(lm, PROMPTS, arms, whole)
    assert small.cost().passes > large.cost().passes == 1
    assert small.cost().bytes <= budget
    torch.testing.assert_close(small.values, large.values, rtol=0, atol=2e-5)


def test_what_looks_beyond_its_token_is_not_packed(lm: LM):
    def mean_of_the_row(h: Tensor, _: steer.Step) -> Tensor:
        return h + h.mean(1, keepdim=True)

    arms = [
        [steer.Custom(Site(1), mean_of_the_row, scope=steer.ALL)],
        [steer.Add(Site(1), torch.ones(lm.d_model), scope=steer.at(-2))],
    ]
    sweep = steer.sweep(lm, PROMPTS[:2], arms, whole)
    assert sweep.cost().passes > 1
    for at, plan in enumerate(arms):
        single = torch.cat([lm.logits([row], plan) for row in PROMPTS[:2]])
        torch.testing.assert_close(sweep.values[at], single, rtol=0, atol=2e-5)
