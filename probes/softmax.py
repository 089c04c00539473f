"""Penalised softmax regression for many sites at once: Newton steps by conjugate gradients.

Pure arithmetic on tensors; the public fits are in `probes.classify`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import ProbeError

_NEWTON_STEPS, _CG_STEPS, _HALVINGS = 100, 500, 40
_GRADIENT = 1e-10
"""Largest entry of the gradient at the end, relative to the first one; reached in float64."""
_FLOOR = 1e-4
"""The first gradient counts as this share at least of what it could be."""
_ACCEPTED = 1e-6
"""What a fit that runs out of steps must have reached all the same."""


def softmax_regression(
    z: Float[Tensor, "site sample k"],
    gram: Float[Tensor, "site k"],
    index: Int[Tensor, " sample"],
    n_classes: int,
    l2: float,
) -> tuple[Float[Tensor, "site k out"], Float[Tensor, "site out"]]:
    """Minimise cross entropy summed over samples + l2 / 2 |weight|^2, the bias free.

    z has zero mean and a diagonal Gram matrix, which makes the diagonal a good preconditioner.

    Returns:
        One column for each class; columns sum to zero.

    Raises:
        ProbeError: no convergence.
    """
    n_sites, n_samples, _ = z.shape
    z = torch.cat([z, z.new_ones(n_sites, n_samples, 1)], -1)
    gram = torch.cat([gram, gram.new_full((n_sites, 1), n_samples)], -1)
    penalty = torch.full_like(gram, l2)
    penalty = torch.cat([penalty[:, :-1], torch.zeros_like(penalty[:, -1:])], -1)
    theta = _minimised(z, gram, penalty.unsqueeze(-1), index, n_classes)
    return theta[:, :-1], theta[:, -1]


def softmax_through_zero(
    x: Float[Tensor, "site sample d_model"],
    index: Int[Tensor, " sample"],
    n_classes: int,
    l2: float,
) -> Float[Tensor, "site out d_model"]:
    """Minimise cross entropy summed over samples + l2 / 2 |weight|^2, without a bias.

    Returns:
        One row for each class, on x as it is; rows sum to zero.

    Raises:
        ProbeError: no convergence.
    """
    # Rotated to the axes of x x', as it is: the diagonal is a good preconditioner again.
    span, sizes, axes = torch.linalg.svd(x, full_matrices=False)
    z, gram = span * sizes.unsqueeze(-2), sizes.square()
    penalty = torch.full_like(gram, l2).unsqueeze(-1)
    theta = _minimised(z, gram, penalty, index, n_classes)
    return theta.mT @ axes


def _minimised(
    z: Tensor, gram: Tensor, penalty: Tensor, index: Tensor, n_classes: int
) -> Float[Tensor, "site k out"]:
    """Return the minimum by Newton steps, columns summing to zero."""
    target = torch.nn.functional.one_hot(index, n_classes).to(z.dtype)
    theta = z.new_zeros(len(z), z.shape[-1], n_classes)

    reach = z.abs().sum(1).amax(-1)
    first = worst = None
    for _ in range(_NEWTON_STEPS):
        p = (z @ theta).softmax(-1)
        gradient = z.mT @ (p - target) + penalty * theta
        size = gradient.flatten(1).abs().amax(-1)
        # Where nothing can be read, the first gradient is rounding: no measure of itself.
        first = torch.maximum(size, _FLOOR * reach) if first is None else first
        worst = size / first
        open_ = worst > _GRADIENT
        if not bool(open_.any()):
            break
        # Tighter as the optimum nears, so that convergence is superlinear.
        step = _solve(z, p, gram, penalty, gradient, worst.sqrt().clamp(1e-8, 0.1))
        theta = _descend(z, target, penalty, theta, step, gradient, open_)
    assert worst is not None
    if not bool((worst < _ACCEPTED).all()):
        raise ProbeError(
            f"The logistic fit did not converge: after {_NEWTON_STEPS} Newton steps the gradient "
            f"is {float(worst.max()):.1e} of the first one. The penalty is too small for data that "
            "can be told apart. Give a larger l2."
        )
    return theta - theta.mean(-1, keepdim=True)


def _objective(z: Tensor, target: Tensor, penalty: Tensor, theta: Tensor) -> Tensor:
    """Return the minimised quantity of each site."""
    log_p = (z @ theta).log_softmax(-1)
    return (penalty * theta.square()).sum((1, 2)) / 2 - (target * log_p).sum((1, 2))


def _solve(
    z: Tensor, p: Tensor, gram: Tensor, penalty: Tensor, gradient: Tensor, precision: Tensor
) -> Tensor:
    """Return the Newton step: the Hessian's inverse times the gradient, to a relative precision."""
    # The Hessian with each sample's p (1 - p) replaced by the class's mean of it.
    spread = (p * (1 - p)).mean(1, keepdim=True).clamp_min(1e-12)
    inverse = 1 / (gram.unsqueeze(-1) * spread + penalty).clamp_min(1e-12)
    step = torch.zeros_like(gradient)
    rest = gradient
    scaled = inverse * rest
    along = scaled
    energy = (rest * scaled).sum((1, 2))
    goal = precision.square() * energy
    for _ in range(_CG_STEPS):
        moved = z @ along
        moved = p * (moved - (p * moved).sum(-1, keepdim=True))
        image = z.mT @ moved + penalty * along
        curvature = (along * image).sum((1, 2))
        # Sites that are done keep a step of zero rather than divide zero by zero.
        length = torch.where(
            (energy > goal) & (curvature > 0), energy / curvature.clamp_min(1e-300), 0.0
        )
        if not bool((length > 0).any()):
            break
        step = step + length[:, None, None] * along
        rest = rest - length[:, None, None] * image
        scaled = inverse * rest
        following = (rest * scaled).sum((1, 2))
        turn = torch.where(length > 0, following / energy.clamp_min(1e-300), 0.0)
        along = scaled + turn[:, None, None] * along
        energy = torch.where(length > 0, following, 0.0)
    return step


def _descend(
    z: Tensor,
    target: Tensor,
    penalty: Tensor,
    theta: Tensor,
    step: Tensor,
    gradient: Tensor,
    open_: Tensor,
) -> Tensor:
    """Return theta moved along the step, halved per site until the objective has fallen."""
    before = _objective(z, target, penalty, theta)
    slope = (gradient * step).sum((1, 2))
    length = open_.to(z.dtype)
    # Near the optimum the objective changes by less than its own rounding error.
    slack = 1e-13 * before.abs()
    for _ in range(_HALVINGS):
        moved = theta - length[:, None, None] * step
        worse = _objective(z, target, penalty, moved) > before - 1e-4 * length * slope + slack
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    return theta - length[:, None, None] * step
