"""One pass per text equals a pass of its own for every question and every strength."""

import numpy as np
import pytest
import torch

import steer
from benchmarks.belief import collect as collecting
from benchmarks.belief.collect import collect, fit_direction, odds_of, random_like, site_of
from benchmarks.belief.data import question, row_of, statement, texts_of, with_bos
from benchmarks.peers.bare import bare_twin
from tests.benchmarks.belief.words import SMALL, TINY

STRENGTHS = (-1.0, 0.0, 0.5)
TOLERANCE = 1e-4
"""fp32, another order of summation."""


@pytest.fixture(scope="module")
def measured(tiny):
    lm = tiny("tiny-llama")
    site = site_of(lm)
    direction = fit_direction(lm, TINY, site, seed=0)
    texts = texts_of(TINY, SMALL, seed=0)[0][:4]
    return lm, site, direction, texts, collect(lm, TINY, texts, SMALL, site, direction, STRENGTHS)


def test_a_reading_equals_a_prompt_of_its_own_that_ends_there(measured):
    lm, site, direction, texts, readings = measured
    good, bad = (
        [lm.tokenizer(f" {w}")["input_ids"][0] for w in s] for s in (TINY.positive, TINY.negative)
    )
    at = 0
    for text in texts:
        row, places = row_of(lm, text)
        for place in places:
            for arm, m in enumerate(STRENGTHS):
                plan = [steer.Add(site, direction, m)]
                logits = lm.logits([row[: place + 1]], plan).reshape(-1).double()
                p = logits.softmax(-1)
                expected = float((p[good].sum() / p[bad].sum()).log())
                assert readings.values[arm, at] == pytest.approx(expected, abs=TOLERANCE)
            at += 1
    assert at == readings.values.shape[1]


def test_readings_know_their_evidence_question_and_concept(measured):
    *_, texts, readings = measured
    assert readings.evidence.tolist() == [n for text in texts for n in text.evidence]
    assert readings.question.tolist() == [q for text in texts for q in text.questions]
    assert readings.concept.tolist() == [t.concept for t in texts for _ in t.evidence]
    assert readings.order.tolist() == [t.order for t in texts for _ in t.evidence]


def test_the_direction_is_the_difference_of_means_at_the_last_token(lm):
    site = site_of(lm)
    found = fit_direction(lm, TINY, site, seed=5)
    # A model of its own: reading hidden states leaves hooks of transformers in it.
    twin = bare_twin(lm.model)
    rng = np.random.default_rng(5)
    n = min(collecting.N_SHOWN, len(TINY.fit))
    drawn = [rng.permutation(len(TINY.fit))[:n] for _ in TINY.fit]
    means = []
    for concept in (1, -1):
        words = rng.choice(TINY.adjectives(concept), (len(drawn), n))
        last = []
        for at, said in zip(drawn, words, strict=True):
            text = " ".join(statement((TINY.fit[i], w)) for i, w in zip(at, said, strict=True))
            ids = torch.tensor([with_bos(lm, text)])
            with torch.no_grad():
                hidden = twin(ids, output_hidden_states=True).hidden_states
            last.append(hidden[(site.layer or 0) + 1][0, -1])
        means.append(torch.stack(last).mean(0))
    assert torch.allclose(found, means[0] - means[1], atol=1e-5)


def test_a_random_direction_has_the_norm_of_the_direction_and_nothing_else_of_it():
    direction = torch.linspace(-3, 5, 4096)
    other = random_like(direction, seed=1)
    assert float(other.norm()) == pytest.approx(float(direction.norm()), rel=1e-6)
    # 4096 random entries: a cosine beyond 0.08 would be five standard deviations.
    assert abs(float(torch.cosine_similarity(direction, other, dim=0))) < 0.08


def test_unrelated_sentences_are_read_at_the_question(lm):
    found = collecting.neutral_shift(lm, TINY, (0, 2), seed=0)
    odds = odds_of(lm, TINY)
    alone = [with_bos(lm, question(noun)) for noun in TINY.questions]
    expected = torch.cat([odds.scores(lm.logits([row])).reshape(-1) for row in alone])
    assert found.shape == (2, len(TINY.questions))
    assert np.allclose(found[0], expected.numpy(), atol=TOLERANCE)
