"""Coordinates on a shape whose topology is known: spectral ones, and angles round its loops.

Which topology it is, is decided in `topology`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.sparse.linalg import lsqr
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from manifolds.cubic import Array
from manifolds.discovery.clouds import farthest, landmarks
from manifolds.discovery.topology import PATH_LANDMARKS, Topology, holes, loop_landmarks

DENSE = 1000
"""Points whose eigenvectors are computed; those of further points are interpolated."""
SLOW = 8
"""Eigenvectors of which the coordinates of a surface are made."""
REACH = 1.2
"""How far a ring's graph joins points, in radii of the loop: not across it."""
NEW, NEAR = 0.3, 9
"""Share of an eigenvector that nearest neighbours must leave unexplained, for it to be new."""


def coordinates(points: Array, topology: Topology) -> Array:
    """Return the coordinates of the points [sample, k] on a shape of the topology.

    A line: [sample] in [0, 1]. A circle: [sample], angles in [0, 2 pi). A grid: [sample, 2]. A
    cylinder: [sample, 2], an angle and a number in [0, 1]. A torus: [sample, 2] angles. A sphere:
    [sample, 3] unit vectors.
    """
    return _MAKERS[topology](points)


Joined = Callable[[Array], np.ndarray]
"""Which pairs a graph joins, from their distances [sample, sample]."""


class Modes(NamedTuple):
    """The slowest eigenvectors of a Laplacian, the constant one left out."""

    vectors: Array
    energies: Array


def modes(points: Array, radius: float, count: int, joined: Joined) -> Modes:
    """Return the slowest eigenvectors [sample, count] of the Laplacian of a Gaussian graph.

    Edges are those that `joined` names and weigh exp(-d^2 / radius^2), divided by the density at
    both ends, so that the coordinates measure length and not how many points there are (diffusion
    maps with alpha 1, Coifman and Lafon 2006).
    """
    base = points if len(points) <= DENSE else points[farthest(points, DENSE)]
    gap = cdist(base, base)
    weight = np.exp(-np.square(gap / radius)) * joined(gap)
    density = weight.sum(1)
    weight = weight / density / density[:, None]
    degree = weight.sum(1)
    values, vectors = np.linalg.eigh(weight / np.sqrt(degree) / np.sqrt(degree)[:, None])
    last = slice(-2, -2 - count, -1)
    found = vectors[:, last] / np.sqrt(degree)[:, None]
    found = found * np.sign(found[np.abs(found).argmax(0), np.arange(found.shape[1])])
    energies = 1 - values[last]
    if base is points:
        return Modes(found, energies)
    reach = np.exp(-cdist(points, base, "sqeuclidean") / radius**2) / density
    return Modes(reach / reach.sum(1, keepdims=True) @ found / values[last], energies)


def folded(points: Array, u: Array, topology: Topology) -> bool:
    """Return whether far points of a grid or of a cylinder fall on one place of its coordinates.

    A closed surface whose holes are too faint to count looks like a patch, but its coordinates lay
    two sheets on one another: the neighbours by u are then far away in x. The limit lies between
    what simulated patches and closed surfaces of 60 to 300 points show.
    """
    angle = u[:, :1]
    flat = u if topology == "grid" else np.concatenate([np.cos(angle), np.sin(angle), u[:, 1:]], 1)
    near = np.asarray(KDTree(flat / flat.std(0)).query(flat / flat.std(0), 5)[1])[:, 1:]
    away = np.linalg.norm(points[near] - points[:, None], axis=-1).mean()
    return bool(away / np.sqrt(2 * points.var(0).sum()) > 0.08 + 2.0 / np.sqrt(len(points)))


def angle_round(points: Array, loop: int) -> Array:
    """Return the angle [sample] round the loop-th strongest loop of the cloud.

    The circular coordinate of de Silva, Morozov and Vejdemo-Johansson 2011 (arXiv:0905.4887): the
    loop's cocycle, made as smooth as it can be by least squares on the landmarks; between the
    landmarks we average over the nearest ones. On a torus the two angles are a basis of the loops,
    which need not be the basis that the maker of the torus had in mind.
    """
    marks = loop_landmarks(points)
    bars, cocycles = holes(marks, voids=False)
    birth, death = bars.loops[loop]
    radius = float(np.sqrt(birth * death))
    gap = cdist(marks, marks)
    i, j = np.nonzero(np.triu(gap <= radius, 1))
    jump = np.zeros((len(marks), len(marks)))
    first, second, value = cocycles[loop].T
    jump[first, second] = np.where(value > 23, value - 47, value)
    jump = jump - jump.T
    edge = np.arange(len(i))
    ends = np.concatenate([-np.ones(len(i)), np.ones(len(i))])
    rise = coo_array((ends, (np.tile(edge, 2), np.concatenate([i, j]))), (len(i), len(marks)))
    weight = np.exp(-np.square(gap) / radius**2)
    density = weight.sum(1)
    root = np.sqrt(weight / density / density[:, None])[i, j]
    turns = lsqr(rise.tocsr() * root[:, None], jump[i, j] * root, atol=1e-10, btol=1e-10)[0]
    reach = np.exp(-cdist(points, marks, "sqeuclidean") / (radius / 2) ** 2)
    return np.angle(reach @ np.exp(2j * np.pi * turns)) % (2 * np.pi)


