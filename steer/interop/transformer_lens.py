"""The same frozen plan inside a TransformerLens `TransformerBridge` (transformer-lens 4.3 and up).

The edits are ours, the hooks are TransformerLens' own (`bridge.hooks`), so a plan can run beside
the user's other TransformerLens hooks and caches. transformer_lens is imported when a function
here is called: it is heavy, and `import steer.interop` needs none of it.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from steer.context import Run
from steer.errors import PlanError, SiteNotFound, UnsupportedModel
from steer.interop.hook_names import HOOKS
from steer.interop.hosted import current_pass, kept_columns, require_served
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.models.frame import find_frame, find_unembed
from steer.models.layout import Layout, Tap
from steer.registry import HookRegistry
from steer.serving import serve
from steer.sites import AnySite, ModuleSite
from steer.wiring import Key, wire

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge

_REGISTRIES: "WeakKeyDictionary[TransformerBridge, HookRegistry]" = WeakKeyDictionary()


def bridge_of(lm: LM) -> "TransformerBridge":
    """Return a TransformerBridge over a copy of a model's weights, from memory, without the hub.

    A bridge replaces the modules of the model that it is given, so it gets a copy: twice the
    memory, and `lm` stays untouched. Weights are not folded or centred and the attention kernel is
    kept, unlike `boot_transformers`, which switches to eager attention (hook_pattern and
    hook_attn_scores fire there only). Give the bridge token ids: from strings it makes its own.

    Raises:
        PlanError: a plan is attached, and its hooks would be copied too.
        UnsupportedModel: TransformerLens has no adapter for the architecture.
    """
    # Heavy and optional; see the module docstring.
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if lm.registry.live:
        raise PlanError(
            f"{lm.registry.layout.name} has a plan attached, and its {lm.registry.live} hooks "
            "would be copied into the bridge, where nobody could remove them. Detach first."
        )
    model = copy.deepcopy(lm.model)
    architecture = type(model).__name__
    try:
        bridge = build_bridge_from_module(
            model,
            architecture,
            hf_config=copy.deepcopy(model.config),
            model_name=lm.provenance.name,
        )
    except (ValueError, KeyError) as reason:
        raise UnsupportedModel(
            f"TransformerLens cannot build a bridge for {architecture}: {reason}. The plan has "
            "nowhere to run there. Use lm itself, whose hooks need no adapter."
        ) from None
    # Set after the building: at building, TransformerLens would reload the tokenizer from the hub.
    bridge.tokenizer = lm.tokenizer
    empty = list(lm.tokenizer("")["input_ids"])  # type: ignore[arg-type]
    bridge.cfg.tokenizer_prepends_bos = empty[:1] == [lm.tokenizer.bos_token_id]
    return bridge


def bridge_layout(bridge: "TransformerBridge") -> Layout:
    """Return where each standard site is among a bridge's hooks.

    resid_mid is the block's input plus attn_out: TransformerLens' hook_resid_mid is only the input
    of the MLP's norm, and a write there would never reach the stream. pattern and router are left
    out: one is recomputed natively, the other has no hook.

    Raises:
        UnsupportedModel: no local model, folded weights, or blocks under another name.
    """
    model = getattr(bridge, "original_model", None)
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(
            f"{type(bridge).__name__} has no local model, so nothing tells the tokens of a pass. "
            "Its hooks would edit positions that nobody counted. Use a TransformerBridge over a "
            "HuggingFace model."
        )
    if getattr(bridge, "_weights_processed", False):
        raise UnsupportedModel(
            "The bridge's weights were folded or centred (enable_compatibility_mode), so its "
            "stream is another one than the model's, and directions fitted on the model mean "
            "something else there. Boot the bridge without processing, or pass no_processing=True."
        )
    frame, hooks = find_frame(model), bridge.hook_dict
    if "blocks.0.hook_in" not in hooks or f"blocks.{len(frame.modules) - 1}.hook_in" not in hooks:
        raise UnsupportedModel(
            f"{frame.name}: the bridge has no `blocks` for each of the model's "
            f"{len(frame.modules)} blocks, so its sites cannot be told. Run the plan on lm itself."
        )
    taps, absent, special = _taps(hooks, len(frame.modules))
    native = find_unembed(frame)
    if native is not None and (native.softcap is not None or native.scale != 1.0):
        taps.pop("logits", None)
        absent["logits"] = "its unembed.hook_out comes before the model's soft cap or scale"
    return Layout(
        family=frame.family,
        name=f"the bridge of {frame.name}",
        stack=frame.stack,
        blocks=frame.blocks,
        n_layers=len(frame.modules),
        d_model=frame.d_model,
        n_heads=frame.n_heads,
        n_kv_heads=frame.n_kv_heads,
        d_head=frame.d_head,
        d_mlp=getattr(bridge.cfg, "d_mlp", None),
        d_vocab=frame.d_vocab,
        taps=taps,
        absent=absent,
        special=special,
    )


def _taps(
    hooks: Mapping[str, "HookPoint"], n_layers: int
) -> tuple[dict[str, Tap], dict[str, str], dict[int, dict[str, Tap | str]]]:
    """Return (taps, reasons for absence, what single blocks lack) from the hooks that exist."""
    taps = {name: Tap(path, side) for name, (path, side) in HOOKS.items()}  # type: ignore[arg-type]
    taps["resid_mid"] = Tap("blocks.{layer}.hook_attn_out", "output", base="blocks.{layer}.hook_in")
    absent = {
        "pattern": "a plan edits tokens, and a pattern belongs to pairs of them",
        "router": "TransformerLens has no hook with one meaning for it in every family",
    }
    special: dict[int, dict[str, Tap | str]] = {}
    for name, tap in list(taps.items()):
        # Parallel blocks have attn_out but no state between attention and MLP.
        needed = "blocks.{layer}.hook_resid_mid" if name == "resid_mid" else tap.path
        lacking = [at for at in range(n_layers) if not _has(hooks, needed.format(layer=at))]
        if len(lacking) == n_layers:
            del taps[name]
            absent[name] = f"this bridge has no {needed}"
        for at in lacking if len(lacking) < n_layers else ():
            special.setdefault(at, {})[name] = f"this bridge has no {needed.format(layer=at)}"
    return taps, absent, special


def _has(hooks: Mapping[str, "HookPoint"], name: str) -> bool:
    # On a mixture of experts TransformerLens points mlp.hook_pre and mlp.hook_post at the MLP's own
    # input and output, which are other tensors than the names say.
    if name not in hooks:
        return False
    whole = {"hook_pre": ".mlp.hook_in", "hook_post": ".mlp.hook_out"}
    ending = whole.get(name.rpartition(".")[2])
    return ending is None or not str(hooks[name].name).endswith(ending)


class InBridge:
    """A plan inside a bridge: a context manager that gives the Run. Made by `in_bridge`."""

    def __init__(self, bridge: "TransformerBridge", plan: Plan) -> None:
        """Wire the plan to the bridge's hooks; nothing is attached until it is entered."""
        registry = _registry(bridge)
        wiring = wire(plan, registry.layout, lambda tap: _device(bridge, tap))
        for site in wiring.taps:
            _refuse_raw(site)
        self.bridge = bridge
        self.run = Run(registry, wiring, {}, hosted=True)
        keys = dict.fromkeys((*wiring.ops, *((base, "input") for base in wiring.bases)))
        self.served: dict[Key, int] = dict.fromkeys(keys, 0)
        """How many times the bridge handed over each hook's tensor."""
        self.hooks = [(_canonical(bridge, key), self._hook(key)) for key in keys]
        self._stack = ExitStack()

    def __enter__(self) -> Run:
        """Attach: all or nothing."""
        with ExitStack() as stack:
            self.run.enter(sys._getframe(1))
            stack.push(self.run.__exit__)
            stack.enter_context(self.bridge.hooks(fwd_hooks=self.hooks))
            self._stack = stack.pop_all()
        return self.run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Detach; on a normal exit, refuse interventions that never fired."""
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            require_served(self.run, self.served, "TransformerLens")

    def _hook(self, key: Key) -> Callable[..., Tensor | None]:
        headed = key[0].rpartition(".")[2] in ("hook_q", "hook_k", "hook_v", "hook_z")

        def edit(tensor: Tensor, hook: object) -> Tensor | None:  # noqa: ARG001 - their names
            now = current_pass(self.run)
            if now is None:
                return None
            if key[0].startswith("unembed."):
                now = kept_columns(now, tensor.shape[1])
            if tensor.ndim != 3 + headed or tensor.shape[:2] != now.tokens.positions.shape:
                raise UnsupportedModel(
                    f"{key[0]} holds a tensor of shape {tuple(tensor.shape)} in this bridge, not "
                    f"[batch, pos, {'head, d_head' if headed else 'width'}] for tokens "
                    f"{tuple(now.tokens.positions.shape)}. An edit would land on the wrong tokens. "
                    "Use a stream site (resid_pre, resid_post), or attach to lm."
                )
            self.served[key] += 1
            new = serve(key, tensor, now, (self.run,))
            return None if new is tensor else new

        return edit


def in_bridge(bridge: "TransformerBridge", plan: Plan) -> InBridge:
    """Return a context manager in which a TransformerBridge follows the plan.

        with interop.in_bridge(bridge, plan) as run:
            logits = bridge(ids, attention_mask=mask)
            tokens = bridge.hf_generate(ids, attention_mask=mask, do_sample=False)

    Positions, gates and receipts are those of `lm.attached`: `hf_generate` goes through
    HuggingFace's own generate and is understood with its cache, beams and return sequences. The
    bridge's own `generate` loop does not tell its prompts: declare them first with
    `run.prompt(lengths)`; without, a scope that needs the prompt's end is refused in its cached
    passes. Hooks of the user stay as they are, in the order in which they were added.

    Raises:
        UnsupportedModel: see `bridge_layout`.
        SiteNotFound: a site without a hook in this bridge, or a ModuleSite.
        SteerError: anything else about the plan; on normal exit, something never fired.
    """
    return InBridge(bridge, plan)


def _registry(bridge: "TransformerBridge") -> HookRegistry:
    # One for each bridge, so that nested plans share the passes, as in lm.attached.
    layout = bridge_layout(bridge)
    found = _REGISTRIES.get(bridge)
    if found is None or found.model is not bridge.original_model:
        tokenizer = bridge.tokenizer
        decode = None if tokenizer is None else lambda ids: str(tokenizer.decode(ids))
        found = HookRegistry(bridge.original_model, layout, decode)
        _REGISTRIES[bridge] = found
    return found


def _refuse_raw(site: AnySite) -> None:
    if isinstance(site, ModuleSite):
        raise SiteNotFound(
            f"{site} is a path in the HuggingFace model, and the bridge has replaced its modules. "
            "The same path would be another tensor, or none. Use a named Site, or attach to lm."
        )


def _canonical(bridge: "TransformerBridge", key: Key) -> str:
    # In compatibility mode TransformerLens calls a hook added by an alias once for each name.
    return bridge.hook_dict[key[0]].name or key[0]


def _device(bridge: "TransformerBridge", tap: Tap) -> torch.device:
    component = bridge.hook_dict.get(tap.path) and tap.path.rpartition(".")[0]
    modules = [bridge.get_submodule(component)] if component else []
    for module in (*modules, bridge.original_model):
        for parameter in module.parameters():
            return parameter.device
    return torch.device("cpu")
