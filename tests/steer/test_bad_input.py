"""Bad input: each case says what, why and what to do, with nothing left attached."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

import manifolds
import probes
import steer
from steer.sites import ModuleSite, Site

SITE = Site(1, "resid_post")
X = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _nothing_attached(lm: "steer.LM") -> Iterator[None]:
    with torch.no_grad():
        before = lm.model(input_ids=X).logits
        yield
        assert lm.registry.live == 0
        assert torch.equal(lm.model(input_ids=X).logits, before)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the test run's own shape checker off, which would answer before our errors do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def ones(lm: "steer.LM") -> Tensor:
    return torch.ones(lm.d_model)


def run(lm: "steer.LM", plan: Any) -> None:
    """Attach to the user's own forward pass."""
    with lm.attached(plan):
        lm.model(input_ids=X)


def never_run(lm: "steer.LM", plan: Any) -> None:
    """Attach only: what is wrong with the plan and the model must be refused here."""
    lm.attached(plan)


# -- models and sites --------------------------------------------------------------------------


def test_an_unknown_model_is_answered_with_what_there_is():
    with pytest.raises(
        steer.ModelNotFound, match=r"tiny-llma.*tiny-llama.*Did you mean tiny-llama"
    ):
        steer.load("tiny-llma")


def test_an_embedded_model_without_network_names_its_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(steer.ModelNotFound, match=r"smollm2-135m.*\.whl|wheel"):
        steer.load("smollm2-135m", allow_download=False)
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_an_unknown_component_is_answered_with_the_nearest():
    with pytest.raises(steer.SiteNotFound, match=r"no component 'resid_pots'.*mean resid_post"):
        Site(1, "resid_pots")


@pytest.mark.parametrize("layer", [-1, None, 1.5])
@pytest.mark.usefixtures("unchecked")
def test_a_layer_that_no_model_has_is_refused_at_construction(layer):
    with pytest.raises(steer.SiteNotFound, match=r"needs a layer from 0 up.*Write Site\(12"):
        Site(layer, "resid_post")


def test_a_layer_beyond_the_model_is_refused_at_attach(lm):
    plan = [steer.Add(SITE, ones(lm)), steer.Add(Site(14), ones(lm))]
    match = r"Intervention 1 .*blocks\.14\.resid_post: it has 4 blocks \(0 to 3\).*blocks\.3\.resid"
    with pytest.raises(steer.SiteNotFound, match=match):
        never_run(lm, plan)


def test_a_head_beyond_the_model_counts_kv_heads_apart(lm):
    width = lm.registry.layout.d_head
    with pytest.raises(steer.SiteNotFound, match=r"k has 2 kv heads \(0 to 1\)"):
        never_run(lm, [steer.Add(Site(1, "k", 2), torch.ones(width))])
    with pytest.raises(steer.SiteNotFound, match=r"q has 4 heads \(0 to 3\)"):
        never_run(lm, [steer.Add(Site(1, "q", 4), torch.ones(width))])


def test_a_component_that_this_family_lacks_is_refused_with_the_reason(tiny):
    neox = tiny("tiny-neox")
    with pytest.raises(
        steer.SiteNotFound, match=r"has no blocks\.1\.resid_mid: .*no state between.*use attn_out"
    ):
        never_run(neox, [steer.Add(Site(1, "resid_mid"), ones(neox))])
    assert neox.registry.live == 0


def test_a_site_with_nothing_captured_is_refused(lm):
    with pytest.raises(steer.PlanError, match=r"No site to capture.*Name at least one"):
        lm.capture(["one"], [])


def test_capturing_a_site_that_is_not_there_is_refused(lm):
    with pytest.raises(steer.SiteNotFound, match="has 4 blocks"):
        lm.capture(["one"], [SITE, Site(4)])


# -- widths and origins ------------------------------------------------------------------------


def fitted(lm: "steer.LM", site: Site = SITE) -> tuple[Any, Any]:
    """Return a curve and a probe fitted on activations of a model, with their origins."""
    gen = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 500, (24, 4), generator=gen).tolist()
    acts = lm.capture(rows, [site])
    u = torch.arange(24) % 6
    curve = manifolds.fit_curve(acts[site], u, period=6, n_components=4, origin=acts.origin(site))
    probe = probes.fit_mean_difference(acts[site][:12], acts[site][12:], origin=acts.origin(site))
    return curve, probe


