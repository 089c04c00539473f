"""Tokens: positions counted in the row's own tokens, against plain loops."""

import pytest
import torch

import steer
from steer.tokens import Prompt, Tokens, find_text


def counted(mask: list[int], new: int) -> list[int]:
    """Return the position of each column of one row by counting; -1 for padding."""
    found, n = [], 0
    for real in [*mask, *[1] * new]:
        found.append(n if real else -1)
        n += real
    return found


MASKS = [
    [1, 1, 1, 1, 1, 1],
    [0, 0, 1, 1, 1, 1],
    [0, 0, 0, 0, 0, 1],
    [1, 1, 1, 0, 0, 0],
    [0, 1, 1, 1, 0, 0],
    [1, 0, 1, 1, 0, 1],
]


def test_positions_count_real_tokens_and_go_on_after_the_prompt():
    prompt = Prompt(torch.tensor(MASKS, dtype=torch.bool))
    expected = torch.tensor([counted(mask, 4) for mask in MASKS])
    assert torch.equal(prompt.positions(0, 10), expected)
    for start in range(10):
        for n in range(1, 11 - start):
            assert torch.equal(prompt.positions(start, n), expected[:, start : start + n])
    assert prompt.lengths.tolist() == [sum(mask) for mask in MASKS]


def test_a_repeated_prompt_keeps_its_rows_together():
    ids = torch.arange(12).reshape(2, 6)
    prompt = Prompt(torch.tensor(MASKS[:2], dtype=torch.bool), ids)
    twice = prompt.repeat(2)
    assert twice.lengths.tolist() == [6, 6, 4, 4]
    assert twice.ids is not None
    assert torch.equal(twice.ids, ids[[0, 0, 1, 1]])
    assert torch.equal(twice.positions(0, 8), prompt.positions(0, 8)[[0, 0, 1, 1]])


def test_declared_lengths_split_the_columns_into_prompt_and_continuation():
    prompt = Prompt(torch.ones(2, 6, dtype=torch.bool), declared=torch.tensor([2, 5]))
    assert prompt.lengths.tolist() == [2, 5]
    assert prompt.repeat(2).lengths.tolist() == [2, 2, 5, 5]


def test_the_phase_is_generated_when_no_token_of_the_prompt_is_in_the_pass():
    prompt = Prompt(torch.tensor([[0, 1, 1], [1, 1, 1]], dtype=torch.bool))

    def phase(start: int, n: int) -> str:
        return Tokens(prompt.positions(start, n), torch.arange(2), prompt.lengths).phase

    assert [phase(0, 3), phase(2, 1), phase(2, 2), phase(3, 1)] == [
        "prompt",
        "prompt",
        "prompt",
        "generated",
    ]


def test_columns_restrict_positions_ids_and_freshness_alike():
    tokens = Tokens(
        torch.arange(6).reshape(1, 6),
        torch.arange(1),
        None,
        ids=torch.arange(6).reshape(1, 6) * 10,
        fresh=torch.tensor([[False, False, True, True, True, True]]),
    )
    few = tokens.columns(torch.tensor([1, 5]))
    assert few.positions.tolist() == [[1, 5]]
    assert few.ids is not None
    assert few.fresh is not None
    assert few.ids.tolist() == [[10, 50]]
    assert few.fresh.tolist() == [[False, True]]
    assert tokens.columns(slice(-1, None)).positions.tolist() == [[5]]


def test_what_is_looked_up_once_is_remembered():
    prompt = Prompt(torch.ones(1, 2, dtype=torch.bool))
    calls: list[int] = []
    for _ in range(3):
        assert prompt.memo("key", lambda: calls.append(1) or "found") == "found"
    assert calls == [1]


@pytest.mark.parametrize(
    ("needle", "nth", "expected"),
    [
        ("bc", 0, (0, 2)),
        ("bc", 1, (2, 4)),
        ("bc", -1, (2, 4)),
        ("abcd", 0, (0, 2)),
        ("d", 0, (1, 2)),
    ],
)
def test_text_is_found_in_the_decoded_tokens(needle, nth, expected):
    pieces = {1: "ab", 2: "cd", 3: "b", 4: "c"}
    prompt = Prompt(
        torch.tensor([[0, 1, 1, 1, 1]], dtype=torch.bool), torch.tensor([[9, 1, 2, 3, 4]])
    )

    def decode(ids: list[int]) -> str:
        return "".join(pieces[i] for i in ids)

    assert find_text(prompt, 0, needle, nth, decode) == expected


def test_text_that_is_absent_is_counted():
    prompt = Prompt(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1, 1]]))
    with pytest.raises(LookupError) as missing:
        find_text(prompt, 0, "a", 2, lambda ids: "a" * len(ids))
    assert missing.value.args == (2,)


def test_lengths_that_are_unknown_name_who_asks_for_them():
    tokens = Tokens(torch.zeros(1, 1, dtype=torch.long), torch.arange(1), None, why_unknown="why")
    with pytest.raises(steer.ScopeError, match=r"The scope LAST depends on.*and why\. Declare"):
        tokens.lengths("LAST")
