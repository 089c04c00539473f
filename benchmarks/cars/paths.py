"""Ways from the state of a drive to that of the same drive later on, and what they make it say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

import manifolds
import steer
from benchmarks.cars.model import SITE, WARM, World
from benchmarks.ways import straight, turned
from steer.pullback.objective import spline_map

N_POINTS = 11
"""Waypoints of a path, both ends included."""
FROM = WARM + 2
"""The step at which paths start."""
DISTANT, ADJACENT = 20, 4
"""How many steps later they end."""
APART = 0.2
"""How far in shares of the ranges the ends of a distant path are apart at least."""
CONTROLS, ROUNDS = 6, 12
"""Free points of a pulled-back path, and rounds of its search."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Where paths start and end."""

    drive: Int[Tensor, " pair"]
    true: Float[Tensor, "pair point 2"]
    """Where the car really was on its way, at even times."""
    states: Float[Tensor, "pair point d_model"]
    """What the network's states were then."""

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The true places of both ends, [pair, 2]."""
        return self.true[:, 0], self.true[:, -1]


def pairs(world: World, steps: int, n: int) -> Pairs:
    """Return paths from held-out drives that go some way and stay where M_h was fitted."""
    times = torch.linspace(FROM, FROM + steps, N_POINTS)
    true = _at(world.drives.states, times)
    knots = world.surface.knots
    off = torch.cdist(true.flatten(0, 1), knots).amin(1).view(true.shape[:2]).amax(1)
    far = (true[:, -1] - true[:, 0]).norm(dim=-1)
    good = (off < 0.1) & (far > (APART if steps == DISTANT else 0))
    drive = good.nonzero()[:n, 0]
    return Pairs(drive, true[drive], _at(world.states[drive], times))


def ways(
    world: World, many: Pairs, arms: tuple[str, ...], *, seed: int
) -> dict[str, Float[Tensor, "pair point d_model"]]:
    """Return the points of some arms, all on the subspace of M_h."""
    own = _along(world, many, N_POINTS)
    return {arm: ARMS[arm](world, many, own, seed) for arm in arms}


def _along(world: World, many: Pairs, n: int) -> Float[Tensor, "pair point d_model"]:
    """Return M_h's own path, straight in position and velocity."""
    return world.surface.decode(world.surface.path(*many.ends, n))


def _geodesic(world: World, many: Pairs) -> Tensor:
    found = manifolds.geodesic(world.surface, *many.ends, 3 * (N_POINTS - 1) + 1)
    return world.surface.decode(found.u[:, ::3].float())


def outputs(
    world: World, many: Pairs, points: Float[Tensor, "pair point d_model"]
) -> Float[Tensor, "pair point bin"]:
    """Return what the network says with each point in the place of its state at the start."""
    basis = world.surface.subspace.basis
    patch = steer.Patch(SITE, points.flatten(0, 1), subspace=basis, scope=steer.at(FROM))
    with torch.no_grad(), world.lm.attached([patch]):
        logits = world.network(_rows(world, many))
    return logits[:, FROM].softmax(-1).unflatten(0, points.shape[:2])


def _pulled(world: World, many: Pairs, begin: Tensor) -> Float[Tensor, "pair point d_model"]:
    """Return paths searched for so that outputs follow M_y between the ends.

    As `steer.pullback` does for language models: a natural cubic spline through free points, which
    begin on a path [pair, CONTROLS + 2, d_model] with both ends.
    """
    space = world.surface.subspace
    inside = space.coordinates(begin)
    ends, free = inside[:, [0, -1]], inside[:, 1:-1].clone().requires_grad_()
    target = world.behavior.decode(world.behavior.path(*many.ends, N_POINTS)).sqrt()
    spline = spline_map(CONTROLS, N_POINTS).float()
    rows = _rows(world, many)
    search = torch.optim.LBFGS([free], max_iter=5 * ROUNDS, line_search_fn="strong_wolfe")

    def points() -> Tensor:
        return spline @ torch.cat([ends[:, :1], free, ends[:, 1:]], 1)

    def write(h: Tensor, _: steer.Step) -> Tensor:
        here = h[:, FROM]
        new = here - space.embed_vector(space.coordinates(here) - points().flatten(0, 1))
        return torch.cat([h[:, :FROM], new[:, None], h[:, FROM + 1 :]], 1)

    def loss() -> Tensor:
        search.zero_grad()
        with world.lm.attached([steer.Custom(SITE, write)]):
            said = world.network(rows)[:, FROM].softmax(-1)
        gap = (said.clamp_min(1e-12).sqrt() - target.flatten(0, 1)).square().sum() / 2
        gap.backward()
        return gap

    with torch.enable_grad():
        search.step(loss)
    return space.embed(points().detach())


def _rows(world: World, many: Pairs) -> Tensor:
    """Return [pair * point, step, input]: what was seen until the start, for each waypoint."""
    return world.drives.seen[many.drive, : FROM + 1].repeat_interleave(N_POINTS, 0)


def _at(values: Float[Tensor, "drive step k"], times: Tensor) -> Tensor:
    """Return values at times between steps, straight from step to step."""
    low = times.floor().long().clamp(max=values.shape[1] - 2)
    part = (times - low)[:, None]
    return (1 - part) * values[:, low] + part * values[:, low + 1]


ARMS: Mapping[str, Callable[[World, Pairs, Tensor, int], Tensor]] = MappingProxyType(
    {
        "manifold": lambda _, __, own, ___: own,
        "geodesic": lambda world, many, _, __: _geodesic(world, many),
        "physical": lambda world, many, _, __: world.surface.decode(many.true),
        "chord": lambda _, __, own, ___: straight(own[:, 0], own[:, -1], N_POINTS),
        "pulled": lambda world, many, own, _: _pulled(
            world, many, straight(own[:, 0], own[:, -1], CONTROLS + 2)
        ),
        "pulled_from_manifold": lambda world, many, _, __: _pulled(
            world, many, _along(world, many, CONTROLS + 2)
        ),
        "permuted": lambda world, many, _, __: world.permuted.decode(
            world.surface.path(*many.ends, N_POINTS)
        ),
        "random_path": lambda world, _, own, seed: turned(own, world.surface.subspace, seed),
    }
)
"""Each takes M_h's own path, straight in position and velocity. `physical` is M_h at the places
where the car really was; the two pulled-back paths are searched for from the chord, as published,
and from M_h's own path: where they end apart, the outputs do not say which states there were."""