def gated(probe: Any, lm: "steer.LM") -> Any:
    return steer.When(steer.Read(SITE, probe), steer.Add(SITE, ones(lm)), above=0.0)


def test_a_direction_of_another_width_is_refused_at_attach(lm):
    match = r"direction has 65 entries but blocks\.1\.resid_post is 64 wide in .*llama.*Refit it"
    with pytest.raises(steer.WidthMismatch, match=match):
        never_run(lm, [steer.Add(SITE, torch.ones(65))])


WRONG_WIDTHS: dict[str, Callable[[], Any]] = {
    "Add": lambda: steer.Add(SITE, torch.ones(48)),
    "Ablate": lambda: steer.Ablate(SITE, torch.eye(48)[:2]),
    "Clamp": lambda: steer.Clamp(SITE, torch.ones(48), to=1.0),
    "Rotate": lambda: steer.Rotate(SITE, torch.eye(48)[:2], angle=1.0),
    "Affine": lambda: steer.Affine(SITE, torch.ones(48), torch.ones(48)),
    "Affine, its shift": lambda: steer.Affine(SITE, torch.ones(64), torch.ones(48)),
    "Patch": lambda: steer.Patch(SITE, torch.ones(48)),
    "Patch, rows": lambda: steer.Patch(SITE, torch.ones(2, 48)),
    "Patch, its subspace": lambda: steer.Patch(SITE, torch.ones(64), subspace=torch.ones(48)),
    "PreserveNorm": lambda: steer.PreserveNorm(steer.Add(SITE, torch.ones(48))),
    "Redirect": lambda: steer.Redirect(steer.Scale(SITE, 2.0), torch.ones(48)),
    "Rows": lambda: None,
}


@pytest.mark.parametrize("kind", WRONG_WIDTHS)
def test_every_kind_of_another_width_is_refused_at_attach(lm, kind):
    bad = WRONG_WIDTHS[kind]()
    plan = [bad] if bad is not None else steer.Rows([[], [steer.Add(SITE, torch.ones(48))]])
    with pytest.raises(steer.WidthMismatch, match=r"48 entries but blocks\.1\.resid_post is 64"):
        never_run(lm, plan)


def test_a_manifold_and_a_probe_of_another_width_say_their_origin(lm, tiny):
    gpt2 = tiny("tiny-gpt2")
    curve, probe = fitted(gpt2)
    match = r"has 48 entries but .*64 wide.*its origin says \{'model': 'tiny-gpt2'.*Refit"
    for bad in (steer.MoveTo(SITE, curve, 1.0), steer.MoveAlong(SITE, curve, 1.0)):
        with pytest.raises(steer.WidthMismatch, match=match):
            never_run(lm, [bad])
    with pytest.raises(steer.WidthMismatch, match=match):
        never_run(lm, [steer.Snap(SITE, curve)])
    with pytest.raises(steer.WidthMismatch, match=r"the probe " + match):
        never_run(lm, [gated(probe, lm)])
    with pytest.raises(steer.WidthMismatch, match=match):
        never_run(lm, [steer.Monitor(steer.Read(SITE, probe))])


def test_what_was_fitted_on_another_model_of_the_same_width_is_refused(lm, tiny):
    qwen = tiny("tiny-qwen2")
    assert qwen.d_model == lm.d_model
    curve, probe = fitted(qwen)
    match = (
        r"fitted on tiny-qwen2 with weights [0-9a-f]{16}, but .*llama has weights [0-9a-f]{16}\."
        r".*Refit.*dataclasses\.replace\(fitted, origin=None\)"
    )
    for bad in (
        steer.MoveTo(SITE, curve, 1.0),
        gated(probe, lm),
        steer.Monitor(steer.Read(SITE, probe)),
        steer.PreserveNorm(steer.MoveAlong(SITE, curve, 1.0)),
    ):
        with pytest.raises(steer.SpecError, match=match):
            never_run(lm, [steer.Add(SITE, ones(lm)), bad])
        with pytest.raises(steer.SpecError, match=match):
            never_run(lm, steer.Rows([[], [bad]]))
        never_run(qwen, [bad])


def test_the_remedy_for_another_models_origin_works(lm, tiny):
    curve, probe = fitted(tiny("tiny-qwen2"))
    mine = replace(curve, origin=None)
    run(
        lm,
        [
            steer.MoveTo(SITE, mine, 1.0),
            steer.Monitor(steer.Read(SITE, replace(probe, origin=None))),
        ],
    )


