"""Recover what unlabelled points lie on, and where on it each of them lies.

The decision is made in `topology`, the coordinates in `ordering`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from manifolds.cubic import Array
from manifolds.discovery.clouds import principal
from manifolds.discovery.ordering import coordinates, folded
from manifolds.discovery.topology import (
    FEW,
    PATH_SHARE,
    Null,
    Topology,
    Verdict,
    decide,
    measure,
    null_of,
    path_share,
)
from manifolds.errors import ManifoldError
from manifolds.subspace import as_points, storage

LEAST = 5
"""Below it even a regular polygon's loop is what chance makes."""
TURN = 2 * np.pi


@final
@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """A topology, how sure it is, and the coordinate of each point on it."""

    topology: Topology
    confidence: float
    """(1 - p) times the share of subsamples with the same verdict; 0 for unclear."""
    p: float
    """The chance that clouds without structure show as strong a path or hole."""
    stability: float | None
    """Share of subsamples of 80 % with the same verdict, by the rule of succession.

    None where there are too few points to leave any out.
    """
    loops: int
    voids: int
    reason: str
    u: Float[Tensor, " sample"] | Float[Tensor, "sample axis"] | None
    """Coordinates for `fit_curve`, `fit_surface` or `fit_sphere`; None if unclear.

    A line: [sample] in [0, 1]. A circle: [sample] angles. A grid: [sample, 2]. A cylinder:
    [sample, 2], an angle and a number in [0, 1]. A torus: [sample, 2] angles. A sphere:
    [sample, 3] unit vectors. Direction and start are arbitrary.
    """
    n_samples: int

    @property
    def periods(self) -> tuple[float | None, ...] | None:
        """The period of each coordinate; None for a sphere and for unclear."""
        return _PERIODS.get(self.topology)

    @property
    def order(self) -> Int[Tensor, " sample"]:
        """The points in their order along the line or round the circle.

        Raises:
            ManifoldError: the shape is neither, so its points have no order.
        """
        if self.u is None or self.topology not in ("line", "circle"):
            raise ManifoldError(
                f"These points were recovered as {self.topology}, and only the points of a line "
                "or of a circle have an order. Use the coordinates in u, if there are any."
            )
        return self.u.argsort()

    def agreement(self, u: Tensor | np.ndarray, *, period: float | int = TURN) -> float:
        """Return how well the recovered coordinates agree with known ones: 1 is all, 0 nothing.

        Start and direction do not matter. A line: the rank correlation. A circle: the circular
        correlation of Fisher and Lee 1983. A cylinder: the lower of the two. A torus: the lower
        circular correlation of the two angles, for the best of the bases of its loops with
        entries -1, 0, 1. A grid: the lower canonical correlation. A sphere: the correlation after
        the best rotation.

        Args:
            u: [sample], or [sample, axis] for what has several coordinates.
            period: of the known angles.

        Raises:
            ManifoldError: the shape is unclear, or u is not of the recovered coordinates' shape.
        """
        if self.u is None:
            raise ManifoldError(
                f"The shape is unclear ({self.reason}), so there is no coordinate that could "
                "agree. Read more points, or say which components hold the shape."
            )
        mine = self.u.to("cpu", torch.float64).numpy()
        known = np.asarray(u.detach().cpu() if isinstance(u, Tensor) else u, np.float64)
        if known.shape != mine.shape or not np.isfinite(known).all():
            raise ManifoldError(
                f"The known coordinates have the shape {list(known.shape)}, and the recovered ones "
                f"of a {self.topology} {list(mine.shape)}; all must be finite. Give one row per "
                "sample, in the same order."
            )
        return _AGREE[self.topology](mine, known, float(period))

    def __repr__(self) -> str:
        """Say what was found, how sure it is, and why."""
        return (
            f"Recovered({self.topology}, confidence {self.confidence:.2f}, "
            f"{self.n_samples} points: {self.reason})"
        )


