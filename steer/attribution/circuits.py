"""Circuits of heads: the few that suffice, found greedily, and what of a behaviour they carry.

Every head outside a circuit is given its value in the corrupted run; heads inside compute what they
compute from what reaches them then. Faithfulness is the share of the behaviour that is left:
(metric of the circuit - metric of no circuit) / (metric of the model - metric of no circuit), after
Wang et al. 2022 (arXiv:2211.00593) and Hanna et al. 2024 (arXiv:2403.17806). MLPs are never cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from steer.attribution.slopes import slopes_of
from steer.engine import Batch, Measure
from steer.errors import PlanError
from steer.interventions import Patch
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.columns import Column, base_of, bases_of, patch_of
from steer.patching.mapping import heads
from steer.patching.pairs import columns_of, pairs_of, require_gap
from steer.patching.patch_map import PatchMap
from steer.patching.significance import interval, quotients
from steer.patching.sources import Baseline
from steer.prompts import Prompts
from steer.scopes import ALL
from steer.sites import Site
from steer.sweep import sweep as run_arms

Heads = Sequence[Site]


@dataclass(frozen=True, slots=True, eq=False)
class Faithfulness:
    """What several circuits carry, pair by pair."""

    metric: Tensor
    """[circuit, pair]: with everything outside the circuit cut."""
    model: Tensor
    """[pair]: the whole model."""
    empty: Tensor
    """[pair]: every head cut."""

    @property
    def share(self) -> Tensor:
        """[circuit]: 1 where a circuit does what the model does, 0 where it does nothing."""
        ones = np.ones((1, len(self.model)))
        return torch.from_numpy(quotients(*self._parts(), ones)[0])

    def interval(self, *, level: float = 0.95, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return the ends [circuit] of the share's interval, pairs drawn again."""
        lo, hi = interval(*self._parts(), level=level, seed=seed)
        return torch.from_numpy(lo), torch.from_numpy(hi)

    def _parts(self) -> tuple[Any, Any]:
        whole = (self.model - self.empty).double().numpy()
        return (self.metric - self.empty).double().numpy(), whole


def faithfulness(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    circuits: Sequence[Heads],
    metric: Measure,
    *,
    among: Heads | None = None,
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
) -> Faithfulness:
    """Return what each circuit carries; all circuits are arms of one sweep.

    Args:
        lm: the model.
        clean: prompts with the behaviour.
        corrupted: one for each of them, without it.
        circuits: heads that are kept, for each circuit.
        metric: as in patching.sweep.
        among: heads that are cut where a circuit does not hold them; all z heads by default.
        baseline: what cut heads write, as in patching.sweep.
        align: as there.
        seed: as there.

    Raises:
        PlanError: a circuit with a head that is not among them; a metric that does not tell the
            model from no circuit.
    """
    every = tuple(heads(lm) if among is None else among)
    for one in circuits:
        strange = [str(site) for site in one if site not in every]
        if strange:
            raise PlanError(
                f"The circuit holds {strange[0]}, which is not among the {len(every)} heads that "
                "are cut: it would be kept in any case. Add it to `among`, or leave it out."
            )
    into, out_of = pairs_of(lm, clean, corrupted, "noise")
    (column,) = columns_of(lm, into, out_of, every, ALL, baseline=baseline, align=align, seed=seed)
    arms: list[Plan] = [_cut(every, one, column) for one in [*circuits, ()]]
    swept = run_arms(lm, into, arms, metric)
    values, natural = swept.values.float(), swept.natural.float()
    require_gap(natural, values[-1])
    return Faithfulness(values[:-1], natural, values[-1])


