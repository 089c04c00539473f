"""`atp`: what every patch would do, from gradients; `verify`: the best of them done for real."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steer.attribution.attention import Block, key_effects, query_effects
from steer.attribution.integrated import Written, mean_slopes
from steer.attribution.slopes import Part, slopes_of
from steer.engine import Measure
from steer.errors import PlanError
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.columns import Column, base_of, bases_of, patch_of
from steer.patching.pairs import Scopes, columns_of, pairs_of, require_gap, source_metric
from steer.patching.patch_map import Direction, PatchMap
from steer.patching.sources import Baseline
from steer.prompts import Prompts
from steer.sites import AnySite, Site
from steer.sweep import sweep as run_arms

Effects = dict[AnySite, Tensor]
"""[row, position] or [row, position, head] for each site."""


def atp(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    sites: Sequence[AnySite],
    metric: Measure,
    *,
    scope: Scopes | None = None,
    direction: Direction = "denoise",
    baseline: Baseline = "other",
    align: Align = "token",
    drop_blocks: bool = False,
    steps: int = 0,
    seed: int = 0,
) -> PatchMap:
    """Return the map that patching would give, estimated: two passes forward and one back.

    Attribution patching (Nanda 2023; Syed et al. 2023, arXiv:2310.10348): (what is written - what
    is there) times the metric's gradient. Exact where the model is linear. With the correction of
    AtP* (Kramar et al. 2024, arXiv:2403.00745) for queries and keys: their patterns are computed
    anew, the softmax is not taken to be linear. (Keys and queries are corrected wherever they are
    asked for; there is no switch.)

    Args:
        lm: the model.
        clean: as in patching.sweep, and so are the other arguments but these.
        corrupted: see there.
        sites: see there; any but `pattern`.
        metric: must be differentiable.
        scope: see there; the estimate for several tokens is the sum over them.
        direction: see there.
        baseline: see there.
        align: see there.
        drop_blocks: GradDrop of AtP*: the mean size of the estimates with the gradient through one
            block stopped at a time, which keeps effects that cancel within a gradient; it costs as
            many backward rows as there are blocks. The sign is the plain estimate's (the paper has
            sizes only).
        steps: average the gradient over so many points of the straight way from what is there to
            what is written, each site by itself with all its heads (see `integrated`): for what
            acts through a later softmax that is saturated at both ends. As many backward rows as
            there are layers of sites, times the steps; 2 often serve. 0: the gradient of the
            prompts themselves. Queries and keys are left as they are: their own softmax is
            computed anew in any case.
        seed: see there.

    Raises:
        PlanError: as patching.sweep; no gradient reaches a site; inference mode.
    """
    if steps and drop_blocks:
        raise PlanError(
            f"Both drop_blocks and steps={steps} were asked for: two ways of making up for what a "
            "gradient hides, whose rows would multiply. Choose one."
        )
    into, out_of = pairs_of(lm, clean, corrupted, direction)
    columns = columns_of(lm, into, out_of, sites, scope, baseline=baseline, align=align, seed=seed)
    source = source_metric(lm, out_of, metric)
    bases = bases_of(sites)
    read = _with_attention(bases)
    values: list[Tensor] = []
    own: list[Tensor] = []
    written = _written(columns, bases, into) if steps else {}
    for part in slopes_of(lm, into, read, metric, drop_blocks=drop_blocks):
        if written:
            means = mean_slopes(lm, into, part.rows, written, metric, steps=steps)
            slopes = {**part.slopes, **{site: x[None] for site, x in means.items()}}
            part = replace(part, slopes=slopes)
        found = [_effects(lm, part, column, bases) for column in columns]
        values.append(
            torch.stack([torch.stack([_of_site(one, site) for one in found]) for site in sites])
        )
        own.append(part.metric)
    before = torch.cat(own).float()
    require_gap(source, before)
    moved = torch.cat(values, dim=-1).float()
    there = torch.stack([column.there for column in columns])
    return PatchMap(
        tuple(str(site) for site in sites),
        tuple(sites),
        tuple(column.name for column in columns),
        torch.where(there, before + moved, torch.nan),
        before,
        source,
        direction,
        f"{baseline}, by gradient",
        0,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """Estimated effects beside those of real patches, the largest estimates first."""

    cells: tuple[tuple[str, str], ...]
    """(place, column) of each."""
    estimated: Tensor
    """[cell]: share of the gap."""
    patched: Tensor
    """[cell]: the same by patching."""

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between the two."""
        # scipy.stats takes a second to import, and only this needs it.
        from scipy.stats import spearmanr

        found: Any = spearmanr(self.estimated.numpy(), self.patched.numpy())
        return float(found.statistic)

    def __repr__(self) -> str:
        """Say how well they agree, and the largest."""
        return (
            f"Verified({len(self.cells)} cells, rank correlation {self.rank_correlation:.2f}; "
            f"{self.cells[0][0]}, {self.cells[0][1]}: {float(self.estimated[0]):.3f} estimated, "
            f"{float(self.patched[0]):.3f} patched)"
        )


