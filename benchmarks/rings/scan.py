"""Choose the block on the train contexts: each context in turn is held out and steered.

The criterion is how far a steered output is from the natural output at the place aimed at: small
only where a write both works and keeps the output natural. It does not look at the chord, whose
contrast with the ring is the claim to be tested; and neither the distance to the nearest natural
output nor that contrast would do, as both look harmless where later blocks overwrite the write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import manifolds
import steer
from benchmarks.rings.paths import fit_ring
from benchmarks.rings.reading import Bins, Reading
from steer.sites import AnySite

SHARES = (1 / 3, 2 / 3)
"""Waypoints of the scan: of 6 months the 2nd and the 4th, of 3 weekdays the 1st and the 2nd."""
TOLERANCE = 0.05
"""A block counts as good as the best if its miss is at most this share larger."""
STARTS = 4
"""One start in so many is steered in each context, another one in the next."""


@dataclass(frozen=True, slots=True)
class Block:
    """What steering at one block does in held-out train contexts."""

    site: str
    layer: int
    miss: float
    """Mean Hellinger distance to the natural output aimed at, on the ring: the criterion."""
    p_passed_manifold: float
    p_passed_chord: float
    manifold: float
    """Mean Hellinger distance to the nearest natural output of the other contexts."""
    chord: float


@dataclass(frozen=True, slots=True, eq=False)
class _Probe:
    """The rows of the scan: which cases to steer to what share of the way."""

    case: Tensor
    share: Tensor

    @classmethod
    def of(cls, reading: Reading) -> "_Probe":
        chosen = (reading.concept % STARTS) == (reading.context % STARTS)
        cases = (chosen & reading.correct).nonzero()[:, 0]
        return cls(cases.repeat_interleave(len(SHARES)), torch.tensor(SHARES).repeat(len(cases)))


def scan(
    lm: steer.LM,
    reading: Reading,
    bins: Bins,
    sites: Sequence[AnySite],
    period: int,
) -> list[Block]:
    """Return what steering does at each site, every train context held out in turn."""
    rows = _Probe.of(reading)
    contexts = reading.context[rows.case]
    folds: dict[int, tuple[Reading, manifolds.Behavior]] = {}
    for held_out in contexts.unique().tolist():
        rest = reading.where(reading.correct & (reading.context != held_out))
        if len(rest.concept.unique()) == period:
            folds[held_out] = (rest, rest.behavior(period))
    known = torch.isin(contexts, torch.tensor(list(folds)))
    rows = _Probe(rows.case[known], rows.share[known])
    if not len(rows.case):
        return []
    arms: list[steer.Plan] = []
    for site in sites:
        for targets in _targets(reading, site, rows, folds, period):
            each = targets.reshape(-1, len(SHARES), targets.shape[-1])
            arms += [[steer.Patch(site, t, scope=steer.LAST)] for t in each.unbind(1)]
    prompts = [reading.rows[at] for at in rows.case[:: len(SHARES)].tolist()]
    outputs = steer.sweep(lm, prompts, arms, lambda logits, _: bins.probabilities(logits)).values
    # [site, way, share, case, bin]: each way case by case, share by share, as the rows are.
    ways = outputs.unflatten(0, (len(sites), 2, len(SHARES))).transpose(2, 3)
    return [
        _score(str(site), layer, way.flatten(0, 2), reading, rows, folds, period)
        for layer, (site, way) in enumerate(zip(sites, ways, strict=True))
    ]


def best_of(blocks: Sequence[Block]) -> Block:
    """Return the first block at which steered outputs are nearly as near as anywhere to their aim.

    The late blocks hardly differ. The first of them leaves the model the most to do with the write;
    after the last block there is only the read-out, and what a path does there says little.
    """
    least = min(block.miss for block in blocks)
    return next(block for block in blocks if block.miss <= (1 + TOLERANCE) * least)


def _targets(
    reading: Reading,
    site: AnySite,
    rows: _Probe,
    folds: dict[int, tuple[Reading, manifolds.Behavior]],
    period: int,
) -> tuple[Tensor, Tensor]:
    """Return whole states [row, d_model] on either path; off the subspace the row's own is kept."""
    states = reading.states[site][rows.case]
    start, context = reading.concept[rows.case], reading.context[rows.case]
    manifold, chord = torch.empty_like(states), torch.empty_like(states)
    half = period // 2
    for held_out, (rest, _) in folds.items():
        ring = fit_ring(rest, site, period)
        at = context == held_out
        share, u = rows.share[at], start[at]
        first, last = ring.curve.decode(u), ring.curve.decode(u + half)
        kept = states[at] - ring.curve.flatten(states[at])
        manifold[at] = kept + ring.curve.decode(u + share * half)
        chord[at] = kept + first + share[:, None] * (last - first)
    return manifold, chord


def _score(
    name: str,
    layer: int,
    outputs: Tensor,
    reading: Reading,
    rows: _Probe,
    folds: dict[int, tuple[Reading, manifolds.Behavior]],
    period: int,
) -> Block:
    context, half = reading.context[rows.case], period // 2
    u = reading.concept[rows.case] + (rows.share * half).round()
    target = u.long() % period
    distance = torch.empty(2, len(context), dtype=torch.double)
    miss = torch.empty(len(context), dtype=torch.double)
    both = outputs.reshape(2, len(context), -1)
    for held_out, (_, behavior) in folds.items():
        at = context == held_out
        distance[:, at] = behavior.distance(both[:, at].double(), "hellinger").double()
        miss[at] = manifolds.hellinger(both[0, at].double(), behavior.decode(u[at]).double())
    p = both.gather(-1, target[None, :, None].expand(2, -1, 1))[..., 0].mean(1)
    mean = distance.mean(1)
    return Block(
        name, layer, float(miss.mean()), float(p[0]), float(p[1]), float(mean[0]), float(mean[1])
    )
