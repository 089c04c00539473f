"""The same plan inside nnsight traces and natively: equal logits, tokens and receipts.

nnsight runs the model's own modules, so the bits should agree too; 1e-5 leaves room for kernels.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import manifolds
import probes
import steer
from steer import interop

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-gpt2"])
def pair(request: pytest.FixtureRequest, tiny: Callable) -> tuple:
    """Return (lm, nnsight model over a copy of its weights)."""
    from nnsight import TransformersModel  # heavy: imported by the tests that need it

    lm = tiny(request.param)
    model = copy.deepcopy(lm.model)
    return lm, TransformersModel(model, tokenizer=lm.tokenizer, task="text-generation")


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and positions, padded on the left by hand."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, width - len(row) :], mask[at, width - len(row) :] = torch.tensor(row), 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def vector(lm: "steer.LM", seed: int) -> Tensor:
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


def composed(lm: "steer.LM") -> "steer.Rows":
    """Return a different plan for each of three rows: the composition law's kinds."""
    early, late = steer.Site(1, "resid_post"), steer.Site(2, "resid_post")
    seen = lm.capture([[30 + i, 50 + i] for i in range(16)], [early], scope=steer.LAST)
    probe = probes.fit_logistic(seen[early], torch.arange(16) % 2)
    months = lm.capture([[20 + i, 40 + i] for i in range(12)], [late], scope=steer.LAST)
    curve = manifolds.fit_curve(months[late], torch.arange(12.0), period=12.0)
    source = lm.capture([[70, 71]], [late], scope=steer.LAST)
    gate = steer.Read(early, probe, scope=steer.PROMPT)
    return steer.Rows(
        [
            [
                steer.When(gate, steer.Add(late, vector(lm, 1), 4.0), above=0.0),
                steer.Add(steer.Site(1, "mlp_out"), vector(lm, 2), 3.0, scope=steer.GENERATED),
            ],
            [
                steer.MoveAlong(late, curve, by=5.0, scope=steer.OUTPUT),
                steer.Monitor(steer.Read(early, probe, scope=steer.ALL)),
            ],
            [steer.Patch(late, source[late][0], scope=steer.LAST)],
        ]
    )


COMPONENTS = [
    *("embed", "resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid"),
    *("mlp_pre", "mlp_post", "mlp_out", "resid_post", "ln_final", "logits"),
]


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_trace_is_edited_as_the_native_pass(pair: tuple, component: str) -> None:
    lm, model = pair
    outside = component in ("embed", "ln_final", "logits")
    site = steer.Site(None if outside else 2, component)
    plan = [steer.Custom(site, lambda h, step: 0.5 * h + torch.sin(7 * h))]  # noqa: ARG005
    ids, mask, positions = padded(ROWS)
    call = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        with lm.attached(plan):
            native = lm.model(**call).logits
        plain = lm.model(**call).logits
        with interop.in_nnsight(model, plan), model.trace(**call):
            ours = model.output.logits.save()
        with model.trace(**call):
            after = model.output.logits.save()
    real = mask.bool()
    assert (ours - native)[real].abs().max() < TOLERANCE
    assert (ours - plain)[real].abs().max() > 0.1
    assert torch.equal(after[real], plain[real])


def test_rows_gates_manifolds_and_patches_agree_in_one_cached_generation(pair: tuple) -> None:
    lm, model = pair
    plan = composed(lm)
    native = lm.generate(ROWS, plan, max_new_tokens=8)
    plain = lm.generate(ROWS, max_new_tokens=8)
    ids, mask, _ = padded(ROWS)
    with (
        interop.in_nnsight(model, plan) as run,
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False
        ) as tracer,
    ):
        out = tracer.result.save()
    for row, kept in zip(out[:, ids.shape[1] :].tolist(), native.tokens, strict=True):
        assert row[: len(kept)] == kept
    assert native.tokens != plain.tokens
    for ours, theirs in zip(run.receipt.lines, native.receipt.lines, strict=True):
        assert ours.eligible.tolist() == theirs.eligible.tolist()
        assert ours.edited.tolist() == theirs.edited.tolist()
        assert torch.allclose(ours.relative_size, theirs.relative_size, atol=TOLERANCE)


def test_beams_keep_the_plan_of_their_row(pair: tuple) -> None:
    lm, model = pair
    plan = steer.Rows([[steer.Add(steer.Site(2, "resid_post"), vector(lm, 5), 6.0)], [], []])
    native = lm.generate(ROWS, plan, max_new_tokens=5, num_beams=2)
    ids, mask, _ = padded(ROWS)
    with (
        interop.in_nnsight(model, plan),
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, num_beams=2) as tracer,
    ):
        out = tracer.result.save()
    for row, kept in zip(out[:, ids.shape[1] :].tolist(), native.tokens, strict=True):
        assert row[: len(kept)] == kept


def test_what_the_user_reads_in_a_trace_is_read_after_the_edits(pair: tuple) -> None:
    lm, model = pair
    site = steer.Site(1, "resid_post")
    plan = [steer.Patch(site, torch.zeros(lm.d_model), scope=steer.LAST)]
    block = model.get(lm.registry.layout.tap(site).path)
    with torch.no_grad(), interop.in_nnsight(model, plan), model.trace(torch.tensor([ROWS[0]])):
        seen = block.output.save()
    assert torch.equal(seen[0, -1], torch.zeros(lm.d_model))
    assert seen[0, :-1].norm(dim=-1).min() > 0


def test_nested_plans_compose_and_leave_the_users_own_edits_alone(pair: tuple) -> None:
    lm, model = pair
    site = steer.Site(1, "resid_post")
    outer, inner = [steer.Add(site, vector(lm, 6), 3.0)], [steer.Scale(site, 0.5)]
    ids = torch.tensor([ROWS[0]])
    before = list(model._edits)
    with torch.no_grad():
        with lm.attached([*outer, *inner]):
            native = lm.model(ids).logits
        with (
            interop.in_nnsight(model, outer),
            interop.in_nnsight(model, inner),
            model.trace(ids),
        ):
            ours = model.output.logits.save()
    assert (ours - native).abs().max() < TOLERANCE
    assert model._edits == before


@pytest.mark.real
def test_the_composition_agrees_on_a_real_model() -> None:
    from nnsight import TransformersModel  # heavy: imported by the tests that need it

    lm = steer.load("smollm2-135m")
    plan = composed(lm)
    native = lm.generate(ROWS, plan, max_new_tokens=4)
    model = TransformersModel(lm.model, tokenizer=lm.tokenizer, task="text-generation")
    ids, mask, _ = padded(ROWS)
    with (
        interop.in_nnsight(model, plan) as run,
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False
        ) as tracer,
    ):
        out = tracer.result.save()
    for row, kept in zip(out[:, ids.shape[1] :].tolist(), native.tokens, strict=True):
        assert row[: len(kept)] == kept
    for ours, theirs in zip(run.receipt.lines, native.receipt.lines, strict=True):
        assert ours.eligible.tolist() == theirs.eligible.tolist()
        assert torch.allclose(ours.relative_size, theirs.relative_size, atol=TOLERANCE)
