"""What a layout is: which module, which side of it and which part of its tensor a site stands for.

Frozen values and pure functions on tensors; nothing here touches a module. The tables of the
known families are in `layouts`, the generic search in `discover`, the self-check in `verify`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from steer.errors import SiteNotFound, did_you_mean
from steer.models.attention import AttentionFacts
from steer.sites import AnySite, ModuleSite


@runtime_checkable  # the test run checks types with beartype, which needs isinstance
class View(Protocol):
    """Where a site's tensor lies inside the tensor that a module takes or returns."""

    def get(self, whole: Tensor) -> Tensor:
        """Return the site's tensor."""
        ...

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return a new module tensor with the site's tensor replaced and every other bit kept."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """The module's tensor is the site's tensor."""

    def get(self, whole: Tensor) -> Tensor:
        """Return the tensor itself."""
        return whole

    def put(self, whole: Tensor, part: Tensor) -> Tensor:  # noqa: ARG002 - the protocol has it
        """Return the replacement."""
        return part


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns [start, start + count): the gate half of a fused gate-and-up projection."""

    start: int
    count: int

    def get(self, whole: Tensor) -> Tensor:
        """Return [batch, pos, count]."""
        return whole[..., self.start : self.start + self.count]

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return the whole with these columns replaced."""
        end = self.start + self.count
        return torch.cat([whole[..., : self.start], part, whole[..., end:]], dim=-1)


@dataclass(frozen=True, slots=True)
class Scaled:
    """The module's tensor times a constant of the config (Granite's residual_multiplier).

    Reading gives the bits that the block adds; writing divides, so it is exact to one rounding.
    """

    factor: float

    def get(self, whole: Tensor) -> Tensor:
        """Return what the block adds to the stream."""
        return whole * self.factor

    def put(self, whole: Tensor, part: Tensor) -> Tensor:  # noqa: ARG002 - the protocol has it
        """Return the module tensor that the block will scale to the replacement."""
        return part / self.factor


@dataclass(frozen=True, slots=True)
class Heads:
    """Columns [start, start + n_heads * d_head) hold the heads one after the other."""

    n_heads: int
    d_head: int
    start: int = 0

    def get(self, whole: Tensor) -> Tensor:
        """Return [batch, pos, head, d_head]."""
        flat = whole[..., self.start : self.start + self.n_heads * self.d_head]
        return flat.unflatten(-1, (self.n_heads, self.d_head))

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return the whole with these heads replaced."""
        end = self.start + self.n_heads * self.d_head
        return torch.cat([whole[..., : self.start], part.flatten(-2), whole[..., end:]], dim=-1)


@dataclass(frozen=True, slots=True)
class Interleaved:
    """Fused columns [group, slot, d_head]: each group holds several q heads, then k, then v.

    GPT-NeoX has one q, one k and one v per head (groups = heads, slots = 3); Falcon's new decoder
    has n_heads / n_kv_heads q heads, one k and one v per kv head.
    """

    n_groups: int
    n_slots: int
    d_head: int
    first: int
    """First slot of this component within each group."""
    count: int
    """How many slots of each group belong to it."""

    def get(self, whole: Tensor) -> Tensor:
        """Return [batch, pos, head, d_head]."""
        split = whole.unflatten(-1, (self.n_groups, self.n_slots, self.d_head))
        return split[..., self.first : self.first + self.count, :].flatten(-3, -2)

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return the whole with these heads replaced."""
        split = whole.unflatten(-1, (self.n_groups, self.n_slots, self.d_head))
        mine = part.unflatten(-2, (self.n_groups, self.count))
        last = self.first + self.count
        parts = [split[..., : self.first, :], mine, split[..., last:, :]]
        return torch.cat(parts, dim=-2).flatten(-3)


