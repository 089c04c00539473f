"""FieldProbe: a read-out of a continuous parameter by a field of directions. It only reads."""

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
class FieldProbe:
    """A frozen softmax read-out with one direction for each value of a parameter u.

    No single direction reads a parameter that bends through the space: each place has its own.
    With a leading site axis, `probe[i]` is the probe of site i and inputs are [site, ..., d].
    """

    kind: ClassVar[str] = "probes.FieldProbe"

    weight: Float[Tensor, "*site value d_model"]
    """Rows that sum to zero: a softmax does not see what is common to all of them."""
    values: Float[Tensor, " value"]
    """Ascending values of u."""
    period: int | float | None = None
    origin: Origin | None = None
    diagnostics: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes and order; keep own copies of what could be changed from outside."""
        ascending = bool((self.values.diff() > 0).all())
        if (
            self.weight.ndim not in (2, 3)
            or self.weight.shape[-2] != len(self.values)
            or (not ascending or len(self.values) < 3)
        ):
            raise ProbeError(
                f"The weight is {list(self.weight.shape)} for {len(self.values)} values, "
                f"ascending: {ascending}. A field needs three or more ascending values with a row "
                "each. Give [value, d]."
            )
        for name in ("weight", "values"):
            object.__setattr__(self, name, settled(getattr(self, name)))
        if self.period is not None:
            # 24 and 24.0 are one period and have one digest.
            object.__setattr__(self, "period", float(self.period))
        object.__setattr__(self, "origin", plain(self.origin, "origin"))
        object.__setattr__(self, "diagnostics", plain(self.diagnostics, "diagnostics"))

    @property
    def n_sites(self) -> int | None:
        """How many probes are stacked; None for a single one."""
        return self.weight.shape[0] if self.weight.ndim == 3 else None

    @property
    def d_model(self) -> int:
        """Width of the activations that it reads."""
        return self.weight.shape[-1]

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probability of each value: [..., value] for [..., d].

        Raises:
            ProbeError: x has another width, another number of sites, or lies on another device.
        """
        check_input(x, self.d_model, self.n_sites, self.weight.device)
        return rows_of(x, self.weight, None).softmax(-1)

    def scores(self, x: Tensor) -> Tensor:
        """Return the read parameter: its mean, the circular one where u has a period: [...]."""
        p = self.probabilities(x)
        values = self.values.to(p)
        if self.period is None:
            return p @ values
        turn = 2 * pi * values / self.period
        angle = torch.atan2(p @ turn.sin(), p @ turn.cos()) % (2 * pi)
        return angle * self.period / (2 * pi)

    def gram(self) -> Float[Tensor, "*site value value"]:
        """Return the cosines between the directions of all values; a band where u bends slowly."""
        rows = self.weight / self.weight.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        return rows @ rows.mT

    def spectrum(self) -> Float[Tensor, "*site value"]:
        """Return the eigenvalues of `gram`, largest first, as shares of their sum."""
        found = torch.linalg.eigvalsh(self.gram()).flip(-1).clamp_min(0)
        return found / found.sum(-1, keepdim=True)

    def locality(self) -> tuple[Tensor, Float[Tensor, "*site distance"]]:
        """Return distances in u and the mean cosine at each: how fast directions turn."""
        apart = (self.values[:, None] - self.values[None]).abs()
        if self.period is not None:
            apart = torch.minimum(apart, self.period - apart)
        # Rounded in shares of the range: distances that differ by rounding are one distance.
        span = apart.max()
        found, place = (apart / span).round(decimals=6).unique(return_inverse=True)
        member = torch.nn.functional.one_hot(place.flatten(), len(found)).to(self.weight)
        return found * span, self.gram().flatten(-2) @ member / member.sum(0)

    def direction(self, u: Tensor | float) -> Float[Tensor, "... d_model"]:
        """Return the unit vector in which the state tells u from a little more: [..., d] for [...].

        The derivative of the field of directions along u: central differences at the values (one
        side at the ends), interpolated between them. Of a single probe, not of a stack.

        Raises:
            ProbeError: a stack of probes.
        """
        if self.n_sites is not None:
            raise ProbeError(
                f"This is a stack of {self.n_sites} fields, and u lies in one. Take one: probe[3]."
            )
        at = torch.as_tensor(u, device=self.values.device).to(self.values.dtype)
        slopes, values = self._slopes()
        if self.period is not None:
            at = (at - values[0]) % self.period + values[0]
        k = (torch.searchsorted(values, at.contiguous()) - 1).clamp(0, len(values) - 2)
        share = ((at - values[k]) / (values[k + 1] - values[k])).clamp(0, 1).unsqueeze(-1)
        found = (1 - share) * slopes[k] + share * slopes[k + 1]
        return found / found.norm(dim=-1, keepdim=True).clamp_min(1e-30)

    def _slopes(self) -> tuple[Tensor, Tensor]:
        """Return the derivative at each value, and the values; a ring's first comes last again."""
        rows, values = self.weight, self.values
        if self.period is None:
            (slopes,) = torch.gradient(rows, spacing=(values,), dim=0)
            return slopes, values
        wrapped = torch.cat([rows[-1:], rows, rows[:2]])
        turn = float(self.period)
        places = torch.cat([values[-1:] - turn, values, values[:2] + turn])
        (slopes,) = torch.gradient(wrapped, spacing=(places,), dim=0)
        return slopes[1:-1], places[1:-1]

    def __getitem__(self, index: int) -> "FieldProbe":
        """Return the probe of one site of a stacked fit."""
        origin, diagnostics = of_site(self.origin, self.diagnostics, self.n_sites, index)
        return replace(self, weight=self.weight[index], origin=origin, diagnostics=diagnostics)

    def __len__(self) -> int:
        """Return the number of stacked probes."""
        return self.n_sites or 1

    def to(self, device: torch.device | str) -> "FieldProbe":
        """Return the same probe on another device; its digest stays."""
        return replace(self, weight=self.weight.to(device), values=self.values.to(device))

    def spec(self) -> dict[str, object]:
        """Return the canonical spec: plain values, with weight and values as tensors."""
        return {
            "kind": self.kind,
            "version": 1,
            "weight": self.weight,
            "values": self.values,
            "period": self.period,
            "origin": self.origin,
            "diagnostics": dict(self.diagnostics),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "FieldProbe":
        """Return the probe that a spec describes.

        Raises:
            ProbeError: another kind or version, a missing or an unknown field.
        """
        names = {"weight", "values", "period", "origin", "diagnostics"}
        return cls(**spec_fields(spec, cls.kind, names))  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """The sha256 over everything in `spec()`, weights included."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say what it reads and how well it did."""
        ends = f"u {float(self.values[0]):g} to {float(self.values[-1]):g}"
        what = ends if self.period is None else f"{ends}, period {self.period:g}"
        return described("FieldProbe", what, self.d_model, self.n_sites, self.diagnostics)
