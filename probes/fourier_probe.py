"""FourierProbe: a read-out of numbers by their phase in several periods. It only reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import pi
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import ProbeError
from probes.frozen import check_input, described, of_site, rows_of, settled, spec_fields
from probes.identity import plain, spec_digest
from probes.linear import Origin


@final
@dataclass(frozen=True, slots=True, eq=False)
class FourierProbe:
    """A frozen linear read-out of cos(2 pi v / T) and sin(2 pi v / T) for some periods T.

    With a leading site axis, `probe[i]` is the probe of site i and inputs are [site, ..., d].
    """

    kind: ClassVar[str] = "probes.FourierProbe"

    weight: Float[Tensor, "*site period wave d_model"]
    """Cosine first, then sine; on raw activations."""
    bias: Float[Tensor, "*site period wave"]
    periods: tuple[int | float, ...]
    origin: Origin | None = None
    diagnostics: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes; keep own copies of what could be changed from outside."""
        shape = (len(self.periods), 2)
        if (
            self.weight.ndim not in (3, 4)
            or self.weight.shape[-3:-1] != shape
            or (self.bias.shape != self.weight.shape[:-1])
        ):
            raise ProbeError(
                f"The weight is {list(self.weight.shape)} and the bias {list(self.bias.shape)}, "
                f"for {len(self.periods)} periods. Each period has a row for its cosine and one "
                "for its sine, each with a bias. Give [period, 2, d] and [period, 2]."
            )
        for name in ("weight", "bias"):
            object.__setattr__(self, name, settled(getattr(self, name)))
        object.__setattr__(self, "periods", tuple(float(t) for t in self.periods))
        object.__setattr__(self, "origin", plain(self.origin, "origin"))
        object.__setattr__(self, "diagnostics", plain(self.diagnostics, "diagnostics"))

    @property
    def n_sites(self) -> int | None:
        """How many probes are stacked; None for a single one."""
        return self.weight.shape[0] if self.weight.ndim == 4 else None

    @property
    def d_model(self) -> int:
        """Width of the activations that it reads."""
        return self.weight.shape[-1]

    def waves(self, x: Tensor) -> Tensor:
        """Return the read cosine and sine of every period: [..., period, 2] for [..., d].

        Raises:
            ProbeError: x has another width, another number of sites, or lies on another device.
        """
        check_input(x, self.d_model, self.n_sites, self.weight.device)
        flat = rows_of(x, self.weight.flatten(-3, -2), self.bias.flatten(-2))
        return flat.unflatten(-1, (len(self.periods), 2))

    def phase(self, x: Tensor, period: int | float) -> Tensor:
        """Return the angle that is read at a period, in radians from 0 to 2 pi: [...]."""
        cosine, sine = self.waves(x)[..., self._place(period), :].unbind(-1)
        return torch.atan2(sine, cosine) % (2 * pi)

    def remainder(self, x: Tensor, period: int | float) -> Tensor:
        """Return what is read of the value modulo a period, from 0 to the period: [...]."""
        return self.phase(x, period) * period / (2 * pi)

    def scores(self, x: Tensor) -> Tensor:
        """Return the remainder at the longest period, which says most of the value: [...]."""
        return self.remainder(x, max(self.periods))

    def plane(self, period: int | float) -> Float[Tensor, "*site wave d_model"]:
        """Return orthonormal directions in which the phase turns: [2, d], or [1, d] of one wave.

        A wave that is the same at all fitted values has a weight of zero and no direction: the
        sine of period 2 at whole numbers.

        Raises:
            ProbeError: not one of its periods.
        """
        rows = self.weight[..., self._place(period), :, :]
        norms = rows.norm(dim=-1)
        # Of all sites together: a wave is constant at all of them or at none.
        kept = (norms > 1e-9 * norms.amax(-1, keepdim=True)).reshape(-1, 2).any(0)
        rows = rows[..., kept, :]
        return torch.linalg.qr(rows.mT)[0].mT

    def _place(self, period: int | float) -> int:
        if float(period) not in self.periods:
            raise ProbeError(
                f"This probe reads the periods {', '.join(f'{t:g}' for t in self.periods)}, not "
                f"{period:g}. Fit it with that period."
            )
        return self.periods.index(float(period))

    def __getitem__(self, index: int) -> "FourierProbe":
        """Return the probe of one site of a stacked fit."""
        origin, diagnostics = of_site(self.origin, self.diagnostics, self.n_sites, index)
        weight, bias = self.weight[index], self.bias[index]
        return replace(self, weight=weight, bias=bias, origin=origin, diagnostics=diagnostics)

    def __len__(self) -> int:
        """Return the number of stacked probes."""
        return self.n_sites or 1

    def to(self, device: torch.device | str) -> "FourierProbe":
        """Return the same probe on another device; its digest stays."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def spec(self) -> dict[str, object]:
        """Return the canonical spec: plain values, with weight and bias as tensors."""
        return {
            "kind": self.kind,
            "version": 1,
            "weight": self.weight,
            "bias": self.bias,
            "periods": list(self.periods),
            "origin": self.origin,
            "diagnostics": dict(self.diagnostics),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "FourierProbe":
        """Return the probe that a spec describes.

        Raises:
            ProbeError: another kind or version, a missing or an unknown field.
        """
        names = {"weight", "bias", "periods", "origin", "diagnostics"}
        fields = spec_fields(spec, cls.kind, names)
        periods = tuple(fields.pop("periods"))  # type: ignore[arg-type]
        return cls(periods=periods, **fields)  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """The sha256 over everything in `spec()`, weights included."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say which periods it reads and how well it did."""
        what = f"periods {', '.join(f'{t:g}' for t in self.periods)}"
        return described("FourierProbe", what, self.d_model, self.n_sites, self.diagnostics)
