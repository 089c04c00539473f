"""`steer.patching.sweep`: patching over sites, tokens, heads and neurons, as one sweep."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.engine import Cost, Measure
from steer.errors import PlanError
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.columns import Column, base_of, patch_of
from steer.patching.pairs import (
    Scopes,
    columns_of,
    one_per_row,
    pairs_of,
    require_gap,
    source_metric,
)
from steer.patching.patch_map import Direction, PatchMap, joined_names
from steer.patching.sources import Baseline
from steer.prompts import Prompts
from steer.sites import AnySite, Site
from steer.sweep import Sweep
from steer.sweep import sweep as run_arms

Neurons = Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A map that has not run yet: `cost()` says what it will run, `run()` gives the PatchMap."""

    sweep: Sweep
    places: tuple[str, ...]
    sites: tuple[AnySite, ...]
    columns: tuple[Column, ...]
    out_of: Tensor
    direction: Direction
    baseline: Baseline

    def cost(self) -> Cost:
        """Return what it will run, in token-blocks."""
        return self.sweep.cost()

    def run(self) -> PatchMap:
        """Run it.

        Raises:
            PlanError: a metric that is not finite, or that does not tell the two runs apart.
        """
        into = one_per_row(self.sweep.natural, "the prompts that are patched")
        require_gap(self.out_of, into)
        values = one_per_row(self.sweep.values.flatten(0, 1), "a patched pass")
        cells = values.reshape(len(self.places), len(self.columns), len(into))
        there = torch.stack([column.there for column in self.columns])
        return PatchMap(
            self.places,
            self.sites,
            tuple(column.name for column in self.columns),
            torch.where(there, cells, torch.nan),
            into,
            self.out_of,
            self.direction,
            self.baseline,
            self.sweep.executed,
        )


def sweep(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    sites: Sequence[AnySite],
    metric: Measure,
    *,
    scope: Scopes | None = None,
    neurons: Neurons | None = None,
    direction: Direction = "denoise",
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
    budget: int | None = None,
) -> PatchMap:
    """Return what patching does, at every site and column, to every pair of prompts.

    Activation patching: Vig et al. 2020 (arXiv:2004.12265), Meng et al. 2022 (arXiv:2202.05262);
    practice as in Zhang and Nanda 2023 (arXiv:2309.16042). All patches are arms of one steer.sweep:
    the prompts run once, each patch only from its own block and token on, and patches that write
    what is there already are not run.

    Args:
        lm: the model.
        clean: prompts with the behaviour.
        corrupted: one for each of them, without it.
        sites: what is patched, one map row each; `heads(lm)` for every head by itself.
        metric: (logits, batch) -> one number per row, of the logits at the last token; see
            `logit_difference`. `batch.rows` says which pair a row is.
        scope: at which tokens. None: each token by itself, one column each. A scope, a list of
            them, or names and scopes: one column for each scope, its tokens patched together; the
            scope is looked up in both prompts of a pair and must hold as many tokens in each.
        neurons: coordinates of the sites: each entry (a number, or several together) is a map row
            of its own at every site.
        direction: "denoise" writes clean values into the corrupted run (what suffices to bring the
            behaviour back), "noise" corrupted ones into the clean run (what is needed for it).
        baseline: what is written: the "other" run's values; "zero"; the "mean" over the other
            run's tokens; the "conditional_mean" over those with the same token id; "resample", the
            other run's values of another pair; "gaussian", own values with noise.
        align: how tokens of a pair are matched; see `aligned`.
        seed: of resampling and noise.
        budget: bytes, as in steer.sweep.

    Raises:
        PlanError: pairs that cannot be aligned (says where they part), a metric that is not finite
            or does not tell clean from corrupted, an unknown choice.
        SteerError: a site or scope that does not fit.
    """
    return prepared(
        lm,
        clean,
        corrupted,
        sites,
        metric,
        scope=scope,
        neurons=neurons,
        direction=direction,
        baseline=baseline,
        align=align,
        seed=seed,
        budget=budget,
    ).run()


def prepared(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    sites: Sequence[AnySite],
    metric: Measure,
    *,
    scope: Scopes | None = None,
    neurons: Neurons | None = None,
    direction: Direction = "denoise",
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
    budget: int | None = None,
) -> Prepared:
    """Return the map before it runs: two passes over the prompts are done, for the values.

    Arguments and errors as in `sweep`.
    """
    into, out_of = pairs_of(lm, clean, corrupted, direction)
    columns = columns_of(lm, into, out_of, sites, scope, baseline=baseline, align=align, seed=seed)
    source = source_metric(lm, out_of, metric)
    picked = _picked(sites, neurons, columns)
    places = tuple(name for _, name, _ in picked)
    plans: list[Plan] = [
        [patch_of(site, column, subspace)] for site, _, subspace in picked for column in columns
    ]
    arms = dict(zip(joined_names(places, [c.name for c in columns]), plans, strict=True))
    return Prepared(
        run_arms(lm, into, arms, metric, budget=budget),
        places,
        tuple(site for site, _, _ in picked),
        tuple(columns),
        source,
        direction,
        baseline,
    )


def heads(lm: LM, component: str = "z") -> list[Site]:
    """Return every head of every block as a site of its own: z, or q, k, v (k and v: kv heads)."""
    layout = lm.registry.layout
    n = layout.n_heads if component in ("z", "q") else layout.n_kv_heads
    return [Site(site.layer, component, head) for site in lm.sites(component) for head in range(n)]


def _picked(
    sites: Sequence[AnySite], neurons: Neurons | None, columns: Sequence[Column]
) -> list[tuple[AnySite, str, Tensor | None]]:
    """Return what is patched: site, name, and the coordinates as unit vectors if not all."""
    if neurons is None:
        return [(site, str(site), None) for site in sites]
    sets = [[one] if isinstance(one, int) else list(one) for one in neurons]
    found: list[tuple[AnySite, str, Tensor | None]] = []
    for site in sites:
        width = columns[0].sources[base_of(site)].shape[-1]
        wrong = [k for one in sets for k in one if not 0 <= k < width]
        if wrong:
            raise PlanError(
                f"{site} is {width} wide, so it has no neuron {wrong[0]}. Give numbers from 0 to "
                f"{width - 1}."
            )
        found += [
            (site, f"{site} neurons {','.join(map(str, one))}", torch.eye(width)[one])
            for one in sets
        ]
    return found
