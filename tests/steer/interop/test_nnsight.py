"""What nnsight cannot do with a plan is refused by name, and nothing is left in the model."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import steer
from steer import interop

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def pair(tiny: Callable) -> tuple:
    from nnsight import TransformersModel  # heavy: imported by the tests that need it

    lm = tiny("tiny-llama")
    model = TransformersModel(
        copy.deepcopy(lm.model), tokenizer=lm.tokenizer, task="text-generation"
    )
    return lm, model


def add(lm: "steer.LM", site: "steer.Site | steer.ModuleSite | None" = None) -> list:
    return [steer.Add(site or steer.Site(1), torch.ones(lm.d_model))]


def logits(model: object) -> torch.Tensor:
    with torch.no_grad(), model.trace(IDS):  # type: ignore[attr-defined]
        out = model.output.logits.save()  # type: ignore[attr-defined]
    return out


def hooks_of(model: Any) -> list[tuple[int, ...]]:
    modules = model._module.modules()
    return [(*m._forward_hooks, -1, *m._forward_pre_hooks) for m in modules]


def test_nothing_is_left_after_exit_error_or_failed_attach(pair: tuple) -> None:
    lm, model = pair
    plain = logits(model)
    # transformers' own recorders stay once any test has asked for hidden states
    before = hooks_of(model)
    with interop.in_nnsight(model, add(lm)):
        assert not torch.equal(logits(model), plain)
    with pytest.raises(RuntimeError, match="mine"), interop.in_nnsight(model, add(lm)):
        raise RuntimeError("mine")
    with pytest.raises(steer.SiteNotFound):
        interop.in_nnsight(model, [*add(lm), *add(lm, steer.Site(99))])
    assert torch.equal(logits(model), plain)
    assert model._edits == []
    assert hooks_of(model) == before
    assert "generate" not in vars(model._module)


def test_any_module_by_its_path_is_a_site_here(pair: tuple) -> None:
    lm, model = pair
    plan = add(lm, steer.ModuleSite("model.layers.1.mlp", "output"))
    with torch.no_grad(), lm.attached(plan):
        native = lm.model(IDS).logits
    with interop.in_nnsight(model, plan):
        assert torch.equal(logits(model), native)


def test_the_users_own_edits_run_too_and_stay(pair: tuple) -> None:
    lm, model = pair
    with model.edit(inplace=True):
        model.model.layers[1].output = model.model.layers[1].output * 0.5
    try:
        halved = logits(model)
        with torch.no_grad(), lm.attached([steer.Scale(steer.Site(1), 0.5), *add(lm)]):
            native = lm.model(IDS).logits
        with interop.in_nnsight(model, add(lm)):
            assert (logits(model) - native).abs().max() < 1e-5
        assert torch.equal(logits(model), halved)
    finally:
        model.clear_edits()


def test_invokes_are_rows_in_their_order(pair: tuple) -> None:
    lm, model = pair
    rows = steer.Rows([[], add(lm)])
    with torch.no_grad(), lm.attached(rows):
        native = lm.model(IDS.repeat(2, 1)).logits
    with torch.no_grad(), interop.in_nnsight(model, rows), model.trace() as tracer:
        with tracer.invoke(IDS):
            first = model.output.logits.save()
        with tracer.invoke(IDS):
            second = model.output.logits.save()
    assert (torch.cat([first, second]) - native).abs().max() < 1e-5
    assert not torch.equal(first, second)


def test_passes_outside_of_a_trace_are_an_error_and_not_silently_unsteered(pair: tuple) -> None:
    lm, model = pair
    with (
        pytest.raises(
            steer.NeverFired, match=r"1 forward passes ran.*only 0.*outside of it, unsteered"
        ),
        torch.no_grad(),
        interop.in_nnsight(model, add(lm)),
    ):
        model._module(IDS)

    def half() -> None:
        with torch.no_grad(), interop.in_nnsight(model, add(lm)):
            logits(model)
            model._module(IDS)

    with pytest.raises(steer.NeverFired, match=r"2 forward passes ran.*only 1"):
        half()
    with (
        pytest.raises(steer.NeverFired, match="no forward pass"),
        interop.in_nnsight(model, add(lm)),
    ):
        pass


def test_a_run_that_stops_before_the_site_is_an_error(pair: tuple) -> None:
    lm, model = pair
    first, last = steer.Site(0), steer.Site(3)

    def stopped() -> None:
        plan = [*add(lm, first), *add(lm, last)]
        with torch.no_grad(), interop.in_nnsight(model, plan), model.trace(IDS) as tracer:
            model.model.layers[2].output.save()
            tracer.stop()

    with pytest.raises(
        steer.NeverFired, match=r"never handed over the output of 'model\.layers\.3'"
    ):
        stopped()


def test_an_error_of_a_scope_reaches_the_user_as_it_is(pair: tuple) -> None:
    lm, model = pair
    far = steer.Add(steer.Site(1), torch.ones(lm.d_model), scope=steer.at(7))
    with (
        pytest.raises(steer.ScopeError, match=r"Row 0 has 5 tokens.*at\(7\)"),
        interop.in_nnsight(model, [far]),
    ):
        logits(model)
    assert model._edits == []


def test_weights_that_are_not_loaded_are_refused(lm: "steer.LM") -> None:
    from nnsight import NNsight  # heavy: imported by the tests that need it

    empty = nn.Linear(2, 2, device="meta")
    with pytest.raises(steer.UnsupportedModel, match=r"no weights yet.*dispatch=True"):
        interop.in_nnsight(NNsight(empty), add(lm))
    with pytest.raises(TypeError, match="takes an nnsight model, not int"):
        interop.in_nnsight(3, add(lm))  # type: ignore[arg-type]
