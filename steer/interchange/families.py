"""What can be learned of an interchange: a rotation's first axes, their number, or a mask. Pure.

All take parameters with a leading axis of restarts, and give the part of a difference of states
that is exchanged, [restart, trial, m].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Params = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """One way of choosing what is exchanged."""

    name: str
    start: Callable[[int, int, int, torch.Generator], list[Tensor]]
    """(restarts, m, k, generator) -> parameters."""
    exchanged: Callable[[Params, Tensor, float], Tensor]
    """(parameters, difference [restart, trial, m], temperature) -> [restart, trial, m]."""
    penalty: Callable[[Params, float], Tensor]
    """(parameters, temperature) -> [restart]: what a larger subspace costs, 0 to 1."""
    basis: Callable[[Params, int], Tensor]
    """(parameters, which restart) -> [k, m] orthonormal."""


def _orthonormal(free: Tensor) -> Tensor:
    """Return [..., m, k] with orthonormal columns: Q of QR with a positive diagonal of R."""
    q, r = torch.linalg.qr(free)
    return q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]


def _gaussian(restarts: int, m: int, k: int, draw: torch.Generator) -> Tensor:
    return torch.randn(restarts, m, k, generator=draw) / m**0.5


def _das_part(params: Params, change: Tensor, _: float) -> Tensor:
    axes = _orthonormal(params[0])
    return (change @ axes) @ axes.mT


def _no_penalty(params: Params, _: float) -> Tensor:
    return params[0].new_zeros(len(params[0]))


def _das_basis(params: Params, k: int) -> Tensor:
    return _orthonormal(params[0][k]).mT


DAS = Family(
    "DAS",
    lambda restarts, m, k, draw: [_gaussian(restarts, m, k, draw)],
    _das_part,
    _no_penalty,
    _das_basis,
)
"""k axes of a learned rotation (Geiger et al. 2023, arXiv:2303.02536)."""


def _soft(params: Params, temperature: float) -> Tensor:
    """Return [restart, m]: 1 for axes before the learned boundary, 0 after it, soft between."""
    m = params[0].shape[-1]
    axis = torch.arange(m, device=params[1].device) + 0.5
    return torch.sigmoid((m * params[1][:, None] - axis) / temperature)


def _boundless_part(params: Params, change: Tensor, temperature: float) -> Tensor:
    axes = _orthonormal(params[0])
    return ((change @ axes) * _soft(params, temperature)[:, None]) @ axes.mT


def _boundless_basis(params: Params, k: int) -> Tensor:
    m = params[0].shape[-1]
    n = int((m * params[1][k]).round().clamp(min=1, max=m))
    return _orthonormal(params[0][k])[:, :n].mT


BOUNDLESS = Family(
    "boundless DAS",
    lambda restarts, m, _, draw: [_gaussian(restarts, m, m, draw), torch.full((restarts,), 0.5)],
    _boundless_part,
    lambda params, temperature: _soft(params, temperature).mean(-1),
    _boundless_basis,
)
"""A rotation and how many of its first axes (Wu et al. 2023, arXiv:2305.08809)."""


def _mask_part(params: Params, change: Tensor, temperature: float) -> Tensor:
    return change * torch.sigmoid(params[0] / temperature)[:, None]


def _mask_basis(params: Params, k: int) -> Tensor:
    chosen = params[0][k] > 0
    # An empty mask exchanges nothing: the likeliest axis stands for it.
    chosen = chosen | (torch.arange(len(chosen)) == int(params[0][k].argmax()))
    return torch.eye(len(chosen))[chosen]


MASK = Family(
    "binary mask",
    lambda restarts, m, _, draw: [0.01 * torch.randn(restarts, m, generator=draw)],
    _mask_part,
    lambda params, temperature: torch.sigmoid(params[0] / temperature).mean(-1),
    _mask_basis,
)
"""Coordinates of the site itself (differential binary masking, De Cao et al. 2020,
arXiv:2004.14992; Davies et al. 2023, arXiv:2307.03637)."""
