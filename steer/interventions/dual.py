"""Dual: the step that raises one answer of a softmax read-out and disturbs the others least.

A baseline for steering that names what it wants: it knows the read-out, and nothing of where states
of a concept lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steer.errors import PlanError, WidthMismatch
from steer.interventions.arithmetic import Strength, as_vector, precise, require_finite, scaled
from steer.interventions.linear import no_relative
from steer.interventions.recipe import Recipe, batch_length
from steer.scopes import OUTPUT, Scope
from steer.sites import AnySite
from steer.step import Step

_LOOK = 16
"""Steps between two looks at whether all tokens have arrived: each look waits for the device."""
_HALVINGS = 40
"""Of the last step, down to the rounding of float64 numbers of the size of a logit."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dual(Recipe):
    """Step towards an answer in the dual geometry of a softmax, until it has a probability.

    h <- h + rate |h| unit((Cov_p(W) + alpha I)^-1 beta), repeated, with p = softmax(W h + b) taken
    anew at each step: the dual steering of Park et al. 2026 (arXiv:2602.15293). Cov_p(W) is the
    covariance of the read-out's rows under p, the derivative of their mean m = sum_k p_k w_k by h.
    beta is w_target - m [our reading], so that m goes straight to the target's row: where the rows
    are affinely independent and alpha is 0, p moves on the mixture (1 - t) p + t e_target, and the
    odds among the other answers stay as they were. (A plain step along beta moves p on a geometric
    mixture and favours the target's neighbours.)

    The published steps are .01 in raw units and alpha is 1e-3. Ours are free of units: the rate is
    in multiples of the token's own norm, and alpha of the mean variance of the rows per dimension
    of their span. The last step is shortened, so that the target's probability is `until` and does
    not depend on the size of the steps. Only the part of h in the span of the rows changes, and
    every step solves a system of that size, [answer, answer] at most.

    Args:
        readout: [answer, d_model], rows of a linear softmax read-out at this site: a probe's
            weights, or unembedding rows where the site is ln_final. Elsewhere it is an assumption.
        target: the number of an answer, or one per row of the batch [batch].
        bias: [answer]; zero by default.
        until: stop there; tokens that are there already keep their bits.
        rate: length of a step, in multiples of the token's norm.
        alpha: see above; more of it makes the step plainer.
        max_steps: tokens that have not arrived by then stay where they are.

    Raises:
        PlanError: no such answer, fewer than two, values that are not finite or out of range.
        WidthMismatch: a read-out or bias of another shape; at attach, of another width.
    """

    kind: ClassVar[str] = "steer.Dual"
    site: AnySite
    readout: Tensor
    target: int | Tensor
    bias: Tensor | None = None
    until: float = 0.99
    rate: float = 0.01
    alpha: float = 1e-3
    max_steps: int = 400
    strength: Strength = 1.0
    scope: Scope = OUTPUT

    def __post_init__(self) -> None:
        """Check the values."""
        rows = torch.as_tensor(self.readout).detach()
        if rows.ndim != 2:
            raise WidthMismatch(
                f"The read-out of Dual has shape {tuple(rows.shape)}, but it is one row for each "
                "answer, [answer, d_model]. Stack the rows of the answers that compete."
            )
        if len(rows) < 2:
            raise PlanError(
                "The read-out of Dual has one answer, whose probability is 1 everywhere. Give the "
                "rows of the answers that compete with it too."
            )
        object.__setattr__(self, "readout", require_finite(rows, "The read-out of Dual"))
        if self.bias is not None:
            bias = as_vector(self.bias, "The bias of Dual")
            if len(bias) != len(rows):
                raise WidthMismatch(
                    f"The bias of Dual has {len(bias)} entries for {len(rows)} answers. It is one "
                    "number for each row of the read-out."
                )
            object.__setattr__(self, "bias", bias)
        object.__setattr__(self, "target", _answers(self.target, len(rows)))
        object.__setattr__(self, "strength", no_relative(self.strength, "Dual"))
        self._check_numbers()

    def _check_numbers(self) -> None:
        fits = {
            "until": (0 < self.until < 1, "between 0 and 1: a softmax never reaches its ends"),
            "rate": (0 < self.rate < float("inf"), "above 0: it is the length of a step"),
            "alpha": (0 < self.alpha < float("inf"), "above 0: without it directions that no "
                      "answer tells apart have no inverse"),
            "max_steps": (self.max_steps >= 1, "at least 1"),
        }  # fmt: skip
        for name, (fine, why) in fits.items():
            if not fine:
                raise PlanError(f"{name} of Dual is {getattr(self, name)}. It lies {why}.")

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h with the target's probability at `until`."""
        x = precise(h)
        # Float64 where there is any: the systems are small, and nearly singular as p sharpens.
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        rows = self.readout.to(exact)
        q, r = torch.linalg.qr(rows.T)
        logits = x.to(exact) @ rows.T
        logits = logits if self.bias is None else logits + self.bias.to(exact)
        target = self.target
        if isinstance(target, Tensor):
            target = step.of_row(target, x[..., 0])
        at = torch.as_tensor(target, device=x.device).expand(logits.shape[:-1])
        length = self.rate * x.to(exact).norm(dim=-1, keepdim=True)
        moved = self._walk(logits, at[..., None], length, r.T)
        return scaled(h, (moved @ q.T).to(x.dtype), self.strength, step)

    def _walk(self, logits: Tensor, at: Tensor, length: Tensor, rows: Tensor) -> Tensor:
        """Return the whole way [..., k], in orthonormal coordinates of the span of the rows.

        Args:
            logits: [..., answer], at the start.
            at: [..., 1], the targets.
            length: [..., 1], of a step.
            rows: [answer, k], the read-out in these coordinates.
        """
        spread = rows - rows.mean(0)
        floor = self.alpha * spread.square().sum(-1).mean() / rows.shape[1]
        ridge = floor * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        way = logits.new_zeros(*logits.shape[:-1], rows.shape[1])
        last, done = way, _probability(logits, at) >= self.until
        for k in range(self.max_steps):
            if k % _LOOK == 0 and bool(done.all()):
                break
            turn = _direction(logits + way @ rows.T, at, rows, ridge) * length
            there = _probability(logits + (way + turn) @ rows.T, at) >= self.until
            last = torch.where(there & ~done, turn, last)
            way = torch.where(there | done, way, way + turn)
            done = there | done
        return way + self._share(logits + way @ rows.T, last @ rows.T, at) * last

    def _share(self, logits: Tensor, change: Tensor, at: Tensor) -> Tensor:
        """Return how much of the last step [..., 1] brings the target to `until`.

        The log-probability is concave along a line, and lies below at its start and above at its
        end: it crosses once.
        """
        low = torch.zeros_like(logits[..., :1])
        high = torch.ones_like(low)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = _probability(logits + middle * change, at) >= self.until
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return {"the read-out": self.readout.shape[1]}

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(target=self.target, strength=self.strength)

    def __repr__(self) -> str:
        """Say where, towards what and how far."""
        target = f"[{len(self.target)} rows]" if isinstance(self.target, Tensor) else self.target
        return (
            f"Dual({self.site}, target={target} of {len(self.readout)}, until={self.until:g}, "
            f"scope={self.scope!r})"
        )


