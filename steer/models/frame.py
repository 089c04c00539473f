"""The frame of a causal model: its config, its stack of blocks, its sizes, its unembedding.

Found by structure, the same way for every family, so that a text model inside a multimodal wrapper
needs nothing of its own. What is inside a block is said by `layouts` or searched by `discover`;
`build` turns both into a Layout.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from steer.errors import UnsupportedModel
from steer.models.layout import Layout, Tap, Unembed
from steer.sites import COMPONENTS

REMEDY = (
    "Read and write its modules by path with ModuleSite('path.of.module', 'output'), or describe "
    "the family once with lm.registry.add_layout(model_type, make)."
)
"""What to do about a model that cannot be explained."""

_NOT_TEXT = ("vision", "visual", "audio", "image", "encoder.", "speech", "talker", "code2wav")


@dataclass(frozen=True, slots=True)
class Frame:
    """All of a causal model that is outside its blocks, and the sizes that its config states."""

    model: nn.Module
    config: Any
    """The text config: transformers' configs have no common static type for their sizes."""
    family: str
    name: str
    stack: str
    blocks: str
    modules: Sequence[nn.Module]
    """The blocks themselves, in order."""
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_vocab: int

    def size(self, *names: str) -> int | None:
        """Return the first of these config entries that is a number."""
        found = (getattr(self.config, name, None) for name in names)
        return next((int(value) for value in found if isinstance(value, int)), None)

    def refuse(self, what: str) -> UnsupportedModel:
        """Return the error that says what of this model could not be explained."""
        return UnsupportedModel(f"{self.name} ({self.family}): {what}. {REMEDY}")


@dataclass(frozen=True, slots=True)
class Parts:
    """One block explained: taps by component, with paths relative to the block."""

    taps: Mapping[str, Tap]
    absent: Mapping[str, str] = field(default_factory=dict)
    reads: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """As in Layout, with norm paths relative to the block."""
    parallel: str | None = None
    """Why there is no resid_mid: attention and MLP read the same stream. None if they do not."""
    sum_norms: tuple[str, str] | None = None
    d_mlp: int | None = None


def join(*names: str) -> str:
    """Return a module path from its parts, empty ones left out."""
    return ".".join(name for name in names if name)


def model_types(model: nn.Module) -> tuple[str, ...]:
    """Return the model_type of a model's text config, then that of its whole config."""
    config = getattr(model, "config", None)
    kinds = (getattr(each, "model_type", "") for each in (_text_config(config), config))
    return tuple(kind for kind in kinds if kind)


def _text_config(config: Any) -> Any:
    """Return the part of a config that describes the text model."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def find_frame(model: nn.Module) -> Frame:
    """Find the stack of blocks of a causal model and the sizes that its config states.

    Raises:
        UnsupportedModel: no config, an encoder-decoder, or no list of as many blocks as the config
            says.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise UnsupportedModel(
            f"{type(model).__name__} has no config, so its sizes cannot be told. {REMEDY}"
        )
    text, family = _text_config(config), next(iter(model_types(model)), "unknown")
    name = getattr(config, "name_or_path", "") or getattr(config, "model_type", "") or family
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{name} ({family}) is an encoder-decoder: its decoder reads a second stream through "
            f"cross-attention, which the standard components do not name. {REMEDY}"
        )
    path, blocks = _find_blocks(model, text, f"{name} ({family})")
    d_model, n_heads = _number(text, "hidden_size"), _number(text, "num_attention_heads")
    head = getattr(text, "head_dim", None)
    return Frame(
        model=model,
        config=text,
        family=family,
        name=name,
        stack=path.rpartition(".")[0],
        blocks=path,
        modules=tuple(blocks),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=getattr(text, "num_key_value_heads", None) or n_heads,
        d_head=head if isinstance(head, int) else d_model // max(n_heads, 1),
        d_vocab=_number(text, "vocab_size"),
    )


def _number(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def _find_blocks(model: nn.Module, config: Any, who: str) -> tuple[str, nn.ModuleList]:
    """Return the ModuleList of the expected length that holds most weights, text ones only."""
    n_layers = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layer", None)
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not any(word in path for word in _NOT_TEXT)
    }
    weights = {
        path: sum(parameter.numel() for parameter in module.parameters())
        for path, module in lists.items()
        if len(module) == n_layers
    }
    if not weights:
        lengths = ", ".join(f"{path} has {len(module)}" for path, module in lists.items()) or "none"
        raise UnsupportedModel(
            f"{who}: no list of {n_layers} blocks was found (lists of modules: {lengths}). {REMEDY}"
        )
    path = max(weights, key=lambda path: (weights[path], -len(path)))
    return path, lists[path]


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    if wanted is None:
        return None
    return next((path for path, module in model.named_modules() if module is wanted), None)


