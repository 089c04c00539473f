"""What is found when the labels are left out: topology and coordinate, from the states alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
from benchmarks.planted.shapes import Shape

TOPOLOGY = {"ring": "circle", "line": "line", "torus": "torus"}


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """The verdict on one model's states, and on what is left of them after a shuffle."""

    topology: str
    confidence: float
    right: float
    """1 if that is what was planted, else 0."""
    agreement: float
    """Of the recovered coordinate with the planted one; 0 where the topology is another."""
    shuffled_topology: str
    shuffled_right: float


def unlabelled(
    shape: Shape,
    states: Float[Tensor, "row d_model"],
    places: Float[Tensor, "row dim"],
    draw: torch.Generator,
) -> Unlabelled:
    """Recover the shape of states without a look at their places, which only grade it.

    The shuffle permutes each principal component over the rows: what is left has the same spread
    along each, and no shape.
    """
    found = manifolds.recover(states)
    right = found.topology == TOPOLOGY[shape.name]
    agreement = 0.0
    if right:
        known = places[:, 0] if shape.dim == 1 else places
        agreement = found.agreement(known, period=shape.size)
    space = manifolds.fit_pca(states, variance=0.999)
    inside = space.coordinates(states)
    order = torch.rand(inside.shape, generator=draw).argsort(0)
    none = manifolds.recover(inside.gather(0, order), resamples=1).topology
    return Unlabelled(
        found.topology,
        found.confidence,
        float(right),
        agreement,
        none,
        float(none == TOPOLOGY[shape.name]),
    )