def _all(gap: Array) -> np.ndarray:
    return np.ones(gap.shape, bool)


def _thread(gap: Array) -> np.ndarray:
    """Join each point to its nearest ones, and all by a spanning tree.

    On a line that winds through many dimensions all places beyond the next few are about equally
    far away, and so many weak short cuts outweigh the way along the line.
    """
    near = np.zeros(gap.shape, bool)
    np.put_along_axis(near, np.argsort(gap, 1)[:, : NEAR + 1], values=True, axis=1)
    near |= minimum_spanning_tree(gap).toarray() > 0
    return near | near.T


def _line(points: Array) -> Array:
    return _along(modes(points, _radius(points), 1, _thread).vectors[:, 0])


def _circle(points: Array) -> Array:
    bars, _ = holes(loop_landmarks(points), voids=False)
    radius = float(np.sqrt(bars.loops[0].prod()))
    # They are of one norm by length along the circle, so no rescaling by samples may follow.
    pair = modes(points, radius, 2, lambda gap: gap <= REACH * radius).vectors
    return np.arctan2(pair[:, 1], pair[:, 0]) % (2 * np.pi)


def _grid(points: Array) -> Array:
    found = modes(points, _radius(points), _slow(points), _all).vectors
    return np.stack([found[:, 0], _another(found)], 1)


def _cylinder(points: Array) -> Array:
    slow = modes(points, _radius(points), _slow(points), _all)
    angle = _smooth(slow, angle_round(points, 0))
    harmonics = angle[:, None] * np.array([1, 2])
    across = _next(slow, np.concatenate([np.cos(harmonics), np.sin(harmonics)], 1))
    return np.stack([angle, _along(across)], 1)


def _torus(points: Array) -> Array:
    slow = modes(points, _radius(points), _slow(points), _all)
    return np.stack([_smooth(slow, angle_round(points, loop)) for loop in (0, 1)], 1)


def _sphere(points: Array) -> Array:
    found = modes(points, _radius(points), 3, _all).vectors
    return found / np.linalg.norm(found, axis=1, keepdims=True)


_MAKERS = {
    "line": _line,
    "circle": _circle,
    "grid": _grid,
    "cylinder": _cylinder,
    "torus": _torus,
    "sphere": _sphere,
}


def _radius(points: Array) -> float:
    """Return the longest edge of the landmarks' spanning tree, which joins all of the cloud."""
    few = landmarks(points, PATH_LANDMARKS)
    return float(minimum_spanning_tree(cdist(few, few)).max())


def _along(vector: Array) -> Array:
    """Return the place in [0, 1] along a segment whose slowest eigenvector, a cosine, this is."""
    low, high = vector.min(), vector.max()
    return np.arccos(np.clip(1 - 2 * (vector - low) / (high - low), -1, 1)) / np.pi


def _another(vectors: Array) -> Array:
    """Return the first eigenvector that is no function of the first of all.

    A long patch has the second harmonic of its length before the first of its width. As in Dsilva
    et al. 2018 (arXiv:1505.06118) regression tells a harmonic; ours is on the nearest neighbours,
    the point itself left out.
    """
    known, others = vectors[:, :1], vectors[:, 1:]
    near = np.asarray(KDTree(known).query(known, min(len(known), NEAR))[1])[:, 1:]
    left = np.square(others - others[near].mean(1)).mean(0) / others.var(0)
    return others[:, int((left >= NEW).argmax() if (left >= NEW).any() else left.argmax())]


def _next(slow: Modes, known: Array) -> Array:
    """Return the slowest combination of the modes that is orthogonal to the known functions.

    Chance mixes modes of like energy, so on a cylinder no single eigenvector is the height: the
    functions of the angle are taken out of the span of the modes first.
    """
    taken = np.linalg.lstsq(slow.vectors, known - known.mean(0), rcond=None)[0]
    free = np.linalg.svd(taken)[0][:, known.shape[1] :]
    slowest = np.linalg.eigh(free.T * slow.energies @ free)[1][:, 0]
    return slow.vectors @ free @ slowest


def _smooth(slow: Modes, angle: Array) -> Array:
    """Return the angle of the part of e^(i angle) that is made of slow modes."""
    basis = np.concatenate([np.ones((len(angle), 1)), slow.vectors], 1)
    weights = np.linalg.lstsq(basis, np.exp(1j * angle), rcond=None)[0]
    return np.angle(basis @ weights) % (2 * np.pi)


def _slow(points: Array) -> int:
    return min(SLOW, len(points) - 2)
