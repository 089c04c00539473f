"""Geometry of probability distributions: distances, and the sphere of their square roots.

p -> psi = sqrt(p) maps the simplex into the unit sphere, where log and exp maps are in closed
form. All functions are batched and work in float32, or float64 for float64 input.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.errors import ManifoldError
from manifolds.nearest_many import Bent
from manifolds.spline import Jet
from manifolds.subspace import arithmetic_dtype

Metric = Literal["bhattacharyya", "hellinger", "fisher_rao"]


def hellinger(p: Float[Tensor, "*p bin"], q: Float[Tensor, "*q bin"]) -> Float[Tensor, "*pq"]:
    """Return |sqrt p - sqrt q| / sqrt 2, from 0 to 1, for broadcasting p and q."""
    p, q = _promoted(p, q)
    return (p.sqrt() - q.sqrt()).norm(dim=-1) / 2**0.5


def bhattacharyya(p: Float[Tensor, "*p bin"], q: Float[Tensor, "*q bin"]) -> Float[Tensor, "*pq"]:
    """Return -log sum sqrt(p q) in nats, from 0 to infinity: -log(1 - hellinger^2)."""
    p, q = _promoted(p, q)
    overlap = (p.sqrt() * q.sqrt()).sum(-1)
    gap = hellinger(p, q).square()
    # Each form keeps its digits where the other loses them: the gap near 0, the overlap far away.
    return torch.where(gap < 0.5, -torch.log1p(-gap.clamp_max(0.5)), -overlap.log())


def fisher_rao(p: Float[Tensor, "*p bin"], q: Float[Tensor, "*q bin"]) -> Float[Tensor, "*pq"]:
    """Return 2 arccos sum sqrt(p q), from 0 to pi: the geodesic distance of the Fisher metric."""
    return 4 * torch.asin((hellinger(p, q) / 2**0.5).clamp_max(1))


METRICS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"bhattacharyya": bhattacharyya, "hellinger": hellinger, "fisher_rao": fisher_rao}
)


def distance_between(
    p: Float[Tensor, "*batch bin"], near: Float[Tensor, "*batch bin"], metric: str
) -> Float[Tensor, "*batch"]:
    """Return the distance from distributions to others, in the dtype of the others.

    Raises:
        ManifoldError: an unknown metric.
    """
    if metric not in METRICS:
        raise ManifoldError(
            f"metric is {metric!r}, which names no distance between distributions. Write one "
            f"of {', '.join(map(repr, METRICS))}."
        )
    p = p.to(near.dtype)
    return METRICS[metric](p / p.sum(-1, keepdim=True), near)


def concept_mass(
    p: Float[Tensor, "*batch bin"], n_bins: int, *, other: bool
) -> Float[Tensor, "*batch"]:
    """Return 1 less the probability of the last bin, which is everything that is no concept.

    Raises:
        ManifoldError: p is not over n_bins, or there is no such bin.
    """
    check_distributions(p, n_bins)
    if not other:
        raise ManifoldError(
            f"This behaviour has {n_bins} bins and none is 'other', so all mass is in concepts and "
            "coherence says nothing. Fit it with the rest as a last bin."
        )
    return 1 - p[..., -1].to(arithmetic_dtype(p))


def log_map(
    base: Float[Tensor, " bin"], psi: Float[Tensor, "*batch bin"]
) -> Float[Tensor, "*batch bin"]:
    """Return the tangent vector at base that leads to psi: (a / sin a) (psi - cos a base).

    Both are unit vectors, a the angle between them; opposite points have no unique vector.
    """
    dtype = torch.promote_types(arithmetic_dtype(base), arithmetic_dtype(psi))
    base, psi = base.to(dtype), psi.to(dtype)
    # The chord gives small angles to full precision; arccos loses half of the digits there.
    angle = 2 * torch.asin(((psi - base).norm(dim=-1, keepdim=True) / 2).clamp_max(1))
    flat = psi - torch.cos(angle) * base
    return flat / torch.sinc(angle / torch.pi)


def exp_map(
    base: Float[Tensor, " bin"], tangent: Float[Tensor, "*batch bin"]
) -> Float[Tensor, "*batch bin"]:
    """Return the unit vector reached from base along the tangent: cos|t| base + sin|t| t / |t|."""
    dtype = torch.promote_types(arithmetic_dtype(base), arithmetic_dtype(tangent))
    base, tangent = base.to(dtype), tangent.to(dtype)
    size = tangent.norm(dim=-1, keepdim=True)
    return torch.cos(size) * base + torch.sinc(size / torch.pi) * tangent


def exp_map_jet(base: Float[Tensor, " bin"], tangent: Jet) -> Jet:
    """Return the exponential of a moving tangent vector, with its first two derivatives.

    With q = |t|^2, exp(t) = A(q) base + B(q) t, where A = cos sqrt q and B = sin sqrt q / sqrt q;
    then A' = -B/2, B' = C and C' = D below.
    """
    t, t1, t2 = tangent
    q = t.square().sum(-1, keepdim=True)
    q1 = 2 * (t * t1).sum(-1, keepdim=True)
    q2 = 2 * (t1.square() + t * t2).sum(-1, keepdim=True)
    a, b, c, d = _exp_coefficients(q)
    value = a * base + b * t
    first = -b / 2 * q1 * base + c * q1 * t + b * t1
    second = (
        (-c / 2 * q1.square() - b / 2 * q2) * base
        + (d * q1.square() + c * q2) * t
        + 2 * c * q1 * t1
        + b * t2
    )
    return Jet(value, first, second)


def exp_map_bent(base: Float[Tensor, " bin"], tangent: Bent) -> Bent:
    """Return the exponential of a tangent vector that moves with several coordinates.

    The formulas of `exp_map_jet`, with derivatives [..., bin, dim] and [..., bin, dim, dim].
    """
    t, t1, t2 = tangent
    q = t.square().sum(-1, keepdim=True)
    a, b, c, d = _exp_coefficients(q)
    q1 = 2 * torch.einsum("...b,...bd->...d", t, t1)[..., None, :]
    flat = torch.einsum("...b,...bde->...de", t, t2)
    q2 = 2 * (t1.mT @ t1 + flat)[..., None, :, :]
    point, here = base[:, None], t[..., None]
    value = a * base + b * t
    a, b, c, d = (part[..., None] for part in (a, b, c, d))
    first = -b / 2 * q1 * point + c * q1 * here + b * t1
    a, b, c, d = (part[..., None] for part in (a, b, c, d))
    both = q1[..., :, None] * q1[..., None, :]
    crossed = q1[..., :, None] * t1[..., None, :]
    second = (
        (-c / 2 * both - b / 2 * q2) * point[..., None]
        + (d * both + c * q2) * here[..., None]
        + c * (crossed + crossed.mT)
        + b * t2
    )
    return Bent(value, first, second)


def check_distributions(p: Float[Tensor, "*batch bin"], n_bins: int | None = None) -> None:
    """Refuse rows that are not distributions over n_bins, to within 1e-3 of a total of 1.

    Raises:
        ManifoldError: another number of bins, negative or non-finite entries, another total.
    """
    p = p.detach()
    if n_bins is not None and (p.ndim == 0 or p.shape[-1] != n_bins):
        raise ManifoldError(
            f"The probabilities have the shape {list(p.shape)}, but the behaviour was fitted on "
            f"{n_bins} bins, which must be the last axis. Sum the vocabulary into the same bins."
        )
    if p.numel() and not bool((torch.isfinite(p) & (p >= 0)).all()):
        raise ManifoldError(
            f"The probabilities go from {float(p.min()):.4g} to {float(p.max()):.4g}, and a "
            "negative or non-finite entry has no square root on the sphere. Pass probabilities, "
            "not logits or log-probabilities."
        )
    off = (p.sum(-1, dtype=arithmetic_dtype(p)) - 1).abs()
    if off.numel() and float(off.max()) > 1e-3:
        total = p.sum(-1, dtype=arithmetic_dtype(p)).flatten()[int(off.argmax())]
        raise ManifoldError(
            f"A row of the probabilities adds up to {float(total):.4g}, not to 1, so it is no "
            "distribution. Add the rest as a last bin, 'other', and take the softmax in float32."
        )


def _exp_coefficients(q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return A, B, C, D of `exp_map_jet` at q."""
    size = q.sqrt()
    a, b = torch.cos(size), torch.sinc(size / torch.pi)
    # C and D are differences that cancel near 0: six terms of their series serve up to q = 1/2,
    # with an error below 1e-12.
    small = q < 0.5
    safe = torch.where(small, torch.ones_like(q), q)
    c = torch.where(small, _series(q, 1), (a - b) / (2 * safe))
    d = torch.where(small, _series(q, 2), (-b / 2 - 3 * c) / (2 * safe))
    return a, b, c, d


def _series(q: Tensor, order: int) -> Tensor:
    """Return the derivative of this order of sin(sqrt q) / sqrt q by q, for small q.

    The terms are (-1)^n q^n / (2n + 1)!, differentiated.
    """
    result = torch.zeros_like(q)
    for n in range(order + 5, order - 1, -1):
        falling = 1.0
        for step in range(order):
            falling *= n - step
        factorial = 1.0
        for factor in range(2, 2 * n + 2):
            factorial *= factor
        result = result * q + (-1) ** n * falling / factorial
    return result


def _promoted(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(arithmetic_dtype(p), arithmetic_dtype(q))
    return p.to(dtype), q.to(dtype)