def verify(
    lm: LM,
    estimate: PatchMap,
    clean: Prompts,
    corrupted: Prompts,
    metric: Measure,
    *,
    n: int = 30,
    scope: Scopes | None = None,
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
) -> Verified:
    """Patch the n cells of the largest estimates for real, as arms of one sweep.

    Give the arguments with which the estimate was made.

    Raises:
        PlanError: other columns than the estimate's; otherwise as patching.sweep.
    """
    into, out_of = pairs_of(lm, clean, corrupted, estimate.direction)
    shares = estimate.effect.flatten()
    order = shares.abs().nan_to_num(-1.0).argsort(descending=True)[:n]
    width = len(estimate.columns)
    at = [(k // width, k % width) for k in order.tolist()]
    sites = [estimate.sites[row] for row, _ in at]
    columns = columns_of(lm, into, out_of, sites, scope, baseline=baseline, align=align, seed=seed)
    if tuple(column.name for column in columns) != estimate.columns:
        raise PlanError(
            f"The estimate has the columns {', '.join(estimate.columns[:3])}, ...; with these "
            f"arguments there are {', '.join(c.name for c in columns[:3])}, .... Give the prompts, "
            "scope and align with which it was made."
        )
    arms = [[patch_of(site, columns[col], None)] for site, (_, col) in zip(sites, at, strict=True)]
    swept = run_arms(lm, into, arms, metric)
    gap = (estimate.out_of - estimate.into).double()
    there = torch.stack([columns[col].there for _, col in at])
    moved = torch.where(there, swept.values - swept.natural, 0.0).double().sum(-1)
    return Verified(
        tuple((estimate.places[row], estimate.columns[col]) for row, col in at),
        shares[order],
        moved / (there * gap).sum(-1),
    )


def _with_attention(sites: Sequence[AnySite]) -> list[AnySite]:
    """Return the sites to read: queries and keys need their block's q, k, v and z."""
    layers = [s.layer for s in sites if isinstance(s, Site) and s.component in ("q", "k")]
    more: list[AnySite] = [Site(layer, c) for layer in layers for c in ("q", "k", "v", "z")]
    return list(dict.fromkeys([*sites, *more]))


def _effects(lm: LM, part: Part, column: Column, sites: Sequence[AnySite]) -> Effects:
    return {site: _effect(lm, part, column, site) for site in sites}


@torch.no_grad()
def _effect(lm: LM, part: Part, column: Column, site: AnySite) -> Tensor:
    """Return [row] or [row, head]: the estimate, summed over the column's tokens."""
    state, slope = part.states[site], part.slopes[site]
    source = column.sources[site][part.rows].to(state.device)
    places = column.at[part.rows].to(state.device)
    source = source if column.several else source[:, None]
    rows = torch.arange(len(state), device=state.device)[:, None]
    real = (places >= 0).reshape(*places.shape, *[1] * (state.ndim - 2))
    at = places.clamp(min=0)
    if isinstance(site, Site) and site.component in ("q", "k"):
        written = state.index_put((rows, at), torch.where(real, source, state[rows, at]))
        block = _block(lm, part, site)
        moved = (
            query_effects(block, written) if site.component == "q" else key_effects(block, written)
        )
        moved = moved[:, rows, at] * real[..., 0]
    else:
        change = torch.where(real, source - state[rows, at], 0.0)
        moved = (change.float() * slope[:, rows, at].float()).sum(-1)
    return _combined(moved.sum(2)).cpu()


def _combined(moved: Tensor) -> Tensor:
    """Return the plain estimate, or with blocks dropped their mean size, [way, ...] -> [...]."""
    if len(moved) == 1:
        return moved[0]
    # A site's own block lets nothing through: one block less.
    dropped = moved[1:].abs().sum(0) / max(len(moved) - 2, 1)
    return torch.where(moved[0] < 0, -dropped, dropped)


def _written(
    columns: Sequence[Column], sites: Sequence[AnySite], into: Sequence[Sequence[int]]
) -> Written:
    """Return what all columns together write at each site: they move as one."""
    width = max(len(row) for row in into)
    rows = torch.arange(len(into))[:, None]
    mask = torch.zeros(len(into), width, dtype=torch.bool)
    for column in columns:
        here = torch.zeros(len(into), width + 1, dtype=torch.bool)
        # Places that are none go to a column of their own, which is cut off.
        at = torch.where(column.at >= 0, column.at, width)
        mask = mask | here.index_put((rows, at), torch.tensor(True))[:, :width]
    found: dict[AnySite, tuple[Tensor, Tensor]] = {}
    for site in sites:
        if isinstance(site, Site) and site.component in ("q", "k"):
            continue
        first = columns[0].sources[site]
        tail = first.shape[2:] if columns[0].several else first.shape[1:]
        values = first.new_zeros(len(into), width + 1, *tail)
        for column in columns:
            source = column.sources[site]
            source = source if column.several else source[:, None]
            at = torch.where(column.at >= 0, column.at, width).to(source.device)
            values = values.index_put((rows.to(source.device), at), source)
        found[site] = values[:, :width], mask
    return found


def _block(lm: LM, part: Part, site: Site) -> Block:
    facts = lm.registry.layout.attention
    assert site.layer is not None
    assert facts is not None
    q, k, v, z = (replace(site, component=c) for c in ("q", "k", "v", "z"))
    states = part.states
    return Block(
        lm.model,
        facts,
        site.layer,
        states[q],
        states[k],
        states[v],
        part.slopes[z],
        part.mask,
    )


def _of_site(effects: Effects, site: AnySite) -> Tensor:
    found = effects[base_of(site)]
    if isinstance(site, Site) and site.head is not None:
        return found[:, site.head]
    return found if found.ndim == 1 else found.sum(1)
