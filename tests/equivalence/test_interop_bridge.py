"""The same plan inside a TransformerLens bridge and natively: equal logits, tokens and receipts.

The bridge runs attention and norms by its own code, so bits differ: 1e-4 is the contract, about
three times what six tiny families showed (4e-5 at most, fp32, logits up to 10).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import manifolds
import probes
import steer
from benchmarks.peers.transformer_lens import keeps_cache
from steer import interop

FAMILIES = ("tiny-llama", "tiny-gpt2")
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tiny: Callable) -> tuple:
    """Return (lm, bridge over a copy of its weights)."""
    lm = tiny(request.param)
    return lm, interop.bridge_of(lm)


@pytest.fixture
def cached_pair(pair: tuple) -> tuple:
    """Return (lm, bridge) where cached generation in a bridge sees the prompt."""
    ids = torch.tensor([ROWS[0]])
    if not keeps_cache(pair[1], ids):
        pytest.skip("TransformerLens loses the cache under this transformers")
    return pair


def padded(rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and positions, written out by hand."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        where = slice(width - len(row), None) if left else slice(len(row))
        ids[at, where], mask[at, where] = torch.tensor(row), 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def vector(lm: "steer.LM", seed: int) -> Tensor:
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


def ring(lm: "steer.LM", site: "steer.Site") -> "manifolds.Curve":
    """Return a closed curve through the states of twelve single tokens."""
    acts = lm.capture([[20 + i, 40 + i] for i in range(12)], [site], scope=steer.LAST)
    return manifolds.fit_curve(acts[site], torch.arange(12.0), period=12.0)


def classifier(lm: "steer.LM", site: "steer.Site") -> "probes.LinearProbe":
    acts = lm.capture([[30 + i, 50 + i] for i in range(16)], [site], scope=steer.LAST)
    return probes.fit_logistic(acts[site], torch.arange(16) % 2)


def composed(lm: "steer.LM") -> "steer.Rows":
    """Return a different plan for each of three rows: the composition law's kinds."""
    early, late = steer.Site(1, "resid_post"), steer.Site(2, "resid_post")
    read = steer.Read(early, classifier(lm, early), scope=steer.PROMPT)
    source = lm.capture([[70, 71]], [late], scope=steer.LAST)
    curve = ring(lm, late)
    return steer.Rows(
        [
            [
                steer.When(read, steer.Add(late, vector(lm, 1), 4.0), above=0.0),
                steer.Add(steer.Site(1, "mlp_out"), vector(lm, 2), 3.0, scope=steer.GENERATED),
            ],
            [
                steer.MoveAlong(late, curve, by=5.0, scope=steer.OUTPUT),
                steer.Monitor(steer.Read(early, read.probe, scope=steer.ALL)),
            ],
            [
                steer.Patch(late, source[late][0], scope=steer.LAST),
                steer.PreserveNorm(
                    steer.Add(early, vector(lm, 3), steer.Relative(0.5), scope=steer.GENERATED)
                ),
            ],
        ]
    )


@pytest.mark.parametrize("left", [True, False])
def test_a_forward_pass_follows_an_add_at_chosen_positions(pair: tuple, left: bool) -> None:
    lm, bridge = pair
    ids, mask, positions = padded(ROWS, left)
    plan = [steer.Add(steer.Site(2, "resid_post"), vector(lm, 0), 3.0, scope=steer.at(-2))]
    with torch.no_grad():
        with lm.attached(plan):
            native = lm.model(ids, attention_mask=mask, position_ids=positions).logits
        with interop.in_bridge(bridge, plan) as run:
            ours = bridge(ids, attention_mask=mask)
        plain = bridge(ids, attention_mask=mask)
    real = mask.bool()
    assert (ours - native)[real].abs().max() < TOLERANCE
    assert (ours - plain)[real].abs().max() > 0.1
    assert run.receipt[0].eligible.tolist() == [1, 1, 1]


