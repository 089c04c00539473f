"""The texts: every question once in every cell, read at its own `was`, and nowhere else."""

from collections import Counter

import pytest

from benchmarks.belief import data
from benchmarks.belief.data import Design, SentimentItems, texts_of
from benchmarks.errors import BenchmarkError
from tests.benchmarks.belief.words import SMALL, TINY

WORDS = data.NOUN_LIST.split()
FULL = SentimentItems(
    tuple(WORDS[:40]), tuple(WORDS[40:64]), tuple(WORDS[64:80]), ("good", "great"), ("bad", "poor")
)
DESIGNS = pytest.mark.parametrize(
    ("items", "design"),
    [
        (FULL, Design()),
        (TINY, SMALL),
        (FULL, Design(many=(24, 32, 48, 64), groups=10, width=2)),
    ],
)


@DESIGNS
def test_every_question_is_asked_once_in_every_cell_of_each_concept(items, design):
    asked = Counter(
        (text.concept, design.cell_of(n), question)
        for texts in texts_of(items, design, seed=0)
        for text in texts
        for n, question in zip(text.evidence, text.questions, strict=True)
    )
    assert set(asked.values()) == {1}
    assert len(asked) == 2 * len(design.evidence) * design.n_questions


@DESIGNS
def test_a_question_noun_stands_once_in_a_text_and_never_as_evidence_elsewhere(items, design):
    for texts in texts_of(items, design, seed=1):
        for text in texts:
            nouns = [noun for noun, _ in text.items]
            at = [place for place, noun in enumerate(nouns) if noun in items.questions]
            assert at == list(text.evidence)
            assert [nouns[place] for place in at] == [items.questions[q] for q in text.questions]
            assert len(set(text.questions)) == len(text.questions)


@DESIGNS
def test_the_two_concepts_differ_in_their_adjectives_only(items, design):
    for texts in texts_of(items, design, seed=2):
        for positive, negative in zip(texts[::2], texts[1::2], strict=True):
            assert (positive.concept, negative.concept) == (1, -1)
            assert positive.questions == negative.questions
            assert [n for n, _ in positive.items] == [n for n, _ in negative.items]
            assert {a for _, a in positive.items} <= set(items.positive)
            assert {a for _, a in negative.items} <= set(items.negative)


def test_a_text_is_read_before_each_adjective_that_answers_a_question(lm):
    text = texts_of(TINY, SMALL, seed=0)[0][0]
    row, places = data.row_of(lm, text)
    assert row[0] == lm.tokenizer.bos_token_id
    for place, n, question in zip(places, text.evidence, text.questions, strict=True):
        said = lm.tokenizer.decode(row[1 : place + 1])
        assert said.endswith(data.question(TINY.questions[question]))
        assert said.count(" was") == n + 1
        assert said[:-1].count(".") == n
    assert places[-1] == len(row) - 1


def test_equal_seeds_tell_equal_texts_and_others_tell_others():
    assert texts_of(TINY, SMALL, seed=3) == texts_of(TINY, SMALL, seed=3)
    assert texts_of(TINY, SMALL, seed=3) != texts_of(TINY, SMALL, seed=4)


def test_windows_that_overlap_are_refused():
    with pytest.raises(BenchmarkError, match="a statement would be read twice"):
        Design(many=(24, 27))


def test_a_text_with_more_readings_than_questions_is_refused():
    with pytest.raises(BenchmarkError, match="needs 8 groups"):
        Design(groups=6)


def test_too_few_questions_are_refused():
    with pytest.raises(BenchmarkError, match="asks 40 questions but there are 12"):
        texts_of(TINY, Design(), seed=0)


def test_a_tokenizer_that_splits_the_words_is_refused(lm):
    with pytest.raises(BenchmarkError, match="are single tokens of this model"):
        data.choose_items(lm, seed=0)
