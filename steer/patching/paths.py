"""Path patching: what one component does through chosen others, all else held still.

A sender's value is exchanged, everything between it and the receiver keeps its own value, and only
the receiver's new input goes on: Wang et al. 2022 (arXiv:2211.00593), Goldowsky-Dill et al. 2023
(arXiv:2304.05969).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Literal, get_args

import torch
from torch import Tensor

from steer.engine import Measure
from steer.errors import PlanError
from steer.interventions import Patch
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.columns import Column, base_of, bases_of
from steer.patching.pairs import columns_of, one_per_row, pairs_of, require_gap, source_metric
from steer.patching.patch_map import Direction, PatchMap, joined_names
from steer.patching.sources import Baseline
from steer.prompts import Prompts
from steer.scopes import ALL, LAST
from steer.sites import AnySite, Site
from steer.sweep import sweep as run_arms

Frozen = Literal["all", "heads"]
Receivers = Sequence[Site | Sequence[Site]]
SENDERS = ("z", "attn_out", "mlp_out")
EMBEDDINGS = Site(0, "resid_pre")
RECEIVERS = ("q", "k", "v", "mlp_post", "resid_pre", "resid_mid", "resid_post", "logits")
ORDER = (
    "resid_pre",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_post",
    "mlp_out",
    "resid_post",
)


def paths(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    senders: Sequence[Site],
    receivers: Receivers,
    metric: Measure,
    *,
    frozen: Frozen = "all",
    direction: Direction = "noise",
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
) -> PatchMap:
    """Return what each sender does through each receiver, at all tokens: senders x receivers.

    Three runs, as in Wang et al. 2022: both prompts as they are; then each sender's value exchanged
    with the heads (and MLPs) after it held at their own, in which the receiver's value is recorded;
    then the prompts with only the receiver exchanged for the record, everything after it computed
    anew. The senders of a block are rows of one pass; the last run is one `steer.sweep`.

    Args:
        lm: the model.
        clean: as in `patching.sweep`, and so are the other arguments but these. A pair's prompts
            must be of one length.
        corrupted: see there.
        senders: heads (`heads(lm)`) or outputs: z, attn_out, mlp_out; `blocks.0.resid_pre` sends
            the embeddings.
        receivers: q, k, v, mlp_post (all that an MLP makes of its input, gates included), resid_*
            or `Site.logits()`, one column each; a list of sites within the list is exchanged
            together: [q, k, v] of a block for its attention.
        metric: see there.
        frozen: "all" holds heads and MLPs, so that a path is the direct edge; "heads" lets MLPs
            compute anew, as in the paper: a path may lead through them.
        direction: see there; "noise", as in the paper, writes corrupted values into the clean run.
        baseline: see there.
        align: see there.
        seed: see there.

    Raises:
        PlanError: a site that cannot send or receive, or a receiver that no sender comes before;
            otherwise as patching.sweep.
    """
    groups = [[one] if isinstance(one, Site) else list(one) for one in receivers]
    _require(senders, groups, frozen)
    into, out_of = pairs_of(lm, clean, corrupted, direction)
    (written,) = columns_of(
        lm, into, out_of, senders, ALL, baseline=baseline, align=align, seed=seed
    )
    source = source_metric(lm, out_of, metric)
    own = _own(lm, into, senders, frozen)
    targets = {site: _target(lm, site) for group in groups for site in group}
    records = _records(
        lm, into, senders, list(dict.fromkeys(targets.values())), own, written, frozen
    )
    plans: list[Plan] = [
        [
            Patch(targets[site], values, counts=written.counts)
            for site in group
            if (values := records.get((sender, targets[site]))) is not None
        ]
        for sender in senders
        for group in groups
    ]
    places = tuple(str(sender) for sender in senders)
    names = tuple(" & ".join(str(site) for site in group) for group in groups)
    swept = run_arms(lm, into, dict(zip(joined_names(places, names), plans, strict=True)), metric)
    before = one_per_row(swept.natural, "the prompts that are patched")
    require_gap(source, before)
    values = one_per_row(swept.values.flatten(0, 1), "a patched pass")
    return PatchMap(
        places,
        tuple(senders),
        names,
        values.reshape(len(places), len(names), len(into)),
        before,
        source,
        direction,
        f"{baseline}, by path",
        swept.executed,
    )


def direct(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    senders: Sequence[Site],
    metric: Measure,
    *,
    direction: Direction = "noise",
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
) -> PatchMap:
    """Return what each sender does to the logits directly, through the final norm alone.

    The same as `paths` to `Site.logits()` with everything frozen, by a shortcut: held still, all
    blocks between pass the sender's change on as it is, so that it is added to the last state.
    Each block runs once for its own senders; what is measured costs no block at all.

    Args:
        lm: the model.
        clean: as in `paths`, and so are the other arguments.
        corrupted: see there.
        senders: see there.
        metric: of the logits at the last token.
        direction: see there.
        baseline: see there.
        align: see there.
        seed: see there.

    Raises:
        PlanError: as in `paths`.
    """
    last = Site(lm.n_layers - 1, "resid_post")
    _require(senders, [[last]], "all")
    into, out_of = pairs_of(lm, clean, corrupted, direction)
    (written,) = columns_of(
        lm, into, out_of, senders, ALL, baseline=baseline, align=align, seed=seed
    )
    source = source_metric(lm, out_of, metric)
    outputs = list(dict.fromkeys(_output(sender) for sender in senders))
    own = lm.capture(into, [*outputs, last], scope=LAST)
    everywhere = lm.capture(into, bases_of(senders), scope=ALL)
    arms: dict[str, Plan] = {}
    for base, group in groupby(senders, base_of):
        mine = list(group)
        assert isinstance(base, Site)
        out = _output(base)
        patch = _patch(base, mine, everywhere[base], written)
        rows = [row for _ in mine for row in into]
        made = lm.capture(rows, [out], scope=LAST, plan=[patch])[out]
        change = made.unflatten(0, (len(mine), -1)).float() - own[out].float()
        states = (own[last].float() + change).to(own[last].dtype)
        arms |= {str(s): [Patch(last, x, scope=LAST)] for s, x in zip(mine, states, strict=True)}
    swept = run_arms(lm, into, arms, metric)
    before = one_per_row(swept.natural, "the prompts that are patched")
    require_gap(source, before)
    return PatchMap(
        tuple(arms),
        tuple(senders),
        ("directly",),
        one_per_row(swept.values, "a patched pass")[:, None],
        before,
        source,
        direction,
        f"{baseline}, directly",
        swept.executed,
    )


def _require(senders: Sequence[Site], groups: Sequence[Sequence[Site]], frozen: str) -> None:
    if frozen not in get_args(Frozen):
        raise PlanError(f"There is no frozen={frozen!r}. Hold 'all', or 'heads' only.")
    for site in senders:
        if site != EMBEDDINGS and site.component not in SENDERS:
            raise PlanError(
                f"{site} cannot send along a path: what it holds is not written to the residual "
                f"stream by a component. Give sites of {', '.join(SENDERS)}, or {EMBEDDINGS} for "
                "the embeddings."
            )
    if len({str(site) for site in senders}) < len(senders) or not senders:
        raise PlanError("Senders must be given, each once: each is a row of the map.")
    for site in [site for group in groups for site in group]:
        if site.component not in RECEIVERS:
            raise PlanError(
                f"{site} cannot receive along a path: it does not read the residual stream. Give "
                f"sites of {', '.join(RECEIVERS)}."
            )
    for group in groups:
        if not any(_before(sender, site) for sender in senders for site in group):
            raise PlanError(
                f"{' & '.join(map(str, group)) or 'An empty list'} comes before every sender, so "
                "no path leads there. Give receivers in later blocks."
            )


def _before(sender: Site, receiver: Site) -> bool:
    return _when(sender) < _when(receiver)


def _when(site: Site) -> tuple[int, int]:
    if site.component == "logits":
        return sys.maxsize, 0
    assert site.layer is not None
    return site.layer, ORDER.index(site.component)


def _target(lm: LM, site: Site) -> Site:
    """Return where a receiver is written: the logits read the last block's output."""
    return Site(lm.n_layers - 1, "resid_post") if site.component == "logits" else site