COMPONENTS = [
    *("embed", "resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid"),
    *("mlp_pre", "mlp_post", "mlp_out", "resid_post", "ln_final", "logits"),
]


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_is_the_same_tensor(pair: tuple, component: str) -> None:
    lm, bridge = pair
    outside = component in ("embed", "ln_final", "logits")
    site = steer.Site(None if outside else 2, component)
    plan = [steer.Custom(site, lambda h, step: 0.5 * h + torch.sin(7 * h))]  # noqa: ARG005
    ids, mask, positions = padded(ROWS, left=True)
    with torch.no_grad():
        with lm.attached(plan):
            native = lm.model(ids, attention_mask=mask, position_ids=positions).logits
        with interop.in_bridge(bridge, plan):
            ours = bridge(ids, attention_mask=mask)
        plain = bridge(ids, attention_mask=mask)
    real = mask.bool()
    assert (ours - native)[real].abs().max() < TOLERANCE
    assert (ours - plain)[real].abs().max() > 0.1


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-qwen2", "tiny-neox", "tiny-mixtral"])
def test_the_stream_is_the_same_in_the_other_families(tiny: Callable, name: str) -> None:
    lm = tiny(name)
    bridge = interop.bridge_of(lm)
    sites = [
        site for at in ("resid_pre", "attn_out", "mlp_out", "resid_post") for site in lm.sites(at)
    ]
    plan = [steer.Add(site, vector(lm, at), 0.5) for at, site in enumerate(sites)]
    ids, mask, positions = padded(ROWS, left=True)
    with torch.no_grad():
        with lm.attached(plan):
            native = lm.model(ids, attention_mask=mask, position_ids=positions).logits
        with interop.in_bridge(bridge, plan):
            ours = bridge(ids, attention_mask=mask)
        plain = bridge(ids, attention_mask=mask)
    real = mask.bool()
    assert (ours - native)[real].abs().max() < TOLERANCE
    assert (ours - plain)[real].abs().max() > 0.1


def test_rows_gates_manifolds_and_patches_agree_in_one_cached_generation(
    cached_pair: tuple,
) -> None:
    lm, bridge = cached_pair
    plan = composed(lm)
    native = lm.generate(ROWS, plan, max_new_tokens=8)
    plain = lm.generate(ROWS, max_new_tokens=8)
    ids, mask, _ = padded(ROWS, left=True)
    with interop.in_bridge(bridge, plan) as run:
        out = bridge.hf_generate(
            ids,
            attention_mask=mask,
            max_new_tokens=8,
            do_sample=False,
            stop_at_eos=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = out.sequences[:, ids.shape[1] :].tolist()
    scores = torch.stack(out.logits, 1).log_softmax(-1)
    for row in range(3):
        n = len(native.tokens[row])
        assert tokens[row][:n] == native.tokens[row]
        chosen = scores[row, :n].gather(1, torch.tensor(native.tokens[row])[:, None])[:, 0]
        assert (chosen - native.log_probs[row]).abs().max() < TOLERANCE
    assert native.tokens != plain.tokens
    for ours, theirs in zip(run.receipt.lines, native.receipt.lines, strict=True):
        assert ours.eligible.tolist() == theirs.eligible.tolist()
        assert ours.edited.tolist() == theirs.edited.tolist()


def test_a_bridge_that_loses_the_cache_is_refused_and_agrees_without_one(pair: tuple) -> None:
    lm, bridge = pair
    plan = composed(lm)
    ids, mask, _ = padded(ROWS, left=True)
    asked = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False}
    if not keeps_cache(bridge, torch.tensor([ROWS[0]])):
        with (
            pytest.raises(steer.PlanError, match=r"cache that holds 0, after 7 had been seen"),
            interop.in_bridge(bridge, plan),
        ):
            bridge.hf_generate(ids, attention_mask=mask, **asked)
    with interop.in_bridge(bridge, plan):
        out = bridge.hf_generate(
            ids, attention_mask=mask, use_past_kv_cache=False, use_cache=False, **asked
        )
    native = lm.generate(ROWS, plan, max_new_tokens=6)
    for row, kept in zip(out[:, ids.shape[1] :].tolist(), native.tokens, strict=True):
        assert row[: len(kept)] == kept


