"""The indirect-object task: its pairs, and that everything is measured, on a tiny model."""

import pytest

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.ioi import measure
from benchmarks.ioi.draw import draw_ioi
from benchmarks.ioi.prompts import NAMES, TEMPLATES, Pairs, drawn
from benchmarks.result import Result
from steer import LM


class Words:
    """A tokenizer of whole words, beside a model's own."""

    def __init__(self, lm: LM) -> None:
        """Start with no word."""
        self.lm = lm
        self.known: dict[str, int] = {}
        self.provenance = lm.provenance
        self.tokenizer = self

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """Return a number for each word."""
        assert not add_special_tokens
        return {
            "input_ids": [self.known.setdefault(word, len(self.known)) for word in text.split()]
        }

    def rows(self, texts: list[str]) -> list[list[int]]:
        """Return the same of several texts."""
        return [self(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_pairs_differ_in_the_name_that_comes_again_and_parts_share_no_name(lm: LM):
    words = Words(lm)
    train, test = drawn(words, 8, 12, seed=0)  # type: ignore[arg-type]
    named = {words.known[name] for name in NAMES if name in words.known}
    seen = []
    for part in (train, test):
        for clean, corrupted, right, wrong in zip(
            part.clean, part.corrupted, part.right, part.wrong, strict=True
        ):
            differing = [
                k for k, both in enumerate(zip(clean, corrupted, strict=True)) if both[0] != both[1]
            ]
            assert len(differing) == 1
            assert (clean[differing[0]], corrupted[differing[0]]) == (wrong, right)
            assert clean.count(right) == 1
            assert clean.count(wrong) == 2
        seen.append({token for row in part.clean for token in row} & named)
    assert not seen[0] & seen[1]
    # Neither the first nor the second name is always the answer.
    firsts = [
        row.index(right) < row.index(wrong)
        for row, right, wrong in zip(train.clean, train.right, train.wrong, strict=True)
    ]
    assert 0 < sum(firsts) < len(firsts)
    assert len(TEMPLATES) > 1


def test_a_tokenizer_that_splits_names_is_refused(lm: LM):
    with pytest.raises(BenchmarkError, match="0 of 30 names"):
        drawn(lm, 2, 2, seed=0)


def test_every_number_is_there_and_the_maps_are_those_of_transformer_lens(lm: LM, tmp_path):
    def pairs(start: int) -> Pairs:
        clean = [[start, 6, 7, 8 + k, 9, 10] for k in range(4)]
        corrupted = [[start, 6, 20, 8 + k, 9, 10] for k in range(4)]
        return Pairs(clean, corrupted, [30] * 4, [40] * 4)

    outcome = measure.measured(lm, pairs(5), pairs(11), 0)
    assert set(outcome.controls) == set(measure.CONTROLS)
    assert (outcome.numbers["lens_max_abs_diff"].value or 1.0) < 1e-4
    assert outcome.numbers["circuit_heads"].value == 1
    result = Result("ioi", "tiny", outcome.numbers, outcome.controls, {}, outcome.tables)
    (picture,) = draw_ioi(result, tmp_path / "ioi.json")
    assert picture.stat().st_size > 10_000
    assert steer.Site.parse(outcome.tables["circuit"][0]).component == "z"
