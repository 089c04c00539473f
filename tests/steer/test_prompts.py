"""Prompts: every kind becomes the same rows of token ids; batches hold what they may."""

import pytest
import torch

from steer.prompts import in_batches, padded
from steer.sites import Site

TEXTS = ["one two three", "Monday and", "it was good for the cat"]


def test_every_kind_of_prompts_becomes_the_same_rows(lm):
    tokenizer = lm.tokenizer
    expected = [tokenizer(text)["input_ids"] for text in TEXTS]
    left = tokenizer(TEXTS, padding=True, return_tensors="pt", padding_side="left")
    right = tokenizer(TEXTS, padding=True, return_tensors="pt", padding_side="right")
    assert lm.rows(TEXTS) == expected
    assert lm.rows(tuple(TEXTS)) == expected
    assert lm.rows(expected) == expected
    assert lm.rows(left) == expected
    assert lm.rows(right) == expected
    assert lm.rows(tokenizer(TEXTS)) == expected


def test_strings_are_tokenised_exactly_as_the_tokenizer_does(lm):
    odd = ["", "  two  spaces ", "a\nb", "<|bos|>one"]
    assert lm.rows(odd[1:]) == [lm.tokenizer(text)["input_ids"] for text in odd[1:]]
    assert lm.rows(["<|bos|>one"])[0][0] == lm.tokenizer.bos_token_id


def test_messages_are_rendered_without_a_second_bos(lm):
    chat = [{"role": "user", "content": "it was"}, {"role": "assistant", "content": "good"}]
    text = lm.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert lm.rows([chat]) == [lm.tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_an_encoding_with_its_own_mask_keeps_real_tokens_only(lm):
    site = Site(1)
    left = lm.tokenizer(TEXTS, padding=True, return_tensors="pt", padding_side="left")
    torch.testing.assert_close(lm.capture(left, [site])[site], lm.capture(TEXTS, [site])[site])


@pytest.mark.parametrize("left", [True, False])
def test_padding_puts_tokens_on_one_side(left):
    ids, mask = padded([[1, 2, 3], [4]], 9, left=left)
    assert ids.tolist() == ([[1, 2, 3], [9, 9, 4]] if left else [[1, 2, 3], [4, 9, 9]])
    assert mask.int().tolist() == ([[1, 1, 1], [0, 0, 1]] if left else [[1, 1, 1], [1, 0, 0]])


def test_batches_hold_every_row_once_sorted_by_length_within_their_limit():
    rows = [[0] * n for n in (5, 1, 9, 3, 3, 7, 2)]
    batches = in_batches(rows, 12)
    assert sorted(r for batch in batches for r in batch) == list(range(7))
    for batch in batches:
        longest = max(len(rows[r]) for r in batch)
        assert longest * len(batch) <= 12
    lengths = [len(rows[r]) for batch in batches for r in batch]
    assert lengths == sorted(lengths)
    assert in_batches([[0] * 50], 12) == [[0]]
