"""Which shape a cloud of points has: loops, voids, and whether it is a path, against a null.

The holes come from persistent homology (ripser). Coordinates on the shape are in `ordering`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from scipy.stats import gumbel_r

from manifolds.cubic import Array
from manifolds.discovery.clouds import landmarks
from manifolds.errors import ManifoldError

Topology = Literal["circle", "line", "grid", "cylinder", "torus", "sphere", "unclear"]

LEVEL, LEVEL_OF_FEW = 0.01, 0.05
"""A hole is there if the null has one as strong less often than this."""
PATH_SHARE = 0.85
"""The share of a spanning tree on its longest way, from which it is a path."""
PATH_LANDMARKS, VOID_LANDMARKS = 24, 80
LOOP_LANDMARKS = (60, 200)
"""At least and at most; between them half of the points."""
FEW = 24
"""Points below which a surface cannot be told from noise, so that only paths are looked for."""
COUNTED = 100
"""Draws of the null from which a chance is counted; with fewer it comes from a fitted law."""


class Bars(NamedTuple):
    """Birth and death [bar, 2] of the loops and voids, longest-lived ratio first."""

    loops: Array
    voids: Array


class Measured(NamedTuple):
    """What is compared with the null."""

    path: float
    """The longest way through the spanning tree, as a share of the tree."""
    straight: float
    """Share of the variance on the first component."""
    loops: Array
    """log(death / birth) of each loop, strongest first."""
    voids: Array
    spread: float
    """The pooled participation ratio of small neighbourhoods: about the dimension."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Null:
    """What clouds without structure show, of as many points and in as many components."""

    loops: Array
    """[draw] log(death / birth) of the strongest loop in a Gaussian of the same covariance."""
    gaps: Array
    """[draw] the same in an even patch of a plane: the holes that chance leaves in a surface."""
    voids: Array
    path: Array
    """[draw] the path's share in a Gaussian that is equally wide in all its components."""
    straight: Array
    solid: float
    """The spread midway between a patch of a plane and a solid of three dimensions."""

    def p_loop(self, log_ratio: float) -> float:
        """Return the chance that the null has a loop as strong."""
        return max(_tail(self.loops, log_ratio), _tail(self.gaps, log_ratio))

    def p_void(self, log_ratio: float) -> float:
        """Return the chance that the null has a void as strong."""
        return _tail(self.voids, log_ratio)

    def p_path(self, path: float, straight: float) -> float:
        """Return the chance that the null is as much of a path, or as straight (Bonferroni)."""
        both = _tail(self.path, path), _tail(self.straight, straight)
        return min(1.0, 2 * min(both))


class Verdict(NamedTuple):
    """The shape, the chance that the null shows as much, and why."""

    topology: Topology
    p: float
    reason: str
    loops: int
    voids: int


def holes(points: Array, *, voids: bool) -> tuple[Bars, list[np.ndarray]]:
    """Return the loops and voids of the Vietoris-Rips filtration, and the loops' cocycles mod 47.

    Raises:
        ManifoldError: ripser is not installed.
    """
    # ripser is an optional dependency, and takes seconds to import.
    try:
        from ripser import ripser
    except ImportError:
        raise ManifoldError(
            "The topology of a cloud is computed by ripser, which is not installed, so it cannot "
            'be decided. Run `pip install "manifold-steer[discovery]"`.'
        ) from None
    found = ripser(
        cdist(points, points),
        maxdim=2 if voids else 1,
        coeff=47,
        do_cocycles=True,
        distance_matrix=True,
    )
    one, order = _strongest(found["dgms"][1])
    two = _strongest(found["dgms"][2])[0] if voids else np.zeros((0, 2))
    return Bars(one, two), [found["cocycles"][1][i] for i in order]


def measure(points: Array, *, surface: bool) -> Measured:
    """Return what a cloud [sample, k] shows; of voids and dimension only for a surface."""
    wide = points.var(0)
    straight = float(wide.max() / wide.sum())
    # Nothing is hollow in a plane.
    hollow = voids(points) if surface and points.shape[1] > 2 else np.zeros(0)
    thick = spread(points) if surface else 1.0
    return Measured(path_share(points), straight, loops(points), hollow, thick)


def loops(points: Array) -> Array:
    """Return log(death / birth) of the loops, strongest first."""
    found = holes(loop_landmarks(points), voids=False)[0].loops
    return np.log(found[:, 1] / found[:, 0])


def voids(points: Array) -> Array:
    """Return log(death / birth) of the voids, strongest first."""
    found = holes(landmarks(points, VOID_LANDMARKS), voids=True)[0].voids
    return np.log(found[:, 1] / found[:, 0])


