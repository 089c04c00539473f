"""Pairs of prompts as a map needs them: which are patched, with what, and how far they differ."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steer.engine import Batch, Measure
from steer.engine.batch import checked
from steer.errors import PlanError
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.columns import Column, each_token, scoped
from steer.patching.patch_map import Direction
from steer.patching.sources import Baseline
from steer.prompts import Prompts
from steer.scopes import LAST, Scope, require_scope
from steer.sites import AnySite, Site, require_sites

Scopes = Scope | Sequence[Scope] | Mapping[str, Scope]


def pairs_of(
    lm: LM, clean: Prompts, corrupted: Prompts, direction: Direction
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompts that are patched and those whose values are written, as token ids.

    Raises:
        PlanError: an unknown direction.
    """
    if direction not in ("denoise", "noise"):
        raise PlanError(f"There is no direction {direction!r}. Give 'denoise' or 'noise'.")
    first, second = lm.rows(corrupted), lm.rows(clean)
    return (first, second) if direction == "denoise" else (second, first)


def columns_of(
    lm: LM,
    into: Sequence[Sequence[int]],
    out_of: Sequence[Sequence[int]],
    sites: Sequence[AnySite],
    scope: Scopes | None,
    *,
    baseline: Baseline,
    align: Align,
    seed: int,
) -> list[Column]:
    """Return the columns that a scope stands for; see `sweep`.

    Raises:
        PlanError: pairs that cannot be aligned, an unknown baseline, a site that is only read.
    """
    require_sites(sites)
    patterns = [str(s) for s in sites if isinstance(s, Site) and s.component == "pattern"]
    if patterns:
        raise PlanError(
            f"{patterns[0]} is computed anew from q and k and cannot be written, so it cannot be "
            "patched. Patch q, k, v or z."
        )
    if scope is None:
        return each_token(lm, into, out_of, sites, baseline=baseline, align=align, seed=seed)
    return [
        scoped(lm, into, out_of, sites, name, one, baseline=baseline, seed=seed)
        for name, one in _named(scope).items()
    ]


def source_metric(lm: LM, out_of: Sequence[Sequence[int]], metric: Measure) -> Tensor:
    """Return [pair]: the metric of the prompts whose values are written.

    Raises:
        PlanError: it is not finite, or not one value per row.
    """
    batch = _whole(len(out_of))
    measured = checked(metric(lm.logits(out_of, scope=LAST), batch), batch)
    return one_per_row(measured, "the prompts that values are taken from")


def _whole(n_rows: int) -> Batch:
    return Batch(torch.full((n_rows,), -1), torch.arange(n_rows))


def one_per_row(values: Tensor, what: str) -> Tensor:
    """Return a metric's values in fp32.

    Raises:
        PlanError: some are not finite.
    """
    finite = torch.isfinite(values.float())
    if not bool(finite.all()):
        raise PlanError(
            f"The metric of {what} is not finite in {int((~finite).sum())} of {finite.numel()} "
            "values. A map of it would be NaN. Use a metric that is finite everywhere, such as a "
            "difference of logits; or check the patched values."
        )
    return values.float()


def require_gap(out_of: Tensor, into: Tensor) -> None:
    """Refuse a metric that is the same in both runs.

    Raises:
        PlanError: it is.
    """
    gap = float((out_of - into).mean())
    scale = float(torch.cat([out_of, into]).abs().mean())
    if out_of.ndim != 1 or abs(gap) <= 1e-5 * scale:
        raise PlanError(
            f"The metric is {float(out_of.mean()):.4g} in one run and {float(into.mean()):.4g} in "
            f"the other, on average over {len(into)} pairs: a gap of {gap:.2g}. An effect is a "
            "share of that gap. Use a metric that tells clean from corrupted, one number per row."
        )


def _named(scope: Scopes) -> Mapping[str, Scope]:
    if isinstance(scope, Mapping):
        named = dict(scope)
    else:
        each = [scope] if isinstance(scope, Scope | str) else list(scope)
        named = {repr(one): one for one in each}
    for one in named.values():
        require_scope(one, "patching")
    return named