def find_circuit(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    metric: Measure,
    *,
    size: int,
    per_step: int = 1,
    among: Heads | None = None,
    align: Align = "token",
) -> tuple[Site, ...]:
    """Return a circuit of `size` heads, in the order in which they were found.

    Greedy, from nothing: with all heads but those found so far cut, how much nearer to the whole
    model's metric would giving each head back bring each pair's? (Squared: a circuit that
    overshoots is no better than one that falls short; heads against the behaviour belong to it.)
    One pass forward and one back say it for all heads: (what the head computes now - what is
    written over it) times the gradient. Found heads change what others compute, so every step asks
    anew; a ranking by single patches of the whole model would miss heads that only work together.

    Args:
        lm: the model.
        clean: prompts with the behaviour. Score the circuit on others: see `faithfulness`.
        corrupted: one for each of them, without it.
        metric: as in patching.sweep, differentiable.
        size: how many heads.
        per_step: how many are taken at a time; more is faster and coarser.
        among: the heads to choose from, and to cut; all z heads by default.
        align: as in patching.sweep.

    Raises:
        PlanError: as patching.sweep; more heads than there are.
    """
    every = tuple(heads(lm) if among is None else among)
    if not 0 < size <= len(every):
        raise PlanError(
            f"A circuit of {size} of {len(every)} heads was asked for. Give 1 to {len(every)}."
        )
    into, out_of = pairs_of(lm, clean, corrupted, "noise")
    (column,) = columns_of(lm, into, out_of, every, ALL, baseline="other", align=align, seed=0)
    nearness = nearness_to(lm, into, metric)
    found: list[Site] = []
    steps = tqdm(range(0, size, per_step), "circuit", delay=2, leave=False)
    for _ in steps:
        gain = gains(lm, into, every, found, column, nearness)
        left = [k for k in gain.argsort(descending=True).tolist() if every[k] not in found]
        found += [every[k] for k in left[: min(per_step, size - len(found))]]
    return tuple(found)


def nearness_to(lm: LM, into: Sequence[Sequence[int]], metric: Measure) -> Measure:
    """Return the measure of how near each pair's metric is to the whole model's: minus a square."""
    whole = Batch(torch.full((len(into),), -1), torch.arange(len(into)))
    model = metric(lm.logits(into), whole)

    def nearness(logits: Tensor, batch: Batch) -> Tensor:
        return -((metric(logits, batch) - model[batch.rows.to(model.device)]) ** 2)

    return nearness


def threshold_circuit(effects: PatchMap, size: int) -> tuple[Site, ...]:
    """Return the heads of the largest effects (by size) of a map of heads, over its columns.

    Raises:
        PlanError: its places are not heads.
    """
    effects.by_head()  # refuses other maps
    order = effects.effect.nan_to_num(0.0).abs().amax(1).argsort(descending=True)[:size]
    return tuple(site for k in order.tolist() if isinstance(site := effects.sites[k], Site))


def without_each(circuit: Heads) -> list[tuple[Site, ...]]:
    """Return the circuit without each of its heads in turn: what minimality is asked of."""
    return [tuple(s for s in circuit if s != head) for head in circuit]


def overlap(first: Heads, second: Heads) -> float:
    """Return how much two circuits share: heads in both over heads in either."""
    a, b = set(first), set(second)
    return len(a & b) / max(len(a | b), 1)


def _cut(every: Heads, kept: Heads, column: Column) -> list[Patch]:
    inside = set(kept)
    return [patch_of(site, column, None) for site in every if site not in inside]


def gains(
    lm: LM,
    into: Sequence[Sequence[int]],
    every: Heads,
    found: Heads,
    column: Column,
    metric: Measure,
) -> Tensor:
    """Return [head]: what giving each head back would gain, by the gradient, over all pairs."""
    bases = bases_of(every)
    cut = _cut(every, found, column)

    def edits(numbers: Tensor) -> list[Patch]:
        return [_of_rows(patch, numbers) for patch in cut]

    gains: dict[Site, Tensor] = {}
    for part in slopes_of(lm, into, bases, metric, edits=edits):
        for site in every:
            base = base_of(site)
            written = column.sources[base][part.rows].to(part.states[base].device)
            n = part.states[base].shape[1]
            moved = part.states[base].float() - written[:, :n].float()
            gain = (moved * part.slopes[base][0].float()).select(2, site.head or 0)
            real = part.mask[..., None]
            total = torch.where(real, gain, 0.0).sum().cpu()
            gains[site] = gains.get(site, torch.zeros(())) + total
    return torch.stack([gains[site] for site in every])


def _of_rows(patch: Patch, numbers: Tensor) -> Patch:
    source, counts = patch.values[numbers], patch.counts
    return Patch(
        patch.site,
        source if counts is None else source[:, : int(counts[numbers].max())],
        patch.subspace,
        patch.scope,
        None if counts is None else counts[numbers],
    )