def loop_landmarks(points: Array) -> Array:
    """Return the landmarks on which loops are looked for."""
    least, most = LOOP_LANDMARKS
    return landmarks(points, min(most, max(least, len(points) // 2)))


def path_share(points: Array) -> float:
    """Return the longest way through the spanning tree of 24 landmarks, as a share of the tree.

    1 for points on a line or a ring, however curved; about a half for a surface or a cloud.
    """
    few = landmarks(points, PATH_LANDMARKS)
    tree = minimum_spanning_tree(cdist(few, few))
    return float(shortest_path(tree, directed=False).max() / tree.sum())


def spread(points: Array) -> float:
    """Return the mean over neighbourhoods of (sum l)^2 / sum l^2, l their eigenvalues.

    About the dimension. A neighbourhood is a point and its nearest 4 %, at least 12 points; at
    most 500 of them are looked at.
    """
    k = min(len(points), max(12, round(0.04 * len(points))))
    centres = points[:: -(-len(points) // 500)]
    near = points[np.asarray(KDTree(points).query(centres, k)[1])]
    values = np.linalg.svd(near - near.mean(1, keepdims=True), compute_uv=False) ** 2
    values = values / values.sum(1, keepdims=True).clip(1e-300)
    return float((1 / np.square(values).sum(1)).mean())


def null_of(points: Array, *, draws: int, surface: bool, rng: np.random.Generator) -> Null:
    """Return what clouds without structure show, of the same size, in `draws` draws.

    Their loops and voids are those of a Gaussian of the same covariance, and their path that of a
    Gaussian equally wide in as many components as the points effectively have, at least two: one
    of the covariance of a straight line would itself be a line.
    """
    n, k = points.shape
    variance = points.var(0)
    dim = max(2, round(variance.sum() ** 2 / np.square(variance).sum()))
    shaped = rng.normal(size=(draws, n, k)) * np.sqrt(variance)
    even = rng.normal(size=(draws, n, dim))
    wide = even.var(1)
    # The variance of the first component itself: an axis of the draw is not its longest one.
    covariance = np.einsum("dni,dnj->dij", even - even.mean(1, keepdims=True), even) / n
    straight = np.linalg.eigvalsh(covariance)[:, -1] / wide.sum(1)
    patches = [_ball(n, 2, rng) for _ in range(draws)]
    hollow = [_first(voids(cloud)) for cloud in shaped] if surface and k > 2 else [0.0] * draws
    plane, solid = (spread(_ball(n, size, rng)) for size in (2, 3))
    return Null(
        np.array([_first(loops(cloud)) for cloud in shaped]),
        np.array([_first(loops(patch)) for patch in patches]),
        np.array(hollow),
        np.array([path_share(cloud) for cloud in even]),
        straight,
        (plane + solid) / 2,
    )


def decide(found: Measured, null: Null, n: int) -> Verdict:
    """Return the shape that the measurements name, or unclear."""
    level = LEVEL_OF_FEW if n < FEW else LEVEL
    p_loops = [null.p_loop(float(value)) for value in found.loops[:3]]
    p_voids = [null.p_void(float(value)) for value in found.voids[:2]]
    n_loops, n_voids = sum(p < level for p in p_loops), sum(p < level for p in p_voids)
    if found.path >= PATH_SHARE and n_loops <= 1:
        return _path(found, null, p_loops[0] if p_loops else 1.0, level)
    if n < FEW:
        reason = f"{n} points that are no path; a surface needs {FEW} or more"
        return Verdict("unclear", 1.0, reason, n_loops, n_voids)
    closed: dict[tuple[int, int], Topology] = {(2, 1): "torus", (0, 1): "sphere"}
    thin: dict[tuple[int, int], Topology] = {(1, 0): "cylinder", (0, 0): "grid"}
    p = max([p for p in (*p_loops, *p_voids) if p < level], default=0.0)
    told = f"loops {n_loops}, voids {n_voids}, spread {found.spread:.1f} of {null.solid:.1f}"
    maybe = sum(p < LEVEL_OF_FEW for p in p_loops)
    if maybe > max(n_loops, 1):
        told = f"{told}; {maybe - n_loops} more loops may be chance (p below {LEVEL_OF_FEW})"
        return Verdict("unclear", 1.0, told, n_loops, n_voids)
    if (n_loops, n_voids) in closed:
        return Verdict(closed[n_loops, n_voids], p, told, n_loops, n_voids)
    if (n_loops, n_voids) in thin and found.spread < null.solid:
        return Verdict(thin[n_loops, n_voids], p, told, n_loops, n_voids)
    return Verdict("unclear", 1.0, told, n_loops, n_voids)


def _path(found: Measured, null: Null, p_loop: float, level: float) -> Verdict:
    p = null.p_path(found.path, found.straight)
    told = f"{100 * found.path:.0f}% of the spanning tree is one way (p {p:.2g})"
    if p_loop < level:
        return Verdict("circle", p_loop, f"{told}, and it closes (p {p_loop:.2g})", 1, 0)
    if p < level:
        return Verdict("line", p, f"{told}, and no loop stands out (p {p_loop:.2g})", 0, 0)
    return Verdict("unclear", 1.0, f"{told}, and no loop stands out (p {p_loop:.2g})", 0, 0)


def _first(values: Array) -> float:
    return float(values[0]) if len(values) else 0.0


def _strongest(bars: Array) -> tuple[Array, np.ndarray]:
    whole = np.flatnonzero(np.isfinite(bars[:, 1]) & (bars[:, 0] > 0))
    order = whole[np.argsort(-bars[whole, 1] / bars[whole, 0], kind="stable")]
    return bars[order].astype(np.float64), order


def _tail(draws: Array, value: float) -> float:
    """Return the share of draws at or beyond value; with few draws, that of a Gumbel law."""
    if len(draws) >= COUNTED:
        return float(((draws >= value).sum() + 1) / (len(draws) + 1))
    # Where all draws are alike (no hole in any), a law of no width would make everything strong.
    scale = max(draws.std(ddof=1), 0.05) * np.sqrt(6) / np.pi
    return float(gumbel_r.sf(value, draws.mean() - np.euler_gamma * scale, scale))


def _ball(n: int, dim: int, rng: np.random.Generator) -> Array:
    """Return n points spread evenly over the unit ball."""
    direction = rng.normal(size=(n, dim))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * rng.random((n, 1)) ** (1 / dim)