def find_unembed(frame: Frame) -> Unembed | None:
    """Return where logits are made, with the scale and the soft cap that the config states."""
    getter = getattr(frame.model, "get_output_embeddings", None)
    path = _path_of(frame.model, getter()) if getter is not None else None
    if path is None:
        return None
    config, scale = frame.config, 1.0
    for entry in ("logit_scale", "lm_head_multiplier"):
        value = getattr(config, entry, None)
        scale *= value if isinstance(value, float | int) else 1.0
    divisor = getattr(config, "logits_scaling", None)
    scale /= divisor if isinstance(divisor, float | int) else 1.0
    project = getattr(frame.model.get_submodule(frame.stack), "project_out", None)
    return Unembed(
        path=path,
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
        before=None if project is None else join(frame.stack, "project_out"),
    )


def build(frame: Frame, parts: Sequence[Parts], *, ln_final: str | None) -> Layout:
    """Return the Layout of a frame whose blocks are explained one by one.

    Blocks that differ from the commonest kind go to `special`. `ln_final` is the name of the final
    norm inside the stack, None if there is none.
    """
    explained = [_explain(frame, each) for each in parts]
    keys = [_fingerprint(taps, absent) for taps, absent in explained]
    common = Counter(keys).most_common(1)[0][0]
    typical = keys.index(common)
    taps, absent = explained[typical]
    special = {
        layer: _differences({**explained[layer][1], **explained[layer][0]}, {**absent, **taps})
        for layer, key in enumerate(keys)
        if key != common
    }
    first = f"{frame.blocks}.0"
    outside = {"embed": Tap(first, "input")}
    missing = dict(absent)
    if ln_final is not None:
        outside["ln_final"] = Tap(join(frame.stack, ln_final), "output")
    else:
        missing["ln_final"] = "its stack ends without a norm"
    unembed = find_unembed(frame)
    if unembed is not None:
        outside["logits"] = Tap("", "output")
    else:
        missing["logits"] = "it was loaded without an output embedding"
    every = {**taps, **outside}
    prefix = f"{frame.blocks}.{{layer}}"
    chosen = parts[typical]
    reads = {name: read for each in parts for name, read in each.reads.items()}
    widths = [each.d_mlp for each in parts if each.d_mlp is not None]
    return Layout(
        family=frame.family,
        name=frame.name,
        stack=frame.stack,
        blocks=frame.blocks,
        n_layers=len(frame.modules),
        d_model=frame.d_model,
        n_heads=frame.n_heads,
        n_kv_heads=frame.n_kv_heads,
        d_head=frame.d_head,
        d_mlp=widths[0] if widths else None,
        d_vocab=frame.d_vocab,
        taps={name: every[name] for name in COMPONENTS if name in every},
        absent=missing,
        special=special,
        reads={
            name: (stream, join(prefix, norm) if norm else "")
            for name, (stream, norm) in reads.items()
        },
        sum_norms=chosen.sum_norms
        and (join(prefix, chosen.sum_norms[0]), join(prefix, chosen.sum_norms[1])),
        unembed=unembed,
    )


def _explain(frame: Frame, parts: Parts) -> tuple[dict[str, Tap], dict[str, str]]:
    """Return absolute taps and reasons of one block, with the streams added."""
    block = f"{frame.blocks}.{{layer}}"
    taps = {
        name: replace(tap, path=join(block, tap.path), base=tap.base and join(block, tap.base))
        for name, tap in parts.taps.items()
    }
    taps["resid_pre"] = Tap(block, "input")
    taps["resid_post"] = Tap(block, "output")
    absent = dict(parts.absent)
    if parts.sum_norms is not None:
        taps["resid_mid"] = Tap(join(block, parts.sum_norms[0]), "output")
    elif parts.parallel is not None:
        absent["resid_mid"] = parts.parallel
    elif "attn_out" not in taps:
        absent.setdefault("resid_mid", "its attn_out could not be explained")
    elif not any(stream == "resid_mid" for stream, _ in parts.reads.values()):
        absent.setdefault("resid_mid", "nothing in its block confirms that the MLP reads it")
    else:
        taps["resid_mid"] = replace(taps["attn_out"], base=block)
    if "mlp_pre" in taps or "mlp_post" in taps:
        absent.setdefault("router", "its MLP is not a mixture of experts")
    for name in COMPONENTS:
        if name not in taps and name not in ("embed", "ln_final", "logits"):
            absent.setdefault(name, "its layout does not say where it is")
    return taps, absent


def _differences(
    mine: Mapping[str, Tap | str], common: Mapping[str, Tap | str]
) -> dict[str, Tap | str]:
    return {name: tap for name, tap in mine.items() if common.get(name) != tap}


def _fingerprint(taps: Mapping[str, Tap], absent: Mapping[str, str]) -> str:
    """Return a hashable image of one block's explanation."""
    return repr((sorted(taps.items(), key=lambda item: item[0]), sorted(absent.items())))
