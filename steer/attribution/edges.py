"""Edges: what each component says to each later one, from gradients averaged on the way.

Edge attribution patching (Syed et al. 2023, arXiv:2310.10348) with integrated gradients (Hanna et
al. 2024, arXiv:2403.17806): (what the sender would write - what it writes) times the metric's
gradient at the receiver's own reading of the residual stream. That reading's gradient is a product
of the gradient at q, k, v or the MLP's output with the derivative of that output by the stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.attribution.slopes import gradients, run_rows, used_at
from steer.engine import Measure
from steer.errors import PlanError, SiteNotFound
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.columns import base_of
from steer.patching.pairs import columns_of, pairs_of, require_gap, source_metric
from steer.patching.patch_map import Direction
from steer.patching.sources import Baseline
from steer.prompts import Prompts
from steer.scopes import ALL
from steer.sites import AnySite, Site

MAX_BYTES = 2**28
"""Of the gradients of all receivers at once."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EdgeMap:
    """Estimated effects of edges, pair by pair, on the host."""

    senders: tuple[Site, ...]
    receivers: tuple[Site, ...]
    change: Tensor
    """[sender, receiver, pair]: how far the metric would move; NaN where there is no edge."""
    into: Tensor
    """[pair]: the metric of the prompts that are changed."""
    out_of: Tensor
    """[pair]: the metric of the prompts whose values are written."""

    @property
    def effect(self) -> Tensor:
        """[sender, receiver]: the mean change as a share of the mean gap between the runs."""
        return self.change.double().mean(-1) / (self.out_of - self.into).double().mean()

    @property
    def sender_effect(self) -> Tensor:
        """[sender]: over all receivers: what attribution patching says of the sender itself."""
        return self.effect.nansum(1)

    def top(self, n: int = 10) -> list[tuple[Site, Site, float]]:
        """Return the n largest edges by size: sender, receiver, effect."""
        flat = self.effect.flatten()
        order = flat.abs().nan_to_num(-1.0).argsort(descending=True)[:n].tolist()
        width = len(self.receivers)
        return [
            (self.senders[k // width], self.receivers[k % width], float(flat[k])) for k in order
        ]

    def plot(self) -> Any:
        """Return a plotly figure: senders by receivers."""
        from steer.plots import heat_map  # plotly is only loaded by whoever draws

        return heat_map(
            self.effect.numpy(),
            rows=[str(site) for site in self.senders],
            columns=[str(site) for site in self.receivers],
            title=f"edges, by gradient: share of the gap, {len(self.into)} pairs",
        )

    def __repr__(self) -> str:
        """Say how many edges, and the largest."""
        ((sender, receiver, effect),) = self.top(1)
        return (
            f"EdgeMap({len(self.senders)} senders x {len(self.receivers)} receivers x "
            f"{len(self.into)} pairs; largest {effect:.3f}: {sender} -> {receiver})"
        )


def edges(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    metric: Measure,
    *,
    steps: int = 5,
    direction: Direction = "noise",
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
) -> EdgeMap:
    """Return every edge's estimated effect, over all tokens, one forward and one backward a step.

    Senders are the embeddings (`blocks.0.resid_pre`), every head (z) and every MLP; receivers every
    head's q, k and v, every MLP (`mlp_out`), and the logits. Check the largest with
    `verify_edges`, which runs them.

    We differ from Hanna et al. in two points: a head's path to the stream includes the norm after
    attention where a family has one (Gemma), by its derivative; and steps are midpoints.

    Args:
        lm: the model.
        clean: as in `patching.sweep`, and so are the other arguments but these. A pair's prompts
            must be of one length.
        corrupted: see there.
        metric: must be differentiable.
        steps: points on the straight way between both prompts' embeddings over which the gradient
            is averaged; 0: the gradient of the prompts themselves (EAP).
        direction: see there.
        baseline: see there.
        align: see there.
        seed: see there.

    Raises:
        PlanError: as patching.sweep; no gradient; inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise PlanError(
            "Edges were asked for within torch.inference_mode, which keeps no gradients. Call it "
            "outside, or under torch.no_grad, which is lifted here."
        )
    into, out_of = pairs_of(lm, clean, corrupted, direction)
    graph = _graph(lm)
    (column,) = columns_of(
        lm, into, out_of, graph.bases, ALL, baseline=baseline, align=align, seed=seed
    )
    source = source_metric(lm, out_of, metric)
    sources = {site: _tokens(x, column.counts) for site, x in column.sources.items()}
    shares = [(k + 0.5) / steps for k in range(steps)] or [0.0]
    longest = max(len(row) for row in into)
    size = len(graph.receivers) * longest * lm.d_model * 4
    pairs_at_once = max(1, MAX_BYTES // (size * len(shares)))
    found = []
    for numbers in torch.arange(len(into)).split(pairs_at_once):
        found.append(_change(lm, into, numbers, graph, sources, metric, shares))
    own = source_metric(lm, into, metric)
    require_gap(source, own)
    return EdgeMap(graph.senders, graph.receivers, torch.cat(found, -1).cpu(), own, source)


@dataclass(frozen=True, slots=True)
class _Graph:
    """Who sends and who receives, and where each block reads the stream."""

    senders: tuple[Site, ...]
    receivers: tuple[Site, ...]
    embed: Site
    last: Site
    reads: Mapping[Site, Site]
    """q, k, v and mlp_out of each block -> the site of the stream that it is made from."""

    @property
    def bases(self) -> list[AnySite]:
        return list(dict.fromkeys(base_of(site) for site in self.senders))


def _graph(lm: LM) -> _Graph:
    layout = lm.registry.layout
    embed, last = Site(0, "resid_pre"), Site(lm.n_layers - 1, "resid_post")
    middle = _layers_with(lm, "resid_mid")
    senders, receivers, reads = [embed], list[Site](), dict[Site, Site]()
    for layer in range(lm.n_layers):
        here = Site(layer, "resid_pre")
        for component, n in (
            ("q", layout.n_heads),
            ("k", layout.n_kv_heads),
            ("v", layout.n_kv_heads),
        ):
            reads[Site(layer, component)] = here
            receivers += [Site(layer, component, head) for head in range(n)]
        mlp = Site(layer, "mlp_out")
        reads[mlp] = Site(layer, "resid_mid") if layer in middle else here
        senders += [*(Site(layer, "z", head) for head in range(layout.n_heads)), mlp]
        receivers.append(mlp)
    return _Graph(tuple(senders), (*receivers, Site.logits()), embed, last, reads)


def _layers_with(lm: LM, component: str) -> set[int | None]:
    """Return the blocks that have such a site: parallel ones have no state in the middle."""
    try:
        return {site.layer for site in lm.sites(component)}
    except SiteNotFound:
        return set()


def _tokens(values: Tensor, counts: Tensor | None) -> Tensor:
    return values if counts is not None else values[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class _Traced:
    """One pass with its graph: states as made, and the metric's gradient at each."""

    states: Mapping[AnySite, Tensor]
    opened: Mapping[AnySite, Tensor]
    """What was added to each state: a zero, whose gradient is the state's."""
    slopes: Mapping[AnySite, Tensor]


def _change(
    lm: LM,
    rows: Sequence[Sequence[int]],
    numbers: Tensor,
    graph: _Graph,
    sources: Mapping[AnySite, Tensor],
    metric: Measure,
    shares: Sequence[float],
) -> Tensor:
    """Return [sender, receiver, pair]: the change that each edge would make, steps averaged."""
    n, n_steps = len(numbers), len(shares)
    plain = lm.capture([rows[k] for k in numbers.tolist()], graph.bases, scope=ALL)
    change = {
        site: (sources[site][numbers][:, : x.shape[1]].to(x.device) - x).float()
        for site in graph.bases
        for x in (_tokens(plain[site], plain.mask),)
    }
    with torch.enable_grad():
        traced = _traced(lm, rows, numbers, graph, change[graph.embed], metric, shares)
        slopes = _readings(graph, traced)
        blank = slopes.new_full((len(graph.receivers), 1, n * n_steps), torch.nan)
        parts = []
        for sender in dict.fromkeys(base_of(site) for site in graph.senders):
            assert isinstance(sender, Site)
            later = torch.tensor([_later(sender, one, graph) for one in graph.receivers])
            moved = change[sender].repeat(n_steps, *[1] * (change[sender].ndim - 1))
            effect = _effect(sender, slopes[later], moved, traced)
            full = blank.expand(-1, effect.shape[1], -1)
            parts.append(full.index_put((later.nonzero()[:, 0],), effect))
    whole = torch.cat(parts, 1).transpose(0, 1).unflatten(-1, (n_steps, n))
    return whole.mean(-2).detach()


def _traced(
    lm: LM,
    rows: Sequence[Sequence[int]],
    numbers: Tensor,
    graph: _Graph,
    way: Tensor,
    metric: Measure,
    shares: Sequence[float],
) -> _Traced:
    """Run the prompts at each share of the way to the other prompts' embeddings."""
    states: dict[AnySite, Tensor] = {}
    opened: dict[AnySite, Tensor] = {}
    rate = torch.tensor(shares, device=way.device).repeat_interleave(len(numbers))[:, None, None]
    moved = rate * way.repeat(len(shares), 1, 1)

    def keep(site: AnySite, h: Tensor) -> Tensor:
        states[site] = h
        opened[site] = torch.zeros_like(h).requires_grad_()
        return h + opened[site]

    def start(_: AnySite, h: Tensor) -> Tensor:
        return (h.float() + moved).to(h.dtype)

    wanted = [*graph.reads, *graph.reads.values(), graph.last]
    wanted += [Site(site.layer, c) for site in graph.reads for c in ("z", "attn_out")]
    plan = [used_at(graph.embed, start), *(used_at(s, keep) for s in dict.fromkeys(wanted))]
    values, _ = run_rows(lm, rows, numbers.repeat(len(shares)), plan, metric)
    heads = [site for site in opened if site in graph.reads or site == graph.last]
    slopes = gradients(values, {site: opened[site] for site in heads}, keep_graph=True)
    return _Traced(states, opened, slopes)


def _readings(graph: _Graph, traced: _Traced) -> Tensor:
    """Return [receiver, row, position, d_model]: the gradient of each receiver's own reading."""
    found: list[Tensor] = []
    for site, stream in graph.reads.items():
        slope = traced.slopes[site]
        if slope.ndim == 4:
            # One head at a time: [head, row, position, head, d_head], zero elsewhere.
            each = torch.eye(slope.shape[2], device=slope.device, dtype=slope.dtype)
            slope = slope * each[:, None, None, :, None]
        else:
            slope = slope[None]
        found.append(_pulled(traced.states[site], traced.opened[stream], slope))
    found.append(traced.slopes[graph.last][None])
    return torch.cat([x.float() for x in found])


def _effect(sender: Site, slopes: Tensor, moved: Tensor, traced: _Traced) -> Tensor:
    """Return [receiver, head or 1, row] of one sender's change, summed over tokens."""
    if sender.component != "z":
        return torch.einsum("vrpd,rpd->vr", slopes, moved)[:, None]
    written = traced.states[Site(sender.layer, "attn_out")]
    own = _pulled(written, traced.opened[sender], slopes.to(written.dtype))
    return torch.einsum("vrphd,rphd->vhr", own.float(), moved)


def _pulled(made: Tensor, read: Tensor, slopes: Tensor) -> Tensor:
    """Return the gradients [way, ...] at what was read, from those at what was made of it."""
    (found,) = torch.autograd.grad(made, read, slopes, retain_graph=True, is_grads_batched=True)
    return found


def _later(sender: Site, receiver: Site, graph: _Graph) -> bool:
    if receiver.component == "logits" or sender == graph.embed:
        return True
    assert sender.layer is not None
    assert receiver.layer is not None
    if receiver.layer != sender.layer:
        return receiver.layer > sender.layer
    # Within a block only attention sends, to an MLP that reads the stream after it.
    reads = graph.reads.get(receiver)
    return sender.component == "z" and reads is not None and reads.component == "resid_mid"
