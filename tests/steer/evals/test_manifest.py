"""The manifest: equal for equal runs, different for each thing that differs."""

import copy
import json

import pytest
import torch

import steer
from steer.evals import Manifest, Refused, manifest_of, require_same
from steer.evals.manifest import plan_digest


@pytest.fixture(scope="module")
def lm() -> steer.LM:
    return steer.load("tiny-llama")


def _add(lm: steer.LM, strength: float = 1.0) -> steer.Add:
    direction = torch.linspace(-1, 1, lm.d_model)
    return steer.Add(steer.Site(1, "resid_post"), direction, strength)


def test_equal_runs_have_equal_manifests_and_json_keeps_them(lm: steer.LM) -> None:
    first, second = (manifest_of(lm, [_add(lm)], seeds=[7]) for _ in range(2))
    assert first == second
    assert first.digest == second.digest
    again = Manifest.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first
    require_same(first, again)


def test_every_part_of_a_plan_changes_its_digest(lm: steer.LM) -> None:
    one = _add(lm)
    other = steer.Ablate(steer.Site(2, "resid_post"), one.direction)
    digests = [
        plan_digest(plan)
        for plan in (
            [one],
            [_add(lm, 1.5)],
            [steer.Add(steer.Site(2, "resid_post"), one.direction, 1.0)],
            [steer.Add(one.site, one.direction.flip(0), 1.0)],
            [steer.Add(one.site, one.direction, 1.0, scope=steer.LAST)],
            [one, other],
            [other, one],
            steer.Rows([[one], [other]]),
            [],
        )
    ]
    assert len(set(digests)) == len(digests)
    assert plan_digest([_add(lm)]) == digests[0]


def test_a_weight_the_template_and_the_tokenizer_are_part_of_it(lm: steer.LM) -> None:
    before = manifest_of(lm, None)
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    changed = manifest_of(steer.wrap(model, lm.tokenizer), None)
    with pytest.raises(Refused, match="weights") as caught:
        require_same(before, changed)
    assert caught.value.reason == "wrong_model"
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    templated = manifest_of(steer.wrap(lm.model, tokenizer), None)
    with pytest.raises(Refused, match="chat_template") as caught:
        require_same(before, templated, parts=["tokenizer"])
    assert caught.value.reason == "wrong_tokenizer"
    tokenizer.add_tokens(["<new>"])
    longer = manifest_of(steer.wrap(lm.model, tokenizer), None)
    assert longer.tokenizer["rules"] != before.tokenizer["rules"]


def test_seeds_and_plans_that_differ_are_refused_by_their_code(lm: steer.LM) -> None:
    one = manifest_of(lm, [_add(lm)], seeds=[1])
    for other, reason in (
        (manifest_of(lm, [_add(lm, 2.0)], seeds=[1]), "wrong_plan"),
        (manifest_of(lm, [_add(lm)], seeds=[2]), "wrong_seeds"),
    ):
        with pytest.raises(Refused) as caught:
            require_same(one, other)
        assert caught.value.reason == reason


def test_code_has_no_identity(lm: steer.LM) -> None:
    custom = steer.Custom(steer.Site(0, "resid_post"), lambda h, _: h)
    with pytest.raises(steer.SteerError, match="Custom"):
        manifest_of(lm, [custom])


def test_a_manifest_that_was_edited_is_refused(lm: steer.LM) -> None:
    values = json.loads(json.dumps(manifest_of(lm, [_add(lm)]).to_json()))
    with pytest.raises(steer.SteerError, match="changed after it was written"):
        Manifest.from_json({**values, "plan": "0" * 64})
    with pytest.raises(steer.SteerError, match="no manifest"):
        Manifest.from_json({k: v for k, v in values.items() if k != "model"})
