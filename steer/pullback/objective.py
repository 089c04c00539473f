"""How far the outputs along a path are from those that are wanted, and the gradient of that.

The path is a natural cubic spline, which is linear in the points that it passes: the map is made
once, and only the outputs need the model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions.arithmetic import precise
from steer.pullback.suffix import Suffix

Bins = Callable[[Tensor], Tensor]
"""Logits [row, vocab] -> probabilities [row, bin]; differentiable."""

FLOOR = 1e-12
"""Of a probability under a root, whose slope at 0 is infinite."""


def spline_map(n_controls: int, n_fractions: int) -> Tensor:
    """Return [fraction, n_controls + 2]: natural cubic splines through equally spaced points.

    The points are the first end, the controls, the last end; the fractions go from 0 to 1.
    """
    from scipy.interpolate import CubicSpline  # slow to import

    knots = torch.linspace(0, 1, n_controls + 2, dtype=torch.float64)
    fractions = torch.linspace(0, 1, n_fractions, dtype=torch.float64)
    unit = torch.eye(n_controls + 2, dtype=torch.float64)
    spline = CubicSpline(knots.numpy(), unit.numpy(), bc_type="natural")
    return torch.from_numpy(spline(fractions.numpy()))


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """The loss of paths in the first components of a subspace."""

    suffix: Suffix
    basis: Tensor
    """[m, d_model]: the components in which paths may bend."""
    mean: Tensor
    """[d_model]: where their coordinates are 0."""
    bins: Bins
    target: Tensor
    """[pair, fraction, bin]: the outputs that are wanted."""
    rows: Tensor
    """[pair, prompt]: the prompts of each pair."""
    chord: Tensor
    """[pair, fraction, d_model]: the straight way, which has the coordinates that stay."""
    norm_weight: float
    max_rows: int
    """Of one pass."""

    @property
    def along_chord(self) -> Tensor:
        """[pair, fraction, m]: the chord's coordinates."""
        return (self.chord - self.mean) @ self.basis.mT

    def points(self, c: Tensor) -> Tensor:
        """Return [pair, fraction, d_model] of coordinates [pair, fraction, m]."""
        return self.chord + (c - self.along_chord) @ self.basis

    def outputs(self, c: Tensor) -> Tensor:
        """Return [pair, fraction, prompt, bin], without a graph."""
        flat, cell = self._flat(c)
        with torch.no_grad():
            found = [self._run(flat[cell[at]], at) for at in self._chunks()]
        return torch.cat(found).unflatten(0, (*c.shape[:2], self.rows.shape[1]))

    def loss_of(self, outputs: Tensor, c: Tensor) -> Tensor:
        """Return [pair]: the loss of outputs [pair, fraction, prompt, bin] along a path."""
        target = self.target[:, :, None].to(outputs)
        return _squared_hellinger(outputs, target).mean((1, 2)).to(c.dtype) + self._norms(c)

    def slope(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses [pair] and their gradients by the coordinates [pair, fraction, m].

        Raises:
            PlanError: the bins keep no gradient.
        """
        flat, cell = self._flat(c.detach())
        share = 1 / (c.shape[1] * self.rows.shape[1])
        losses, slope = c.new_zeros(len(c)), torch.zeros_like(flat)
        with torch.enable_grad():
            for at in self._chunks():
                leaf = flat[cell[at]].requires_grad_()
                wanted = self.target.flatten(0, 1)[cell[at]]
                p = self._run(leaf, at)
                found = share * _squared_hellinger(p, wanted.to(p))
                if not found.requires_grad:
                    raise PlanError(
                        "No gradient reaches the path: the bins were made from detached logits, or "
                        "the weights let none through (packed integers do not). Make bins by sums "
                        "of a softmax, and pull back through a model in floating point."
                    )
                (here,) = torch.autograd.grad(found.sum(), leaf)
                losses = losses.index_add(0, cell[at] // c.shape[1], found.detach().to(losses))
                slope = slope.index_add(0, cell[at], here.to(slope))
            leaf = c.detach().requires_grad_()
            penalty = self._norms(leaf)
            (bent,) = torch.autograd.grad(penalty.sum(), leaf)
        return losses + penalty.detach(), slope.view_as(c) + bent

    def _flat(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates [pair * fraction, m], and of which each row is, [row]."""
        cells = torch.arange(c.shape[0] * c.shape[1], device=c.device)
        return c.flatten(0, 1), cells.repeat_interleave(self.rows.shape[1])

    def _chunks(self) -> tuple[Tensor, ...]:
        n = self.target.shape[0] * self.target.shape[1] * self.rows.shape[1]
        return torch.arange(n, device=self.target.device).split(self.max_rows)

    def _run(self, c: Tensor, at: Tensor) -> Tensor:
        """Return [row, bin]: the outputs where rows of the whole list have these coordinates."""
        prompts = self.rows[:, None].expand(-1, self.target.shape[1], -1).flatten()[at.cpu()]

        def write(h: Tensor) -> Tensor:
            x = precise(h)
            basis, mean = self.basis.to(x), self.mean.to(x)
            change = (c.to(x) - (x - mean) @ basis.mT) @ basis
            return h + change.to(h.dtype)

        return self.bins(precise(self.suffix.logits(prompts, write)))

    def _norms(self, c: Tensor) -> Tensor:
        """Return [pair]: the penalty on norms that are not between those of the ends."""
        if self.norm_weight == 0:
            return 0 * c.sum((1, 2))
        norms = self.points(c).norm(dim=-1)
        shares = torch.linspace(0, 1, c.shape[1], dtype=c.dtype, device=c.device)
        straight = torch.lerp(norms[:, :1], norms[:, -1:], shares)
        return self.norm_weight * (norms - straight).square().mean(1)


def _squared_hellinger(p: Tensor, q: Tensor) -> Tensor:
    """Return [...]: half the squared distance of the square roots."""
    return (p.clamp_min(FLOOR).sqrt() - q.clamp_min(FLOOR).sqrt()).square().sum(-1) / 2


def require_bins(found: object, n_rows: int, n_bins: int) -> None:
    """Refuse bins that are not the behaviour's.

    Raises:
        PlanError: another shape, or rows that are no distributions.
    """
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or shape != [n_rows, n_bins]:
        raise PlanError(
            f"bins returned {shape} for {n_rows} rows of logits, but the behaviour has {n_bins} "
            f"bins. The path follows it bin by bin. Return [row, {n_bins}], with the bins of the "
            "fit in its order (the last one for all else, if it has one)."
        )
    sums = found.detach().double().sum(-1)
    if bool((found < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise PlanError(
            f"bins returned rows that sum to {float(sums.min()):.4g} to {float(sums.max()):.4g}, "
            f"the smallest entry being {float(found.min()):.4g}: these are no distributions. Apply "
            "a softmax over the whole vocabulary and sum it into bins, with one for the rest."
        )
