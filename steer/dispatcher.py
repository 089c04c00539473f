"""Dispatchers: the hooks of a compiled session, and what a session cannot take.

A dispatcher is the arithmetic of `steer.lowered` on the buffers of one site. In a graph it reads
nothing else; in an eager pass it first asks whose pass it is.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import FunctionType
from typing import Any, no_type_check

import torch
from torch import Tensor, nn

from steer.errors import PlanError, UnsupportedModel
from steer.generating import option_of
from steer.lm import LM
from steer.models.layout import Tap, Whole
from steer.passes import CACHE_NAMES
from steer.sites import AnySite, Site, require_sites

ACTIVE: ContextVar[object] = ContextVar("steer_compiled", default=None)
"""The session whose pass this is: a dispatcher passes every other eager pass through untouched."""

TAKEN = (
    "embed",
    "resid_pre",
    "attn_out",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "resid_post",
    "ln_final",
)
"""The components that a dispatcher can serve."""


def taps_of(lm: LM, sites: Sequence[AnySite]) -> Mapping[Site, Tap]:
    """Return the tap of each site, in the order of a pass.

    Raises:
        SiteNotFound: a site that the model lacks.
        PlanError: a site that no dispatcher can serve.
        UnsupportedModel: sites on several devices, an adapter, or a model compiled in place.
    """
    require_sites(sites)
    taps = {site: _tap(lm, site) for site in sorted(dict.fromkeys(map(_named, sites)))}
    _refuse_model(lm)
    found = {lm.registry.device_of(tap) for tap in taps.values()} | {lm.device}
    if len(found) > 1:
        raise UnsupportedModel(
            f"The sites lie on {', '.join(sorted(map(str, found)))}, but a compiled session keeps "
            "its buffers on one device. Load the model onto one, or use lm.generate."
        )
    return taps


def fresh_forward() -> Callable[..., Any]:
    """Return a function (model, inputs) that calls the model's forward, with a code of its own.

    Graphs are kept by code object, and hooks are no part of their guards: so no graph of an earlier
    session, with other dispatchers, is ever considered.
    """
    return FunctionType(_forward.__code__.replace(), globals(), "steer_compiled")


@no_type_check
def _forward(model, inputs):
    return model.forward(**inputs)


@no_type_check
def dispatcher(buffers, session, side):
    """Return the hook of one site: in a graph it is its arithmetic alone."""

    def elsewhere():
        return not torch.compiler.is_compiling() and ACTIVE.get() is not session

    def on_input(_module, args, *rest):
        if elsewhere():
            return None
        kwargs = rest[0] if rest else {}
        if args:
            return (buffers.edited(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": buffers.edited(kwargs["hidden_states"])}

    def on_output(_module, _args, *rest):
        if elsewhere():
            return None
        output = rest[-1]
        if isinstance(output, Tensor):
            return buffers.edited(output)
        return (buffers.edited(output[0]), *output[1:])

    return on_input if side == "input" else on_output


def _named(site: AnySite) -> Site:
    if isinstance(site, Site) and site.component in TAKEN:
        return site
    raise PlanError(
        f"{site} cannot be steered compiled: the dispatchers take {', '.join(TAKEN)}, whose tensor "
        "is the whole [row, pos, width] of a module. Use lm.attached(plan), which takes every "
        "site."
    )


def _tap(lm: LM, site: Site) -> Tap:
    tap = lm.registry.layout.tap(site)
    if tap.flat or tap.base is not None or not isinstance(tap.view, Whole):
        raise PlanError(
            f"{site} cannot be steered compiled in {lm.registry.layout.name}: no module has it as "
            "its whole tensor (it is a sum, a part or a multiple of one). Use resid_pre or "
            "resid_post, or lm.attached(plan), which takes every site."
        )
    lm.registry.module(tap.path)
    return tap


def _refuse_model(lm: LM) -> None:
    name, model = lm.registry.layout.name, lm.model
    if type(model).__module__.startswith("peft"):
        raise UnsupportedModel(
            f"{name} carries a PEFT adapter, whose generate goes around the session's passes. "
            "Merge it (model.merge_and_unload()) and wrap the result, or use lm.generate."
        )
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedModel(
            f"{name} was compiled in place (module.compile()), and those graphs ignore hooks that "
            "come later. Load it afresh, or use torch.compile(model) beside it instead."
        )


ELSEWHERE = (*CACHE_NAMES, "cache_implementation", "compile_config", "use_cache")
MORE_ROWS = ("num_beams", "num_return_sequences")


def refuse_options(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse options of generate that need another cache, or rows that have no buffers.

    Raises:
        PlanError: names the option.
    """
    for name in ELSEWHERE:
        if name in options:
            raise PlanError(
                f"generate was given {name}, but a compiled session decodes with its own static "
                "cache and its own graph. Leave it out, or use lm.generate."
            )
    for name in MORE_ROWS:
        n = option_of(model, options, name)
        if n is not None and n > 1:
            raise PlanError(
                f"generate was given {name}={n}, which makes several rows of one prompt; the "
                "buffers of a compiled session hold one row each. Use lm.generate."
            )
