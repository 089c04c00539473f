"""LinearProbe: what every linear fit returns. It only reads; fits are in the modules beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from probes.display import short, table
from probes.errors import ProbeError
from probes.identity import plain, spec_digest

Label: TypeAlias = bool | int | float | str
Origin: TypeAlias = Mapping[str, object] | Sequence[Mapping[str, object]]
"""Where the activations came from: model and weight hash, site, scope. A list when stacked."""
Link: TypeAlias = Literal["logistic", "identity"]

_SPEC_FIELDS = frozenset({"weight", "bias", "link", "classes", "origin", "diagnostics"})
_LINKS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "identity": lambda logits, _: logits,
    "logistic": lambda logits, many: logits.softmax(-1) if many else logits.sigmoid(),
}


@final
@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """A frozen linear read-out: `logits(x) = x @ weight + bias`, `scores = link(logits)`.

    The link says what `scores` are:
      logistic: probabilities; of the positive class (the second) with two classes, of each class
        along a last axis with more. From `fit_logistic` and `fit_lda`.
      identity: the logits themselves. From the contrast fits, a distance in activation units
        along `direction`, zero half-way between the class means; from `fit_ridge`, a prediction.

    The natural threshold is thus 0.5 with the logistic link and 0 with contrast fits. Any centring
    and scaling of the fit is folded in: inputs are raw activations. Arithmetic is float32, or
    float64 where probe or input has it; results of bfloat16 and float16 inputs are float32.

    With a leading site axis, `probe[i]` is the probe of site i and inputs are [site, ..., d].
    """

    kind: ClassVar[str] = "probes.LinearProbe"

    weight: Float[Tensor, "... d_model"]
    """[d], or [n_classes, d] with rows that sum to zero, with a leading site axis when stacked."""
    bias: Float[Tensor, "..."]
    link: Link = "identity"
    classes: tuple[Label, ...] | None = None
    """Sorted labels; with two, the second is the positive one. None: a number is predicted."""
    origin: Origin | None = None
    diagnostics: Mapping[str, object] = field(default_factory=dict)
    """Held-out score, number of samples, seed, and what the fit says of itself."""

    def __post_init__(self) -> None:
        """Check shapes and values; keep own copies of what could be changed from outside."""
        _check_link(self.link)
        if self.bias.shape != self.weight.shape[:-1] or self.bias.dtype != self.weight.dtype:
            raise ProbeError(
                f"The weight is {list(self.weight.shape)} {self.weight.dtype} but the bias is "
                f"{list(self.bias.shape)} {self.bias.dtype}. Each row of weights has one bias. "
                "Give a bias of the weight's shape without its last axis, in its dtype."
            )
        rows = self.weight.ndim - 1 - self.is_multiclass
        if rows not in (0, 1) or (self.is_multiclass and self.weight.shape[-2] != self.n_classes):
            raise ProbeError(
                f"A weight of shape {list(self.weight.shape)} does not fit {self.n_classes} "
                "classes. It is [d] for two classes or a number, [n_classes, d] for more, with "
                "one site axis before it at most. Reshape it."
            )
        if not bool(torch.isfinite(self.weight).all() & torch.isfinite(self.bias).all()):
            raise ProbeError(
                "The weight or the bias of a probe is not finite. It would turn every score and "
                "every state it steers into NaN. Refit it."
            )
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        # Contiguous, as a saved weight is: products round by memory layout.
        object.__setattr__(self, "weight", self.weight.detach().to(dtype).contiguous())
        object.__setattr__(self, "bias", self.bias.detach().to(dtype))
        if self.classes is not None:
            labels = tuple(plain(list(self.classes), "classes"))  # type: ignore[arg-type]
            object.__setattr__(self, "classes", labels)
        object.__setattr__(self, "origin", plain(self.origin, "origin"))
        object.__setattr__(self, "diagnostics", plain(self.diagnostics, "diagnostics"))

    @property
    def n_classes(self) -> int:
        """How many labels there are; 0 when a number is predicted."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def is_multiclass(self) -> bool:
        """Whether scores have one entry for each class."""
        return self.n_classes > 2

    @property
    def n_sites(self) -> int | None:
        """How many probes are stacked; None for a single one."""
        return self.weight.shape[0] if self.weight.ndim == 2 + self.is_multiclass else None

    @property
    def d_model(self) -> int:
        """Width of the activations that it reads."""
        return self.weight.shape[-1]

    @property
    def direction(self) -> Float[Tensor, "*site d_model"]:
        """The unit vector along which the score of the positive class grows fastest.

        Raises:
            ProbeError: more than two classes (see `toward`), or a weight of zero.
        """
        if self.is_multiclass:
            raise ProbeError(
                f"A probe of {self.n_classes} classes has no single direction. Each class has its "
                f"own row. Take probe.toward({self.classes[-1]!r}).direction."  # type: ignore[index]
            )
        norm = torch.linalg.vector_norm(self.weight, dim=-1, keepdim=True)
        if not bool((norm > 0).all()):
            raise ProbeError(
                "The weight of this probe is zero, which points nowhere. What it was fitted on "
                "does not tell the classes apart. Fit it on other data or at another site."
            )
        return self.weight / norm

    @property
    def separation(self) -> Float[Tensor, "*site"]:
        """The distance between the class means along `direction`, in activation units.

        Raises:
            ProbeError: not a contrast fit, which alone measures it.
        """
        if "separation" not in self.diagnostics:
            raise ProbeError(
                "This probe does not know how far apart its classes are. Only contrast fits "
                "measure it. Use fit_mean_difference, or give a strength in activation units."
            )
        return torch.as_tensor(self.diagnostics["separation"]).to(self.weight)

    def logits(self, x: Tensor) -> Tensor:
        """Return x @ weight + bias: [...] for [..., d], with a last class axis for many classes.

        Raises:
            ProbeError: x has another width, another number of sites, or lies on another device.
        """
        self._check_input(x)
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        weight, bias, x = self.weight.to(dtype), self.bias.to(dtype), x.to(dtype)
        if self.n_sites is None:
            return x @ weight.mT + bias if self.is_multiclass else x @ weight + bias
        flat = x.reshape(self.n_sites, -1, self.d_model)
        rows = weight if self.is_multiclass else weight.unsqueeze(-2)
        out = torch.baddbmm(bias.reshape(self.n_sites, 1, -1), flat, rows.mT)
        return out.reshape(*x.shape[:-1], *((self.n_classes,) if self.is_multiclass else ()))

    def scores(self, x: Tensor) -> Tensor:
        """Return the link of the logits: probabilities if logistic, else the logits."""
        return _LINKS[self.link](self.logits(x), self.is_multiclass)

    def predict(self, x: Tensor) -> Tensor:
        """Return the index into `classes` of the likeliest class, for every row of x.

        Raises:
            ProbeError: this probe predicts a number, which `scores` are.
        """
        if self.classes is None:
            raise ProbeError(
                "This probe predicts a number, not a class. It has no labels to choose from. "
                "Use scores(x)."
            )
        logits = self.logits(x)
        return logits.argmax(-1) if self.is_multiclass else (logits > 0).long()

    def toward(self, label: Label) -> "LinearProbe":
        """Return the two-sided probe of one class: its own row, which reads its centred logit.

        With two classes, the first one's probe is the second's with its sign turned.

        Raises:
            ProbeError: no such label.
        """
        if self.classes is None or label not in self.classes:
            raise ProbeError(
                f"{label!r} is not a class of this probe: it has {self._classes_text()}. Without "
                "it there is no direction to take. Name one of its classes."
            )
        index = self.classes.index(label)
        if not self.is_multiclass:
            sign = 1 if index == 1 else -1
            return replace(
                self,
                weight=sign * self.weight,
                bias=sign * self.bias,
                classes=self.classes if index == 1 else self.classes[::-1],
            )
        return replace(
            self,
            weight=self.weight[..., index, :],
            bias=self.bias[..., index],
            link="identity",
            classes=(f"not {label}", label),
        )

    def __getitem__(self, index: int) -> "LinearProbe":
        """Return the probe of one site of a stacked fit."""
        if self.n_sites is None:
            raise ProbeError(
                "This probe reads a single site. Only a fit on [site, sample, d] can be indexed. "
                "Use it as it is."
            )
        origin = self.origin[index] if isinstance(self.origin, Sequence) else self.origin
        # Lists of the stack's length are per site; everything else is said of all of them.
        diagnostics = {
            key: item[index] if isinstance(item, list) and len(item) == self.n_sites else item
            for key, item in self.diagnostics.items()
        }
        return replace(
            self,
            weight=self.weight[index],
            bias=self.bias[index],
            origin=origin,
            diagnostics=diagnostics,
        )

    def __len__(self) -> int:
        """Return the number of stacked probes."""
        return 1 if self.n_sites is None else self.n_sites

    def to(self, device: torch.device | str) -> "LinearProbe":
        """Return the same probe on another device; its digest stays."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def spec(self) -> dict[str, object]:
        """Return the canonical spec: plain values, with weight and bias as tensors."""
        return {
            "kind": self.kind,
            "version": 1,
            "weight": self.weight,
            "bias": self.bias,
            "link": self.link,
            "classes": None if self.classes is None else list(self.classes),
            "origin": self.origin,
            "diagnostics": dict(self.diagnostics),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "LinearProbe":
        """Return the probe that a spec describes.

        Raises:
            ProbeError: another kind or version, a missing or an unknown field.
        """
        found, version = spec.get("kind"), spec.get("version")
        fields = spec.keys() - {"kind", "version"}
        if found != cls.kind or version != 1 or fields != _SPEC_FIELDS:
            raise ProbeError(
                f"The spec says kind {found!r}, version {version!r}, fields {sorted(fields)}; this "
                f"is {cls.kind}, version 1, fields {sorted(_SPEC_FIELDS)}. It was saved from "
                "something else, or by another release. Load it with the one that saved it."
            )
        _check_link(spec["link"])
        values = {name: spec[name] for name in fields - {"classes"}}
        classes = spec["classes"]
        labels = None if classes is None else tuple(classes)  # type: ignore[arg-type]
        return cls(classes=labels, **values)  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """The sha256 over everything in `spec()`, weights included."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say what it reads and how well it did, never the numbers themselves."""
        sites = "" if self.n_sites is None else f", {self.n_sites} sites"
        notes = [f"{key}={short(item)}" for key, item in self.diagnostics.items()]
        notes += [f"site={_site_of(self.origin)}"] if _site_of(self.origin) else []
        told = f", {', '.join(notes)}" if notes else ""
        return f"LinearProbe({self._classes_text()}, d={self.d_model}{sites}, {self.link}{told})"

    def _repr_html_(self) -> str:
        """Return a small table for notebooks."""
        rows = {
            "reads": f"{self.d_model} wide" + (f", {self.n_sites} sites" if self.n_sites else ""),
            "classes": self._classes_text(),
            "scores": "probability" if self.link == "logistic" else "decision value",
            **self.diagnostics,
            "site": _site_of(self.origin) or "unverified",
        }
        return table("LinearProbe", rows)

    def _classes_text(self) -> str:
        """Return the classes as words: positive over negative, or all of them."""
        if self.classes is None:
            return "a number"
        if not self.is_multiclass:
            return f"{self.classes[1]} over {self.classes[0]}"
        return ", ".join(map(str, self.classes))

    def _check_input(self, x: Tensor) -> None:
        """Refuse what torch would refuse later with less to say."""
        if not x.is_floating_point() or x.shape[-1:] != (self.d_model,):
            raise ProbeError(
                f"The input is {list(x.shape)} {x.dtype}, but this probe reads {self.d_model} "
                "floating-point numbers along the last axis. It was fitted at a site of that "
                "width. Give activations of the same site."
            )
        if self.n_sites is not None and (x.ndim < 2 or x.shape[0] != self.n_sites):
            raise ProbeError(
                f"The input is {list(x.shape)}, but this is a stack of {self.n_sites} probes. "
                "Each needs the activations of its own site. Give [site, ..., d], or take one "
                "probe by its index."
            )
        if x.device != self.weight.device:
            raise ProbeError(
                f"The input is on {x.device} and the probe on {self.weight.device}. Moving it at "
                "every call would be slow. Move it once with probe.to(x.device)."
            )


def _check_link(link: object) -> None:
    """Refuse a link that is not known; specs come from files, so types promise nothing."""
    if link not in _LINKS:
        raise ProbeError(
            f"link is {link!r}, which names no score. Give one of {', '.join(_LINKS)}."
        )


def _site_of(origin: Origin | None) -> str:
    """Return the site that an origin names, or an empty string."""
    first = origin if isinstance(origin, Mapping) else (origin or [{}])[0]
    return str(first.get("site", ""))
