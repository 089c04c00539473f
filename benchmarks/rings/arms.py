"""The arms of the comparison: every path with the way in which it is written, as frozen plans.

"subspace" writes keep what a state has off the ring's subspace; "replaced" ones write the whole
state, so that like can be compared with like. The chord of Wurgaft et al. 2026 (arXiv:2605.05115)
is a full replacement. The paths are in `paths`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

import steer
from benchmarks.rings.paths import (
    Ring,
    Steps,
    on_centroid_chord,
    on_chord,
    on_manifold,
    on_permuted_ring,
    on_random_path,
    on_random_path_of_length,
)

MakePlan = Callable[[Tensor], steer.Plan]
"""Takes the numbers of some rows; returns a plan with one entry per such row in its tensors."""
Arm = Callable[[Ring, Steps, Tensor, int], MakePlan]
"""Takes the ring, the rows, the unsteered states [case, d_model] at its site, and a seed."""
Points = Callable[[Ring, Steps, int], Tensor]
"""Takes the ring, the rows and a seed; returns the points [row, d_model] of a path."""

POINTS: Mapping[str, Points] = MappingProxyType(
    {
        "manifold": lambda r, s, _: on_manifold(r, s),
        "chord": lambda r, s, _: on_chord(r, s),
        "random_path": on_random_path,
        "random_length": on_random_path_of_length,
        "permuted": on_permuted_ring,
    }
)
"""The paths whose lengths are reported: those written through the subspace."""


def _move(ring: Ring, steps: Steps, states: Tensor, seed: int) -> MakePlan:
    del states, seed
    u = steps.u
    return lambda rows: [steer.MoveTo(ring.site, ring.curve, u[rows], scope=steer.LAST)]


def _in_subspace(path: str) -> Arm:
    def make(ring: Ring, steps: Steps, states: Tensor, seed: int) -> MakePlan:
        del states
        points, basis = POINTS[path](ring, steps, seed), ring.curve.subspace.basis
        return lambda rows: [steer.Patch(ring.site, points[rows], subspace=basis, scope=steer.LAST)]

    return make


def _whole(points: Tensor, ring: Ring) -> MakePlan:
    return lambda rows: [steer.Patch(ring.site, points[rows], scope=steer.LAST)]


def _added(ring: Ring, steps: Steps, states: Tensor, seed: int) -> MakePlan:
    # state + t (mean of the end - mean of the start), written as a patch of the known state: Add
    # takes one direction for all rows.
    del seed
    diff = on_centroid_chord(ring, steps) - ring.centroids[steps.start]
    return _whole(states[steps.case] + diff, ring)


ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "manifold": _move,
        "chord": _in_subspace("chord"),
        "manifold_replaced": lambda r, s, _, __: _whole(on_manifold(r, s), r),
        "chord_replaced": lambda r, s, _, __: _whole(on_centroid_chord(r, s), r),
        "additive": _added,
        "random_path": _in_subspace("random_path"),
        "random_length": _in_subspace("random_length"),
        "permuted": _in_subspace("permuted"),
    }
)
"""Every path with the way in which it is written."""
