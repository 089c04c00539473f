"""Choose the block on the train contexts: each context in turn is held out and steered.

The criterion is how far a steered output is from the natural output at the place aimed at: small
only where a write both works and keeps the output natural. It does not look at the chord, whose
contrast with the ring is the claim to be tested; and neither the distance to the nearest natural
output nor that contrast would do, as both look harmless where later blocks overwrite the write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

import manifolds
import steer
from benchmarks.rings.order import Order
from benchmarks.rings.paths import fit_ring, steerable
from benchmarks.rings.reading import Bins, Reading
from steer.sites import AnySite

N_WAYPOINTS = 2
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
    """The rows of the scan: which cases to steer, and to which place."""

    case: Tensor
    start: Tensor
    way: Tensor
    """How many concepts on the path ends."""
    passed: Tensor
    """How many concepts on this row is."""

    @property
    def u(self) -> Tensor:
        """Where each row is, counted on past the period."""
        return self.start + self.passed * self.way.sign()

    @classmethod
    def of(cls, reading: Reading, order: Order, known: Tensor) -> "_Probe":
        chosen = (reading.concept % STARTS) == (reading.context % STARTS)
        chosen &= reading.correct & steerable(reading, known, order, order.half)
        cases = chosen.nonzero()[:, 0].repeat_interleave(N_WAYPOINTS)
        start = reading.concept[cases]
        whole = (order.half * torch.arange(1, N_WAYPOINTS + 1) / (N_WAYPOINTS + 1)).round().long()
        passed = whole.repeat(len(cases) // N_WAYPOINTS)
        return cls(cases, start, order.way(start, order.half), passed)

    def where(self, keep: Tensor) -> "_Probe":
        return _Probe(self.case[keep], self.start[keep], self.way[keep], self.passed[keep])


_Folds = dict[int, tuple[Reading, manifolds.Behavior]]


def scan(
    lm: steer.LM,
    reading: Reading,
    bins: Bins,
    sites: Sequence[AnySite],
    order: Order,
    known: Int[Tensor, " known"],
) -> list[Block]:
    """Return what steering does at each site, every train context held out in turn.

    A context without which a known concept would have no case is not held out.
    """
    rows = _Probe.of(reading, order, known)
    contexts = reading.context[rows.case]
    folds: _Folds = {}
    for held_out in contexts.unique().tolist():
        rest = reading.where(reading.correct & (reading.context != held_out))
        if len(rest.concept.unique()) == len(known):
            folds[held_out] = (rest, rest.behavior(order))
    rows = rows.where(torch.isin(contexts, torch.tensor(list(folds))))
    if not len(rows.case):
        return []
    arms: list[steer.Plan] = []
    for site in sites:
        for targets in _targets(reading, site, rows, folds, order):
            each = targets.reshape(-1, N_WAYPOINTS, targets.shape[-1])
            arms += [[steer.Patch(site, t, scope=steer.LAST)] for t in each.unbind(1)]
    prompts = [reading.rows[at] for at in rows.case[::N_WAYPOINTS].tolist()]
    outputs = steer.sweep(lm, prompts, arms, lambda logits, _: bins.probabilities(logits)).values
    # [site, way, share, case, bin]: each way case by case, share by share, as the rows are.
    ways = outputs.unflatten(0, (len(sites), 2, N_WAYPOINTS)).transpose(2, 3)
    return [
        _score(str(site), layer, way.flatten(0, 2), reading, rows, folds, order)
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
    reading: Reading, site: AnySite, rows: _Probe, folds: _Folds, order: Order
) -> tuple[Tensor, Tensor]:
    """Return whole states [row, d_model] on either path; off the subspace the row's own is kept."""
    states, context = reading.states[site][rows.case], reading.context[rows.case]
    manifold, chord = torch.empty_like(states), torch.empty_like(states)
    share = rows.passed / rows.way.abs()
    for held_out, (rest, _) in folds.items():
        ring = fit_ring(rest, site, order)
        at = context == held_out
        first = ring.curve.decode(rows.start[at])
        last = ring.curve.decode(rows.start[at] + rows.way[at])
        kept = states[at] - ring.curve.flatten(states[at])
        manifold[at] = kept + ring.curve.decode(rows.u[at])
        chord[at] = kept + first + share[at, None] * (last - first)
    return manifold, chord


def _score(
    name: str,
    layer: int,
    outputs: Tensor,
    reading: Reading,
    rows: _Probe,
    folds: _Folds,
    order: Order,
) -> Block:
    context, target = reading.context[rows.case], order.place(rows.u)
    distance = torch.empty(2, len(context), dtype=torch.double)
    miss = torch.empty(len(context), dtype=torch.double)
    both = outputs.reshape(2, len(context), -1)
    for held_out, (_, behavior) in folds.items():
        at = context == held_out
        distance[:, at] = behavior.distance(both[:, at].double(), "hellinger").double()
        aim = behavior.decode(target[at].double()).double()
        miss[at] = manifolds.hellinger(both[0, at].double(), aim)
    p = both.gather(-1, target[None, :, None].expand(2, -1, 1))[..., 0].mean(1)
    mean = distance.mean(1)
    return Block(
        name, layer, float(miss.mean()), float(p[0]), float(p[1]), float(mean[0]), float(mean[1])
    )
