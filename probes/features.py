"""The coordinates in which penalised fits are solved: centred, scaled, rotated to principal axes.

An L2 penalty does not see a rotation, so the solution is the same; but there are never more
coordinates than samples, and the Gram matrix is diagonal, which conditions the solvers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import ProbeError


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """Samples in principal axes, and the way back to weights on raw activations."""

    z: Float[Tensor, "site sample k"]
    gram: Float[Tensor, "site k"]
    """Diagonal of z' z; all else in it is zero up to rounding."""
    basis: Float[Tensor, "site d_model k"]
    mean: Float[Tensor, "site d_model"]
    scale: Float[Tensor, "site d_model"]

    def folded(
        self, weight: Float[Tensor, "site k out"], bias: Float[Tensor, "site out"]
    ) -> tuple[Tensor, Tensor]:
        """Return weight [site, out, d] and bias [site, out] that act on raw activations."""
        raw = (self.basis @ weight).mT / self.scale.unsqueeze(-2)
        return raw, bias - (raw @ self.mean.unsqueeze(-1)).squeeze(-1)


def scaled(
    x: Float[Tensor, "site sample d_model"], *, standardize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x centred and, if asked, each feature divided by its deviation; mean and scale.

    Features that are constant up to rounding are left as they are, as scikit-learn does.

    Raises:
        ProbeError: every feature is constant.
    """
    n_samples = x.shape[1]
    mean = x.mean(1)
    centred = x - mean.unsqueeze(1)
    variance = centred.square().mean(1)
    eps = torch.finfo(x.dtype).eps
    # Rounding error of a variance (Chan, Golub and LeVeque 1983), scikit-learn's criterion.
    constant = variance <= n_samples * eps * variance + (n_samples * mean * eps) ** 2
    if bool(constant.all(-1).any()):
        raise ProbeError(
            f"All {x.shape[-1]} features are constant over the {n_samples} samples. Nothing can be "
            "read from what does not vary. Check that the right token was captured."
        )
    scale = torch.where(constant | (not standardize), torch.ones_like(variance), variance.sqrt())
    return centred / scale.unsqueeze(1), mean, scale


def principal_axes(x: Float[Tensor, "site sample d_model"], *, standardize: bool) -> Axes:
    """Return x in principal axes, each feature first divided by its deviation if asked.

    Raises:
        ProbeError: every feature is constant.
    """
    n_samples = x.shape[1]
    centred, mean, scale = scaled(x, standardize=standardize)
    if x.shape[-1] <= n_samples:
        gram, basis = torch.linalg.eigh(centred.mT @ centred)
        return Axes(centred @ basis, gram.clamp_min(0), basis, mean, scale)
    span, corner = torch.linalg.qr(centred.mT)
    gram, rotation = torch.linalg.eigh(corner @ corner.mT)
    return Axes(corner.mT @ rotation, gram.clamp_min(0), span @ rotation, mean, scale)