def test_what_was_fitted_on_this_model_attaches_at_any_site(lm):
    curve, probe = fitted(lm)
    later = Site(2, "resid_post")
    run(lm, [steer.MoveTo(later, curve, 1.0), steer.Monitor(steer.Read(later, probe))])


def test_a_fine_tuned_copy_is_another_model(lm):
    curve, _ = fitted(lm)
    tuned = steer.load("tiny-llama")
    never_run(tuned, [steer.MoveTo(SITE, curve, 1.0)])
    with torch.no_grad():
        for weight in tuned.model.parameters():
            weight.mul_(1.01)
    with pytest.raises(steer.SpecError, match=r"fitted on tiny-llama with weights"):
        never_run(tuned, [steer.MoveTo(SITE, curve, 1.0)])


# -- values ------------------------------------------------------------------------------------


def spoilt(lm: "steer.LM", value: float) -> Tensor:
    vector = ones(lm)
    vector[3] = value
    return vector


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_directions_that_are_not_finite_are_refused_at_construction(lm, value):
    bad = spoilt(lm, value)
    match = r"1 of (64|128) entries that are not finite.*become NaN.*Look at how it was computed"
    for make in (
        lambda: steer.Add(SITE, bad),
        lambda: steer.Ablate(SITE, bad),
        lambda: steer.Clamp(SITE, bad, to=1.0),
        lambda: steer.Rotate(SITE, torch.stack([ones(lm), bad]), angle=1.0),
        lambda: steer.Affine(SITE, bad, ones(lm)),
        lambda: steer.Affine(SITE, ones(lm), bad),
        lambda: steer.Patch(SITE, bad),
        lambda: steer.Patch(SITE, ones(lm), subspace=bad),
    ):
        with pytest.raises(steer.PlanError, match=match):
            make()


@pytest.mark.parametrize("value", [NAN, INF])
def test_strengths_angles_and_targets_that_are_not_finite_are_refused(lm, value):
    per_row = torch.tensor([1.0, value])
    for make in (
        lambda: steer.Add(SITE, ones(lm), value),
        lambda: steer.Add(SITE, ones(lm), per_row),
        lambda: steer.Add(SITE, ones(lm), steer.Relative(value)),
        lambda: steer.Clamp(SITE, ones(lm), to=value),
        lambda: steer.Scale(SITE, value),
        lambda: steer.Scale(SITE, per_row),
        lambda: steer.Rotate(SITE, torch.eye(64)[:2], angle=value),
        lambda: steer.Ablate(SITE, ones(lm), per_row),
        lambda: steer.MoveTo(SITE, fitted(lm)[0], value),
        lambda: steer.MoveAlong(SITE, fitted(lm)[0], per_row),
    ):
        with pytest.raises(steer.PlanError, match=r"not finite"):
            make()


