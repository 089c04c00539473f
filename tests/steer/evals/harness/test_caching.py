"""lm-eval's answer cache: its collision, reproduced with a plain class, and ours refused."""

import pickle
import sqlite3
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM

import steer
from steer.evals import Refused
from steer.evals.harness.caching import TABLE, cache_path
from steer.evals.harness.model import SteeredLM

pytestmark = pytest.mark.filterwarnings("ignore")


class Plain(LM):
    """A model of lm-eval's that answers with its own number: what stands in for a steered one."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def loglikelihood(self, requests):
        return [(self.number, False) for _ in requests]

    def loglikelihood_rolling(self, requests):
        return [self.number for _ in requests]

    def generate_until(self, requests):
        return [str(self.number) for _ in requests]


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


def asked() -> list[Instance]:
    return [Instance("loglikelihood", {}, ("the cat", " sat on"), 0)]


def answer(cached: CachingLM) -> float:
    ((value, _),) = cached.loglikelihood(asked())
    cached.dbdict.close()
    return value


def plan(lm, strength: float) -> list[steer.Add]:
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    return [steer.Add(steer.Site(2), v, strength)]


def test_a_plain_class_is_answered_from_the_cache_of_another_model(tmp_path):
    file = str(tmp_path / "c.db")
    assert answer(CachingLM(Plain(-1.0), file)) == -1.0
    assert answer(CachingLM(Plain(-2.0), file)) == -1.0  # lm-eval's collision


def test_another_plan_is_refused_and_the_same_one_is_answered(lm, tmp_path):
    file = str(tmp_path / "c.db")
    mine = SteeredLM(lm, plan(lm, 3.0))
    first = answer(CachingLM(mine, file))
    for other in (plan(lm, 2.0), "none"):
        with pytest.raises(Refused, match="answers of another run") as refusal:
            CachingLM(SteeredLM(lm, other), file)
        assert refusal.value.reason == "wrong_cache"
    with pytest.raises(Refused, match="settings"):
        CachingLM(SteeredLM(lm, plan(lm, 3.0), max_gen_toks=5), file)
    again = SteeredLM(lm, plan(lm, 3.0))
    again._loglikelihood_tokens = None  # type: ignore[assignment]  # nothing may be computed
    assert answer(CachingLM(again, file)) == first


def test_another_model_is_refused(lm, tmp_path):
    file = str(tmp_path / "c.db")
    answer(CachingLM(SteeredLM(lm, "none"), file))
    with pytest.raises(Refused, match="model:"):
        CachingLM(SteeredLM(steer.load("tiny-gpt2"), "none"), file)


def test_answers_without_a_stamp_are_refused_and_left_as_they_are(lm, tmp_path):
    file = tmp_path / "c.db"
    answer(CachingLM(Plain(-1.0), str(file)))
    with pytest.raises(Refused, match="1 answers without a stamp") as refusal:
        CachingLM(SteeredLM(lm, plan(lm, 3.0)), str(file))
    assert refusal.value.reason == "wrong_cache"
    with sqlite3.connect(file) as base:
        tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
    base.close()
    assert TABLE not in tables


def test_no_answer_is_unpickled_before_the_stamp_is_read(lm, tmp_path):
    file, told = tmp_path / "c.db", tmp_path / "told"

    class Evil:
        def __reduce__(self):
            return Path.touch, (told,)

    with sqlite3.connect(file) as base:
        base.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
        base.execute("INSERT INTO unnamed VALUES ('k', ?)", (pickle.dumps(Evil()),))
    base.close()
    with pytest.raises(Refused):
        CachingLM(SteeredLM(lm, plan(lm, 3.0)), str(file))
    assert not told.exists()


def test_paths_differ_by_plan_model_and_settings(lm, tmp_path):
    made = [
        SteeredLM(lm, plan(lm, 3.0)),
        SteeredLM(lm, plan(lm, 2.0)),
        SteeredLM(lm, "none"),
        SteeredLM(lm, "none", max_gen_toks=5),
        SteeredLM(steer.load("tiny-gpt2"), "none"),
    ]
    assert len({cache_path(tmp_path, model.identity) for model in made}) == len(made)
    again = SteeredLM(lm, plan(lm, 3.0), batch_size=3)
    assert cache_path(tmp_path, again.identity) == cache_path(tmp_path, made[0].identity)
