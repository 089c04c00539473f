"""The Gaussian task on planted observers, and on a model that knows nothing."""

import numpy as np
import pytest
import torch
from scipy.stats import norm, t

import steer
from benchmarks.belief import gaussian
from benchmarks.belief.digits import DigitReadings, GaussianDesign, draw_digits, read_digits
from benchmarks.belief.gaussian import (
    CONTROLS,
    KEEPS,
    PRIOR,
    binned,
    lag,
    measure_gaussian,
    outcome_of,
    predicted,
)
from benchmarks.errors import BenchmarkError
from benchmarks.task import Options
from steer.odds.observers import Exact

SMALL = GaussianDesign(means=((2, 7), (7, 2)), sigmas=(0.7,), before=24, after=24)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(gaussian, "N_RESAMPLES", 50)
    monkeypatch.setattr(gaussian, "N_PERMUTATIONS", 19)


def planted(digits, name, rate):
    """Return readings that are a predictor's own, with states whose distances are Hellinger's."""
    p = predicted(digits)[name][rate].clamp_min(1e-12)
    p = p / p.sum(-1, keepdim=True)
    return DigitReadings(digits, p, torch.ones(digits.shape).double(), p.sqrt())


def test_the_exact_predictive_is_student_t_of_the_closed_form_rounded_to_digits():
    x = np.array([3.0, 5.0, 4.0, 9.0, 0.0])
    n, mean = len(x), x.mean()
    kappa, shape = PRIOR.kappa + n, PRIOR.shape + n / 2
    centre = (PRIOR.kappa * PRIOR.mean + x.sum()) / kappa
    rate = PRIOR.rate + ((x - mean) ** 2).sum() / 2
    rate += PRIOR.kappa * n * (mean - PRIOR.mean) ** 2 / (2 * kappa)
    scale = (rate * (kappa + 1) / (shape * kappa)) ** 0.5
    law = t(2 * shape, centre, scale)
    expected = [law.cdf(0.5), *(law.cdf(d + 0.5) - law.cdf(d - 0.5) for d in range(1, 9))]
    expected.append(law.sf(8.5))
    found = binned(Exact(PRIOR).observe(x[None]))[0, -1]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_the_running_mean_baseline_is_the_normal_of_what_was_seen():
    x = np.array([2, 3, 5, 4, 7, 1])
    law = norm(x.mean(), x.std())
    expected = [law.cdf(d + 0.5) - law.cdf(d - 0.5) for d in range(1, 9)]
    found = predicted(torch.tensor(x)[None])["running_mean"][0, 0, -1]
    np.testing.assert_allclose(found[1:9].numpy(), expected, atol=1e-9)
    assert float(found[0]) == pytest.approx(law.cdf(0.5), abs=1e-9)


@pytest.mark.parametrize("rate", [4, 7])
def test_a_model_that_forgets_is_found_with_its_factor(rate):
    digits, shuffled = draw_digits(SMALL, 3, seed=1)
    truth, control = (planted(d, "forgetting", rate) for d in (digits, shuffled))
    outcome = outcome_of(truth, control, SMALL, seed=0)
    assert outcome.tables["nearest"] == "forgetting"
    assert outcome.numbers["keep"].value == pytest.approx(float(KEEPS[rate]))
    assert outcome.numbers["kl_forgetting"].value == pytest.approx(0, abs=1e-8)
    assert outcome.numbers["wins_forgetting"].value == 1
    # The states are the square roots of the distributions: the two distances are proportional.
    assert outcome.numbers["mantel_r"].value == pytest.approx(1, abs=1e-6)
    assert outcome.controls["shuffled_shift"].value == pytest.approx(0, abs=0.25)
    assert set(outcome.controls) == set(CONTROLS)


def test_a_model_for_which_nothing_changes_is_found_to_be_exact_and_slow():
    digits, shuffled = draw_digits(SMALL, 3, seed=2)
    truth, control = (planted(d, "exact", 0) for d in (digits, shuffled))
    outcome = outcome_of(truth, control, SMALL, seed=0)
    assert outcome.tables["nearest"] == "exact"
    # Half the way is gone when as many digits came after as before: at the text's end, if ever.
    assert outcome.numbers["lag"].value is None or outcome.numbers["lag"].value > 20


def test_a_planted_lag_is_read_off_the_mean():
    curve = torch.zeros(1, 48).double()
    # Reading 23 is the last before the switch; half the way lies midway between 5 and 6 after it.
    curve[0, 23 + 6 :] = 1.0
    assert lag(curve, SMALL).item() == pytest.approx(5.5)
    assert torch.isnan(lag(torch.full((1, 48), 0.6).double(), SMALL)).all()


def test_the_shuffled_text_holds_the_same_digits():
    digits, shuffled = draw_digits(SMALL, 2, seed=3)
    assert torch.equal(digits.sort(1).values, shuffled.sort(1).values)
    assert not torch.equal(digits, shuffled)


def test_digits_are_read_where_huggingface_predicts_them(lm):
    digits, _ = draw_digits(SMALL, 2, seed=4)
    found = read_digits(lm, digits)
    row = 1
    text = "".join(f"{digit}," for digit in digits[row].tolist())
    ids = lm.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    bos = lm.tokenizer.bos_token_id
    if bos is not None:
        ids = torch.cat([torch.tensor([[bos]]), ids], dim=1)
    with torch.no_grad():
        out = lm.model(input_ids=ids).logits[0].double().softmax(-1)
    tens = [lm.tokenizer(str(d), add_special_tokens=False)["input_ids"][0] for d in range(10)]
    at_commas = out[-2 * digits.shape[1] + 1 :: 2, tens]
    torch.testing.assert_close(found.mass[row], at_commas.sum(-1), atol=1e-5, rtol=0)
    expected = at_commas / at_commas.sum(-1, keepdim=True)
    torch.testing.assert_close(found.probabilities[row], expected, atol=1e-5, rtol=0)


def test_too_few_texts_are_refused_before_the_model_is_run():
    with pytest.raises(BenchmarkError, match="--limit 1 leaves 1 texts per condition"):
        measure_gaussian(steer.load("tiny-llama"), Options(limit=1))
