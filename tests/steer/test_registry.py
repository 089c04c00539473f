"""The registry: all or nothing, by reference count, and a model untouched when a plan has left."""

from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer.sites import ModuleSite, Site

X = torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 11, 12]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def portrait(model: Any) -> dict[Any, Any]:
    """Return all that a plan could have changed: by identity where there is one."""
    found: dict[Any, Any] = {"config": repr(model.config)}
    for path, module in model.named_modules():
        found[path, "module"] = (id(module), type(module), module.training)
        found[path, "attributes"] = sorted(vars(module))
        found[path, "class"] = sorted(vars(type(module)))
        found[path, "call"] = (type(module).__call__, type(module).forward)
        for name, value in vars(module).items():
            if "_hooks" in name and isinstance(value, dict):
                found[path, name] = [(key, id(hook)) for key, hook in value.items()]
            elif callable(value):
                found[path, name] = id(value)
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        found[name, "weight"] = (id(weight), weight.dtype, weight.device, weight.data_ptr())
        found[name, "state"] = (weight.requires_grad, weight._version, weight.grad)
    found["attention"] = model.config._attn_implementation
    return found


@torch.no_grad()
def logits(lm: "steer.LM") -> Tensor:
    return lm.model(input_ids=X, attention_mask=MASK).logits


def plan_at_every_kind_of_hook(lm: "steer.LM") -> list["steer.Add"]:
    names = ("embed", "resid_pre", "resid_mid", "resid_post", "q", "k", "v", "z", "attn_out")
    names += ("mlp_pre", "mlp_post", "mlp_out", "ln_final", "logits")
    plan = []
    for name in names:
        outside = name in ("embed", "ln_final", "logits")
        site = Site(None, name) if outside else Site(2, name)
        try:
            lm.registry.layout.tap(site)
        except steer.SiteNotFound:
            continue
        width = lm.registry.layout.width(site)
        assert width is not None
        plan.append(steer.Add(site, torch.full((width,), 0.1)))
    path = lm.registry.layout.blocks + ".1"
    plan.append(steer.Add(ModuleSite(path, "output"), torch.full((lm.d_model,), 0.1)))
    plan.append(steer.Add(ModuleSite(path, "input"), torch.full((lm.d_model,), 0.1)))
    return plan


def normal_exit(lm: "steer.LM", plan: "steer.Plan") -> None:
    with lm.attached(plan):
        logits(lm)


def an_error(lm: "steer.LM", plan: "steer.Plan") -> None:
    with pytest.raises(RuntimeError, match="mine"):  # noqa: SIM117
        with lm.attached(plan):
            raise RuntimeError("mine")


def an_interrupt(lm: "steer.LM", plan: "steer.Plan") -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with lm.attached(plan):
            raise KeyboardInterrupt


def a_failed_attach(lm: "steer.LM", plan: list["steer.Add"]) -> None:
    bad = steer.Add(Site(77), torch.ones(lm.d_model))
    with pytest.raises(steer.SiteNotFound, match=r"Intervention \d+ of the plan.*blocks\.77"):
        lm.attached([*plan, bad]).__enter__()


def never_fired(lm: "steer.LM", plan: "steer.Plan") -> None:
    with pytest.raises(steer.NeverFired):  # noqa: SIM117
        with lm.attached(plan):
            pass


def whole_model(lm: "steer.LM", plan: "steer.Plan") -> None:
    lm.attach(plan)
    logits(lm)
    lm.detach()


def generating(lm: "steer.LM", plan: "steer.Plan") -> None:
    lm.generate(["one two", "three"], plan, max_new_tokens=3)


def capturing(lm: "steer.LM", plan: list["steer.Add"]) -> None:
    lm.capture(["one two", "three"], [Site(0), Site(1, "resid_post")], plan=plan[:2])


def scope_error(lm: "steer.LM", plan: list["steer.Add"]) -> None:
    late = steer.Add(Site(1), torch.ones(lm.d_model), scope=steer.at(400))
    with pytest.raises(steer.ScopeError):  # noqa: SIM117
        with lm.attached([*plan, late]):
            logits(lm)


