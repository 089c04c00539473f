"""Which dictionary features go together: decoder cosine, co-activation, Ising couplings.

Each is a symmetric matrix [feature, feature] with an empty diagonal. Groups are made of them in
`groups`.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STEPS, TOLERANCE = 2000, 1e-6


def cosine(decoder: Float[Tensor, "feature d_model"]) -> Float[Tensor, "feature feature"]:
    """Return the cosine between the decoder's rows."""
    unit = torch.nn.functional.normalize(decoder, dim=1)
    return _hollow(unit @ unit.T)


def coactivation(on: Bool[Tensor, "sample feature"]) -> Float[Tensor, "feature feature"]:
    """Return (P(i | j) + P(j | i)) / 2, how often one feature is on where the other is."""
    active = on.to(torch.float64)
    given = (active.T @ active) / active.sum(0).clamp_min(1)
    return _hollow((given + given.T) / 2)


def ising(
    on: Bool[Tensor, "sample feature"], *, alpha: float | int | None = None
) -> Float[Tensor, "feature feature"]:
    """Return the couplings J of the Ising model of which features are on.

    By pseudo-likelihood: each feature is predicted from all others by logistic regression with an
    L1 penalty, and J_ij = (b_ij + b_ji) / 8, a quarter of the mean weight. A coupling is what is
    left of the company of i and j when all other features are known, so features that meet only
    through a third have none.

    The penalty is alpha against a log-loss summed over samples (C = 1 / alpha in scikit-learn),
    and the intercept is free. Bhalla et al. 2026 (arXiv:2604.28119) take alpha = 0.01 on 500,000
    tokens. On few samples that is hardly a penalty: where features nearly decide each other, as
    those that tile a ring do, noise then gets large couplings. By default we take the level that
    pairs without company rarely pass, sqrt(2 n log(features)) times the mean variance of a feature.

    All regressions are solved at once by accelerated proximal gradient steps (FISTA, Beck and
    Teboulle 2009, with O'Donoghue and Candes' restarts, arXiv:1204.3982).
    """
    x = on.to(torch.float64)
    n, width = x.shape
    design = torch.cat([x, torch.ones(n, 1, dtype=x.dtype, device=x.device)], 1)
    free = torch.ones(width + 1, width, dtype=x.dtype, device=x.device)
    free[:width].fill_diagonal_(0)
    level = usual_penalty(on) if alpha is None else float(alpha)
    penalty = torch.full((width + 1, 1), level, dtype=x.dtype, device=x.device)
    penalty[-1] = 0
    # A quarter of the largest eigenvalue bounds the curvature of a summed log-loss.
    step = 4 / torch.linalg.matrix_norm(design, 2).square()
    share = x.mean(0).clamp(0.5 / n, 1 - 0.5 / n)
    weights = torch.zeros_like(free)
    weights[-1] = share.logit()
    ahead, speed = weights, 1.0
    for _ in range(STEPS):
        slope = design.T @ (torch.sigmoid(design @ ahead) - x)
        moved = (ahead - step * slope) * free
        after = moved.sign() * (moved.abs() - step * penalty).clamp_min(0)
        change = after - weights
        # The momentum points uphill: start it anew.
        if ((ahead - after) * change).sum() > 0:
            speed = 1.0
        faster = (1 + (1 + 4 * speed**2) ** 0.5) / 2
        ahead, weights, speed = after + (speed - 1) / faster * change, after, faster
        if change.abs().max() < TOLERANCE:
            break
    b = weights[:-1]
    return _hollow((b + b.T) / 8)


def usual_penalty(on: Bool[Tensor, "sample feature"]) -> float:
    """Return the L1 penalty that the slope of a pair without company rarely passes."""
    share = on.to(torch.float64).mean(0)
    return float((share * (1 - share)).mean()) * math.sqrt(2 * len(on) * math.log(on.shape[1]))


def _hollow(matrix: Tensor) -> Tensor:
    return matrix - torch.diag(torch.diag(matrix))
