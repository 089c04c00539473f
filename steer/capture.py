"""Capture: run prompts and keep what passes at some sites, at the tokens in scope only.

Prompts run in batches of similar length, padded on the right, so positions are natural and real
tokens never see padding. A pass ends after the last site needed; the vocabulary projection is not
computed unless logits are asked for, and then only at the columns in scope.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from steer.activations import Activations
from steer.attention import is_pattern, queries_last, takers_for
from steer.bookkeeping import Pass, Sequences
from steer.errors import PlanError
from steer.interventions.plans import Plan, Rows
from steer.prompts import in_batches, padded, sequences_of
from steer.receipt import Receipt
from steer.registry import HookRegistry
from steer.scopes import Scope
from steer.sites import AnySite, Site
from steer.spec import digest, spec_of
from steer.store import Shard, Store, placed
from steer.tokens import Tokens

MAX_TOKENS = 4096
"""Padded tokens of one batch: large enough to fill two cores, small enough for any laptop."""


class Enough(BaseException):
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
            raise Enough

    def drained(self, sites: Sequence[AnySite]) -> Shard:
        """Return what was kept since the last call, and forget it."""
        values = {str(site): torch.cat(self.values[site]) for site in sites}
        shard = Shard(torch.cat(self.rows), torch.cat(self.positions), values)
        self.rows, self.positions, self.values = [], [], {}
        return shard

    def assembled(self, sites: Sequence[AnySite], n_rows: int) -> Activations:
        """Return the values ordered by row and position."""
        shard = self.drained(sites)
        place, mask, at = placed(shard.rows, shard.positions, n_rows)
        values: dict[AnySite, Tensor] = {}
        for site in sites:
            v = shard.values[str(site)]
            empty = v.new_zeros(at.numel(), *v.shape[1:])
            values[site] = empty.index_put((place.to(v.device),), v).unflatten(0, at.shape)
        return Activations(values, mask, at, scope=repr(self.scope))


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
    store: Store | None = None,
    max_tokens: int = MAX_TOKENS,
) -> tuple[Activations, Receipt]:
    """Return the activations of rows of token ids, and what the plan did.

    With a store, batches that are there already are not run, and the receipt speaks of the others.

    Raises:
        PlanError: no site is asked for.
        SteerError: a site, scope or plan that does not fit.
    """
    if not sites:
        raise PlanError("No site to capture. Name at least one: [steer.Site(12, 'resid_post')].")
    taken = Taken(scope, _last(registry, sites, plan))
    longest = max(len(row) for row in rows)
    run = registry.taking(plan, takers_for(registry, sites, taken.take, longest))
    batches = in_batches(rows, max_tokens)
    keys = [] if store is None else [store.key([rows[r] for r in b], b) for b in batches]
    todo = batches
    if store is not None:
        done = store.complete(keys)
        todo = [b for b, key in zip(batches, keys, strict=True) if not (done or store.has(key))]
    with torch.set_grad_enabled(grad), run if todo else nullcontext():
        for batch in tqdm(todo, desc="capture", delay=2, leave=False, disable=len(todo) < 2):
            lengths = None
            if prompt_lengths is not None:
                lengths = torch.tensor([prompt_lengths[r] for r in batch])
            run_rows(registry, run.work.wiring.taps, rows, batch, (sites, scope, pad, lengths))
            if store is not None:
                store.put(keys[batches.index(batch)], taken.drained(sites))
    if store is not None:
        acts = store.opened(keys, sites, len(rows), repr(scope))
    else:
        acts = taken.assembled(sites, len(rows))
    if any(is_pattern(site) for site in sites):
        single = acts.mask is None
        turned = {site: queries_last(v, site, single=single) for site, v in acts.values.items()}
        acts = replace(acts, values=turned)
    return acts, run.receipt


def run_rows(
    registry: HookRegistry,
    taps: Mapping[AnySite, object],
    rows: Sequence[Sequence[int]],
    batch: Sequence[int],
    wanted: tuple[Sequence[AnySite], Scope, int, Tensor | None],
) -> None:
    """Run one batch of rows, whose numbers are `batch`, within a run that takes what it wants."""
    sites, scope, pad, lengths = wanted
    want_logits = any(isinstance(s, Site) and s.component == "logits" for s in sites)
    raw = not all(isinstance(s, Site) for s in sites)
    ids, mask = padded([rows[r] for r in batch], pad, left=False)
    sequences = sequences_of(ids, mask, batch, len(rows), lengths)
    keep = columns_in(scope, sequences, registry) if want_logits else None
    root = _through_root(taps) or want_logits or raw
    with registry.sequences(sequences):
        call_model(registry, ids, mask, keep=keep, root=root)


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
    layer = [s for s in everything if isinstance(s, Site) and s.layer == getattr(last, "layer", -1)]
    if is_pattern(last) and any(s.component == "v" for s in layer):
        return None  # a pattern is complete with k, which some families compute before v
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
    except Enough:
        return


def takes_columns(module: nn.Module) -> bool:
    """Say whether the model can compute logits for some columns only."""
    return "logits_to_keep" in inspect.signature(module.forward).parameters


def capture_identity(
    weights: str, dtype: torch.dtype, sites: Sequence[AnySite], scope: Scope, plan: Plan | None
) -> str:
    """Return what decides the content of a capture besides the tokens, as canonical text.

    Raises:
        SpecError: the plan holds a function, which has no identity.
    """
    steered = digest(spec_of(plan if isinstance(plan, Rows) else list(plan))) if plan else ""
    return " ".join([weights, str(dtype), repr(scope), steered, *map(str, sites)])