@dataclass(frozen=True, slots=True)
class OneHead:
    """One head of a view with a head axis (axis -2): [batch, pos, d_head]."""

    heads: View
    head: int

    def get(self, whole: Tensor) -> Tensor:
        """Return this head's slice."""
        return self.heads.get(whole).select(-2, self.head)

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return the whole with this head replaced."""
        every = self.heads.get(whole)
        before, after = every[..., : self.head, :], every[..., self.head + 1 :, :]
        return self.heads.put(whole, torch.cat([before, part.unsqueeze(-2), after], dim=-2))


Side = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Tap:
    """One module, one side of it, and the view of its tensor: what a hook needs to know.

    "input" is the module's first tensor argument (or its `hidden_states` keyword); "output" is the
    returned tensor, the first of a returned tuple, or the `logits` of a model output.
    """

    path: str
    side: Side
    view: View = field(default_factory=Whole)
    base: str | None = None
    """Only for resid_mid: path of the block whose input is added to this tensor (a sum that no
    module takes or returns on its own; writing it writes the difference into this module's output).
    """
    flat: bool = False
    """The module works on [batch * pos, ...] (OPT's MLP, routers): split the first axis by the
    pass's batch before the view, and join it again after a write."""
    read_only: str | None = None
    """Why writing here could not act (routers return scores beside the logits, and only the scores
    are used), or None."""


@dataclass(frozen=True, slots=True)
class Unembed:
    """How logits come from ln_final: logits = cap * tanh(scale * head(before(ln_final)) / cap)."""

    path: str
    """The output embedding ("lm_head")."""
    scale: float = 1.0
    softcap: float | None = None
    before: str | None = None
    """A projection between ln_final and the head (OPT's project_out), or None."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one model's modules realise the standard sites.

    `taps` maps a component to its tap with `{layer}` in the path where it is inside a block;
    `absent` maps a component to the reason why this family has none.
    """

    family: str
    name: str
    """What errors call the model: its config's name_or_path, or the model type."""
    stack: str
    """Path of the module whose call carries ids, mask, positions and cache ("model")."""
    blocks: str
    """Path of the ModuleList of blocks ("model.layers")."""
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int | None
    d_vocab: int
    taps: Mapping[str, Tap]
    absent: Mapping[str, str]
    special: Mapping[int, Mapping[str, Tap | str]] = field(default_factory=dict)
    """Blocks that differ from the rest (dense blocks of a mixture): layer -> component -> tap, or
    the reason why this block has none."""
    reads: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """component -> (stream component, norm path or ""): the module of q, mlp_pre or router is
    called on norm(stream). Lets the check tell resid_pre from resid_mid, parallel from serial."""
    sum_norms: tuple[str, str] | None = None
    """Post-norm blocks only: the norms applied to resid_pre + attn_out (giving resid_mid) and to
    resid_mid + mlp_out (giving resid_post). None where the sums are the stream."""
    unembed: Unembed | None = None
    """None where the model has no output embedding."""
    attention: AttentionFacts | None = None
    """How q and k make the pattern; None where pattern is absent."""

    def tap(self, site: AnySite) -> Tap:
        """Return the tap of a site.

        Raises:
            SiteNotFound: the model has no such layer, component, head or stack.
        """
        if isinstance(site, ModuleSite):
            return Tap(site.path, site.side)
        if not self.taps:
            raise SiteNotFound(
                f"{self.name} was wrapped with modules_only=True, so it has no standard sites, and "
                f"{site} would be a guess. Name a module: steer.ModuleSite('path.of.module')."
            )
        if site.stack != "decoder":
            raise SiteNotFound(
                f"{self.name} has no stack {site.stack!r} (asked for {site}): it has 'decoder'. "
                "For a module of another stack use ModuleSite('path.of.module', 'output')."
            )
        if site.layer is not None and site.layer >= self.n_layers:
            nearest = replace(site, layer=self.n_layers - 1)
            raise SiteNotFound(
                f"{self.name} has no site {site}: it has {self.n_layers} blocks (0 to "
                f"{self.n_layers - 1}). Did you mean {nearest}?"
            )
        found: Tap | str | None = self.taps.get(site.component)
        if site.layer is not None:
            found = self.special.get(site.layer, {}).get(site.component, found)
        if found is None or isinstance(found, str):
            reason = found or self.absent.get(site.component, "its layout does not say where it is")
            near = did_you_mean(site.component, self.taps)
            raise SiteNotFound(
                f"{self.name} ({self.family}) has no {site}: {reason}. It has "
                f"{', '.join(self.taps)}.{near}"
            )
        n_heads = self.n_kv_heads if site.component in ("k", "v") else self.n_heads
        if site.head is not None and site.head >= n_heads:
            kind = "kv heads" if site.component in ("k", "v") else "heads"
            raise SiteNotFound(
                f"{self.name} has no site {site}: {site.component} has {n_heads} {kind} "
                f"(0 to {n_heads - 1}). Did you mean {replace(site, head=n_heads - 1)}?"
            )
        view = found.view if site.head is None else OneHead(found.view, site.head)
        path = found.path.format(layer=site.layer)
        base = None if found.base is None else found.base.format(layer=site.layer)
        return replace(found, path=path, view=view, base=base)

    def width(self, site: AnySite) -> int | None:
        """Return the size of a site's last axis, or None where it is not fixed (pattern, raw)."""
        if isinstance(site, ModuleSite) or site.component in ("pattern", "router"):
            return None
        if site.component in ("q", "k", "v", "z"):
            return self.d_head
        by_component = {"mlp_pre": self.d_mlp, "mlp_post": self.d_mlp, "logits": self.d_vocab}
        return by_component.get(site.component, self.d_model)
