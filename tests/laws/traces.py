"""Laws of the untouched model: after any way of leaving, nothing of a plan is left on it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import steer
from steer import Site, SteerError, Step
from steer.context import ATTACHED, PASS, SEQUENCES
from tests.laws.interventions import Setting, one_each
from tests.laws.running import forward, padded, same_bits

_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


class _Bang(Exception):
    """What a user's own code may raise."""


def law_nothing_is_left_behind(setting: Setting) -> None:
    """Modules, hooks, classes, attributes, weights and outputs are as they were, in any end."""
    lm = setting.lm
    batch = padded(lm, setting.prompts[:3], left=True)
    plain = forward(lm, batch, [])
    before = snapshot(lm.model)
    for name, leave in _WAYS.items():
        leave(setting)
        changed = differences(before, snapshot(lm.model))
        assert not changed, f"after {name}: {changed}"
        assert lm.registry.live == 0, f"after {name} the registry counts {lm.registry.live} hooks"
        held = ATTACHED.get() or SEQUENCES.get().get(id(lm.registry)) or PASS.get()
        assert not held, f"after {name} this context still holds {held}"
        with torch.no_grad():
            after = lm.model(**batch.inputs()).logits
        assert same_bits(after, plain), f"after {name} the model gives other logits"


def law_only_hooks_are_added(setting: Setting) -> None:
    """While attached, classes, kernels, weights, modules are as before; `generate` is shadowed."""
    lm = setting.lm
    before = snapshot(lm.model)
    _, items = one_each(setting)
    with lm.attached(steer.Rows([[item] for item in items])):
        inside = differences(before, snapshot(lm.model))
        lm.model(**padded(lm, setting.prompts[: len(items)], left=True).inputs())
    kinds = {what.rpartition(" ")[2] for what in inside}
    allowed = {*_TABLES, "attributes"}
    assert kinds <= allowed, f"attaching changes {kinds - allowed}"
    named = [what for what in inside if what.endswith("attributes")]
    assert named in ([], ["model attributes"]), f"attaching sets attributes: {named}"


TRACE_LAWS = (law_nothing_is_left_behind, law_only_hooks_are_added)
"""Each takes a setting."""


@dataclass(frozen=True)
class Snapshot:
    """What a model is made of, by place: everything that a plan could have left changed."""

    facts: Mapping[str, object]