def _direction(logits: Tensor, at: Tensor, rows: Tensor, ridge: Tensor) -> Tensor:
    """Return unit((Cov_p + ridge)^-1 (w_target - mean)), [..., k]."""
    p = logits.softmax(-1)
    off = rows - (p @ rows)[..., None, :]
    covariance = off.mT @ (p[..., None] * off) + ridge
    beta = off.gather(-2, at[..., None].expand(*at.shape, rows.shape[1]))[..., 0, :]
    found = torch.cholesky_solve(beta[..., None], torch.linalg.cholesky(covariance))[..., 0]
    return found / found.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(found.dtype).tiny)


def _probability(logits: Tensor, at: Tensor) -> Tensor:
    """Return the targets' probabilities, [..., 1]."""
    return logits.softmax(-1).gather(-1, at)


def _answers(target: int | Tensor, n: int) -> int | Tensor:
    """Return the number of an answer, or [batch] of them.

    Raises:
        PlanError: not whole numbers, of another shape, or there is no such answer.
    """
    found = torch.as_tensor(target).detach()
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if not whole or found.ndim > 1 or not found.numel():
        raise PlanError(
            f"The target of Dual is {target!r}. It is the number of an answer (a row of the "
            "read-out), or a tensor [batch] of such numbers."
        )
    if int(found.min()) < 0 or int(found.max()) >= n:
        raise PlanError(
            f"The target of Dual is answer {int(found.max() if found.min() >= 0 else found.min())},"
            f" but the read-out has the answers 0 to {n - 1}. Count its rows from 0."
        )
    return int(found) if found.ndim == 0 else found.long()
