"""Gradients averaged on the way from a site's own state to what is written there.

A later softmax that is saturated at both ends has next to no gradient at either, so a head that
acts through it looks idle. On the way it is not saturated. All that is read at one site (all heads
of a block, say) moves together, so the estimates of a site's heads add up to the effect of
exchanging all of them (completeness, Sundararajan et al. 2017, arXiv:1703.01365), unless the way
leads to other experts: no gradient sees such a jump. Hanna et al. 2024
(arXiv:2403.17806) move the embeddings instead: one path for all sites, but states that no prompt
makes; on indirect objects that was further from the patches than this.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from steer.attribution.slopes import MAX_TOKENS, gradients, run_rows, used_at
from steer.engine import Measure
from steer.lm import LM
from steer.sites import AnySite

Written = Mapping[AnySite, tuple[Tensor, Tensor]]
"""What is written at each site, [pair, position, ...], and at which tokens, [pair, position]."""


def mean_slopes(
    lm: LM,
    rows: Sequence[Sequence[int]],
    numbers: Tensor,
    written: Written,
    metric: Measure,
    *,
    steps: int,
    max_tokens: int = MAX_TOKENS,
) -> dict[AnySite, Tensor]:
    """Return [row, position, ...] for each site: the gradient there, averaged over the way.

    The midpoints of `steps` equal parts; each (site, point) is a row of its own for each prompt.

    Args:
        lm: the model.
        rows: token ids of all prompts.
        numbers: [row], which of them.
        written: by site; its own state moves towards it, the states of other sites follow.
        metric: (logits, batch) -> [row].
        steps: how many points.
        max_tokens: padded tokens of one pass, with its graph.
    """
    longest = max(len(rows[k]) for k in numbers.tolist())
    at_once = max(1, max_tokens // (longest * len(numbers)))
    ways = [(site, (k + 0.5) / steps) for site in written for k in range(steps)]
    total: dict[AnySite, Tensor] = {}
    for start in range(0, len(ways), at_once):
        found = _slopes(lm, rows, numbers, written, metric, ways[start : start + at_once])
        for site, slope in found.items():
            total[site] = total[site] + slope if site in total else slope
    return {site: slope / steps for site, slope in total.items()}


def _slopes(
    lm: LM,
    rows: Sequence[Sequence[int]],
    numbers: Tensor,
    written: Written,
    metric: Measure,
    ways: Sequence[tuple[AnySite, float]],
) -> dict[AnySite, Tensor]:
    """Return the gradients at each site of some ways, summed over its points."""
    n = len(numbers)
    opened: dict[AnySite, Tensor] = {}
    places = {site: [k for k, way in enumerate(ways) if way[0] == site] for site, _ in ways}

    def moved(site: AnySite) -> Callable[[AnySite, Tensor], Tensor]:
        values, mask = (x[numbers].to(lm.device) for x in written[site])
        mine = torch.tensor([way[0] == site for way in ways], device=lm.device)
        share = torch.tensor([mix for _, mix in ways], device=lm.device) * mine
        rate = share.repeat_interleave(n)[:, None] * mask.repeat(len(ways), 1)
        there = values.repeat(len(ways), *[1] * (values.ndim - 1))

        def move(_: AnySite, h: Tensor) -> Tensor:
            width = h.shape[1]
            by = rate[:, :width].reshape(len(h), width, *[1] * (h.ndim - 2))
            zero = torch.zeros_like(h).requires_grad_()
            opened[site] = zero
            return torch.where(by > 0, h + (by * (there[:, :width] - h)).to(h.dtype), h) + zero

        return move

    plan = [used_at(site, moved(site)) for site in places]
    with torch.enable_grad():
        values, _ = run_rows(lm, rows, numbers.repeat(len(ways)), plan, metric)
        found = gradients(values, opened)
    return {site: found[site].unflatten(0, (-1, n))[at].sum(0) for site, at in places.items()}
