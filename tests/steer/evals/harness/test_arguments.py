"""Model arguments: strings as lm-eval hands them over, and plan files against their digests."""

import pytest
import torch

import steer
from steer.evals import Refused
from steer.evals.harness.arguments import Arguments, of_mapping, of_string, plan_of
from steer.evals.manifest import plan_digest


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


def test_a_digest_that_looks_like_a_number_stays_text():
    found = of_string("model=m,plan=p.safetensors,digest=12345678901234", {"batch_size": 4})
    assert found == Arguments("m", "p.safetensors", digest="12345678901234", batch_size=4)
    assert of_string("model=a=b, plan=none,add_bos_token=True", {}).add_bos_token is True
    assert of_string("model=a,plan=none", {"batch_size": "auto:4"}).batch_size is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"model": "m", "plan": "p", "plam": 1}, "no model argument 'plam'.*Did you mean plan"),
        ({"model": "m"}, "name no plan"),
        ({"plan": "none"}, "name no model"),
        ({"model": "m", "plan": "p", "digest": 1.5e300}, "Put quotes"),
        ({"model": "m", "plan": "p", "batch_size": 0}, "batch_size is 0"),
        ({"model": "m", "plan": "p", "add_bos_token": "perhaps"}, "true or false"),
    ],
)
def test_what_is_not_understood_is_refused(said, told):
    with pytest.raises(Refused, match=told) as refusal:
        of_mapping(said, {})
    assert refusal.value.reason == "bad_request"


def test_a_string_that_is_no_pair_or_says_a_name_twice_is_refused():
    for text in ("model=m,plan", "model=m,plan=a,plan=none"):
        with pytest.raises(Refused, match="once for each name"):
            of_string(text, {})


def test_a_plan_comes_back_from_its_file_and_a_short_or_wrong_digest_does_not(lm, tmp_path):
    plan = [steer.Add(steer.Site(1), torch.ones(lm.d_model), 2.0, scope=steer.OUTPUT)]
    file = str(steer.save(plan, tmp_path / "p.safetensors"))
    (item,) = plan_of(Arguments("tiny-llama", file, digest=plan_digest(plan)), lm)
    assert plan_digest([item]) == plan_digest(plan)
    assert plan_of(Arguments("tiny-llama", "none"), lm) == ()
    with pytest.raises(Refused, match="shorter than 12"):
        plan_of(Arguments("tiny-llama", file, digest=plan_digest(plan)[:8]), lm)
    with pytest.raises(Refused) as refusal:
        plan_of(Arguments("tiny-llama", file, digest="f" * 64), lm)
    assert refusal.value.reason == "wrong_plan"
    with pytest.raises(Refused) as refusal:
        plan_of(Arguments("tiny-llama", str(tmp_path / "none.safetensors")), lm)
    assert refusal.value.reason == "bad_plan"
