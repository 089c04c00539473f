"""Which token stands for which: pairs of prompts of equal and of unequal length."""

import pytest
import torch

from steer.errors import PlanError
from steer.patching import aligned


def said(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def test_tokens_of_equal_prompts_stand_for_each_other_and_padding_for_nothing():
    pairs = aligned([[1, 2, 3], [4, 5]], [[1, 9, 3], [4, 6]], said)
    assert pairs.places.tolist() == [[0, 1, 2], [0, 1, -1]]
    assert pairs.mask.tolist() == [[True, True, True], [True, True, False]]


def test_pairs_of_unequal_length_are_refused_saying_where_they_part():
    with pytest.raises(PlanError, match=r"pair 1 .* part at position 2, around '5 6 7 8' and '5 6"):
        aligned([[1, 2], [5, 6, 7, 8]], [[3, 4], [5, 6, 8]], said)


def test_shared_ends_are_paired_and_the_part_between_is_not():
    # Shorter and longer than the other one, and with a repeated token at the seam.
    pairs = aligned([[1, 2, 7, 5, 6], [1, 8, 9, 5]], [[1, 2, 8, 9, 5, 6], [1, 5]], said, "ends")
    assert pairs.places.tolist() == [[0, 1, -1, 4, 5], [0, -1, -1, 1, -1]]
    seam = aligned([[1, 3, 3, 2]], [[1, 3, 2]], said, "ends")
    assert seam.places.tolist() == [[0, 1, -1, 2]]


def test_pairs_of_equal_length_are_paired_whole_at_their_ends_too():
    assert aligned([[1, 2, 3]], [[4, 5, 6]], said, "ends").places.tolist() == [[0, 1, 2]]


def test_pairs_that_share_nothing_cannot_be_aligned():
    with pytest.raises(PlanError, match="part at position 0"):
        aligned([[1, 2, 3]], [[4, 5]], said, "ends")
    with pytest.raises(PlanError, match="1 prompts to take values from and 2"):
        aligned([[1], [2]], [[1]], said)


def test_every_pairing_of_ends_pairs_equal_tokens_in_order(gen: torch.Generator):
    for _ in range(50):
        n, m = torch.randint(1, 8, (2,), generator=gen).tolist()
        a = torch.randint(3, (n,), generator=gen).tolist()
        b = torch.randint(3, (m,), generator=gen).tolist()
        try:
            places = aligned([a], [b], said, "ends").places[0]
        except PlanError:
            assert a[0] != b[0]
            assert a[-1] != b[-1]
            continue
        used = places[places >= 0]
        assert bool((used.diff() > 0).all())
        if n != m:
            assert all(a[i] == b[int(p)] for i, p in enumerate(places) if p >= 0)
