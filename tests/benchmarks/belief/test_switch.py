"""The switch benchmark on planted observers, and on a model that knows nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import steer
from benchmarks.belief import switch
from benchmarks.belief.switch import CONTROLS, outcome_of, run_switch
from benchmarks.belief.switches import measure, texts
from benchmarks.belief.switches.draw import draw_switch
from benchmarks.belief.switches.law import (
    ALPHAS,
    HAZARDS,
    KEEPS,
    PREDICTORS,
    Fit,
    as_count,
    counts_of,
    fit_law,
    rates_of,
)
from benchmarks.belief.switches.measure import first_crossing
from benchmarks.belief.switches.texts import Design, Readings, Words, arms_of, read_switches
from benchmarks.errors import BenchmarkError
from benchmarks.result import Result
from benchmarks.task import Options
from steer.odds.observers import BetaBernoulli, Exact

TINY = Words(
    nouns=(
        *("January", "February", "March", "April", "May", "June", "July", "August"),
        *("Monday", "Tuesday", "Wednesday", "elephants"),
    ),
    positive=("good", "marvellous", "great", "one", "two"),
    negative=("bad", "terrible", "three", "four"),
)
SMALL = Design(words=TINY, switches={2: 4, 4: 6}, n_adjectives=4)
PLANTED = Design(switches={4: 8, 8: 12, 16: 20})
ALPHA = torch.tensor([[float(ALPHAS[9]), float(ALPHAS[11])]]).double()
LAW = torch.tensor([[-0.8, 1.3, 2.0]]).double()


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(measure, "N_RESAMPLES", 60)


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


def planted(name: str, rate: int, *, noise: float = 0.3, n: int = 8, seed: int = 0) -> Readings:
    """Return readings of a model that is one of the predictors, with noise of known size."""
    arms = arms_of(PLANTED)
    chance = np.random.default_rng(seed)
    events = texts._events(arms, PLANTED, n, chance)
    counts = counts_of(name, events.flatten(0, 1))
    truth = Fit(torch.tensor([rate]), ALPHA, LAW).predict(counts)[0].unflatten(0, (len(arms), n))
    ends = torch.tensor([arm.before + arm.after for arm in arms])[:, None, None]
    within = torch.arange(truth.shape[-1]) <= ends
    heard = truth + noise * torch.tensor(chance.normal(size=truth.shape))
    return Readings(arms, events, torch.where(within, heard, torch.nan))


def known(value: float | None) -> float:
    assert value is not None
    return value


# -- predictors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [True, False])
def test_an_observer_without_change_is_as_sure_as_the_count_of_like_items(positive):
    events = torch.full((1, 12), positive)
    n = torch.arange(13).double()
    assert torch.allclose(as_count(Exact(BetaBernoulli()).observe(events).log_odds())[0].abs(), n)
    for name in ("exact", "law"):
        both = counts_of(name, events)[:, 0, 0]
        assert torch.allclose(both[1 - int(positive)], n, atol=1e-9)
        assert torch.allclose(both[int(positive)], 0 * n, atol=1e-9)


def test_rates_without_effect_make_every_observer_the_exact_one():
    events = torch.tensor([[True, True, False, True, False, False]])
    exact = counts_of("exact", events)[:, 0]
    nearly = counts_of("change_point", events)[:, 0]
    assert float(HAZARDS[0]) == pytest.approx(1e-4)
    assert torch.allclose(exact, nearly, atol=2e-3)
    remembers = counts_of("forgetting", events)[:, -1]
    assert float(KEEPS[-1]) > 0.99
    assert torch.allclose(exact, remembers, atol=0.1)


def test_the_fit_is_the_best_of_ordinary_least_squares_over_the_grid():
    chance = np.random.default_rng(1)
    counts = torch.tensor(chance.integers(0, 9, (2, 3, 14))).double()
    y = torch.tensor(chance.normal(size=(2, 14)))
    found = fit_law(counts, y)
    for s in range(2):
        best = (np.inf, 0, 0.0, 0.0, np.zeros(3))
        for rate in range(3):
            for first in ALPHAS.tolist():
                for second in ALPHAS.tolist():
                    p, q = counts[:, rate].numpy()
                    columns = [np.ones(14), p ** (1 - first), -(q ** (1 - second))]
                    design = np.stack(columns, 1)
                    c, *_ = np.linalg.lstsq(design, y[s].numpy(), rcond=None)
                    loss = ((design @ c - y[s].numpy()) ** 2).sum()
                    if loss < best[0]:
                        best = (loss, rate, first, second, c)
        assert int(found.rate[s]) == best[1]
        assert found.alpha[s].tolist() == pytest.approx(best[2:4])
        assert found.coefficients[s].tolist() == pytest.approx(best[4].tolist(), abs=1e-8)


@pytest.mark.parametrize(("name", "rate"), [("exact", 0), ("forgetting", 8), ("change_point", 10)])
def test_a_planted_law_is_fitted_exactly_from_texts_without_noise(name, rate):
    sample = measure.sample_of(planted(name, rate, noise=0.0), 0)
    arms = measure.of_kind(sample.readings.arms, "switch")
    there = sample.readings.log_odds[arms, 0].isfinite()
    counts = counts_of(name, sample.sequences)
    seen = counts[:, :, sample.sequence[arms, 0]][:, :, there]
    found = fit_law(seen, sample.curves()[:1, arms][:, there])
    assert int(found.rate[0]) == rate
    assert torch.allclose(found.alpha, ALPHA)
    assert torch.allclose(found.coefficients, LAW, atol=1e-8)


# -- lags ----------------------------------------------------------------------------------------


def test_crossings_lie_on_the_line_between_readings():
    curves = torch.tensor(
        [
            [-2.0, -1.0, 1.0, -3.0, 5.0],
            [-3.0, 1.0, 2.0, 2.0, 2.0],
            [-1.0, -1.0, 0.0, -1.0, torch.nan],
            [-1.0, -2.0, -3.0, torch.nan, torch.nan],
            [0.5, -1.0, 1.0, 1.0, 1.0],
        ]
    )
    found = first_crossing(curves)
    assert found[:4].tolist() == [1.5, 0.75, 2.0, torch.inf]
    assert torch.isnan(found[4])


def test_the_lag_of_an_exact_observer_is_the_number_of_items_before():
    even = torch.tensor([[0.0, 1.0, 1.0]]).double()
    readings = planted("exact", 0, noise=0.0)
    counts = counts_of("exact", readings.events.flatten(0, 1))
    same = torch.full((1, 2), float(ALPHAS[9])).double()
    y = Fit(torch.tensor([0]), same, even).predict(counts)[0].unflatten(0, (-1, 8))
    y = torch.where(readings.log_odds.isfinite(), y, torch.nan)
    outcome = outcome_of(replace(readings, log_odds=y), PLANTED, 0)
    for before in PLANTED.switches:
        assert outcome.numbers[f"lag_{before}"].value == pytest.approx(before, abs=1e-6)


def test_a_belief_that_never_turns_has_no_lag_and_one_that_turns_with_no_end_no_interval():
    stays = planted("exact", 0, noise=0.0)
    flat = torch.where(stays.log_odds.isfinite(), -1.0, torch.nan)
    outcome = outcome_of(replace(stays, log_odds=flat.double()), PLANTED, 0)
    # Against the negative concept the belief never was on the side of the positive one.
    assert outcome.numbers["lag_4_to_positive"].value is None
    assert outcome.numbers["lag_4_to_negative"].value is None
    assert outcome.numbers["lag_4"].value is None


# -- who wins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rate"), [("exact", 0), ("forgetting", 8), ("law", 0)])
def test_a_planted_predictor_wins_and_errs_hardly_more_than_the_noise(name, rate):
    outcome = outcome_of(planted(name, rate), PLANTED, 0)
    assert outcome.tables["winner"] == name
    own, floor = (known(outcome.numbers[n].value) for n in (f"error_{name}", "error_floor"))
    # The mean of a normal's absolute value is .798 of its standard deviation.
    assert floor == pytest.approx(0.3 * 0.798 * np.sqrt(1 + 1 / 7), rel=0.1)
    assert own < 2 * floor
    if name != "law":
        assert known(outcome.numbers[f"wins_{name}"].value) > 0.9
    tuned = outcome.numbers[f"error_{name}_tuned"].value
    assert tuned == pytest.approx(floor, rel=0.15)


def test_a_planted_change_point_wins_once_its_hazard_was_seen_at_work():
    # Before a switch nothing tells how fast the observer would follow one, or hardly.
    outcome = outcome_of(planted("change_point", 10), PLANTED, 0)
    assert outcome.tables["winner_tuned"] == "change_point"


def test_controls_of_a_planted_observer_do_not_turn():
    outcome = outcome_of(planted("forgetting", 8), PLANTED, 0)
    assert set(outcome.controls) == set(CONTROLS)
    shift = outcome.numbers["switch_shift"]
    assert shift.lo is not None
    assert shift.lo > 2.0
    for control in ("no_switch_shift", "other_words_shift"):
        high = outcome.controls[control].hi
        assert high is not None
        assert high < 0.2
    shuffled = outcome.controls["shuffled_shift"]
    assert shuffled.lo is not None
    assert shuffled.hi is not None
    assert shuffled.lo < 0.5 * float(shift.value or 0)


# -- texts ---------------------------------------------------------------------------------------


def test_texts_are_read_at_was_and_no_noun_comes_twice(lm, monkeypatch):
    seen: list[tuple[list[list[int]], list[int]]] = []
    real = texts._log_odds

    def spy(lm, rows, positions, positive, negative):
        seen.append((rows, positions))
        return real(lm, rows, positions, positive, negative)

    monkeypatch.setattr(texts, "_log_odds", spy)
    read_switches(lm, SMALL, 4, 0)
    assert sum(len(rows) for rows, _ in seen) == len(arms_of(SMALL)) * 4
    for rows, positions in seen:
        for row in rows:
            assert row[0] == lm.tokenizer.bos_token_id
            assert row[1:] == lm.tokenizer(lm.tokenizer.decode(row[1:]))["input_ids"]
            assert {lm.tokenizer.decode([row[p]]) for p in positions} == {" was"}
            assert positions[-1] == len(row) - 1
            nouns = [row[p - 1] for p in positions]
            assert len(set(nouns)) == len(nouns)


def test_readings_are_those_of_texts_cut_off_there(lm, monkeypatch):
    readings = read_switches(lm, SMALL, 4, 0)
    layout = texts._Layout.of(lm)
    _, positive, negative = texts._one_token(lm, SMALL)
    arm, context = 3, 2  # 4 items before, the last concept positive
    assert readings.arms[arm].before == 4
    rows: list[list[int]] = []
    original = texts._log_odds

    def keep(lm, given, positions, p, n):
        rows.extend(given if len(positions) == 11 else [])
        return original(lm, given, positions, p, n)

    monkeypatch.setattr(texts, "_log_odds", keep)
    read_switches(lm, SMALL, 4, 0)
    row = rows[(arm - 2) * 4 + context]
    for reading, position in enumerate(layout.positions(11)):
        logits = lm.logits([row[: position + 1]])[0].double()
        odds = logits[positive].exp().sum().log() - logits[negative].exp().sum().log()
        assert float(readings.log_odds[arm, context, reading]) == pytest.approx(
            float(odds), abs=1e-5
        )


def test_texts_of_one_context_share_what_comes_before_the_switch(lm):
    readings = read_switches(lm, SMALL, 4, 0)
    early, late = readings.log_odds[0], readings.log_odds[2]
    assert readings.arms[0].before == 2
    assert torch.allclose(early[:, :3], late[:, :3], atol=1e-5)
    assert (early[:, 3:7] - late[:, 3:7]).abs().min() > 1e-4
    assert torch.isnan(early[:, 7:]).all()


def test_shuffled_texts_hold_the_same_items_and_other_words_other_words():
    arms = arms_of(PLANTED)
    chance = np.random.default_rng(0)
    events = texts._events(arms, PLANTED, 6, chance)
    assert (events[-1].sum(-1) == 16).all()
    assert len(events[-1].unique(dim=0)) == 6
    which = texts._adjectives(arms, PLANTED, 6, chance)
    kinds = [arm.kind for arm in arms]
    other = which[kinds.index("other_words")]
    assert set(other[:, :16].flatten().tolist()) <= {0, 1, 2, 3}
    assert set(other[:, 16:].flatten().tolist()) <= {4, 5, 6, 7}
    assert (which[0] == which[kinds.index("no_switch")]).all()
    same = events[kinds.index("no_switch")]
    assert same.all()


def test_a_tokenizer_that_splits_the_words_is_refused(lm):
    with pytest.raises(BenchmarkError, match=r"Of 12 nouns .* 11 are one token .* 13 are"):
        read_switches(lm, replace(SMALL, switches={4: 8}), 4, 0)


def test_too_few_contexts_are_refused(lm):
    with pytest.raises(BenchmarkError, match="--limit 3 leaves 3 contexts"):
        run_switch(lm, Options(limit=3), SMALL)


# -- the whole -----------------------------------------------------------------------------------


def test_a_run_on_a_model_is_repeatable_and_can_be_written_and_drawn(lm, tmp_path):
    outcome = run_switch(lm, Options(limit=4), SMALL)
    again = run_switch(lm, Options(limit=4), SMALL)
    assert outcome.numbers == again.numbers
    assert outcome.controls == again.controls
    expected = {f"error_{name}{end}" for name in PREDICTORS for end in ("", "_tuned")}
    assert expected | {"lag_2", "lag_4", "overshoot_2", "switch_shift"} <= set(outcome.numbers)
    result = Result(
        "belief_switch", "tiny-llama", outcome.numbers, outcome.controls, {}, outcome.tables
    )
    json.dumps(result.to_json(), allow_nan=False)
    (file,) = draw_switch(result, tmp_path / "out.json")
    assert file.name == "out_courses.png"
    assert file.stat().st_size > 10_000


def test_every_predictor_has_its_rates_and_a_style():
    from benchmarks.belief.switches.draw import STYLES

    assert set(STYLES) == set(PREDICTORS)
    assert [len(rates_of(name)) for name in PREDICTORS] == [1, 16, 16, 1]


@pytest.mark.real
def test_a_model_turns_with_the_evidence_and_not_without():
    lm = steer.load("smollm2-135m")
    outcome = switch.measure_switch(lm, Options(seed=0, limit=4))
    shift = outcome.numbers["switch_shift"]
    assert shift.lo is not None
    assert shift.lo > 0
    for control in ("no_switch_shift", "other_words_shift", "shuffled_shift"):
        high = outcome.controls[control].hi
        assert high is not None
        assert high < shift.lo
