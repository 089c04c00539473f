"""MLPProbe: a frozen read-out with one hidden layer. Fitting is in `probes.mlp`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import ProbeError
from probes.frozen import check_input, described, of_site, rows_of, settled, spec_fields
from probes.identity import plain, spec_digest
from probes.linear import Label, Origin

_TENSORS = ("weight_in", "bias_in", "weight_out", "bias_out")


@final
@dataclass(frozen=True, slots=True, eq=False)
class MLPProbe:
    """A frozen read-out: `logits(x) = weight_out tanh(weight_in x + bias_in) + bias_out`.

    `scores` are probabilities: of the second class with two, of each class along a last axis with
    more. Scaling is folded in, so inputs are raw activations. It has no `direction`: what it reads
    turns with the input. With a leading site axis, `probe[i]` is the probe of site i.
    """

    kind: ClassVar[str] = "probes.MLPProbe"

    weight_in: Float[Tensor, "*site hidden d_model"]
    bias_in: Float[Tensor, "*site hidden"]
    weight_out: Float[Tensor, "*site out hidden"]
    """One row for two classes, else one row for each class."""
    bias_out: Float[Tensor, "*site out"]
    classes: tuple[Label, ...]
    origin: Origin | None = None
    diagnostics: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes and values; keep own copies of what could be changed from outside."""
        rows = 1 if len(self.classes) == 2 else len(self.classes)
        shape = self.weight_in.shape
        expected = (shape[:-1], (*shape[:-2], rows, shape[-2]), (*shape[:-2], rows))
        found = tuple(getattr(self, name).shape for name in _TENSORS[1:])
        if self.weight_in.ndim not in (2, 3) or found != tuple(map(torch.Size, expected)):
            raise ProbeError(
                f"weight_in is {list(shape)}, bias_in, weight_out and bias_out are "
                f"{[list(item) for item in found]}. For {len(self.classes)} classes the last three "
                f"are {[list(item) for item in expected]}. Give tensors of those shapes."
            )
        for name in _TENSORS:
            object.__setattr__(self, name, settled(getattr(self, name)))
        object.__setattr__(self, "classes", tuple(plain(list(self.classes), "classes")))  # type: ignore[arg-type]
        object.__setattr__(self, "origin", plain(self.origin, "origin"))
        object.__setattr__(self, "diagnostics", plain(self.diagnostics, "diagnostics"))

    @property
    def n_classes(self) -> int:
        """How many labels there are."""
        return len(self.classes)

    @property
    def n_sites(self) -> int | None:
        """How many probes are stacked; None for a single one."""
        return self.weight_in.shape[0] if self.weight_in.ndim == 3 else None

    @property
    def d_model(self) -> int:
        """Width of the activations that it reads."""
        return self.weight_in.shape[-1]

    def logits(self, x: Tensor) -> Tensor:
        """Return [...] for [..., d] with two classes, with a last class axis for more.

        Raises:
            ProbeError: x has another width, another number of sites, or lies on another device.
        """
        check_input(x, self.d_model, self.n_sites, self.weight_in.device)
        hidden = rows_of(x, self.weight_in, self.bias_in).tanh()
        logits = rows_of(hidden, self.weight_out, self.bias_out)
        return logits.squeeze(-1) if self.n_classes == 2 else logits

    def scores(self, x: Tensor) -> Tensor:
        """Return probabilities: of the second class with two, of each class with more."""
        logits = self.logits(x)
        return logits.sigmoid() if self.n_classes == 2 else logits.softmax(-1)

    def predict(self, x: Tensor) -> Tensor:
        """Return the index into `classes` of the likeliest class, for every row of x."""
        logits = self.logits(x)
        return (logits > 0).long() if self.n_classes == 2 else logits.argmax(-1)

    def __getitem__(self, index: int) -> "MLPProbe":
        """Return the probe of one site of a stacked fit."""
        origin, diagnostics = of_site(self.origin, self.diagnostics, self.n_sites, index)
        values = {name: getattr(self, name)[index] for name in _TENSORS}
        return replace(self, **values, origin=origin, diagnostics=diagnostics)

    def __len__(self) -> int:
        """Return the number of stacked probes."""
        return self.n_sites or 1

    def to(self, device: torch.device | str) -> "MLPProbe":
        """Return the same probe on another device; its digest stays."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def spec(self) -> dict[str, object]:
        """Return the canonical spec: plain values, with the weights as tensors."""
        return {
            "kind": self.kind,
            "version": 1,
            **{name: getattr(self, name) for name in _TENSORS},
            "classes": list(self.classes),
            "origin": self.origin,
            "diagnostics": dict(self.diagnostics),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "MLPProbe":
        """Return the probe that a spec describes.

        Raises:
            ProbeError: another kind or version, a missing or an unknown field.
        """
        values = spec_fields(spec, cls.kind, {*_TENSORS, "classes", "origin", "diagnostics"})
        return cls(**{**values, "classes": tuple(values["classes"])})  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """The sha256 over everything in `spec()`, weights included."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say what it reads and how well it did, never the numbers themselves."""
        what = f"{', '.join(map(str, self.classes))}, hidden={self.weight_in.shape[-2]}"
        return described("MLPProbe", what, self.d_model, self.n_sites, self.diagnostics)
