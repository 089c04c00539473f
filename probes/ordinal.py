"""Fits of ordered labels: the proportional odds model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from probes.errors import ProbeError
from probes.features import principal_axes
from probes.frozen import check_input, described, of_site, rows_of, settled, spec_fields
from probes.held_out import split
from probes.identity import plain, spec_digest
from probes.inputs import Array, Labels, check_penalty, labelled, plain_list, samples
from probes.linear import Label, Origin

_STEPS, _HALVINGS = 100, 40
_GRADIENT, _ACCEPTED = 1e-8, 1e-6
"""Largest entry of the gradient: where the fit stops, and what it must have reached."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class OrdinalProbe:
    """A frozen read-out of ordered classes: P(class <= k) = sigmoid(cut_k - weight x).

    `scores` are the latent weight x, larger for later classes; with a leading site axis,
    `probe[i]` is the probe of site i. Scaling is folded in: inputs are raw activations.
    """

    kind: ClassVar[str] = "probes.OrdinalProbe"

    weight: Float[Tensor, "*site d_model"]
    cuts: Float[Tensor, "*site cut"]
    """Ascending, one fewer than the classes."""
    classes: tuple[Label, ...]
    origin: Origin | None = None
    diagnostics: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes and order; keep own copies of what could be changed from outside."""
        expected = (*self.weight.shape[:-1], len(self.classes) - 1)
        ordered = bool((self.cuts.diff(dim=-1) > 0).all())
        if self.weight.ndim not in (1, 2) or self.cuts.shape != expected or not ordered:
            raise ProbeError(
                f"The weight is {list(self.weight.shape)} and the cuts are "
                f"{list(self.cuts.shape)}, ascending: {ordered}. {len(self.classes)} classes are "
                f"parted by {len(self.classes) - 1} ascending cuts. Give as many."
            )
        for name in ("weight", "cuts"):
            object.__setattr__(self, name, settled(getattr(self, name)))
        object.__setattr__(self, "classes", tuple(plain(list(self.classes), "classes")))  # type: ignore[arg-type]
        object.__setattr__(self, "origin", plain(self.origin, "origin"))
        object.__setattr__(self, "diagnostics", plain(self.diagnostics, "diagnostics"))

    @property
    def n_classes(self) -> int:
        """How many ordered labels there are."""
        return len(self.classes)

    @property
    def n_sites(self) -> int | None:
        """How many probes are stacked; None for a single one."""
        return self.weight.shape[0] if self.weight.ndim == 2 else None

    @property
    def d_model(self) -> int:
        """Width of the activations that it reads."""
        return self.weight.shape[-1]

    @property
    def direction(self) -> Float[Tensor, "*site d_model"]:
        """The unit vector towards later classes.

        Raises:
            ProbeError: a weight of zero.
        """
        norm = self.weight.norm(dim=-1, keepdim=True)
        if not bool((norm > 0).all()):
            raise ProbeError(
                "The weight of this probe is zero, which points nowhere. What it was fitted on "
                "does not order the classes. Fit it on other data or at another site."
            )
        return self.weight / norm

    def scores(self, x: Tensor) -> Tensor:
        """Return the latent weight x: [...] for [..., d].

        Raises:
            ProbeError: x has another width, another number of sites, or lies on another device.
        """
        check_input(x, self.d_model, self.n_sites, self.weight.device)
        return rows_of(x, self.weight.unsqueeze(-2), None).squeeze(-1)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probability of each class: [..., class] for [..., d]."""
        latent = self.scores(x)
        sites = () if self.n_sites is None else (self.n_sites,)
        cuts = self.cuts.reshape(*sites, *(1,) * (latent.ndim - len(sites)), -1)
        below = (cuts - latent.unsqueeze(-1)).sigmoid()
        edge = torch.zeros_like(below[..., :1])
        return torch.cat([edge, below, 1 + edge], -1).diff(dim=-1)

    def predict(self, x: Tensor) -> Tensor:
        """Return the index into `classes` of the likeliest class, for every row of x."""
        return self.probabilities(x).argmax(-1)

    def __getitem__(self, index: int) -> "OrdinalProbe":
        """Return the probe of one site of a stacked fit."""
        origin, diagnostics = of_site(self.origin, self.diagnostics, self.n_sites, index)
        weight, cuts = self.weight[index], self.cuts[index]
        return replace(self, weight=weight, cuts=cuts, origin=origin, diagnostics=diagnostics)

    def __len__(self) -> int:
        """Return the number of stacked probes."""
        return self.n_sites or 1

    def to(self, device: torch.device | str) -> "OrdinalProbe":
        """Return the same probe on another device; its digest stays."""
        return replace(self, weight=self.weight.to(device), cuts=self.cuts.to(device))

    def spec(self) -> dict[str, object]:
        """Return the canonical spec: plain values, with weight and cuts as tensors."""
        return {
            "kind": self.kind,
            "version": 1,
            "weight": self.weight,
            "cuts": self.cuts,
            "classes": list(self.classes),
            "origin": self.origin,
            "diagnostics": dict(self.diagnostics),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "OrdinalProbe":
        """Return the probe that a spec describes.

        Raises:
            ProbeError: another kind or version, a missing or an unknown field.
        """
        names = {"weight", "cuts", "classes", "origin", "diagnostics"}
        values = spec_fields(spec, cls.kind, names)
        return cls(**{**values, "classes": tuple(values["classes"])})  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """The sha256 over everything in `spec()`, weights included."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say what it reads and how well it did, never the numbers themselves."""
        what = " < ".join(map(str, self.classes))
        return described("OrdinalProbe", what, self.d_model, self.n_sites, self.diagnostics)


def fit_ordinal(
    x: Array,
    y: Labels,
    *,
    l2: float = 1.0,
    standardize: bool = True,
    groups: Labels | None = None,
    seed: int = 0,
    origin: Origin | None = None,
) -> OrdinalProbe:
    """Fit proportional odds: -log likelihood summed over samples + l2 / 2 |weight|^2, cuts free.

    McCullagh 1980; he has no penalty. The loss is convex in weight and cuts, and is minimised by
    Newton steps in float64 that keep the cuts in order. With two classes it is fit_logistic.

    Args:
        x: [sample, d], or [site, sample, d] for one probe per site.
        y: one label for each sample; their sorted order is the order of the classes.
        l2: the penalty, on weights of standardized features if they are.
        standardize: divide each feature by its deviation first; folded into the weights after.
        groups: samples of one group are never on both sides of the held-out split.
        seed: of the held-out split.
        origin: where x came from, `acts.origin(site)`.

    Raises:
        ProbeError: no convergence; otherwise as fit_logistic.
    """
    check_penalty("l2", l2)
    data = samples(x)
    n_samples = data.values.shape[1]
    classes, index = labelled(y, n_samples)
    names = None if groups is None else plain_list(groups, "groups", n_samples)
    index = index.to(data.values.device)
    told: dict[str, object] = {"n_samples": n_samples, "seed": seed, "held_out_accuracy": None}
    parts = split(index.cpu(), names, seed)
    if parts is not None:
        train, test = (part.to(index.device) for part in parts)
        fitted = _ordinal(data.values[:, train], index[train], len(classes), l2, standardize)
        hit = OrdinalProbe(*fitted, classes).predict(data.values[:, test]) == index[test]
        share = hit.double().mean(-1)
        told["held_out_accuracy"] = share.tolist() if data.stacked else share[0].item()
    weight, cuts = _ordinal(data.values, index, len(classes), l2, standardize)
    return OrdinalProbe(data.restored(weight), data.restored(cuts), classes, origin, told)


def _ordinal(
    x: Tensor, index: Tensor, n_classes: int, l2: float, standardize: bool
) -> tuple[Tensor, Tensor]:
    """Return weight [site, d] and cuts [site, class - 1] on raw activations."""
    axes = principal_axes(x, standardize=standardize)
    n_sites, _, k = axes.z.shape
    one_hot = torch.nn.functional.one_hot(index, n_classes).to(x.dtype).expand(n_sites, -1, -1)
    # upper @ theta is cut_y - weight x, lower @ theta is cut_(y - 1) - weight x.
    upper = torch.cat([-axes.z, one_hot[..., :-1]], -1)
    lower = torch.cat([-axes.z, one_hot[..., 1:]], -1)
    capped, floored = index < n_classes - 1, index > 0
    penalty = torch.cat([x.new_full((k,), l2), x.new_zeros(n_classes - 1)])
    share = one_hot[0].mean(0).cumsum(0)[:-1]
    theta = torch.cat([x.new_zeros(k), share.logit()]).expand(n_sites, -1)

    worst = x.new_full((), torch.inf)
    for _ in range(_STEPS):
        u, v = _applied(upper, theta), _applied(lower, theta)
        gap = torch.where(capped & floored, u - v, 1.0)
        # The third factor of sigmoid(u) - sigmoid(v) = sigmoid(u) sigmoid(-v) (1 - e^-(u - v)).
        between = torch.where(capped & floored, 1 / gap.expm1(), 0.0)
        bend = between * (1 + between)
        to_u = -torch.where(capped, u.neg().sigmoid() + between, 0.0)
        to_v = torch.where(floored, v.sigmoid() + between, 0.0)
        gradient = _applied(upper.mT, to_u) + _applied(lower.mT, to_v) + penalty * theta
        worst = gradient.abs().amax()
        if float(worst) < _GRADIENT:
            break
        curve_u = torch.where(capped, u.sigmoid() * u.neg().sigmoid(), 0.0).unsqueeze(-1)
        curve_v = torch.where(floored, v.sigmoid() * v.neg().sigmoid(), 0.0).unsqueeze(-1)
        apart = upper - lower
        hessian = upper.mT @ (curve_u * upper) + lower.mT @ (curve_v * lower)
        hessian = hessian + apart.mT @ (bend.unsqueeze(-1) * apart) + penalty.diag()
        step = torch.linalg.solve(hessian, gradient)
        theta = _moved(upper, lower, capped, floored, penalty, theta, step, gradient)
    if not float(worst) < _ACCEPTED:
        raise ProbeError(
            f"The ordinal fit did not converge: after {_STEPS} Newton steps the gradient is "
            f"{float(worst):.1e}. The penalty is too small for data that can be told apart. Give "
            "a larger l2."
        )
    weight, cuts = theta[:, :k].unsqueeze(-1), theta[:, k:]
    raw, bias = axes.folded(weight, x.new_zeros(n_sites, 1))
    # The latent is raw x + bias; what is added to it moves to the cuts.
    return raw.squeeze(-2), cuts - bias


def _applied(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the product of each site."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _objective(
    upper: Tensor, lower: Tensor, capped: Tensor, floored: Tensor, penalty: Tensor, theta: Tensor
) -> Tensor:
    """Return the minimised quantity of each site; infinite where cuts are out of order."""
    u, v = _applied(upper, theta), _applied(lower, theta)
    gap = torch.where(capped & floored, u - v, 1.0)
    inner = torch.where(capped & floored, torch.log(-gap.neg().expm1()), 0.0)
    fit = torch.where(capped, logsigmoid(u), 0.0) + torch.where(floored, logsigmoid(-v), 0.0)
    value = (penalty * theta.square()).sum(-1) / 2 - (fit + inner).sum(-1)
    return torch.where((gap > 0).all(-1), value, torch.inf)


def _moved(
    upper: Tensor,
    lower: Tensor,
    capped: Tensor,
    floored: Tensor,
    penalty: Tensor,
    theta: Tensor,
    step: Tensor,
    gradient: Tensor,
) -> Tensor:
    """Return theta moved along the step, halved per site until the objective has fallen."""
    before = _objective(upper, lower, capped, floored, penalty, theta)
    slope = (gradient * step).sum(-1)
    length = torch.ones_like(slope)
    # Near the optimum the objective changes by less than its own rounding error.
    slack = 1e-13 * before.abs()
    for _ in range(_HALVINGS):
        there = theta - length.unsqueeze(-1) * step
        after = _objective(upper, lower, capped, floored, penalty, there)
        worse = ~(after <= before - 1e-4 * length * slope + slack)
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    return theta - length.unsqueeze(-1) * step
