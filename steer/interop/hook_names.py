"""Names of TransformerLens hooks and the sites that they are. Values only; imports no library."""

import re
from collections.abc import Mapping

from steer.sites import OUTSIDE_BLOCKS, Site

HOOKS: Mapping[str, tuple[str, str]] = {
    "embed": ("blocks.0.hook_in", "input"),
    "resid_pre": ("blocks.{layer}.hook_in", "input"),
    "q": ("blocks.{layer}.attn.hook_q", "output"),
    "k": ("blocks.{layer}.attn.hook_k", "output"),
    "v": ("blocks.{layer}.attn.hook_v", "output"),
    "z": ("blocks.{layer}.attn.hook_z", "output"),
    "attn_out": ("blocks.{layer}.hook_attn_out", "output"),
    "mlp_pre": ("blocks.{layer}.mlp.hook_pre", "output"),
    "mlp_post": ("blocks.{layer}.mlp.hook_post", "output"),
    "mlp_out": ("blocks.{layer}.hook_mlp_out", "output"),
    "resid_post": ("blocks.{layer}.hook_out", "output"),
    "ln_final": ("ln_final.hook_out", "output"),
    "logits": ("unembed.hook_out", "output"),
}
"""Component -> (TransformerLens hook, side). `embed` is what enters block 0, positions included;
TransformerLens' own hook_embed leaves GPT-2's position embedding out."""

_OTHER_NAMES: Mapping[str, str] = {
    "hook_in": "resid_pre",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_out": "resid_post",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_post",
    "ln_final.hook_out": "ln_final",
    "unembed.hook_out": "logits",
    "hook_unembed": "logits",
}
"""The names, after `blocks.{layer}.` where there is one, whose meaning is one site's in every
family. attn.hook_out and mlp.hook_out are left out: before the post norm in sandwich families."""

_NAME = re.compile(r"^(?:blocks\.(?P<layer>\d+)\.)?(?P<name>[a-z_.]+)$")


def site_of_hook(name: str) -> Site | None:
    """Return the site that a TransformerLens hook is, or None where it is none of ours.

    >>> site_of_hook("blocks.3.hook_resid_post")
    blocks.3.resid_post
    """
    found = _NAME.match(name)
    component = None if found is None else _OTHER_NAMES.get(found["name"])
    if found is None or component is None:
        return None
    layer = None if found["layer"] is None else int(found["layer"])
    if (layer is None) != (component in OUTSIDE_BLOCKS):
        return None
    return Site(layer, component)
