"""Steering what a model believes of the mean (or of the spread), at the last comma of a text."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
import probes
import steer
from benchmarks.normals.reading import Readings, digits_of, mean_of, spread_of, tokens_of
from benchmarks.ways import geometric_mixture, straight, turned
from steer.sites import Site

N_POINTS = 17
"""Places on the way, both ends included: also those between the knots, at which even a curve in a
wrong order is natural."""
ARMS = (
    "vector",
    "manifold",
    "transport",
    "chord",
    "field",
    "permuted",
    "random_path",
)


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """What was fitted on train texts, at one block."""

    block: int
    curve: manifolds.Curve
    """M_h over u."""
    behavior: manifolds.Behavior
    """M_y over u, in digits alone."""
    permuted: manifolds.Curve
    field: steer.ProbeField | None
    """Only where it is asked for: a probe takes seconds."""
    low: Tensor
    """The mean state at the lowest u."""
    high: Tensor

    @property
    def site(self) -> Site:
        """Where the states were read and are written."""
        return Site(self.block, "resid_post")


@dataclass(frozen=True, slots=True, eq=False)
class Steered:
    """What came out, for every arm, text and place on the way."""

    u: Float[Tensor, " point"]
    """Where each place is."""
    outputs: dict[str, Float[Tensor, "text point digit"]]
    distance: dict[str, Float[Tensor, "text point"]]
    """Bhattacharyya distance to the nearest natural outputs, in nats."""
    natural_mean: Float[Tensor, " point"]
    natural_spread: Float[Tensor, " point"]
    """Of M_y at each place."""

    def mean(self, arm: str) -> Float[Tensor, "text point"]:
        """Return the mean digit that an arm reached."""
        return mean_of(self.outputs[arm])

    def spread(self, arm: str) -> Float[Tensor, "text point"]:
        """Return the standard deviation that an arm reached."""
        return spread_of(self.outputs[arm])


def fit_shapes(train: Readings, block: int, seed: int, *, field: bool = False) -> Shapes:
    """Return the shapes at a block, all of which were read."""
    x, u = train.states[block].flatten(0, 1), train.labels
    curve = manifolds.fit_curve(x, u)
    known, of = u.unique(return_inverse=True)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    permuted = manifolds.fit_curve(x, known[order][of], subspace=curve.subspace)
    behavior = manifolds.fit_behavior(
        train.probabilities.flatten(0, 1).float(), u.float(), other=False
    )
    probe = probes.fit_field(x, u, groups=train.texts.tolist(), seed=seed) if field else None
    return Shapes(
        block,
        curve,
        behavior,
        permuted,
        steer.ProbeField(probe, curve) if probe is not None else None,
        x[of == 0].mean(0),
        x[of == len(known) - 1].mean(0),
    )


def walk(
    lm: steer.LM,
    shapes: Shapes,
    base: Readings,
    arms: tuple[str, ...] = ARMS,
    *,
    seed: int,
    n_points: int = N_POINTS,
) -> Steered:
    """Steer texts of the lowest u to every place up to the highest, and return the outputs.

    Also `mixture`: p_0^(1-t) p_1^t of the vector's two ends, which a linear read-out with a softmax
    would give at every place.
    """
    ids = tokens_of(lm)
    rows = [ids.row(row) for row in base.digits.tolist()]
    knots = shapes.curve.knots
    u = torch.linspace(float(knots[0]), float(knots[-1]), n_points)
    plans: list[steer.Plan] = [
        _move(arm, shapes, u, at, seed) for arm in arms for at in range(n_points)
    ]
    found = steer.sweep(lm, rows, plans, lambda logits, _: digits_of(logits, ids)[0]).values
    parts = found.unflatten(0, (len(arms), n_points)).transpose(1, 2)
    said = dict(zip(arms, parts, strict=True))
    if "vector" in said:
        said["mixture"] = geometric_mixture(said["vector"])
    own = shapes.behavior.decode(u)
    distance = {arm: shapes.behavior.distance(p.float()).double() for arm, p in said.items()}
    return Steered(u, said, distance, mean_of(own), spread_of(own))


def _move(arm: str, shapes: Shapes, u: Tensor, at: int, seed: int) -> steer.Plan:
    """Return the write that leads to one place."""
    site, curve = shapes.site, shapes.curve
    share, where = at / (len(u) - 1), float(u[at])
    if arm == "vector":
        return [steer.Add(site, shapes.high - shapes.low, share, scope=steer.LAST)]
    if arm == "field":
        assert shapes.field is not None
        return [steer.Follow(site, shapes.field, steer.To(where), scope=steer.LAST)]
    if arm == "transport":
        return [steer.MoveTo(site, curve, where, mode="transport", scope=steer.LAST)]
    if arm in ("manifold", "permuted"):
        chart = curve if arm == "manifold" else shapes.permuted
        return [steer.MoveTo(site, chart, where, scope=steer.LAST)]
    own = curve.decode(u)
    if arm == "chord":
        x = straight(own[0], own[-1], len(u))[at]
    else:
        x = turned(own, curve.subspace, seed)[at]
    return [steer.Patch(site, x, subspace=curve.subspace.basis, scope=steer.LAST)]