def test_a_zero_direction_cannot_be_clamped_ablated_or_relative(lm):
    zero = torch.zeros(lm.d_model)
    with pytest.raises(steer.PlanError, match=r"direction of Clamp is zero.*Check the fit"):
        steer.Clamp(SITE, zero, to=1.0)
    with pytest.raises(steer.PlanError, match=r"linearly dependent \(or zero\).*Drop"):
        steer.Ablate(SITE, zero)
    with pytest.raises(steer.PlanError, match=r"linearly dependent"):
        steer.Rotate(SITE, torch.stack([ones(lm), 2 * ones(lm)]), angle=1.0)
    with pytest.raises(steer.PlanError, match=r"direction of Add is zero.*Relative"):
        steer.Add(SITE, zero, steer.Relative(0.5))


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_mean_nothing_are_refused_at_construction(lm):
    with pytest.raises(steer.WidthMismatch, match=r"direction of Add has shape \(2, 64\).*Rows"):
        steer.Add(SITE, torch.ones(2, 64))
    with pytest.raises(
        steer.WidthMismatch, match=r"Transpose it if the directions stand in columns"
    ):
        steer.Ablate(SITE, torch.ones(64, 2))
    with pytest.raises(steer.PlanError, match=r"has shape \(2, 2\).*a tensor \[batch\]"):
        steer.Add(SITE, ones(lm), torch.ones(2, 2))
    with pytest.raises(steer.PlanError, match=r"has 1 directions; a rotation needs exactly 2"):
        steer.Rotate(SITE, ones(lm), angle=1.0)
    with pytest.raises(steer.WidthMismatch, match=r"source of a Patch.*has shape \(\).*n tokens"):
        steer.Patch(SITE, torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"number or a tensor \[batch\], not '3'"):
        steer.Add(SITE, ones(lm), "3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"number or a tensor \[batch\], not True"):
        steer.Add(SITE, ones(lm), True)


def test_multiples_of_a_norm_have_a_meaning_for_add_alone(lm):
    with pytest.raises(
        steer.PlanError, match=r"Clamp cannot take Relative\(multiple=0\.3\).*plain"
    ):
        steer.Clamp(SITE, ones(lm), to=1.0, strength=steer.Relative(0.3))  # type: ignore[arg-type]


# -- plans -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_rows_inside_rows_are_refused(lm):
    rows = steer.Rows([[steer.Add(SITE, ones(lm))], []])
    with pytest.raises(steer.PlanError, match=r"Rows inside Rows at row 1.*plain list"):
        steer.Rows([[], rows])
    with pytest.raises(
        steer.PlanError, match=r"Row 0 of Rows holds Rows at place 0.*pass it alone"
    ):
        steer.Rows([[rows]])  # type: ignore[list-item]
    with pytest.raises(steer.PlanError, match=r"The plan holds Rows at place 1.*pass it alone"):
        never_run(lm, [steer.Add(SITE, ones(lm)), rows])


@pytest.mark.parametrize("n", [1, 3])
def test_rows_of_the_wrong_length_are_refused_before_block_0(lm, n):
    reached: list[int] = []
    user = lm.model.model.layers[0].register_forward_hook(lambda *_: reached.append(1))
    plan = steer.Rows([[steer.Add(SITE, ones(lm))]] * n)
    with pytest.raises(
        steer.PlanError, match=rf"Rows holds {n} plans but the batch has 2 rows.*\[\]"
    ):
        run(lm, plan)
    user.remove()
    assert reached == []
    with pytest.raises(steer.PlanError, match=rf"Rows holds {n} plans but the batch has 2 rows"):
        lm.generate(["one", "two"], plan, max_new_tokens=2)
    with pytest.raises(steer.PlanError, match=rf"Rows holds {n} plans but the batch has 2 rows"):
        lm.capture(["one", "two"], [SITE], plan=plan)


def test_values_per_row_of_the_wrong_length_are_refused_before_block_0(lm):
    three = torch.ones(3)
    for bad, what in (
        (steer.Add(SITE, ones(lm), three), "strength"),
        (steer.Clamp(SITE, ones(lm), to=three), "to"),
        (steer.Scale(SITE, three), "factor"),
        (steer.Rotate(SITE, torch.eye(64)[:2], angle=three), "angle"),
        (steer.MoveTo(SITE, fitted(lm)[0], three), "u"),
        (steer.MoveAlong(SITE, fitted(lm)[0], three), "by"),
        (steer.Patch(SITE, torch.ones(3, 64)), "the source"),
    ):
        match = (
            rf"{what} has one entry for each of 3 rows, but the batch has 2.*one entry per prompt"
        )
        with pytest.raises(steer.PlanError, match=match):
            run(lm, [bad])


@pytest.mark.usefixtures("unchecked")
def test_a_lone_intervention_and_strangers_are_refused(lm):
    add = steer.Add(SITE, ones(lm))
    with pytest.raises(steer.PlanError, match=r"The plan is a lone Add.*\[intervention\]"):
        never_run(lm, add)
    with pytest.raises(
        steer.PlanError, match=r"holds function at place 0.*steer\.Custom\(site, fn\)"
    ):
        never_run(lm, [lambda h, _: h])
    with pytest.raises(TypeError, match=r"list of interventions or steer\.Rows"):
        never_run(lm, 3)
    with pytest.raises(steer.PlanError, match=r"Row 1 of Rows is a lone Add"):
        steer.Rows([[], add])  # type: ignore[list-item]


@pytest.mark.parametrize("way", ["generate", "capture", "logits", "attached"])
def test_a_plan_that_fails_leaves_nothing_whichever_way_it_is_attached(lm, way):
    plan = [steer.Add(SITE, ones(lm)), steer.Add(Site(9), ones(lm))]
    ways: dict[str, Callable[[], object]] = {
        "generate": lambda: lm.generate(["one"], plan),
        "capture": lambda: lm.capture(["one"], [SITE], plan=plan),
        "logits": lambda: lm.logits(["one"], plan),
        "attached": lambda: run(lm, plan),
    }
    with pytest.raises(steer.SiteNotFound, match=r"Intervention 1 of the plan, Add\(blocks\.9"):
        ways[way]()


# -- scopes and never firing -------------------------------------------------------------------


def test_a_scope_outside_the_row_is_refused_before_block_0(lm):
    reached: list[int] = []
    user = lm.model.model.layers[0].register_forward_hook(lambda *_: reached.append(1))
    plan = [steer.Add(SITE, ones(lm), scope=steer.at(4))]
    with pytest.raises(steer.ScopeError, match=r"Row 0 has 4 tokens.*no at\(4\).*missing=\"skip\""):
        run(lm, plan)
    user.remove()
    assert reached == []
    with pytest.raises(steer.ScopeError, match=r"no at\(-3\)"):
        lm.generate([[5, 6, 7], [5, 6]], [steer.Add(SITE, ones(lm), scope=steer.at(-3))])
    with pytest.raises(steer.ScopeError, match=r"no span\(1, 9\)"):
        lm.capture([[5, 6, 7]], [SITE], scope=steer.span(1, 9))
    with pytest.raises(steer.ScopeError, match=r"Row 0 has 0 occurrences of 'April'"):
        lm.logits(["one two"], scope=steer.text("April"))


def test_skipping_in_every_row_is_an_intervention_that_never_fired(lm):
    skipped = steer.Add(SITE, ones(lm), scope=steer.at(40, missing="skip"))
    match = r"Add\(blocks\.1\.resid_post.*never fired: none of the 8 tokens seen was in its scope"
    with pytest.raises(steer.NeverFired, match=match):
        run(lm, [steer.Add(SITE, ones(lm)), skipped])


def test_generated_tokens_that_never_come_are_an_error(lm):
    late = steer.Add(SITE, ones(lm), scope=steer.GENERATED)
    with pytest.raises(steer.NeverFired, match=r"GENERATED needs more than one new token"):
        lm.generate(["one two"], [late], max_new_tokens=1)
    with pytest.raises(steer.NeverFired, match=r"never fired"):
        run(lm, [late])
    assert lm.generate(["one two"], [late], max_new_tokens=2).receipt[0].edited.tolist() == [1]


def test_a_capture_scope_that_holds_no_token_at_all_is_an_error(lm):
    with pytest.raises(steer.ScopeError, match=r"no token.*GENERATED"):
        lm.capture(["one two"], [SITE], scope=steer.GENERATED)
    with pytest.raises(steer.ScopeError, match=r"no token"):
        lm.capture(["one two"], [SITE], scope=steer.text("June", missing="skip"))


# -- gates -------------------------------------------------------------------------------------


def a_probe(lm: "steer.LM") -> Any:
    return replace(fitted(lm)[1], origin=None)


def test_a_gate_that_reads_a_later_site_than_it_acts_at_is_refused_at_attach(lm):
    late = steer.Read(Site(3), a_probe(lm))
    inner = steer.Add(SITE, ones(lm))
    match = (
        r"gate reads blocks\.3\.resid_post, which a pass computes after blocks\.1.*Read at the same"
    )
    for latch in ("prompt", "token"):
        with pytest.raises(steer.PlanError, match=match):
            never_run(lm, [steer.When(late, inner, above=0.0, latch=latch)])
    after = replace(inner, scope=steer.GENERATED)
    never_run(lm, [steer.When(late, after, above=0.0, latch="prompt")])
    with pytest.raises(steer.PlanError, match=match):
        never_run(lm, [steer.When(late, after, above=0.0, latch="token")])


def test_a_prompt_latch_on_generated_tokens_is_refused_at_construction(lm):
    read = steer.Read(SITE, a_probe(lm), scope=steer.GENERATED)
    with pytest.raises(steer.PlanError, match=r"latched on the prompt cannot read GENERATED"):
        steer.When(read, steer.Add(SITE, ones(lm)), above=0.0)


def test_a_gate_that_must_act_before_its_prompt_is_complete_is_refused(lm):
    gate = steer.When(steer.Read(SITE, a_probe(lm)), steer.Add(SITE, ones(lm)), above=-9e9)
    prompts = [[5, 6, 7, 8, 9]]
    with pytest.raises(
        steer.PlanError, match=r"prompt ends in a later chunk.*Turn chunked prefill off"
    ):
        lm.generate(prompts, [gate], max_new_tokens=2, prefill_chunk_size=2)
    lm.generate(prompts, [gate], max_new_tokens=2)
    # What acts from LAST on has its reading in time, also in chunks.
    late = replace(gate, inner=steer.Add(SITE, ones(lm), scope=steer.OUTPUT))
    chunked = lm.generate(prompts, [late], max_new_tokens=2, prefill_chunk_size=2)
    assert chunked.receipt[0].edited.tolist() == [2]


@pytest.mark.usefixtures("unchecked")
def test_unknown_latches_reductions_and_windows_are_refused(lm):
    with pytest.raises(steer.PlanError, match=r"no reduction 'sum'.*last, mean, max, rolling"):
        steer.Read(SITE, a_probe(lm), reduce="sum")  # type: ignore[arg-type]
    with pytest.raises(steer.PlanError, match=r"rolling mean over 0 tokens is empty"):
        steer.Read(SITE, a_probe(lm), reduce="rolling", window=0)
    with pytest.raises(steer.PlanError, match=r"no latch 'row'.*'prompt' decides once per row"):
        steer.When(steer.Read(SITE, a_probe(lm)), steer.Add(SITE, ones(lm)), latch="row")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 2}, {"do_sample": True, "use_cache": False}],
    ids=["beams", "uncached"],
)
def test_a_gate_on_generated_tokens_where_rows_are_remade_is_refused(lm, options):
    read = steer.Read(SITE, a_probe(lm), scope=steer.ALL)
    gate = steer.When(read, steer.Add(SITE, ones(lm)), above=0.0, latch="token")
    with pytest.raises(steer.PlanError, match=r"reads generated tokens.*Read PROMPT only"):
        lm.generate(["one two"], [gate], max_new_tokens=3, **options)