def test_the_bridge_own_loop_needs_the_prompts_declared_and_then_agrees(
    cached_pair: tuple,
) -> None:
    lm, bridge = cached_pair
    plan = [steer.Add(steer.Site(1, "resid_post"), vector(lm, 4), 5.0, scope=steer.GENERATED)]
    row = ROWS[0]
    native = lm.generate([row], plan, max_new_tokens=6, eos_token_id=None)
    asked = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with interop.in_bridge(bridge, plan) as run:
        run.prompt([len(row)])
        out = bridge.generate(torch.tensor([row]), **asked)
    assert out[0, len(row) :].tolist() == native.tokens[0]
    with (
        pytest.raises(steer.ScopeError, match=r"continues a cache.*run\.prompt"),
        interop.in_bridge(bridge, plan),
    ):
        bridge.generate(torch.tensor([row]), **asked)


def test_beams_keep_the_plan_of_their_row(
    cached_pair: tuple,
) -> None:
    lm, bridge = cached_pair
    plan = steer.Rows([[steer.Add(steer.Site(2, "resid_post"), vector(lm, 5), 6.0)], [], []])
    native = lm.generate(ROWS, plan, max_new_tokens=5, num_beams=2)
    ids, mask, _ = padded(ROWS, left=True)
    with interop.in_bridge(bridge, plan):
        out = bridge.hf_generate(
            ids, attention_mask=mask, max_new_tokens=5, do_sample=False, num_beams=2
        )
    for row, kept in zip(out[:, ids.shape[1] :].tolist(), native.tokens, strict=True):
        assert row[: len(kept)] == kept


def test_nested_plans_compose_in_the_bridge_as_they_do_natively(pair: tuple) -> None:
    lm, bridge = pair
    site = steer.Site(1, "resid_post")
    outer = [steer.Add(site, vector(lm, 6), 3.0)]
    inner = [steer.Scale(site, 0.5)]
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        with lm.attached([*outer, *inner]):
            native = lm.model(ids).logits
        with interop.in_bridge(bridge, outer), interop.in_bridge(bridge, inner):
            ours = bridge(ids)
        with lm.attached([*inner, *outer]):
            other = lm.model(ids).logits
    assert (ours - native).abs().max() < TOLERANCE
    assert (ours - other).abs().max() > 0.1


@pytest.mark.real
def test_the_composition_agrees_on_a_real_model() -> None:
    lm = steer.load("smollm2-135m")
    early, late = steer.Site(10, "resid_post"), steer.Site(20, "resid_post")
    prompts = ["January, February, March,", "Monday, Tuesday,", "The capital of France is"]
    direction = vector(lm, 7) / vector(lm, 7).norm()
    probe_acts = lm.capture([[200 + i, 300 + i] for i in range(16)], [early], scope=steer.LAST)
    probe = probes.fit_logistic(probe_acts[early], torch.arange(16) % 2)
    months = lm.capture([[400 + i, 500 + i] for i in range(12)], [late], scope=steer.LAST)
    curve = manifolds.fit_curve(months[late], torch.arange(12.0), period=12.0)
    read = steer.Read(early, probe, scope=steer.PROMPT)
    plan = steer.Rows(
        [
            [steer.MoveAlong(late, curve, by=6.0, scope=steer.OUTPUT)],
            [
                steer.When(read, steer.Add(late, direction, steer.Relative(0.5)), above=0.0),
                steer.Add(early, direction, 20.0, scope=steer.GENERATED),
            ],
            [steer.Patch(late, months[late][0], scope=steer.LAST)],
        ]
    )
    native = lm.generate(prompts, plan, max_new_tokens=8)
    ids, mask, _ = padded(lm.rows(prompts), left=True)
    bridge = interop.bridge_of(lm)
    # Without a cache where TransformerLens would lose it: the plan is the same.
    kept = keeps_cache(bridge, ids[:1])
    how: dict[str, Any] = {} if kept else {"use_past_kv_cache": False, "use_cache": False}
    with interop.in_bridge(bridge, plan):
        out: Any = bridge.hf_generate(
            ids,
            attention_mask=mask,
            max_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **how,
        )
    new = out.sequences[:, ids.shape[1] :].tolist()
    scores = torch.stack(out.logits, 1).log_softmax(-1)
    for row, kept in enumerate(native.tokens):
        assert new[row][: len(kept)] == kept
        ours = scores[row, : len(kept)].gather(1, torch.tensor(kept)[:, None])[:, 0]
        assert native.log_probs is not None
        assert (ours - native.log_probs[row]).abs().max() < TOLERANCE
    assert native.tokens != lm.generate(prompts, max_new_tokens=8).tokens
