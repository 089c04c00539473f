"""The prompts as they are, run once: what arms begin with, share, and are compared to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature

import torch
from torch import Tensor
from transformers import DynamicCache

from steer.bookkeeping import Pass
from steer.capture import Enough, columns_in, takes_columns
from steer.engine.climb import Climber
from steer.passes import cache_name
from steer.prompts import padded, sequences_of
from steer.registry import HookRegistry
from steer.scopes import Scope
from steer.sites import AnySite, Site
from steer.tokens import Prompt, Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of the prompts, padded on the left so that they end together."""

    rows: Tensor
    """[prompt]: their numbers among all prompts."""
    ids: Tensor
    mask: Tensor
    lengths: Tensor
    declared: Tensor | None = None
    """[prompt]: tokens that count as prompt; None for all."""

    @classmethod
    def of(
        cls,
        numbers: Sequence[int],
        rows: Sequence[Sequence[int]],
        pad: int,
        declared: Sequence[int] | None = None,
    ) -> "Part":
        """Pad the prompts of these numbers."""
        ids, mask = padded([rows[at] for at in numbers], pad, left=True)
        known = None if declared is None else torch.tensor([declared[at] for at in numbers])
        return cls(torch.tensor(numbers), ids, mask, mask.sum(1), known)

    @property
    def columns(self) -> int:
        """Columns of the longest."""
        return self.ids.shape[1]

    def arguments(
        self, prompts: Tensor, tokens: int, seen: int, model: Mapping[str, object]
    ) -> dict[str, object]:
        """Return input_ids, mask and positions of the last columns of some of these prompts.

        Args:
            prompts: [row], numbers within this part.
            tokens: how many columns run.
            seen: how many they see, those of the prefix included.
            model: the names that the model's forward takes.
        """
        found: dict[str, object] = {"input_ids": self.ids[prompts, -tokens:]}
        mask = self.mask[prompts, -seen:]
        if not bool(mask.all()):
            found["attention_mask"] = mask.long()
        if "position_ids" in model:
            positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -tokens:]
            alike = bool((positions == positions[:1]).all())
            found["position_ids"] = positions[:1] if alike else positions[prompts]
        return found


@dataclass(slots=True, eq=False)
class Base:
    """What one base pass left; states and values are [prompt, column, ...], left-padded."""

    part: Part
    cache: DynamicCache | None = None
    states: dict[int, Tensor] = field(default_factory=dict)
    """Block -> what enters it; n_layers -> what leaves the last one."""
    values: dict[AnySite, Tensor] = field(default_factory=dict)
    read: Tensor | None = None
    """[prompt, n, ...]: what is measured, at the tokens in scope."""
    scope: Tensor | None = None
    """[prompt, column] bool: the tokens in scope."""

    def at(self, site: AnySite, prompts: Tensor, positions: Tensor) -> Tensor:
        """Return the values of a site at tokens, by prompt within the part and position."""
        values = self.values[site]
        column = self.part.columns - self.part.lengths[prompts] + positions
        return values[prompts.to(values.device), column.to(values.device)]


def in_scope(h: Tensor, mask: Tensor) -> Tensor:
    """Return [row, n, ...]: the tokens of a mask [row, column] in order, padded on the right."""
    n = int(mask.sum(1).max()) if mask.numel() else 0
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :n]
    return h[torch.arange(len(h))[:, None].to(h.device), order.to(h.device)]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a base pass is asked to keep."""

    scope: Scope
    read: AnySite
    blocks: Sequence[int] = ()
    """Blocks whose input is kept."""
    sites: Sequence[AnySite] = ()
    """Further sites whose values are kept."""
    cached: bool = True
    """Keep keys and values."""


def run_base(registry: HookRegistry, part: Part, asked: Asked, climber: Climber, n: int) -> Base:
    """Return what the model does with some prompts, unsteered.

    Args:
        registry: of the model.
        part: the prompts.
        asked: what to keep.
        climber: counts the token-blocks.
        n: how many prompts there are in all.
    """
    base = Base(part, DynamicCache() if asked.cached else None)
    base.scope = whole_scope(part, asked.scope, registry)
    n_layers = registry.layout.n_layers
    inputs = {
        Site(b, "resid_pre") if b < n_layers else Site(n_layers - 1, "resid_post"): b
        for b in asked.blocks
    }

    def take(site: AnySite, h: Tensor, now: Pass) -> None:
        # Copies: some families add in place to what a module returned.
        if site in inputs:
            base.states[inputs[site]] = h.clone()
        if site in asked.sites:
            base.values[site] = base.states[inputs[site]] if site in inputs else h.clone()
        if site == asked.read:
            base.read = in_scope(h, now.select(asked.scope, None).mask)
            stop_after(asked.read, registry)

    wanted = dict.fromkeys([*inputs, *asked.sites, asked.read])
    run = registry.climbing(registry.wire([]), [(site, take) for site in wanted], climber)
    sequences = sequences_of(part.ids, part.mask, part.rows.tolist(), n, part.declared)
    every, names = torch.arange(len(part.rows)), names_of(registry)
    arguments = part.arguments(every, part.columns, part.columns, names)
    arguments |= {"use_cache": asked.cached, cache_name(names): base.cache}
    if takes_columns(registry.model):
        keep = columns_in(asked.scope, sequences, registry)
        arguments["logits_to_keep"] = keep if asked.read == Site.logits() else 1
    with registry.sequences(sequences):
        run.start()
        try:
            call(registry, arguments)
        finally:
            run.stop()
    return base


def whole_scope(part: Part, scope: Scope, registry: HookRegistry) -> Tensor:
    """Return [prompt, column] bool: the tokens in scope of whole prompts."""
    prompt = Prompt(part.mask, part.ids, part.declared)
    positions = prompt.positions(0, part.columns)
    tokens = Tokens(positions, part.rows, prompt.lengths, part.ids, prompt, registry.decode)
    return scope.select(tokens)


def stop_after(read: AnySite, registry: HookRegistry) -> None:
    """End the pass where nothing above is asked for; not where accelerate moves data in hooks."""
    devices = getattr(registry.model, "hf_device_map", None) or {}
    if isinstance(read, Site) and read != Site.logits() and len(set(devices.values())) <= 1:
        raise Enough


def names_of(registry: HookRegistry) -> Mapping[str, object]:
    """Return the names of the arguments that the model's forward takes."""
    return signature(type(registry.model).forward).parameters


def call(registry: HookRegistry, arguments: Mapping[str, object]) -> None:
    """Run the model once; what comes out is taken by hooks."""
    device = next(registry.module(registry.layout.stack).parameters()).device
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    try:
        registry.model(**moved)
    except Enough:
        return


def prompt_of(part: Part, prompts: Tensor, seen: int) -> Prompt:
    """Return the declaration of rows that repeat the last columns of some prompts of a part."""
    declared = None if part.declared is None else part.declared[prompts]
    return Prompt(part.mask[prompts, -seen:], part.ids[prompts, -seen:], declared)