def recover(
    x: Tensor | np.ndarray,
    *,
    n_components: int | None = None,
    draws: int | None = None,
    resamples: int = 10,
    seed: int = 0,
) -> Recovered:
    """Decide on which shape unlabelled points [sample, d_model] lie, and where each lies on it.

    A path (line or circle) is told by the spanning tree of 24 landmarks, of which it is nearly
    all; loops and voids by persistent homology. A hole counts if clouds without structure have one
    as strong less than 1 time in 100 (in 20 below 24 points): Gaussians of the same covariance,
    and even patches of a plane. A path with one loop is a circle, with none a line. What is no
    path is a torus (two loops and a void), a sphere (a void), a cylinder (a loop) or a grid (no
    hole), the last two only if neighbourhoods are flat and the coordinates lay no far points on one
    another. So a Gaussian cloud in two components is a grid, a disc-like patch of a plane; in more
    it is unclear, as is anything else.

    A torus needs about 300 points where its two radii are alike; one in three components shows too
    faint a void at that number, and is unclear. Below 24 points only paths are looked for, and
    below about 7 the null is rarely beaten. A cylinder or grid more than about ten times as long as
    wide is a path at this resolution.

    Args:
        x: the points; only their distances matter, so turning and scaling change nothing.
        n_components: principal components to keep; by default those above the noise.
        draws: of the null; by default 20, and 199 below 24 points.
        resamples: subsamples for the confidence.
        seed: of the null and of the subsamples.

    Raises:
        ManifoldError: fewer than 5 points, points not finite or all equal, n_components too large,
            or ripser not installed.
    """
    points = as_points(x).numpy()
    n = len(points)
    if n < LEAST:
        raise ManifoldError(
            f"There are {n} points, and any {n} points look alike: a shape needs {LEAST} at least, "
            f"and a surface {FEW}. Read more."
        )
    if resamples < 1 or (draws is not None and draws < 10):
        raise ManifoldError(
            f"The confidence was asked of {draws} draws of the null and {resamples} subsamples, "
            "which cannot say how sure anything is. Take 10 draws and 1 subsample at least."
        )
    cloud = principal(points, n_components=n_components)
    if cloud.shape[1] == 0:
        told = "no principal component stands out of the noise"
        return Recovered("unclear", 0.0, 1.0, None, 0, 0, told, None, n)
    rng = np.random.default_rng(seed)
    surface = n >= FEW and path_share(cloud) < PATH_SHARE
    null = null_of(cloud, draws=draws or (199 if n < FEW else 20), surface=surface, rng=rng)
    verdict = decide(measure(cloud, surface=surface), null, n)
    if verdict.topology == "unclear":
        return Recovered("unclear", 0.0, 1.0, None, *verdict[3:], verdict.reason, None, n)
    at = coordinates(cloud, verdict.topology)
    if verdict.topology in ("grid", "cylinder") and folded(cloud, at, verdict.topology):
        told = f"{verdict.reason}, but its coordinates lay far points on one another"
        return Recovered("unclear", 0.0, 1.0, None, *verdict[3:], told, None, n)
    stability = None if n < 2 * FEW else _stability(cloud, null, verdict, resamples, rng)
    u = torch.from_numpy(at).to(*storage(x))
    confidence = (1 - verdict.p) * (1.0 if stability is None else stability)
    return Recovered(
        verdict.topology, confidence, verdict.p, stability, *verdict[3:], verdict.reason, u, n
    )


def _stability(
    cloud: Array, null: Null, verdict: Verdict, resamples: int, rng: np.random.Generator
) -> float:
    """Return the share of subsamples with the same verdict, (same + 1) / (resamples + 2)."""
    n = len(cloud)
    same = 0
    for _ in range(resamples):
        part = cloud[rng.permutation(n)[: round(0.8 * n)]]
        surface = path_share(part) < PATH_SHARE
        same += decide(measure(part, surface=surface), null, n).topology == verdict.topology
    return (same + 1) / (resamples + 2)


def _circular(mine: Array, known: Array) -> float:
    """Return the size of Fisher and Lee's correlation of two angles."""
    a, b = (np.sin(angle[:, None] - angle) for angle in (mine, known))
    return float(np.abs((a * b).sum()) / np.sqrt((a * a).sum() * (b * b).sum()))


def _ranks(mine: Array, known: Array) -> float:
    return float(np.abs(np.corrcoef(rankdata(mine), rankdata(known))[0, 1]))


def _canonical(mine: Array, known: Array) -> float:
    bases = [np.linalg.qr(u - u.mean(0))[0] for u in (mine, known)]
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).min())


def _turned(mine: Array, known: Array) -> float:
    known = known / np.linalg.norm(known, axis=1, keepdims=True)
    return float(np.linalg.svd(mine.T @ known, compute_uv=False).sum() / len(mine))


def _two_angles(mine: Array, known: Array, period: float) -> float:
    known = known * TURN / period
    entries = np.array(np.meshgrid(*[[-1, 0, 1]] * 4)).reshape(4, -1).T.reshape(-1, 2, 2)
    bases = entries[np.abs(np.round(np.linalg.det(entries))) == 1]
    turned = [mine @ basis.T for basis in bases]
    return max(min(_circular(u[:, i], known[:, i]) for i in range(2)) for u in turned)


_PERIODS: dict[Topology, tuple[float | None, ...]] = {
    "circle": (TURN,),
    "line": (None,),
    "grid": (None, None),
    "cylinder": (TURN, None),
    "torus": (TURN, TURN),
}

_AGREE: dict[Topology, Callable[[Array, Array, float], float]] = {
    "circle": lambda mine, known, period: _circular(mine, known * TURN / period),
    "line": lambda mine, known, _: _ranks(mine, known),
    "grid": lambda mine, known, _: _canonical(mine, known),
    "cylinder": lambda mine, known, period: min(
        _circular(mine[:, 0], known[:, 0] * TURN / period), _ranks(mine[:, 1], known[:, 1])
    ),
    "torus": _two_angles,
    "sphere": lambda mine, known, _: _turned(mine, known),
}
