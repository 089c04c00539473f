"""Penalised logistic regression for many sites at once: Newton steps, preconditioned in fp32.

Pure arithmetic on tensors; the public fit is in `probes.classify`. The Hessian of each step is made
and factorised in fp32, all sites in one product; conjugate gradients with that factor solve the
fp64 system in one or two steps, and the gradient that must vanish is fp64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import ProbeError

_NEWTON_STEPS, _CG_STEPS, _HALVINGS = 100, 60, 40
_GRADIENT = 1e-10
"""Largest entry of the gradient at the end, relative to the first one."""
_ACCEPTED = 1e-6
"""What a fit that runs out of steps must have reached all the same."""
_FLOOR = 1e-4
"""The first gradient counts as this share at least of what it could be."""
_STALE = 0.1
"""A Hessian is made anew where the samples' weights in it have moved by this share."""


def logistic_regression(
    z: Float[Tensor, "site sample k"],
    positive: Float[Tensor, " sample"],
    l2: float,
    start: Float[Tensor, "site k_and_bias"] | None = None,
) -> Float[Tensor, "site k_and_bias"]:
    """Minimise cross entropy summed over samples + l2 / 2 |weight|^2, the bias (last) free.

    Args:
        z: features, in fp64.
        positive: 1 for the positive class, else 0.
        l2: the penalty.
        start: where to begin; the minimum is the same from everywhere.

    Raises:
        ProbeError: no convergence.
    """
    z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
    narrow = z.float()
    penalty = torch.cat([z.new_full((z.shape[-1] - 1,), l2), z.new_zeros(1)])
    theta = z.new_zeros(len(z), z.shape[-1]) if start is None else start
    # Of the fit from nothing, also where another start is nearer: the same end for all starts.
    first = torch.einsum("snk,n->sk", z, 0.5 - positive)
    # Where nothing can be read, the first gradient is rounding, which is no measure of itself.
    scale = torch.maximum(first.abs().amax(-1), _FLOOR * z.abs().sum(1).amax(-1))
    worst = torch.full_like(scale, torch.inf)
    logits = torch.einsum("snk,sk->sn", z, theta)
    curved: _Curved | None = None
    for _ in range(_NEWTON_STEPS):
        p = logits.sigmoid()
        gradient = torch.einsum("snk,sn->sk", z, p - positive) + penalty * theta
        worst = gradient.abs().amax(-1) / scale
        if not bool((worst > _GRADIENT).any()):
            break
        spread = p * (1 - p)
        if curved is None or curved.stale(spread):
            curved = _Curved(spread, _factor(narrow, spread, penalty))
        step = _step(narrow, spread, penalty, gradient, worst, curved.factor)
        theta, logits = _descended(z, positive, penalty, theta, logits, step, gradient)
    if not bool((worst < _ACCEPTED).all()):
        raise ProbeError(
            f"The logistic fit did not converge: after {_NEWTON_STEPS} Newton steps the gradient "
            f"is {float(worst.max()):.1e} of the first one. The penalty is too small for data that "
            "can be told apart. Give a larger l2."
        )
    return theta


@dataclass(frozen=True, slots=True, eq=False)
class _Curved:
    """A factor of the Hessian, and the spreads of the samples for which it was made."""

    spread: Tensor
    factor: Tensor

    def stale(self, spread: Tensor) -> bool:
        """Return whether the Hessian is another by now; a little is left to the iterations."""
        change = (spread - self.spread).abs().sum(-1) / self.spread.sum(-1).clamp_min(1e-300)
        return bool((change > _STALE).any())


def _factor(narrow: Tensor, spread: Tensor, penalty: Tensor) -> Tensor:
    """Return the Cholesky factor of each site's Hessian, in fp32."""
    weighed = narrow * spread.float().sqrt().unsqueeze(-1)
    hessian = weighed.mT @ weighed
    # The bias is not penalised: a breath keeps its pivot above rounding.
    breath = 1e-6 * hessian.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + 1e-12
    hessian = hessian + torch.diag_embed(penalty.float() + breath)
    factor, wrong = torch.linalg.cholesky_ex(hessian)
    if bool(wrong.any()):
        # Too near to singular for fp32: the diagonal serves, with more conjugate gradients.
        plain = torch.diag_embed(hessian.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12).sqrt())
        factor = torch.where((wrong > 0)[:, None, None], plain, factor)
    return factor


def _step(
    narrow: Tensor,
    spread: Tensor,
    penalty: Tensor,
    gradient: Tensor,
    worst: Tensor,
    factor: Tensor,
) -> Tensor:
    """Return the Newton step: the Hessian's inverse times the gradient, to fp32's precision."""
    spread, penalty = spread.float(), penalty.float()
    # In units in which fp32 neither overflows nor vanishes.
    size = gradient.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    goal_of = (gradient / size).float()

    def eased(rest: Tensor) -> Tensor:
        return torch.cholesky_solve(rest.unsqueeze(-1), factor).squeeze(-1)

    def image(along: Tensor) -> Tensor:
        moved = torch.einsum("snk,sk->sn", narrow, along)
        return torch.einsum("snk,sn->sk", narrow, spread * moved) + penalty * along

    # Tighter as the optimum nears, so that convergence is superlinear.
    precision = worst.sqrt().clamp(1e-5, 0.1).float()
    step, rest = torch.zeros_like(goal_of), goal_of
    scaled = eased(rest)
    along, energy = scaled, (rest * scaled).sum(-1)
    goal = precision.square() * energy
    for _ in range(_CG_STEPS):
        made = image(along)
        curvature = (along * made).sum(-1)
        going = (energy > goal) & (curvature > 0)
        if not bool(going.any()):
            break
        length = torch.where(going, energy / curvature.clamp_min(1e-30), 0.0)
        step = step + length.unsqueeze(-1) * along
        rest = rest - length.unsqueeze(-1) * made
        scaled = eased(rest)
        following = (rest * scaled).sum(-1)
        turn = torch.where(going, following / energy.clamp_min(1e-30), 0.0)
        along = scaled + turn.unsqueeze(-1) * along
        energy = torch.where(going, following, 0.0)
        if bool((energy <= goal).all()):
            break
    return step.to(gradient.dtype) * size


def _objective(positive: Tensor, penalty: Tensor, theta: Tensor, logits: Tensor) -> Tensor:
    loss = torch.nn.functional.softplus(logits) - positive * logits
    return loss.sum(-1) + (penalty * theta.square()).sum(-1) / 2


def _descended(
    z: Tensor,
    positive: Tensor,
    penalty: Tensor,
    theta: Tensor,
    logits: Tensor,
    step: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return theta and logits after the step, halved per site until the objective has fallen."""
    before = _objective(positive, penalty, theta, logits)
    slope = (gradient * step).sum(-1)
    moves = torch.einsum("snk,sk->sn", z, step)
    length = torch.ones_like(before).unsqueeze(-1)
    # Near the optimum the objective changes by less than its own rounding error.
    slack = 1e-13 * before.abs()
    for _ in range(_HALVINGS):
        after = _objective(positive, penalty, theta - length * step, logits - length * moves)
        worse = after > before - 1e-4 * length[:, 0] * slope + slack
        if not bool(worse.any()):
            break
        length = torch.where(worse.unsqueeze(-1), length / 2, length)
    return theta - length * step, logits - length * moves
