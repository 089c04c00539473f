"""Paths half-way round a ring, and the plans that write them: states in, frozen plans out.

Every arm is a path through activation space and a way to write it. "subspace" writes keep what a
state has off the ring's subspace; "replaced" ones write the whole state, so that like can be
compared with like. After Wurgaft et al. 2026 (arXiv:2605.05115), whose chord is a full replacement.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

import manifolds
import steer
from benchmarks.rings.reading import Reading
from steer.sites import AnySite

MakePlan = Callable[[Tensor], steer.Plan]
"""Takes the numbers of some rows; returns a plan with one entry per such row in its tensors."""
N_POINTS = 13
"""Waypoints of a path: every whole concept of both rings is one, half-way round and adjacent."""


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """The ring fitted at one site on the train contexts, and the centroids it goes through."""

    site: AnySite
    curve: manifolds.Curve
    centroids: Float[Tensor, "concept d_model"]
    period: int


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The rows of all paths: path by path, waypoint by waypoint."""

    case: Int[Tensor, " row"]
    """Which prompt."""
    start: Int[Tensor, " row"]
    """The concept it would go on with."""
    context: Int[Tensor, " row"]
    share: Float[Tensor, " row"]
    """How much of the way is done, 0 to 1."""
    distance: int
    """How many concepts on the path ends."""

    @property
    def passed(self) -> Int[Tensor, " row"]:
        """How many whole concepts on a row is, -1 between two and at both ends."""
        on = self.share * self.distance
        whole = (on - on.round()).abs() < 1e-4
        inside = (self.share > 1e-4) & (self.share < 1 - 1e-4)
        return torch.where(whole & inside, on.round(), -torch.ones_like(on)).long()

    def waypoint(self, point: int) -> Tensor:
        """Return [path]: the rows of one waypoint of every path."""
        return torch.arange(point, len(self.case), N_POINTS)

    def per_path(self, values: Tensor) -> Tensor:
        """Return values [row, ...] as [path, waypoint, ...]."""
        return values.reshape(-1, N_POINTS, *values.shape[1:])


def fit_ring(reading: Reading, site: AnySite, period: int) -> Ring:
    """Return the ring at a site through the centroids of the given cases."""
    states = reading.states[site]
    centroids = torch.stack([states[reading.concept == z].mean(0) for z in range(period)])
    return Ring(site, reading.curve(site, period), centroids, period)


def steps_of(reading: Reading, distance: int) -> Steps:
    """Return a path of this length for each case, starting at its own concept, upwards."""
    n = len(reading.rows)
    each = torch.arange(n).repeat_interleave(N_POINTS)
    share = torch.linspace(0, 1, N_POINTS).repeat(n)
    return Steps(each, reading.concept[each], reading.context[each], share, distance)


def on_manifold(ring: Ring, steps: Steps) -> Tensor:
    """Return the points [row, d_model] along the ring."""
    return ring.curve.decode(steps.start + steps.share * steps.distance)


def on_chord(ring: Ring, steps: Steps) -> Tensor:
    """Return the points [row, d_model] of the straight ways between the ends, on the subspace."""
    first, last = ring.curve.decode(steps.start), ring.curve.decode(steps.start + steps.distance)
    return first + steps.share[:, None] * (last - first)


def on_centroid_chord(ring: Ring, steps: Steps) -> Tensor:
    """Return the points of the straight ways between raw centroids: the paper's baseline."""
    first = ring.centroids[steps.start]
    last = ring.centroids[(steps.start + steps.distance) % ring.period]
    return first + steps.share[:, None] * (last - first)


def on_random_path(ring: Ring, steps: Steps, seed: int) -> Tensor:
    """Return points that leave the chord as far as the ring does, but in a random direction.

    The direction is drawn for each path within the ring's subspace, at right angles to the chord.
    The control for "any detour of this size would do".
    """
    chord, bend = on_chord(ring, steps), on_manifold(ring, steps) - on_chord(ring, steps)
    paths = steps.per_path(chord)
    along = paths[:, -1] - paths[:, 0]
    along = along / along.norm(dim=-1, keepdim=True)
    basis = ring.curve.subspace.basis
    drawn = torch.randn(len(paths), len(basis), generator=torch.Generator().manual_seed(seed))
    away = drawn.to(basis.dtype) @ basis
    away = away - (away * along).sum(-1, keepdim=True) * along
    away = away / away.norm(dim=-1, keepdim=True)
    return chord + bend.norm(dim=-1, keepdim=True) * away.repeat_interleave(N_POINTS, 0)


def on_permuted_ring(ring: Ring, steps: Steps, seed: int) -> Tensor:
    """Return points along a ring through the same centroids in a random order.

    As far round as the real one and from the same starts. Each context has an order of its own, so
    that no single lucky one decides. The control for "any curve through the centroids would do".
    """
    points = torch.empty(len(steps.case), ring.centroids.shape[1])
    chooser = torch.Generator().manual_seed(seed)
    for context in steps.context.unique().tolist():
        place = _shuffled(ring.period, chooser)
        curve = manifolds.fit_curve(
            ring.centroids, place, period=ring.period, subspace=ring.curve.subspace
        )
        rows = steps.context == context
        points[rows] = curve.decode(
            place[steps.start[rows]] + steps.share[rows] * steps.distance
        ).float()
    return points


def _shuffled(n: int, chooser: torch.Generator) -> Tensor:
    """Return a random order in which fewer than half of the neighbours are real neighbours."""
    while True:
        place = torch.randperm(n, generator=chooser)
        order = place.argsort()
        gap = (order.roll(-1) - order) % n
        if int(((gap == 1) | (gap == n - 1)).sum()) * 2 < n:
            return place


def _move(ring: Ring, steps: Steps, states: Tensor, seed: int) -> MakePlan:
    del states, seed
    u = steps.start + steps.share * steps.distance
    return lambda rows: [steer.MoveTo(ring.site, ring.curve, u[rows], scope=steer.LAST)]


def _in_subspace(points: Tensor, ring: Ring) -> MakePlan:
    basis = ring.curve.subspace.basis
    return lambda rows: [steer.Patch(ring.site, points[rows], subspace=basis, scope=steer.LAST)]


def _whole(points: Tensor, ring: Ring) -> MakePlan:
    return lambda rows: [steer.Patch(ring.site, points[rows], scope=steer.LAST)]


def _added(ring: Ring, steps: Steps, states: Tensor, seed: int) -> MakePlan:
    # state + t (mean of the end - mean of the start), written as a patch of the known state: Add
    # takes one direction for all rows.
    del seed
    diff = on_centroid_chord(ring, steps) - ring.centroids[steps.start]
    return _whole(states[steps.case] + diff, ring)


Arm = Callable[[Ring, Steps, Tensor, int], MakePlan]
"""Takes the ring, the rows, the unsteered states [case, d_model] at its site, and a seed."""

ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "manifold": _move,
        "chord": lambda r, s, _, __: _in_subspace(on_chord(r, s), r),
        "manifold_replaced": lambda r, s, _, __: _whole(on_manifold(r, s), r),
        "chord_replaced": lambda r, s, _, __: _whole(on_centroid_chord(r, s), r),
        "additive": _added,
        "random_path": lambda r, s, _, seed: _in_subspace(on_random_path(r, s, seed), r),
        "permuted": lambda r, s, _, seed: _in_subspace(on_permuted_ring(r, s, seed), r),
    }
)
"""Every path with the way in which it is written."""
