"""Paths between two places in activation space, and the outputs that they lead to."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

import manifolds
import steer
from benchmarks.planted.model import Chart, Natural, Reading, bins, points
from benchmarks.planted.shapes import Shape
from benchmarks.ways import geometric_mixture, straight, turned
from steer.sites import AnySite

N_POINTS = 20
"""Waypoints of a path. Its ends are whole places, so with 20 hardly any other one is a knot, at
which even a wrong spline is natural."""
STARTS, MOST = 12, 2
"""Places at which paths start, and prompts for each, at most."""
ARMS: tuple[str, ...] = ("manifold", "chord", "permuted", "random_path")


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Held-out prompts, and for each the path from its own place to one some way on."""

    reading: Reading
    start: Int[Tensor, " path"]
    """Number of the place at which it starts."""
    context: Int[Tensor, " path"]
    """Number of the prompt among those of that place."""
    u: Float[Tensor, "point path dim"]


def pairs(shape: Shape, reading: Reading, way: int, *, seed: int) -> Pairs:
    """Return paths of `way` places along every axis, from prompts about whole places.

    From at most 12 places, and 2 prompts for each: nearest outputs on a torus take their
    time. On a line only paths that end on it.
    """
    places = reading.places
    whole = (places - places.round()).abs().amax(1) < 1e-4
    closed = torch.tensor(shape.closed)
    inside = (closed | (places + way <= shape.size - 1)).all(1)
    kept = reading.where(whole & inside)
    starts, start = kept.places.round().unique(dim=0, return_inverse=True)
    draw = torch.Generator().manual_seed(seed)
    rank = torch.randperm(len(starts), generator=draw)[start]
    kept, start = kept.where(rank < STARTS), rank[rank < STARTS]
    earlier = torch.tril(start[:, None] == start, -1).sum(1)
    few = earlier < MOST
    kept, start, context = kept.where(few), start[few], earlier[few]
    share = torch.linspace(0, 1, N_POINTS)[:, None, None]
    return Pairs(kept, start, context, kept.places + share * way)


def along(
    arm: str, chart: Chart, wrong: Chart, u: Float[Tensor, "point path dim"], *, seed: int
) -> Float[Tensor, "point path d_model"]:
    """Return the points of the paths of one arm, all on the chart's subspace but the permuted.

    A random path is the manifold's own, turned about its start within the subspace: as long.
    """
    if arm == "permuted":
        return points(wrong, u)
    x = points(chart, u)
    if arm == "chord":
        return straight(x[0], x[-1], len(u)).movedim(-2, 0)
    if arm == "random_path":
        return turned(x.movedim(0, -2), chart.subspace, seed).movedim(-2, 0)
    return x


def outputs(
    lm: steer.LM, shape: Shape, site: AnySite, chart: Chart, wrong: Chart, many: Pairs, *, seed: int
) -> dict[str, Float[Tensor, "path point bin"]]:
    """Steer every path of every arm, through the subspace, and return the outputs.

    Also `mixture`: p_0^(1-t) p_1^t of the outputs at the ends of the chord, which is what a
    straight path gives where the read-out is linear and a softmax.
    """
    plans: list[steer.Plan] = []
    for arm in ARMS:
        if arm == "manifold":
            at = many.u[..., 0] if chart.dim == 1 else many.u
            plans += [[steer.MoveTo(site, chart, one, scope=steer.LAST)] for one in at]
            continue
        written = wrong if arm == "permuted" else chart
        basis = written.subspace.basis
        for x in along(arm, chart, wrong, many.u, seed=seed):
            plans.append([steer.Patch(site, x, subspace=basis, scope=steer.LAST)])
    found = steer.sweep(lm, many.reading.rows, plans, lambda logits, _: bins(shape, logits))
    parts = found.values.unflatten(0, (len(ARMS), N_POINTS)).transpose(1, 2)
    made: dict[str, Tensor] = dict(zip(ARMS, parts, strict=True))
    made["mixture"] = geometric_mixture(made["chord"])
    return made


def distances(natural: Natural, p: Float[Tensor, "*path bin"]) -> Float[Tensor, "*path"]:
    """Return the Bhattacharyya distances to the nearest natural outputs, in nats.

    Summed over the waypoints of a path they are the energy of arXiv:2605.05115.
    """
    # A nearest place in float32 is 1e-6 off, and its distance a millionth of a millionth.
    p = p.double()
    p = p / p.sum(-1, keepdim=True)
    near = natural.project(p.float()).double()
    return manifolds.bhattacharyya(p, near / near.sum(-1, keepdim=True))
