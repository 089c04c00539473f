"""Paths between concepts of a ring or a line: states in, points of activation space out.

Which of them are written, and how, is in `arms`. After Wurgaft et al. 2026 (arXiv:2605.05115),
whose chord is a straight way between raw centroids.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import manifolds
from benchmarks.rings.order import Order
from benchmarks.rings.reading import Reading
from steer.sites import AnySite

N_POINTS = 13
"""Waypoints of a path of up to six concepts; every whole one is among them if 12 is a multiple."""


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """The ring or line fitted at one site on the train contexts, and its centroids."""

    site: AnySite
    curve: manifolds.Curve
    centroids: Float[Tensor, "concept d_model"]
    """NaN for a concept that was left out."""
    order: Order

    @property
    def known(self) -> Int[Tensor, " known"]:
        """The concepts that have a centroid, in order."""
        return torch.isfinite(self.centroids[:, 0]).nonzero()[:, 0]


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
    way: Int[Tensor, " row"]
    """How many concepts on the path ends: below 0 where it goes down a line."""
    order: Order
    n_points: int = N_POINTS
    """Waypoints of each path."""

    @property
    def u(self) -> Float[Tensor, " row"]:
        """Where on the ring or line each row is; it runs on past the period."""
        return self.start + self.share * self.way

    @property
    def end(self) -> Int[Tensor, " row"]:
        """The concept at which the path of each row ends."""
        return self.order.place(self.start + self.way)

    @property
    def passed(self) -> Int[Tensor, " row"]:
        """How many whole concepts on a row is, -1 between two and at both ends."""
        on = self.share * self.way.abs()
        whole = (on - on.round()).abs() < 1e-4
        inside = (self.share > 1e-4) & (self.share < 1 - 1e-4)
        return torch.where(whole & inside, on.round(), -torch.ones_like(on)).long()

    def waypoint(self, point: int) -> Tensor:
        """Return [path]: the rows of one waypoint of every path."""
        return torch.arange(point, len(self.case), self.n_points)

    def per_path(self, values: Tensor) -> Tensor:
        """Return values [row, ...] as [path, waypoint, ...]."""
        return values.reshape(-1, self.n_points, *values.shape[1:])


def fit_ring(reading: Reading, site: AnySite, order: Order) -> Ring:
    """Return the ring or line at a site through the centroids of the given cases."""
    states = reading.states[site]
    of = torch.nn.functional.one_hot(reading.concept, order.n).to(states.dtype)
    # A concept without a case is 0 / 0: NaN.
    centroids = (of.T @ states) / of.sum(0)[:, None]
    return Ring(site, reading.curve(site, order), centroids, order)


def steerable(
    reading: Reading, known: Int[Tensor, " known"], order: Order, distance: int
) -> Bool[Tensor, " case"]:
    """Return which cases start a path of this distance between two known concepts."""
    way = order.way(reading.concept, distance)
    ends = torch.isin(order.place(reading.concept + way), known)
    return (way != 0) & ends & torch.isin(reading.concept, known)


def points_of(distance: int) -> int:
    """Return how many waypoints a path of this distance has: also some between its concepts.

    A curve in any order goes through the centroids, so at whole concepts even a wrong one is
    natural: there is at least one waypoint between any two.
    """
    return max(N_POINTS, 2 * distance + 1)


def steps_of(reading: Reading, order: Order, distance: int) -> Steps:
    """Return a path of this distance for each case, starting at its own concept.

    Upwards, except near the upper end of a line.
    """
    n, points = len(reading.rows), points_of(distance)
    each = torch.arange(n).repeat_interleave(points)
    share = torch.linspace(0, 1, points).repeat(n)
    start, context = reading.concept[each], reading.context[each]
    return Steps(each, start, context, share, order.way(start, distance), order, points)


def on_manifold(ring: Ring, steps: Steps) -> Tensor:
    """Return the points [row, d_model] along the ring or line."""
    return ring.curve.decode(steps.u)


def on_chord(ring: Ring, steps: Steps) -> Tensor:
    """Return the points [row, d_model] of the straight ways between the ends, on the subspace."""
    first, last = ring.curve.decode(steps.start), ring.curve.decode(steps.start + steps.way)
    return first + steps.share[:, None] * (last - first)


def on_centroid_chord(ring: Ring, steps: Steps) -> Tensor:
    """Return the points of the straight ways between raw centroids: the paper's baseline."""
    first, last = ring.centroids[steps.start], ring.centroids[steps.end]
    return first + steps.share[:, None] * (last - first)


