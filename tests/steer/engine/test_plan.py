"""The planner against closed formulas and a count by hand."""

import torch
from torch import Tensor

from steer.engine.plan import Starts, chunks_of, parts_of


def corner(blocks: list[int], tokens: list[int]) -> Starts:
    """Return the starts of every block with every suffix."""
    block = torch.tensor(blocks).repeat_interleave(len(tokens))
    return Starts(block, torch.tensor(tokens).repeat(len(blocks)))


def closed_formula(n_layers: int, n_tokens: int, first: int) -> int:
    """Return the sum over blocks l and positions p >= first of (n_layers - l) * (n_tokens - p)."""
    climbs = n_layers * (n_layers + 1) // 2
    width = n_tokens - first
    return climbs * (width * (width + 1) // 2)


def test_a_map_of_every_block_and_live_position_costs_the_closed_formula():
    starts = corner(list(range(30)), [5, 4, 3, 2, 1])  # positions 9 to 13 of 14
    assert closed_formula(30, 14, 9) == 6975
    assert starts.minimum(30) == 6975
    chunks = chunks_of(starts, 30, lambda _: 1000)
    assert sum(chunk.token_blocks(30, 1) for chunk in chunks) == 6975


def test_a_path_at_one_block_costs_rows_times_blocks_above_and_one_token_below():
    starts = Starts(torch.full((256,), 27), torch.ones(256, dtype=torch.long))
    assert starts.minimum(30) == 256 * 3
    (chunk,) = chunks_of(starts, 30, lambda _: 1000)
    assert chunk.token_blocks(30, 1) == 256 * 3 + 27
    assert chunk.begun == (0,) * 27 + (256,) * 4


def test_every_live_cell_runs_once_and_no_dead_one(gen: torch.Generator):
    block = torch.randint(0, 13, (200,), generator=gen)
    tokens = torch.randint(0, 6, (200,), generator=gen)
    chunks = chunks_of(Starts(block, tokens), 12, lambda n: 40 // n)
    ran = torch.cat([chunk.cells for chunk in chunks])
    assert sorted(ran.tolist()) == (tokens > 0).nonzero()[:, 0].tolist()
    for chunk in chunks:
        assert (tokens[chunk.cells] == chunk.tokens).all()
        assert len(chunk.cells) * chunk.tokens <= 40
        by_hand = [int((block[chunk.cells] <= b).sum()) for b in range(13)]
        assert list(chunk.begun) == by_hand
        assert _sorted(block[chunk.cells])


def test_where_no_row_has_begun_the_idle_tokens_are_counted():
    starts = Starts(torch.tensor([10, 11]), torch.tensor([4, 4]))
    (chunk,) = chunks_of(starts, 12, lambda _: 8)
    assert chunk.token_blocks(12, 1) == 10 * 1 + 1 * 4 + 1 * 8
    assert chunk.token_blocks(12, 4) == 10 * 4 + 1 * 4 + 1 * 8
    assert chunk.token_blocks(11, 1) == 10 * 1 + 4  # measured before the last block


def test_prompts_are_parted_by_length_and_none_is_lost():
    lengths = [5, 40, 6, 39, 5, 7]
    parts = parts_of(lengths, 80)
    assert sorted(at for part in parts for at in part) == list(range(6))
    for part in parts:
        assert len(part) * max(lengths[at] for at in part) <= 80
    assert parts_of([100], 10) == [[0]]


def _sorted(values: Tensor) -> bool:
    return bool((values[1:] >= values[:-1]).all())
