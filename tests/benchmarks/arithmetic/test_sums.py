"""Sums: the published prompts, what counts as an answer, and who is refused."""

from dataclasses import replace

import pytest
import torch

import steer
from benchmarks.arithmetic import experiment
from benchmarks.arithmetic.accuracy import Accuracy, accuracy_of, require_able, says
from benchmarks.arithmetic.experiment import run_sums
from benchmarks.arithmetic.sums import AGES, MONTH_SUMS, WEEKDAY_SUMS, Added
from benchmarks.errors import BenchmarkError
from benchmarks.rings import experiment as rings
from benchmarks.rings.reading import read, with_bos
from benchmarks.task import Options
from steer.models.tiny import tiny


def _asked(concepts):
    contexts = [one for one in (*concepts.train, *concepts.test) if isinstance(one, Added)]
    return [
        (context, z, text)
        for context in contexts
        for z in range(len(concepts))
        if (text := context.prompt(concepts, z)) is not None
    ]


def _taught(concepts):
    """Return tiny weights trained on every question until they answer it: a planted oracle."""
    model, tokenizer = tiny("tiny-llama")
    lm = steer.wrap(model, tokenizer)
    asked = _asked(concepts)
    rows = [with_bos(lm, text) for _, _, text in asked]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    answers = torch.tensor(
        [tokenizer(f" {concepts.concepts[z]}")["input_ids"][0] for _, z, _ in asked]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        logits = model(ids).logits[torch.arange(len(ids)), last]
        loss = torch.nn.functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.02:
            break
    return lm


def test_the_prompts_are_the_published_ones():
    assert WEEKDAY_SUMS.train[1].prompt(WEEKDAY_SUMS, 0) == (
        "Q: What day is three days after Friday?\nA:"
    )
    assert MONTH_SUMS.test[0].prompt(MONTH_SUMS, 1) == (
        "Q: What month is two months after December?\nA:"
    )
    assert AGES.train[0].prompt(AGES, 32) == (
        "Alice is 41 years old. Bob is 1 years older than Alice. Q: How old is Bob?\nA: Bob is "
    )


def test_there_are_as_many_questions_as_published_and_none_is_both_train_and_test():
    assert len(_asked(WEEKDAY_SUMS)) == 49
    assert len(_asked(MONTH_SUMS)) == 84
    # Entities 1 to 99 and numbers 1 to 10 with a sum of 10 to 100.
    expected = sum(10 <= age + n <= 100 for age in range(1, 100) for n in range(1, 11))
    assert len(_asked(AGES)) == expected
    for concepts in (WEEKDAY_SUMS, MONTH_SUMS, AGES):
        assert not set(concepts.train) & set(concepts.test)
        texts = [text for _, _, text in _asked(concepts)]
        assert len(set(texts)) == len(texts)


def test_every_answer_is_the_sum():
    for context, z, text in _asked(AGES):
        assert f"Alice is {z + 10 - context.number} years" in text
    days = WEEKDAY_SUMS.concepts
    for context, z, text in _asked(WEEKDAY_SUMS):
        start = next(i for i, day in enumerate(days) if f"after {day}?" in text)
        assert (start + context.number) % 7 == z


def test_an_answer_is_a_whole_word_at_the_beginning():
    spelt = WEEKDAY_SUMS.spellings(0)
    assert says(" Monday.", spelt)
    assert says("Mon, of course", spelt)
    assert not says(" Mondays", spelt)
    assert not says(" It is Monday", spelt)
    assert says("42 years", ("42",))
    assert not says("421", ("42",))


def test_chance_is_the_best_constant_answer_and_the_interval_must_clear_it():
    assert not Accuracy(9, 49, 1 / 7).above_chance
    assert Accuracy(20, 49, 1 / 7).above_chance
    number = Accuracy(20, 49, 1 / 7).number
    # Wilson's interval of 20 of 49, from its formula.
    p, n, z = 20 / 49, 49, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert number.lo == pytest.approx(middle - half, abs=1e-5)
    assert number.hi == pytest.approx(middle + half, abs=1e-5)
    with pytest.raises(BenchmarkError, match=r"9 of 49 .* weekdays correctly, .* 0.184 \["):
        require_able(Accuracy(9, 49, 1 / 7), WEEKDAY_SUMS)


def test_a_model_at_chance_is_refused_with_its_accuracy(lm):
    with pytest.raises(BenchmarkError, match=r"0 of 49 questions about weekdays .* chance"):
        run_sums(lm, WEEKDAY_SUMS, Options())


def test_a_model_that_can_add_goes_on_to_be_steered(lm, monkeypatch):
    def read_all(*given):
        one = read(*given)
        return replace(one, correct=one.correct | True)

    monkeypatch.setattr(rings, "read", read_all)
    monkeypatch.setattr(rings, "N_REFITS", 3)
    able = Accuracy(49, 49, 1 / 7)
    monkeypatch.setattr(experiment, "accuracy_of", lambda *_, **__: able)
    found = run_sums(lm, WEEKDAY_SUMS, Options(limit=2))
    assert found.numbers["accuracy"].value == 1
    assert found.controls["accuracy_constant"].value == pytest.approx(1 / 7)
    assert found.tables["answered"]["test"] == {"correct": 14, "of": 14}
    assert found.numbers["energy_chord_over_manifold"].value is not None


@pytest.mark.slow
def test_a_model_that_was_taught_the_sums_passes_and_is_steered_by_them():
    lm = _taught(WEEKDAY_SUMS)
    accuracy = accuracy_of(lm, WEEKDAY_SUMS, most=None, seed=0)
    assert accuracy.n_right >= 45
    found = run_sums(lm, WEEKDAY_SUMS, Options())
    assert found.tables["answered"]["known"] == list(WEEKDAY_SUMS.concepts)
    lo = found.controls["energy_random_length_over_manifold"].lo
    assert lo is not None
    # It learnt by heart, so the order need not show; a path through its answers must.
    assert lo > 1
