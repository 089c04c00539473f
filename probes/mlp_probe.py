"""MLPProbe: a frozen read-out with one hidden layer, and the pure functions its spec needs.

Fitting is in `probes.mlp`. The functions below it serve the other probes that are not linear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from probes.display import short
from probes.errors import ProbeError
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


def settled(value: Tensor) -> Tensor:
    """Return a tensor without history, contiguous, in float32 or float64.

    Raises:
        ProbeError: entries that are not finite.
    """
    if not bool(torch.isfinite(value).all()):
        raise ProbeError(
            "The weights of a probe are not finite. They would turn every score into NaN. Refit it."
        )
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return value.detach().to(dtype).contiguous()


def rows_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight' + bias as [..., row]; with a site axis in weight, x is [site, ..., d]."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    flat = x.to(dtype).reshape(*weight.shape[:-2], -1, weight.shape[-1])
    out = flat @ weight.to(dtype).mT
    out = out if bias is None else out + bias.to(dtype).unsqueeze(-2)
    return out.reshape(*x.shape[:-1], weight.shape[-2])


def check_input(x: Tensor, d_model: int, n_sites: int | None, device: torch.device) -> None:
    """Refuse what torch would refuse later with less to say.

    Raises:
        ProbeError: another width or number of sites, integers, another device.
    """
    if not x.is_floating_point() or x.shape[-1:] != (d_model,):
        raise ProbeError(
            f"The input is {list(x.shape)} {x.dtype}, but this probe reads {d_model} "
            "floating-point numbers along the last axis. It was fitted at a site of that width. "
            "Give activations of the same site."
        )
    if n_sites is not None and (x.ndim < 2 or x.shape[0] != n_sites):
        raise ProbeError(
            f"The input is {list(x.shape)}, but this is a stack of {n_sites} probes. Each needs "
            "the activations of its own site. Give [site, ..., d], or take one probe by its index."
        )
    if x.device != device:
        raise ProbeError(
            f"The input is on {x.device} and the probe on {device}. Moving it at every call would "
            "be slow. Move it once with probe.to(x.device)."
        )


def of_site(
    origin: Origin | None, diagnostics: Mapping[str, object], n_sites: int | None, index: int
) -> tuple[Origin | None, dict[str, object]]:
    """Return origin and diagnostics of one site; lists as long as the stack are per site.

    Raises:
        ProbeError: the probe is not stacked.
    """
    if n_sites is None:
        raise ProbeError(
            "This probe reads a single site. Only a fit on [site, sample, d] can be indexed. "
            "Use it as it is."
        )
    one = origin[index] if isinstance(origin, Sequence) else origin
    return one, {
        key: item[index] if isinstance(item, list) and len(item) == n_sites else item
        for key, item in diagnostics.items()
    }


def spec_fields(spec: Mapping[str, object], kind: str, names: set[str]) -> dict[str, object]:
    """Return the fields of a spec of this kind.

    Raises:
        ProbeError: another kind or version, a missing or an unknown field.
    """
    fields = spec.keys() - {"kind", "version"}
    if spec.get("kind") != kind or spec.get("version") != 1 or fields != names:
        raise ProbeError(
            f"The spec says kind {spec.get('kind')!r}, version {spec.get('version')!r}, fields "
            f"{sorted(fields)}; this is {kind}, version 1, fields {sorted(names)}. It was saved "
            "from something else, or by another release. Load it with the one that saved it."
        )
    return {name: spec[name] for name in fields}


def described(
    name: str, what: str, d_model: int, n_sites: int | None, diagnostics: Mapping[str, object]
) -> str:
    """Return the text of a probe: what it reads and how well it did."""
    sites = "" if n_sites is None else f", {n_sites} sites"
    notes = "".join(f", {key}={short(item)}" for key, item in diagnostics.items())
    return f"{name}({what}, d={d_model}{sites}{notes})"
