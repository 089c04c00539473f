"""The columns of a map: at which tokens of each pair something is written, and what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer.activations import Activations
from steer.errors import PlanError
from steer.interventions import Patch
from steer.lm import LM
from steer.patching.aligning import Align, aligned
from steer.patching.sources import Baseline, Runs, ids_of, written
from steer.scopes import ALL, Scope, at
from steer.sites import AnySite, Site


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column of a map: which tokens, and what is written there."""

    name: str
    scope: Scope
    sources: Mapping[AnySite, Tensor]
    """[pair, ...] for one token a pair, [pair, n, ...] for several; sites with all their heads."""
    counts: Tensor | None
    """[pair]: tokens in scope, where they are several."""
    there: Tensor
    """[pair] bool: whether a pair has these tokens."""
    at: Tensor
    """[pair, n]: their positions in the prompts that are patched, -1 where there is none."""

    @property
    def several(self) -> bool:
        """Whether the sources have an axis of tokens."""
        return self.counts is not None


def each_token(
    lm: LM,
    into: Sequence[Sequence[int]],
    out_of: Sequence[Sequence[int]],
    sites: Sequence[AnySite],
    *,
    baseline: Baseline,
    align: Align,
    seed: int,
) -> list[Column]:
    """Return a column for each token of the prompts that are patched, if any pair has it.

    Raises:
        PlanError: pairs that cannot be aligned, or nothing to resample from.
    """
    pairs = aligned(into, out_of, lambda ids: str(lm.tokenizer.decode(ids)), align)
    bases = bases_of(sites)
    own, other = (lm.capture(rows, bases, scope=ALL) for rows in (into, out_of))
    wide, far = pairs.places.shape[1], max(len(row) for row in out_of)
    own_ids, other_ids = ids_of(into, wide), ids_of(out_of, far)
    values = {
        site: written(
            Runs(tokens_at(own, site), tokens_at(other, site), own_ids, other_ids, pairs.places),
            baseline,
            seed=seed,
        )
        for site in bases
    }
    there = pairs.paired if baseline in ("other", "resample") else pairs.mask
    return [
        Column(
            _label(lm, own_ids[:, k], k),
            at(k, missing="skip"),
            {site: value[:, k] for site, value in values.items()},
            None,
            there[:, k],
            torch.where(there[:, k : k + 1], k, -1),
        )
        for k in range(wide)
        if bool(there[:, k].any())
    ]


def scoped(
    lm: LM,
    into: Sequence[Sequence[int]],
    out_of: Sequence[Sequence[int]],
    sites: Sequence[AnySite],
    name: str,
    scope: Scope,
    *,
    baseline: Baseline,
    seed: int,
) -> Column:
    """Return the column of a scope, which must hold as many tokens in both prompts of a pair.

    Raises:
        PlanError: it does not, different numbers of prompts, or nothing to resample from.
    """
    bases = bases_of(sites)
    own, other = (lm.capture(rows, bases, scope=scope) for rows in (into, out_of))
    counts, others = (_counts(acts) for acts in (own, other))
    if len(counts) != len(others):
        raise PlanError(
            f"There are {len(out_of)} prompts to take values from and {len(into)} to write them "
            "into. Patching compares pairs. Give one for each, in the same order."
        )
    if not torch.equal(counts, others):
        row = int((counts != others).nonzero()[0])
        raise PlanError(
            f"In pair {row}, {name} holds {int(others[row])} tokens in the prompt that values are "
            f"taken from and {int(counts[row])} in the one that is patched. No token of one stands "
            "for one of the other then. Choose a scope that holds as many in both, such as its "
            "last token: steer.at(...)."
        )
    ids = [ids_at(rows, acts) for rows, acts in ((into, own), (out_of, other))]
    places = torch.where(ids[0] >= 0, torch.arange(ids[0].shape[1]), -1)
    values = {
        site: written(
            Runs(tokens_at(own, site), tokens_at(other, site), ids[0], ids[1], places),
            baseline,
            seed=seed,
        )
        for site in bases
    }
    single = own.mask is None
    sources = {site: value[:, 0] if single else value for site, value in values.items()}
    positions = own.positions[:, None] if single else own.positions
    return Column(name, scope, sources, None if single else counts, counts > 0, positions.cpu())


def patch_of(site: AnySite, column: Column, subspace: Tensor | None) -> Patch:
    """Return the patch of one cell of a map."""
    source = column.sources[base_of(site)]
    if isinstance(site, Site) and site.head is not None:
        source = source.select(-2, site.head)
    return Patch(site, source, subspace, column.scope, column.counts)


def base_of(site: AnySite) -> AnySite:
    """Return the site with all its heads."""
    return replace(site, head=None) if isinstance(site, Site) else site


def bases_of(sites: Sequence[AnySite]) -> list[AnySite]:
    """Return what is captured for some sites: each with all its heads, once."""
    return list(dict.fromkeys(base_of(site) for site in sites))


def tokens_at(acts: Activations, site: AnySite) -> Tensor:
    """Return [pair, n, ...], also where each pair has one token."""
    return acts[site] if acts.mask is not None else acts[site][:, None]


def _counts(acts: Activations) -> Tensor:
    counts = acts.counts()
    return torch.ones(len(acts.positions), dtype=torch.long) if counts is None else counts.cpu()


def ids_at(rows: Sequence[Sequence[int]], acts: Activations) -> Tensor:
    """Return [pair, n]: the token ids at an Activations' positions, -1 where there is none."""
    places = acts.positions if acts.mask is not None else acts.positions[:, None]
    ids = ids_of(rows, max(len(row) for row in rows))
    return torch.where(places >= 0, ids.gather(1, places.clamp(min=0)), -1)


def _label(lm: LM, ids: Tensor, position: int) -> str:
    real = ids[ids >= 0].unique()
    return f"{position} {lm.tokenizer.decode(real.tolist())!r}" if len(real) == 1 else f"{position}"
