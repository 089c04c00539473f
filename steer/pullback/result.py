"""What a pull-back found, how much of it lies on the shape of activations, and plans to steer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions import Patch
from steer.pullback.objective import spline_map
from steer.pullback.shapes import Chart
from steer.scopes import LAST, Scope
from steer.sites import Site

N_DENSE = 1024
"""Points of the manifold path to which the nearest is looked for."""
HALVINGS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """Points in activation space and what the model says with them."""

    points: Tensor
    """[pair, fraction, d_model]"""
    outputs: Tensor
    """[pair, fraction, prompt, bin]"""
    loss: Tensor
    """[pair]: mean squared Hellinger distance to the target (and the penalty on norms)."""


@dataclass(frozen=True, slots=True, eq=False)
class OnManifold:
    """How much of paths lies on the manifold's path: R2 per pair, with baseline and control."""

    found: Tensor
    """[pair]: of the pulled-back path."""
    chord: Tensor
    """[pair]: of the straight one, the baseline."""
    random: Tensor
    """[draw, pair]: of random paths with the same ends and the same length, the control."""
    dims: Tensor
    """[pair]: directions that hold 99 % of the variance of the manifold's path."""

    def __repr__(self) -> str:
        """Say the means over pairs."""
        low, high = torch.quantile(self.random.mean(1), self.random.new_tensor([0.025, 0.975]))
        return (
            f"OnManifold(R2 {float(self.found.mean()):.3f}, chord {float(self.chord.mean()):.3f}, "
            f"random {float(self.random.mean()):.3f} [{float(low):.3f}, {float(high):.3f}], "
            f"{len(self.found)} pairs)"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PullBack:
    """Paths whose outputs follow the behaviour manifold, beside the two that were not fitted."""

    site: Site
    u0: Tensor
    """[pair] or [pair, dim]"""
    u1: Tensor
    basis: Tensor
    """[m, d_model]: the components that are written; a prompt keeps all else."""
    target: Tensor
    """[pair, fraction, bin]: the outputs that were wanted."""
    path: Path
    chord: Path
    """The straight way, written through the same components: where the search began."""
    manifold: Path
    """The chart's own path, written through the same components."""
    history: Tensor
    """[round, pair]: the best loss so far, the chord's first."""
    evaluations: int
    """Forward and backward passes over all rows."""
    n_controls: int
    note: str = ""
    """Why whole prompts ran; empty where only the blocks above the site did."""

    @property
    def points(self) -> Tensor:
        """[pair, fraction, d_model]: the path found."""
        return self.path.points

    @property
    def outputs(self) -> Tensor:
        """[pair, fraction, prompt, bin]: what the model says along it."""
        return self.path.outputs

    @property
    def loss(self) -> Tensor:
        """[pair]: of the path found."""
        return self.path.loss

    def plan(
        self, fraction: int | Tensor, pair: int | Tensor = 0, *, scope: Scope = LAST
    ) -> list[Patch]:
        """Return the plan that writes points of the path as the search wrote them.

        Args:
            fraction: number of the point, or [batch] of them, one for each row.
            pair: number of the path, or [batch] of them.
            scope: on which tokens.

        Raises:
            PlanError: no such point or path.
        """
        sizes = {"fraction": (fraction, self.points.shape[1]), "pair": (pair, len(self.points))}
        for name, (given, n) in sizes.items():
            numbers = torch.as_tensor(given)
            if not numbers.numel() or int(numbers.min()) < -n or int(numbers.max()) >= n:
                raise PlanError(
                    f"{name} is {given!r}, but this pull-back has {n}, counted from 0. A plan "
                    "writes a point that was found; the path is not known beyond its ends."
                )
        return [Patch(self.site, self.points[pair, fraction], self.basis, scope)]

    def on_manifold(self, chart: Chart, *, n_random: int = 64, seed: int = 0) -> OnManifold:
        """Return how much of the path lies on the chart's path between the same ends.

        As published (Wurgaft et al. 2026, arXiv:2605.05115): in the directions that hold 99 % of
        the variance of the manifold's path, 1 less the squared distances to its nearest points
        over the variance of the path's own points. Beside it the chord's, and that of random
        splines with as many controls, the same ends and the same length in the same components:
        any smooth path between two points of a bent line is near to it in part. It is negative
        where a path departs by more than it extends.

        Args:
            chart: M_h.
            n_random: random paths for each pair.
            seed: of them.
        """
        dense = chart.decode(chart.path(self.u0, self.u1, N_DENSE)).double()
        center = dense.mean(1, keepdim=True)
        coarse = dense[:, :: N_DENSE // 128]
        _, singular, rows = torch.linalg.svd(coarse - center, full_matrices=False)
        share = singular.square().cumsum(-1) / singular.square().sum(-1, keepdim=True)
        dims = (share < 0.99).sum(-1) + 1
        # Pairs keep unequal numbers of directions: the others' coordinates are set to zero.
        kept = torch.arange(rows.shape[1], device=dims.device) < dims[:, None]
        most = int(dims.max())
        frame = (rows * kept[..., None])[:, :most]

        def seen(points: Tensor) -> Tensor:
            return (points.double() - center) @ frame.mT

        line, randoms = seen(dense), self._random(n_random, seed)
        r2 = [_r2(seen(points), line) for points in (self.points, self.chord.points, *randoms)]
        return OnManifold(r2[0], r2[1], torch.stack(r2[2:]), dims)

    def _random(self, n: int, seed: int) -> Tensor:
        """Return [draw, pair, fraction, d_model]: splines as long as the paths found."""
        chord = self.chord.points
        bend = spline_map(self.n_controls, chord.shape[1])[:, 1:-1].to(chord)
        shape = (n, len(chord), self.n_controls, len(self.basis))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(chord)
        bump = (bend @ noise) @ self.basis.to(chord)
        bump = bump * (_length(chord) / _length(bump))[..., None, None]
        wanted = _length(self.points)
        # The length of chord + s * bump is convex in s and least near 0: it is met once above.
        low = torch.zeros(n, len(chord)).to(chord)
        high = torch.ones_like(low) * (2 * wanted / _length(chord) + 2)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            longer = _length(chord + middle[..., None, None] * bump) > wanted
            low, high = torch.where(longer, low, middle), torch.where(longer, middle, high)
        return chord + low[..., None, None] * bump

    def __repr__(self) -> str:
        """Say where, and the three losses."""
        losses = (float(path.loss.mean()) for path in (self.path, self.chord, self.manifold))
        found, chord, manifold = losses
        return (
            f"PullBack({self.site}, {len(self.points)} pairs, loss {found:.4g}; chord {chord:.4g}, "
            f"manifold {manifold:.4g}; {self.evaluations} evaluations)"
        )


def _length(points: Tensor) -> Tensor:
    """Return [...] of [..., fraction, d]."""
    return points.diff(dim=-2).norm(dim=-1).sum(-1)


def _r2(points: Tensor, line: Tensor) -> Tensor:
    """Return [pair] of points [pair, fraction, k] by the nearest of [pair, dense, k]."""
    off = torch.cdist(points, line).square().amin(-1).sum(-1)
    return 1 - off / (points - points.mean(1, keepdim=True)).square().sum((1, 2))