WAYS = (
    normal_exit,
    an_error,
    an_interrupt,
    a_failed_attach,
    never_fired,
    whole_model,
    generating,
    capturing,
    scope_error,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_model_is_untouched_after(any_lm, way):
    plan = plan_at_every_kind_of_hook(any_lm)
    generating(any_lm, [])  # what generate itself leaves behind is there before as well
    before, bits = portrait(any_lm.model), logits(any_lm)
    way(any_lm, plan)
    assert portrait(any_lm.model) == before
    assert torch.equal(logits(any_lm).view(torch.int32), bits.view(torch.int32))
    assert any_lm.registry.live == 0


def test_attaching_changes_no_kernel_class_or_weight_while_it_lasts(any_lm):
    before = portrait(any_lm.model)
    with any_lm.attached(plan_at_every_kind_of_hook(any_lm)):
        during = portrait(any_lm.model)
        logits(any_lm)
    hooks = {key for key in before if before[key] != during.get(key)}
    # The hook tables, and `generate` on the instance: nothing else.
    assert {name for _, name in hooks if not name.endswith(("_hooks", "_kwargs"))} <= {"attributes"}
    assert set(during["", "attributes"]) - set(before["", "attributes"]) == {"generate"}


def test_a_registration_that_fails_half_way_is_taken_back(lm, monkeypatch):
    before = portrait(lm.model)
    block = lm.model.model.layers[3]

    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no room for a hook")

    plan = [steer.Add(Site(at), torch.ones(lm.d_model)) for at in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(block, "register_forward_hook", broken)
        with pytest.raises(MemoryError, match="no room"):
            lm.attached(plan).__enter__()
    assert portrait(lm.model) == before
    assert lm.registry.live == 0
    normal_exit(lm, plan)


def test_hooks_are_shared_and_go_with_the_last_plan_that_needs_them(lm):
    add = steer.Add(Site(1), torch.ones(lm.d_model))
    block = lm.model.model.layers[1]
    before = len(block._forward_hooks)  # transformers' own recorder may be there
    with lm.attached([add, add]):
        assert len(block._forward_hooks) == before + 1
        with lm.attached([add]):
            assert len(block._forward_hooks) == before + 1
            logits(lm)
        assert len(block._forward_hooks) == before + 1
    assert len(block._forward_hooks) == before


def test_a_model_with_a_generate_of_its_own_is_refused_and_keeps_it():
    own = steer.load("tiny-llama")

    def mine(*_: object, **__: object) -> str:
        return "mine"

    vars(own.model)["generate"] = mine
    with pytest.raises(steer.UnsupportedModel, match=r"`generate` of its own.*del model\.generate"):
        own.attached([steer.Add(Site(1), torch.ones(own.d_model))]).__enter__()
    assert vars(own.model)["generate"] is mine
    assert own.registry.live == 0
    del vars(own.model)["generate"]
    normal_exit(own, [steer.Add(Site(1), torch.ones(own.d_model))])


def test_the_users_own_generate_call_is_steered_inside_the_block_only(lm):
    plan = [steer.Add(Site(1), 3 * torch.ones(lm.d_model))]
    options: dict[str, Any] = {"input_ids": X, "attention_mask": MASK, "max_new_tokens": 5}
    bare = lm.model.generate(**options, do_sample=False)
    with lm.attached(plan) as run:
        moved = lm.model.generate(**options, do_sample=False)
    assert not torch.equal(moved, bare)
    assert run.receipt[0].edited.tolist() == [5 + 4, 3 + 4]
    assert torch.equal(lm.model.generate(**options, do_sample=False), bare)


def test_generate_keeps_its_signature_while_attached(lm):
    import inspect

    before = inspect.signature(lm.model.generate)
    with lm.attached([steer.Add(Site(1), torch.ones(lm.d_model))]):
        assert inspect.signature(lm.model.generate) == before
        assert lm.model.generate.__doc__ == type(lm.model).generate.__doc__
        logits(lm)


def test_module_sites_that_do_not_exist_are_refused_with_the_near_path(lm):
    site = ModuleSite("model.layers.1.mpl", "output")
    with pytest.raises(steer.SiteNotFound, match=r"model\.layers\.1\.mlp\?"):
        lm.attached([steer.Add(site, torch.ones(lm.d_model))])


def test_the_registry_says_how_many_hooks_live(lm):
    assert lm.registry.live == 0
    with lm.attached([steer.Add(Site(1), torch.ones(lm.d_model))]):
        assert lm.registry.live == 2  # the stack's, where a pass opens, and the block's
        assert "2 hooks" in repr(lm.registry)
        logits(lm)
