"""Erasure: what a linear probe could read of a concept, taken out of the states."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import ProbeError
from probes.frozen import check_input, described, of_site, settled, spec_fields
from probes.identity import plain, spec_digest
from probes.inputs import Array, Labels, labelled, samples
from probes.linear import Origin

Method = Literal["leace", "mean"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Erasure:
    """A frozen affine map x - left (right (x - mean)) that takes a concept out of states.

    With a leading site axis, `erasure[i]` is that of site i and inputs are [site, ..., d].
    """

    kind: ClassVar[str] = "probes.Erasure"

    left: Float[Tensor, "*site d_model k"]
    right: Float[Tensor, "*site k d_model"]
    mean: Float[Tensor, "*site d_model"]
    method: Method
    origin: Origin | None = None
    diagnostics: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes; keep own copies of what could be changed from outside."""
        expected = (*self.mean.shape, self.left.shape[-1])
        if self.left.shape != expected or self.right.mT.shape != expected:
            raise ProbeError(
                f"left is {list(self.left.shape)}, right {list(self.right.shape)} and mean "
                f"{list(self.mean.shape)}. They are [d, k], [k, d] and [d]. Give those."
            )
        for name in ("left", "right", "mean"):
            object.__setattr__(self, name, settled(getattr(self, name)))
        object.__setattr__(self, "origin", plain(self.origin, "origin"))
        object.__setattr__(self, "diagnostics", plain(self.diagnostics, "diagnostics"))

    @property
    def n_sites(self) -> int | None:
        """How many erasures are stacked; None for a single one."""
        return self.mean.shape[0] if self.mean.ndim == 2 else None

    @property
    def d_model(self) -> int:
        """Width of the states that it takes."""
        return self.mean.shape[-1]

    @property
    def rank(self) -> int:
        """How many directions are taken out, of a stack the most at any site."""
        return int((self.left != 0).any(-2).sum(-1).max())

    def apply(self, x: Tensor) -> Tensor:
        """Return the states without the concept, [..., d], in the wider of the two dtypes.

        Raises:
            ProbeError: x has another width, another number of sites, or lies on another device.
        """
        check_input(x, self.d_model, self.n_sites, self.mean.device)
        dtype = torch.promote_types(x.dtype, self.mean.dtype)
        left, right, mean = (t.to(dtype) for t in (self.left, self.right, self.mean))
        flat = x.to(dtype).reshape(*mean.shape[:-1], -1, self.d_model)
        removed = (flat - mean.unsqueeze(-2)) @ right.mT @ left.mT
        return (flat - removed).reshape(x.shape)

    def __getitem__(self, index: int) -> "Erasure":
        """Return the erasure of one site of a stacked fit."""
        origin, diagnostics = of_site(self.origin, self.diagnostics, self.n_sites, index)
        left, right, mean = (t[index] for t in (self.left, self.right, self.mean))
        return replace(
            self, left=left, right=right, mean=mean, origin=origin, diagnostics=diagnostics
        )

    def __len__(self) -> int:
        """Return the number of stacked erasures."""
        return self.n_sites or 1

    def to(self, device: torch.device | str) -> "Erasure":
        """Return the same erasure on another device; its digest stays."""
        left, right, mean = (t.to(device) for t in (self.left, self.right, self.mean))
        return replace(self, left=left, right=right, mean=mean)

    def spec(self) -> dict[str, object]:
        """Return the canonical spec: plain values and tensors."""
        names = ("left", "right", "mean", "method", "origin")
        found: dict[str, object] = {"kind": self.kind, "version": 1}
        found |= {name: getattr(self, name) for name in names}
        return found | {"diagnostics": dict(self.diagnostics)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Erasure":
        """Return the erasure that a spec describes.

        Raises:
            ProbeError: another kind or version, a missing or an unknown field.
        """
        names = {"left", "right", "mean", "method", "origin", "diagnostics"}
        return cls(**spec_fields(spec, cls.kind, names))  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """The sha256 over everything in `spec()`, tensors included."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say what it takes out, and at what cost."""
        what = f"{self.method}, rank {self.rank}"
        return described("Erasure", what, self.d_model, self.n_sites, self.diagnostics)


def fit_erasure(
    x: Array, y: Labels, *, method: Method = "leace", origin: Origin | None = None
) -> Erasure:
    """Fit the map after which no linear probe can tell the classes apart better than guessing.

    leace: least-squares concept erasure (Belrose et al. 2023, arXiv:2306.03819). Whiten, project
    away what covaries with the labels, unwhiten: of all maps that leave no covariance between
    states and labels it changes the states least, in every norm. Then no linear (or logistic) probe
    does better than a constant, on these samples. mean: the span of the differences of class means
    projected away at right angles; the same guarantee for means, at a larger change of the states.

    The guarantee is of the samples it was fitted on; score a fresh probe on held-out ones. It says
    nothing of probes that are not linear.

    Args:
        x: [sample, d], or [site, sample, d] for one erasure per site.
        y: a label for each sample; two classes or more.
        method: see above.
        origin: where x came from, `acts.origin(site)`.

    Raises:
        ProbeError: one class only, or an unknown method.
    """
    if method not in get_args(Method):
        raise ProbeError(f"There is no method {method!r}. Give one of {get_args(Method)}.")
    data = samples(x)
    n = data.values.shape[1]
    classes, index = labelled(y, n)
    one_hot = torch.nn.functional.one_hot(index, len(classes)).to(data.values)
    mean = data.values.mean(1)
    centred = data.values - mean.unsqueeze(1)
    precision = torch.finfo(data.dtype).eps
    if method == "leace":
        left, right = _leace(centred, one_hot, precision)
    else:
        left, right = _means(centred, one_hot)
    moved = (centred @ right.mT @ left.mT).square().sum((1, 2))
    share = moved / centred.square().sum((1, 2)).clamp_min(1e-300)
    diagnostics: dict[str, object] = {
        "n_samples": n,
        "removed_variance": share.tolist() if data.stacked else share[0].item(),
    }
    kept = [data.restored(t) for t in (left, right, mean)]
    return Erasure(kept[0], kept[1], kept[2], method, origin, diagnostics)


def _leace(centred: Tensor, one_hot: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """Return left = W^+ U and right = U' W, U the range of what covaries in whitened states.

    The states are whitened by their singular values, not by their covariance: squared, a feature
    a million times smaller than the largest would be lost in rounding, with what it says of labels.
    """
    n_samples = centred.shape[1]
    rows, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    # Directions without variance hold nothing: the pseudo-inverse leaves them as they are. What
    # is below the precision of the data, or of the decomposition, is no variance.
    rounding = max(precision, max(centred.shape[1:]) * torch.finfo(sizes.dtype).eps)
    kept = sizes > sizes.amax(-1, keepdim=True) * rounding
    deviation = sizes / n_samples**0.5
    inverse = torch.where(kept, 1 / torch.where(kept, deviation, 1.0), 0.0)
    # One column less than classes: the last is what the others leave.
    labels = (one_hot - one_hot.mean(0))[:, :-1]
    cross = (rows * kept.unsqueeze(-2)).mT @ labels / n_samples**0.5
    # Whitened, so without a unit: entries are correlations times the deviation of a label.
    span = _range(cross, torch.ones_like(sizes[:, 0]))
    return axes.mT @ (deviation.unsqueeze(-1) * span), (inverse.unsqueeze(-1) * span).mT @ axes


def _means(centred: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Return left and right = left', the range of the differences of the class means."""
    means = one_hot.mT @ centred / one_hot.sum(0).unsqueeze(-1)
    span = _range((means[:, :-1] - means[:, -1:]).mT, centred.square().mean((1, 2)).sqrt())
    return span, span.mT


def _range(columns: Tensor, unit: Tensor) -> Tensor:
    """Return orthonormal columns with the same span; columns of zeros where it has fewer.

    What is nothing beside the unit is nothing: relative to the largest column alone, the rounding
    error of equal class means would be a direction.
    """
    axes, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    kept = sizes > 1e-10 * unit.unsqueeze(-1)
    return axes * kept.unsqueeze(-2)
