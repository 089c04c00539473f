"""The activation store: equal to memory, resumable, keyed by content."""

import pytest
import torch

import steer
from steer import capture as capturing
from steer.capture import capture_rows
from steer.store import Store

PROMPTS = ["January, February, March,", "Hello", "one two three four five"] * 4
SITES = [steer.Site(1, "resid_post"), steer.Site(2, "z"), steer.Site(1, "pattern")]


@pytest.mark.parametrize("scope", [steer.LAST, steer.ALL, steer.PROMPT & ~steer.FIRST])
def test_a_store_holds_the_bits_that_memory_holds(lm, tmp_path, scope):
    memory = lm.capture(PROMPTS, SITES, scope=scope)
    for _ in range(2):  # written, then read again
        stored = lm.capture(PROMPTS, SITES, scope=scope, store=tmp_path)
        for site in SITES:
            assert torch.equal(stored[site], memory[site])
        assert torch.equal(stored.positions, memory.positions)
        assert (stored.mask is None) == (memory.mask is None)
        assert memory.mask is None or torch.equal(stored.mask, memory.mask)


def count_calls(monkeypatch):
    calls = []
    run = capturing.call_model

    def counted(*args, **kwargs):
        calls.append(1)
        return run(*args, **kwargs)

    monkeypatch.setattr(capturing, "call_model", counted)
    return calls


def test_a_capture_that_was_killed_goes_on_where_it_stopped(lm, tmp_path, monkeypatch):
    rows, store = lm.rows(PROMPTS), Store(tmp_path, "id")
    arguments = (lm.registry, rows, SITES[:1], steer.ALL, [])
    memory, _ = capture_rows(*arguments, pad=0)
    calls = count_calls(monkeypatch)
    run = capturing.call_model

    def killed(*args, **kwargs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(capturing, "call_model", killed)
    with pytest.raises(KeyboardInterrupt):
        capture_rows(*arguments, pad=0, store=store, max_tokens=16)
    assert lm.registry.live == 0
    monkeypatch.setattr(capturing, "call_model", run)
    done = len(calls)
    acts, _ = capture_rows(*arguments, pad=0, store=store, max_tokens=16)
    batches = len(capturing.in_batches(rows, 16))
    assert done == 3
    assert len(calls) == batches
    # another batch size sums in another order
    assert torch.allclose(acts[SITES[0]], memory[SITES[0]], atol=1e-5)
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_capture_is_read_and_not_run(lm, tmp_path, monkeypatch):
    lm.capture(PROMPTS, SITES, store=tmp_path)
    calls = count_calls(monkeypatch)
    lm.capture(PROMPTS, SITES, store=tmp_path)
    assert calls == []
    lm.capture(PROMPTS, SITES, store=tmp_path, scope=steer.FIRST)
    assert calls, "another scope is another capture"


def test_another_plan_or_other_weights_are_another_capture(lm, tiny, tmp_path):
    site = SITES[0]
    plan = [steer.Add(steer.Site(0, "resid_post"), torch.ones(lm.d_model))]
    plain = lm.capture(PROMPTS, [site], store=tmp_path)[site].clone()
    steered = lm.capture(PROMPTS, [site], plan=plan, store=tmp_path)[site]
    assert not torch.equal(plain, steered)
    other = tiny("tiny-qwen2")
    elsewhere = other.capture(PROMPTS, [site], store=tmp_path)[site]
    assert torch.equal(elsewhere, other.capture(PROMPTS, [site])[site])


def test_a_corrupted_shard_is_named_with_what_to_do(lm, tmp_path):
    lm.capture(PROMPTS, SITES[:1], store=tmp_path)
    index = next(tmp_path.glob("*.index.safetensors"))
    index.write_bytes(index.read_bytes()[:20])
    with pytest.raises(steer.SpecError, match=r"cannot be read.*Delete it"):
        lm.capture(PROMPTS, SITES[:1], store=tmp_path)


def test_a_function_in_the_plan_has_no_identity_to_store_by(lm, tmp_path):
    plan = [steer.Custom(SITES[0], lambda h, _: h)]
    with pytest.raises(steer.SpecError, match="Custom"):
        lm.capture(PROMPTS, SITES[:1], plan=plan, store=tmp_path)


def test_a_store_cannot_keep_a_graph(lm, tmp_path):
    with pytest.raises(steer.PlanError, match="Leave out grad"):
        lm.capture(PROMPTS, SITES[:1], grad=True, store=tmp_path)
