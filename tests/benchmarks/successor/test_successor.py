"""Successor heads: prompts, steps, and a planted head that increments."""

import itertools

import torch

from benchmarks.successor.measure import _score, _top  # pyright: ignore[reportPrivateUsage]
from benchmarks.successor.words import FAMILIES, Family, runs
from steer import LM


def week() -> Family:
    return Family(
        "days", FAMILIES["days"], (310, 311, 312, 313, 314, 315, 316), (1, 2, 3, 4, 5, 6, 7)
    )


def test_days_go_round_and_numbers_do_not():
    assert (6, 0) in week().steps
    assert len(week().steps) == 7
    short = Family("numbers", ("one", "two", "four"), (1, 2, 3), (1, 2, 4))
    assert short.steps == [(0, 1)]


def test_runs_are_consecutive_and_end_differently(lm: LM):
    some = runs(lm, week(), 12)
    ids = week().ids
    for clean, corrupted, right, wrong in zip(
        some.clean, some.corrupted, some.right, some.wrong, strict=True
    ):
        assert len(clean) == len(corrupted)
        told = [k for k in clean if k in ids]
        assert [(b - a) % 7 for a, b in itertools.pairwise(told)] == [1, 1, 1]
        assert (right - told[-1]) % 7 == 1
        assert right != wrong
    assert len(some.clean) == 7


def test_a_head_that_says_the_next_word_scores_one():
    n = 7
    following = torch.eye(n).roll(1, dims=1)
    logits = torch.stack([following, torch.eye(n)])
    assert _score(logits, week().steps).tolist() == [1.0, 0.0]
    assert _top(torch.tensor([0.0, -3.0, 1.0] + [0.0] * 20)) >= {1, 2}
