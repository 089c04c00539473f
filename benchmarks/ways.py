"""Ways between two points that every comparison is made against, whatever moves along them."""

import torch
from jaxtyping import Float
from torch import Tensor

import manifolds


def straight(
    first: Float[Tensor, "*path d"], last: Float[Tensor, "*path d"], n: int
) -> Float[Tensor, "*path point d"]:
    """Return n points evenly along the chord, both ends included."""
    share = torch.linspace(0, 1, n, dtype=first.dtype)[:, None]
    return first[..., None, :] + share * (last - first)[..., None, :]


def turned(
    points: Float[Tensor, "*path point d_model"], space: manifolds.Subspace, seed: int
) -> Float[Tensor, "*path point d_model"]:
    """Return paths turned about their starts within a subspace, at random: as long, as bent.

    The control for "any path of this length would do".
    """
    inside = space.coordinates(points)
    draw = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(space.k, space.k, generator=draw).to(inside))[0]
    return space.embed(inside[..., :1, :] + (inside - inside[..., :1, :]) @ turn)


def geometric_mixture(
    p: Float[Tensor, "*path point bin"],
) -> Float[Tensor, "*path point bin"]:
    """Return p_0^(1-t) p_1^t, normalised, between the outputs at both ends of each path.

    That is what a straight way gives where the read-out after it is linear and a softmax, so an
    output that equals it says nothing of the activations. Where bins are sums of tokens, mix the
    logits before they are summed (`benchmarks.rings.measure.geometric_mixtures`).
    """
    logs = p.double().clamp_min(1e-30).log()
    return straight(logs[..., 0, :], logs[..., -1, :], p.shape[-2]).softmax(-1)