def _output(sender: Site) -> Site:
    """Return where a sender's block adds to the residual stream."""
    if sender.component == "z":
        return replace(sender, component="attn_out", head=None)
    return sender


def _own(
    lm: LM, into: Sequence[Sequence[int]], senders: Sequence[Site], frozen: Frozen
) -> Mapping[AnySite, Tensor]:
    """Return the states of the patched prompts at the senders and at what is held still."""
    wanted = dict.fromkeys([*bases_of(senders), *_held(lm, frozen)])
    acts = lm.capture(into, list(wanted), scope=ALL)
    return {site: acts[site] if acts.mask is not None else acts[site][:, None] for site in acts}


def _held(lm: LM, frozen: Frozen) -> list[Site]:
    """Return what is held still wherever it lies between sender and receiver."""
    return [*lm.sites("z"), *(lm.sites("mlp_out") if frozen == "all" else [])]


def _records(
    lm: LM,
    into: Sequence[Sequence[int]],
    senders: Sequence[Site],
    receivers: Sequence[Site],
    own: Mapping[AnySite, Tensor],
    written: Column,
    frozen: Frozen,
) -> dict[tuple[Site, Site], Tensor]:
    """Return [pair, n, ...] for each sender and receiver: its value with the sender exchanged."""
    found: dict[tuple[Site, Site], Tensor] = {}
    held_sites = set(_held(lm, frozen))
    for base, group in groupby(senders, base_of):
        mine = list(group)
        assert isinstance(base, Site)
        reached = [site for site in receivers if _before(base, site)]
        if not reached:
            continue
        n, counts = len(mine), written.counts
        many = None if counts is None else counts.repeat(n)
        held = [
            Patch(site, values.repeat(n, *[1] * (values.ndim - 1)), counts=many)
            for site, values in own.items()
            if site in held_sites and isinstance(site, Site) and _between(base, site, reached)
        ]
        rows = [row for _ in mine for row in into]
        plan = [_patch(base, mine, own[base], written), *held]
        acts = lm.capture(rows, bases_of(reached), scope=ALL, plan=plan)
        for site in reached:
            values = acts[base_of(site)]
            values = values if acts.mask is not None else values[:, None]
            values = values if site.head is None else values.select(-2, site.head)
            split = values.unflatten(0, (n, -1))
            found |= {(sender, site): split[k] for k, sender in enumerate(mine)}
    return found


def _between(base: Site, site: Site, receivers: Sequence[Site]) -> bool:
    """Return whether a site is held: after the sender, before the last receiver."""
    return _before(base, site) and any(_before(site, one) for one in receivers)


def _patch(base: Site, mine: Sequence[Site], own: Tensor, written: Column) -> Patch:
    """Return the patch that exchanges a block's senders, each in rows of its own."""
    source = written.sources[base]
    if written.counts is None:
        own, source = (x if x.ndim > source.ndim else x[:, None] for x in (own, source))
    values = torch.stack([_with_head(own, source, sender.head) for sender in mine]).flatten(0, 1)
    counts = written.counts
    return Patch(base, values, counts=None if counts is None else counts.repeat(len(mine)))


def _with_head(own: Tensor, source: Tensor, head: int | None) -> Tensor:
    if head is None:
        return source
    chosen = torch.arange(own.shape[-2], device=own.device) == head
    return torch.where(chosen[:, None], source.to(own.device), own)