# -- sources and custom functions --------------------------------------------------------------


def test_a_source_of_another_number_of_tokens_is_refused_before_block_0(lm):
    source = torch.ones(2, 3, 64)
    match = r"Row 0 has 4 tokens in scope ALL, but the source .* holds 3.*Capture the source"
    with pytest.raises(steer.PlanError, match=match):
        run(lm, [steer.Patch(SITE, source)])
    run(lm, [steer.Patch(SITE, source, scope=steer.span(0, 3))])


def test_a_custom_function_of_another_shape_is_refused(lm):
    with pytest.raises(
        steer.PlanError, match=r"returned \(2, 64\) for an input of shape \(2, 4, 64"
    ):
        run(lm, [steer.Custom(SITE, lambda h, _: h[:, 0])])
    with pytest.raises(steer.PlanError, match=r"returned NoneType"):
        run(lm, [steer.Custom(SITE, lambda _h, _: None)])  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_a_mode_and_coordinates_that_do_not_exist_are_refused(lm):
    curve, _ = fitted(lm)
    with pytest.raises(steer.PlanError, match=r"no mode 'slide'.*'replace'.*'transport'"):
        steer.MoveTo(SITE, curve, 1.0, mode="slide")  # type: ignore[arg-type]
    with pytest.raises(steer.PlanError, match=r"coordinates of MoveTo have shape \(2, 2\)"):
        steer.MoveTo(SITE, curve, torch.ones(2, 2))


