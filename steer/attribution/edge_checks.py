"""`verify_edges`: the largest estimated edges run for real, as path patches."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch

from steer.attribution.edges import EdgeMap
from steer.attribution.estimating import Verified
from steer.engine import Measure
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.patch_map import Direction
from steer.patching.paths import paths
from steer.patching.sources import Baseline
from steer.prompts import Prompts
from steer.sites import Site


def verify_edges(
    lm: LM,
    estimate: EdgeMap,
    clean: Prompts,
    corrupted: Prompts,
    metric: Measure,
    *,
    n: int = 20,
    direction: Direction = "noise",
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
) -> Verified:
    """Run the n edges of the largest estimates: each sender on its way to one receiver alone.

    `patching.paths` with everything between held; the edges of a sender are columns of one map.
    Give the arguments with which the estimate was made. Effects are shares of the mean gap between
    the two runs; `rank_correlation` says how far the estimates are in the right order.

    Args:
        lm: the model.
        estimate: from `edges`.
        clean: as there, and so are the others.
        corrupted: see there.
        metric: see there.
        n: how many edges.
        direction: see there.
        baseline: see there.
        align: see there.
        seed: see there.

    Raises:
        PlanError: as `patching.paths`.
    """
    best = sorted(estimate.top(n), key=lambda edge: estimate.senders.index(edge[0]))
    real: dict[tuple[Site, Site], float] = {}
    for sender, group in groupby(best, lambda edge: edge[0]):
        receivers = [receiver for _, receiver, _ in group]
        found = paths(
            lm,
            clean,
            corrupted,
            [sender],
            [_as_received(receiver) for receiver in receivers],
            metric,
            direction=direction,
            baseline=baseline,
            align=align,
            seed=seed,
        )
        gap = (found.out_of - found.into).double().mean()
        shares = (found.change[0].double().mean(-1) / gap).tolist()
        real |= {(sender, site): share for site, share in zip(receivers, shares, strict=True)}
    top: Sequence[tuple[Site, Site, float]] = estimate.top(n)
    return Verified(
        tuple((str(sender), str(receiver)) for sender, receiver, _ in top),
        torch.tensor([effect for _, _, effect in top]).double(),
        torch.tensor([real[sender, receiver] for sender, receiver, _ in top]).double(),
    )


def _as_received(site: Site) -> Site:
    """Return what holds all that an MLP makes of its input, and is not itself held still."""
    return replace(site, component="mlp_post") if site.component == "mlp_out" else site
