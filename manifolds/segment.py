"""Straight segments on a subspace, as curves: the chords that manifolds are compared with."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds.curve import Curve
from manifolds.spline import Spline
from manifolds.subspace import Subspace


def segment(
    subspace: Subspace, ends: Float[Tensor, "2 k"], origin: Mapping[str, object] | None = None
) -> Curve:
    """Return the segment between two points of a subspace, at coordinates 0 and 1."""
    first, last = ends
    none = torch.zeros_like(first)
    line = Spline(
        torch.tensor([0.0, 1.0]).to(ends),
        torch.stack([none, none, last - first, first])[:, None],
    )
    return Curve(subspace, line, origin=origin)