def on_random_path(ring: Ring, steps: Steps, seed: int) -> Tensor:
    """Return points that leave the chord as far as the ring does, but in a random direction.

    The direction is drawn for each path within the ring's subspace, at right angles to the chord.
    Where the ring leaves the chord in several directions, this path is the shorter one. The control
    for "any detour of this size would do".
    """
    return on_chord(ring, steps) + _bend(ring, steps) * _aside(ring, steps, seed)


def on_random_path_of_length(ring: Ring, steps: Steps, seed: int) -> Tensor:
    """Return the random paths, bent so much more that each is as long as the ring's own path.

    The control for "any path of this length would do".
    """
    chord, bend = on_chord(ring, steps), _bend(ring, steps)
    scale = _scale(
        steps.per_path(chord).double().diff(dim=1).norm(dim=-1),
        steps.per_path(bend[:, 0]).double().diff(dim=1),
        lengths(on_manifold(ring, steps), steps),
    )
    more = bend * scale.to(bend.dtype).repeat_interleave(steps.n_points)[:, None]
    return chord + more * _aside(ring, steps, seed)


def lengths(points: Float[Tensor, "row d_model"], steps: Steps) -> Float[Tensor, " path"]:
    """Return the length of each path, straight from waypoint to waypoint."""
    return steps.per_path(points).double().diff(dim=1).norm(dim=-1).sum(-1)


def on_permuted_ring(ring: Ring, steps: Steps, seed: int) -> Tensor:
    """Return points along a ring or line through the same centroids in a random order.

    As far on as the real path and from the same starts; on a line that lacks concepts, at most
    half of it. Each context has an order of its own, so that no single lucky one decides. The
    control for "any curve through the centroids would do".
    """
    points = torch.empty(len(steps.case), ring.centroids.shape[1])
    chooser = torch.Generator().manual_seed(seed)
    known = ring.known
    order = Order(len(known), ring.order.closed)
    distance = min(int(steps.way.abs().max()), order.half)
    for context in steps.context.unique().tolist():
        place = torch.full((ring.order.n,), -1)
        place[known] = _shuffled(order, chooser)
        curve = manifolds.fit_curve(
            ring.centroids[known],
            place[known],
            period=order.period,
            subspace=ring.curve.subspace,
        )
        rows = steps.context == context
        start = place[steps.start[rows]]
        u = start + steps.share[rows] * order.way(start, distance)
        points[rows] = curve.decode(u).float()
    return points


def _aside(ring: Ring, steps: Steps, seed: int) -> Tensor:
    """Return a unit vector [row, d_model] per path, within the subspace, across its chord."""
    paths = steps.per_path(on_chord(ring, steps))
    along = paths[:, -1] - paths[:, 0]
    along = along / along.norm(dim=-1, keepdim=True)
    basis = ring.curve.subspace.basis
    drawn = torch.randn(len(paths), len(basis), generator=torch.Generator().manual_seed(seed))
    away = drawn.to(basis.dtype) @ basis
    away = away - (away * along).sum(-1, keepdim=True) * along
    return (away / away.norm(dim=-1, keepdim=True)).repeat_interleave(steps.n_points, 0)


def _bend(ring: Ring, steps: Steps) -> Tensor:
    """Return [row, 1]: how far the ring is from the chord at each waypoint."""
    return (on_manifold(ring, steps) - on_chord(ring, steps)).norm(dim=-1, keepdim=True)


def _scale(
    along: Float[Tensor, "path step"],
    across: Float[Tensor, "path step"],
    wanted: Float[Tensor, " path"],
) -> Float[Tensor, " path"]:
    """Return the factor of the steps across at which a path is as long as wanted, by bisection.

    Steps across at right angles to those along: the length grows with the factor.
    """
    low = torch.zeros_like(wanted)
    high = wanted / across.abs().sum(-1).clamp_min(torch.finfo(wanted.dtype).tiny)
    for _ in range(60):
        middle = (low + high) / 2
        short = (along.square() + (middle[:, None] * across).square()).sqrt().sum(-1) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (low + high) / 2


def _shuffled(order: Order, chooser: torch.Generator) -> Tensor:
    """Return a random order in which fewer than half of the neighbours are real neighbours."""
    while True:
        place = torch.randperm(order.n, generator=chooser)
        if order.neighbours(place.argsort()) * 2 < order.n:
            return place