# -- prompts and generate ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["generate", "capture", "logits", "score", "norm", "stream"])
def test_a_lone_string_is_refused_everywhere(lm, way):
    ways: dict[str, Callable[[Any], object]] = {
        "generate": lm.generate,
        "capture": lambda p: lm.capture(p, [SITE]),
        "logits": lm.logits,
        "score": lambda p: lm.score(p, [" x"]),
        "norm": lambda p: lm.norm(SITE, p),
        "stream": lm.stream,
    }
    with pytest.raises(steer.PlanError, match=r"lone string 'hello'.*5 prompts.*\[prompt\]"):
        ways[way]("hello")


def test_an_empty_batch_and_an_empty_prompt_are_refused(lm):
    with pytest.raises(steer.PlanError, match=r"batch of prompts is empty. Give at least one"):
        lm.generate([])
    with pytest.raises(steer.PlanError, match=r"Prompt 1 has no tokens.*BOS token"):
        lm.capture(["one", ""], [SITE])
    with pytest.raises(steer.PlanError, match=r"Prompt 0 has no tokens"):
        lm.logits([[]])


def test_a_prompt_longer_than_the_context_is_refused(lm):
    longest = lm.model.config.max_position_embeddings
    with pytest.raises(steer.PlanError, match=rf"Prompt 1 has {longest + 1} tokens.*is {longest}"):
        lm.generate([[5], [5] * (longest + 1)])


