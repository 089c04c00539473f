import pytest

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.numbers.counting import TRAIN, ids_of, read
from benchmarks.numbers.measure import measure_helix
from benchmarks.task import Options


def test_a_tokenizer_that_does_not_write_digit_by_digit_or_a_model_that_cannot_count_is_refused(
    lm: steer.LM,
):
    with pytest.raises(BenchmarkError, match=r"two tokens|goes on counting"):
        measure_helix(lm, Options())


def test_too_few_numbers_are_refused(lm: steer.LM):
    with pytest.raises(BenchmarkError, match="take 40"):
        measure_helix(lm, Options(limit=20))


@pytest.mark.real
def test_a_prompt_ends_before_the_last_digit_of_its_number():
    lm = steer.load("smollm2-135m", device="cpu")
    found = read(lm, TRAIN[:1], (30, 47))
    text = [str(lm.tokenizer.decode(row)) for row in found.rows]
    assert text[0].endswith("27, 28, 29, 3")
    assert text[1].endswith("44, 45, 46, 4")
    assert found.digits.tolist() == [ids_of(lm, str(d))[0] for d in range(10)]
    assert bool(found.correct.all())
