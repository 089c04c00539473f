"""Capture: run prompts and keep what passes at some sites, at the tokens in scope only.

Prompts run in batches of similar length, padded on the right, so positions are natural and real
tokens never see padding. A pass ends after the last site needed; the vocabulary projection is not
computed unless logits are asked for, and then only at the columns in scope.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from steer.activations import Activations
from steer.attention import is_pattern, queries_last, takers_for
from steer.bookkeeping import Pass, Sequences
from steer.errors import PlanError
from steer.interventions.plans import Plan
from steer.prompts import in_batches, padded, sequences_of
from steer.receipt import Receipt
from steer.registry import HookRegistry
from steer.scopes import Scope
from steer.sites import AnySite, Site
from steer.tokens import Tokens

MAX_TOKENS = 4096
"""Padded tokens of one batch: large enough to fill two cores, small enough for any laptop."""


class _Enough(BaseException):
    """Ends a pass after the last site. No Exception: torch would run always-called hooks for it."""


@dataclass(slots=True, eq=False)
class Taken:
    """What was kept of each site, pass by pass: rows, positions and values in scope."""

    scope: Scope
    stop_after: AnySite | None
    rows: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    values: dict[AnySite, list[Tensor]] = field(default_factory=dict)

    def take(self, site: AnySite, h: Tensor, now: Pass) -> None:
        """Keep the tokens in scope of one site."""
        chosen = now.select(self.scope, None)
        mask = chosen.mask if now.tokens.fresh is None else chosen.mask & now.tokens.fresh
        row, column = mask.nonzero(as_tuple=True)
        kept = self.values.setdefault(site, [])
        if len(kept) == len(self.rows):
            self.rows.append(now.tokens.rows[row])
            self.positions.append(now.tokens.positions[row, column])
        kept.append(h[row.to(h.device), column.to(h.device)])
        if site == self.stop_after:
            raise _Enough

    def assembled(self, sites: Sequence[AnySite], n_rows: int) -> Activations:
        """Return the values ordered by row and position."""
        row, position = torch.cat(self.rows), torch.cat(self.positions)
        order = torch.argsort(row * (int(position.max()) + 1) + position)
        row, position = row[order], position[order]
        counts = torch.bincount(row, minlength=n_rows)
        flat = {site: torch.cat(self.values[site]) for site in sites}
        flat = {site: v[order.to(v.device)] for site, v in flat.items()}
        if bool((counts == 1).all()):
            return Activations(flat, None, position, scope=repr(self.scope))
        rank = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        width = int(counts.max())
        mask = torch.zeros(n_rows, width, dtype=torch.bool)
        mask[row, rank] = True
        at = torch.full((n_rows, width), -1)
        at[row, rank] = position
        spread = {}
        for site, v in flat.items():
            empty = v.new_zeros(n_rows, width, *v.shape[1:])
            spread[site] = empty.index_put((row.to(v.device), rank.to(v.device)), v)
        return Activations(spread, mask, at, scope=repr(self.scope))


def capture_rows(
    registry: HookRegistry,
    rows: Sequence[Sequence[int]],
    sites: Sequence[AnySite],
    scope: Scope,
    plan: Plan,
    *,
    pad: int,
    grad: bool = False,
    prompt_lengths: Sequence[int] | None = None,
    max_tokens: int = MAX_TOKENS,
) -> tuple[Activations, Receipt]:
    """Return the activations of rows of token ids, and what the plan did.

    Raises:
        PlanError: no site is asked for.
        SteerError: a site, scope or plan that does not fit.
    """
    if not sites:
        raise PlanError("No site to capture. Name at least one: [steer.Site(12, 'resid_post')].")
    taken = Taken(scope, _last(registry, sites, plan))
    longest = max(len(row) for row in rows)
    run = registry.taking(plan, takers_for(registry, sites, taken.take, longest))
    want_logits = any(isinstance(s, Site) and s.component == "logits" for s in sites)
    through = (
        _through_root(run.work.wiring.taps)
        or want_logits
        or not all(isinstance(s, Site) for s in sites)
    )
    with torch.set_grad_enabled(grad), run:
        for batch in in_batches(rows, max_tokens):
            ids, mask = padded([rows[r] for r in batch], pad, left=False)
            lengths = None
            if prompt_lengths is not None:
                lengths = torch.tensor([prompt_lengths[r] for r in batch])
            sequences = sequences_of(ids, mask, batch, len(rows), lengths)
            keep = None
            if want_logits:
                keep = columns_in(scope, sequences, registry)
            with registry.sequences(sequences):
                call_model(registry, ids, mask, keep=keep, root=through)
    acts = taken.assembled(sites, len(rows))
    if any(is_pattern(site) for site in sites):
        single = acts.mask is None
        turned = {site: queries_last(v, site, single=single) for site, v in acts.values.items()}
        acts = replace(acts, values=turned)
    return acts, run.receipt


def _through_root(taps: Mapping[AnySite, object]) -> bool:
    return any(not isinstance(s, Site) or s.component == "logits" for s in taps)


def _last(registry: HookRegistry, sites: Sequence[AnySite], plan: Plan) -> AnySite | None:
    # Raw sites and several devices (accelerate moves data in hooks of its own): run to the end.
    devices = getattr(registry.model, "hf_device_map", None) or {}
    planned = list(registry.wire(plan).taps)
    everything = [*sites, *planned]
    if len(set(devices.values())) > 1 or not all(isinstance(s, Site) for s in everything):
        return None
    last = max(everything, key=_served)
    return last if last in sites else None


def _served(site: AnySite) -> tuple[float, int, str]:
    assert isinstance(site, Site)
    return (*site.order, str(site))


def columns_in(scope: Scope, sequences: Sequences, registry: HookRegistry) -> Tensor:
    """Return the columns in which any row has a token in scope."""
    assert sequences.prompt is not None
    prompt = sequences.prompt
    tokens = Tokens(
        prompt.positions(0, prompt.mask.shape[1]),
        sequences.row_ids,
        prompt.lengths,
        prompt.ids,
        prompt,
        registry.decode,
    )
    return scope.select(tokens).any(0).nonzero()[:, 0]


def call_model(
    registry: HookRegistry, ids: Tensor, mask: Tensor, *, keep: Tensor | None, root: bool
) -> None:
    """Run one forward pass without a cache; the stack alone unless the root is needed."""
    path = "" if root else registry.layout.stack
    module = registry.module(path)
    device = next(registry.module(registry.layout.stack).parameters()).device
    arguments: dict[str, object] = {"input_ids": ids.to(device), "use_cache": False}
    if not bool(mask.all()):
        arguments["attention_mask"] = mask.long().to(device)
    if keep is not None and takes_columns(module):
        arguments["logits_to_keep"] = keep.to(device)
    try:
        module(**arguments)
    except _Enough:
        return


def takes_columns(module: nn.Module) -> bool:
    """Say whether the model can compute logits for some columns only."""
    return "logits_to_keep" in inspect.signature(module.forward).parameters