@pytest.mark.parametrize("bad", [-1, 579, 10_000])
def test_a_token_id_that_is_not_in_the_vocabulary_is_refused(lm, bad):
    with pytest.raises(
        steer.PlanError, match=rf"Prompt 1 holds the token id {bad}, .*ids 0 to 578.*another"
    ):
        lm.logits([[5, 6], [5, bad]])


@pytest.mark.parametrize("kind", [3, 3.5, None])
@pytest.mark.usefixtures("unchecked")
def test_a_prompt_that_is_no_prompt_is_a_type_error(lm, kind):
    with pytest.raises(TypeError, match=r"string, token ids or messages, not (int|float|NoneType)"):
        lm.generate([kind])


def test_misspelt_generate_arguments_are_refused_with_the_nearest(lm):
    with pytest.raises(steer.PlanError, match=r"no argument 'temprature'.*mean temperature"):
        lm.generate(["one"], temprature=0.5)
    with pytest.raises(steer.PlanError, match=r"no argument 'max_tokens'"):
        lm.generate(["one"], max_tokens=5)
    with pytest.raises(
        steer.PlanError, match=r"input_ids, which lm\.generate makes from the prompts"
    ):
        lm.generate(["one"], input_ids=X)


def test_ways_of_generating_that_cannot_be_steered_are_refused(lm):
    plan = [steer.Add(SITE, ones(lm))]
    with pytest.raises(
        steer.PlanError, match=r"prompt_lookup_num_tokens.*thrown away.*Leave it out"
    ):
        lm.generate(["one"], plan, prompt_lookup_num_tokens=2)


def test_continuations_that_do_not_fit_their_prompts_are_refused(lm):
    with pytest.raises(steer.PlanError, match=r"2 prompts need as many continuations, not 1"):
        lm.score(["one", "two"], [" x"])
    with pytest.raises(steer.PlanError, match=r"A continuation has no tokens"):
        lm.score(["one"], [""])


def test_a_chat_without_a_template_is_refused(lm, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "chat_template", None)
    with pytest.raises(steer.PlanError, match=r"no chat template.*Write the prompt as a string"):
        lm.generate([[{"role": "user", "content": "hi"}]])


# -- passes that cannot be counted -------------------------------------------------------------


def test_packed_rows_are_refused(lm):
    positions = torch.tensor([[0, 1, 0, 1]] * 2)

    def block() -> None:
        with lm.attached([steer.Add(SITE, ones(lm))]):
            lm.model(input_ids=X, position_ids=positions)

    with pytest.raises(steer.ScopeError, match=r"packed rows.*Give each text its own row"):
        block()


@pytest.mark.usefixtures("unchecked")
def test_a_prompt_declared_wrongly_is_refused(lm):
    def declare(lengths: Any) -> None:
        with lm.attached([steer.Add(SITE, ones(lm))]) as attached:
            attached.prompt(lengths)
            lm.model(input_ids=X)

    for bad in ([], [0, 1], [[1, 2]], [-1, 2]):
        with pytest.raises(steer.PlanError, match=r"one positive number of tokens for each row"):
            declare(bad)
    with pytest.raises(steer.PlanError, match=r"declared 3 prompt lengths but the pass has 2 rows"):
        declare([1, 2, 3])


def test_a_module_without_a_tensor_is_refused(lm):
    site = ModuleSite("model.rotary_emb", "output")
    run(lm, [steer.Monitor(steer.Read(SITE, a_probe(lm)))])
    with pytest.raises(
        steer.SiteNotFound, match=r"no module 'model\.rotary_em'.*model\.rotary_emb"
    ):
        never_run(lm, [steer.Scale(replace(site, path="model.rotary_em"), 2.0)])


def test_models_whose_weights_are_out_of_reach_are_refused(lm):
    from copy import deepcopy

    with pytest.raises(steer.UnsupportedModel, match=r"meta"):
        steer.wrap(deepcopy(lm.model).to("meta"), lm.tokenizer)