def snapshot(model: nn.Module) -> Snapshot:
    """Return the classes, hooks, attributes, weights, buffers and configuration of a model."""
    facts: dict[str, object] = {}
    for path, module in model.named_modules():
        where = path or "model"
        facts[f"{where} class"] = type(module)
        facts[f"{where} training"] = module.training
        facts[f"{where} attributes"] = sorted(vars(module))
        facts[f"{where} forward"] = getattr(module.forward, "__func__", module.forward)
        for table in _TABLES:
            facts[f"{where} {table}"] = [(k, id(v)) for k, v in vars(module)[table].items()]
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        facts[f"{path} tensor"] = (id(tensor), tensor.data_ptr(), tensor.dtype, tensor._version)
    facts["model config"] = repr(model.config.to_dict())  # type: ignore[operator, union-attr]
    facts["model kernel"] = model.config._attn_implementation  # type: ignore[union-attr]
    return Snapshot(facts)


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Return the names of the facts that are not the same in both."""
    names = {*before.facts, *after.facts}
    return sorted(n for n in names if before.facts.get(n) != after.facts.get(n))


@contextmanager
def _expecting(*kinds: type[BaseException]) -> Iterator[None]:
    """Swallow one of the given errors, and insist on it."""
    raised = True
    try:
        yield
        raised = False
    except kinds:
        pass
    assert raised, f"no {kinds} was raised"


def _pass(setting: Setting) -> Tensor:
    batch = padded(setting.lm, setting.prompts[: len(one_each(setting)[0])], left=True)
    return setting.lm.model(**batch.inputs()).logits


def _plan(setting: Setting) -> steer.Rows:
    return steer.Rows([[item] for item in one_each(setting)[1]])


def _raising(setting: Setting, error: type[BaseException]) -> list[steer.Custom]:
    def fail(h: Tensor, step: Step) -> Tensor:
        del h, step
        raise error("in the middle of a pass")

    return [steer.Custom(setting.site, fail)]


def _normally(setting: Setting) -> None:
    with setting.lm.attached(_plan(setting)), torch.no_grad():
        _pass(setting)


def _by_an_error_in_the_body(setting: Setting) -> None:
    with _expecting(_Bang), setting.lm.attached(_plan(setting)), torch.no_grad():
        _pass(setting)
        raise _Bang


def _by_an_interrupt_in_the_body(setting: Setting) -> None:
    with _expecting(KeyboardInterrupt), setting.lm.attached(_plan(setting)):
        raise KeyboardInterrupt


def _by_an_interrupt_in_a_pass(setting: Setting) -> None:
    with _expecting(KeyboardInterrupt), setting.lm.attached(_raising(setting, KeyboardInterrupt)):
        _pass(setting)


def _by_an_error_in_generate(setting: Setting) -> None:
    with _expecting(_Bang):
        setting.lm.generate(setting.prompts[:2], _raising(setting, _Bang), max_new_tokens=2)


def _by_an_interrupt_in_capture(setting: Setting) -> None:
    with _expecting(KeyboardInterrupt):
        setting.lm.capture(
            setting.prompts[:2],
            [Site(2, "resid_post"), Site(1, "z")],
            plan=_raising(setting, KeyboardInterrupt),
        )


def _by_a_bad_site_among_good_ones(setting: Setting) -> None:
    good = list(one_each(setting)[1])
    v = setting.direction("add")
    for bad in (steer.Add(Site(99, "resid_post"), v), steer.Add(setting.site, v[:-1])):
        with _expecting(SteerError), setting.lm.attached([*good[:2], bad, *good[2:4]]):
            pass
        with _expecting(SteerError):
            setting.lm.attach([*good[:2], bad])


def _by_a_hook_that_cannot_be_registered(setting: Setting) -> None:
    # The last of several modules refuses: those before it must be let go.
    module = setting.lm.model.get_submodule(setting.lm.registry.layout.blocks).get_submodule("3")
    items = [steer.Add(Site(layer, "resid_post"), setting.direction("add")) for layer in (1, 3)]

    def refuse(*_: object, **__: object) -> None:
        raise _Bang

    module.register_forward_hook = refuse  # type: ignore[method-assign]
    try:
        with _expecting(_Bang), setting.lm.attached(items):
            pass
    finally:
        del module.register_forward_hook


def _by_a_plan_that_never_fires(setting: Setting) -> None:
    late = steer.Add(setting.site, setting.direction("add"), scope=steer.GENERATED)
    with _expecting(steer.NeverFired), setting.lm.attached([late]), torch.no_grad():
        setting.lm.model(**padded(setting.lm, setting.prompts[:2], left=True).inputs())


def _by_rows_that_do_not_fit(setting: Setting) -> None:
    with _expecting(SteerError), setting.lm.attached(_plan(setting)), torch.no_grad():
        setting.lm.model(**padded(setting.lm, setting.prompts[:2], left=True).inputs())


def _by_detach(setting: Setting) -> None:
    setting.lm.attach(_plan(setting))
    with torch.no_grad():
        _pass(setting)
    setting.lm.detach()


def _by_nested_blocks(setting: Setting) -> None:
    with setting.lm.attached(_plan(setting)), torch.no_grad():
        with _expecting(_Bang), setting.lm.attached(_plan(setting)):
            raise _Bang
        _pass(setting)


def _by_closing_a_stream(setting: Setting) -> None:
    item = steer.Add(setting.site, setting.direction("add"))
    stream = setting.lm.stream(setting.prompts[:2], [item], max_new_tokens=4)
    next(stream)
    stream.close()


_WAYS: Mapping[str, Callable[[Setting], None]] = {
    "a normal exit": _normally,
    "an error in the body": _by_an_error_in_the_body,
    "an interrupt in the body": _by_an_interrupt_in_the_body,
    "an interrupt in a pass": _by_an_interrupt_in_a_pass,
    "an error in generate": _by_an_error_in_generate,
    "an interrupt in capture": _by_an_interrupt_in_capture,
    "a bad site among good ones": _by_a_bad_site_among_good_ones,
    "a hook that cannot be registered": _by_a_hook_that_cannot_be_registered,
    "a plan that never fires": _by_a_plan_that_never_fires,
    "rows that do not fit": _by_rows_that_do_not_fit,
    "detach": _by_detach,
    "nested blocks": _by_nested_blocks,
    "a closed stream": _by_closing_a_stream,
}
"""Every way to leave."""
