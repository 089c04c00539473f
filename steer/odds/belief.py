"""A fitted belief: log-odds from in-context evidence and from steering, which add up.

Bigelow et al. 2025 (arXiv:2511.00617), Eq. 8: log o = a*m + b + gamma*N**(1 - alpha), with m the
strength of steering and N the amount of evidence in the context. Added here: several vectors, an
effect of steering that fades at large strengths (Xu et al. 2026, arXiv:2602.02343), a floor and a
ceiling of the read-out, and a form of the evidence that is defined at alpha = 1.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from steer import spec as specs
from steer.errors import BeliefError

Form = Literal["power", "boxcox"]
Range = tuple[float, float]


def array(values: Any) -> Tensor:
    """Return numbers as an fp64 tensor on the host."""
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64)
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Decay:
    """How the effect of steering fades: D(m) = (1 + (m / width)**2)**-power, a width each side.

    Xu et al. (arXiv:2602.02343) also shift the centre on each side; with the handful of strengths
    that an experiment has, shift and width cannot be told apart, so the centre stays at 0.
    """

    kind: ClassVar[str] = "steer.Decay"
    below: float
    """Half-width for m < 0, in units of strength."""
    above: float
    """Half-width for m > 0."""
    power: float = 1.0

    def __call__(self, m: Tensor) -> Tensor:
        """Return D(m), between 0 and 1, elementwise."""
        width = torch.where(m < 0, self.below, self.above)
        return (1 + (m / width) ** 2) ** -self.power

    def within(self, share: float = 0.9) -> Range:
        """Return the strengths at which at least this share of the effect is left."""
        reach = math.sqrt(share ** (-1 / self.power) - 1)
        return (-self.below * reach, self.above * reach)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Belief:
    """Predicts log-odds of a concept from evidence and strength; numbers in, fp64 tensors out.

    log o = D(m) * a*m + b + gamma * g(N), then, where the read-out has a floor or a ceiling,
    p = floor + (ceiling - floor) * sigmoid(log o).

    Raises:
        BeliefError: parameters that are not finite or out of range.

    >>> Belief(a=2.0, b=-3.0, gamma=1.0, alpha=0.5).crossover(strength=0.5)
    tensor(4., dtype=torch.float64)
    """

    kind: ClassVar[str] = "steer.Belief"
    a: Tensor | float
    """[vector], or a number for one: nats per unit of strength, for each steering vector."""
    b: float
    """Log-odds without evidence and without steering."""
    gamma: float
    """Nats of the first unit of evidence; not negative."""
    alpha: float
    """How fast further evidence is discounted: below 1, or any with the form "boxcox"."""
    form: Form = "power"
    """"power": g(N) = N**(1 - alpha). "boxcox": g(N) = ((1 + N)**(1 - alpha) - 1) / (1 - alpha),
    which is log(1 + N) at alpha = 1."""
    floor: float = 0.0
    ceiling: float = 1.0
    decay: Decay | None = None
    spread: float = 0.0
    """Standard deviation of the questions' own intercepts, in nats."""
    evidence_range: Range | None = None
    """Evidence that it was fitted on; None where it was not fitted."""
    strength_range: Range | None = None
    """Strengths that it was fitted on."""
    valid: Range | None = None
    """Strengths within which the law holds, by the fit itself; None: everywhere."""
    intervention: str | None = None
    """Digest of the steering that it was fitted on; None where it does not say."""

    def __post_init__(self) -> None:
        """Check the parameters."""
        object.__setattr__(self, "a", array(self.a).reshape(-1))
        for name in ("b", "gamma", "alpha", "floor", "ceiling", "spread"):
            object.__setattr__(self, name, float(getattr(self, name)))
        numbers = [*self.slopes.tolist(), self.b, self.gamma, self.alpha, self.spread]
        if not all(math.isfinite(number) for number in numbers):
            raise BeliefError(
                f"The parameters of a Belief must be finite: a={self.slopes.tolist()}, "
                f"b={self.b}, gamma={self.gamma}, alpha={self.alpha}. Look at the data of the fit."
            )
        if self.gamma < 0 or (self.form == "power" and self.alpha >= 1):
            raise BeliefError(
                f"gamma={self.gamma:g} and alpha={self.alpha:g} make evidence lower its own "
                "concept, or count without end at N = 0. gamma is at least 0, and alpha below 1 in "
                'the form "power". Swap the sides of the odds, or use form="boxcox".'
            )
        if not 0 <= self.floor < self.ceiling <= 1:
            raise BeliefError(
                f"The read-out goes from floor={self.floor:g} to ceiling={self.ceiling:g}. Both "
                "are probabilities, the floor below the ceiling."
            )

    @property
    def slopes(self) -> Tensor:
        """[vector]: nats per unit of strength."""
        return cast("Tensor", self.a)

    # -- prediction ----------------------------------------------------------------------------

    def grown(self, evidence: Any) -> Tensor:
        """Return g(N), elementwise.

        Raises:
            BeliefError: negative evidence.
        """
        return grown(array(evidence), self.alpha, self.form)

    def pushed(self, strength: Any) -> Tensor:
        """Return D(m) * a*m, elementwise; several vectors stand on the last axis."""
        m = array(strength)
        m = m if self.decay is None else self.decay(m) * m
        if len(self.slopes) == 1:
            return m * self.slopes[0]
        if m.ndim == 0 and not bool(m):
            return m
        if m.shape[-1:] != self.slopes.shape:
            raise BeliefError(
                f"The belief knows {len(self.slopes)} vectors; strengths of shape "
                f"{tuple(m.shape)} came. Give one strength for each vector, on the last axis."
            )
        return m @ self.slopes

    def latent(self, evidence: Any, strength: Any = 0.0) -> Tensor:
        """Return the log-odds before floor and ceiling."""
        return self.pushed(strength) + self.b + self.gamma * self.grown(evidence)

    def posterior(self, evidence: Any, strength: Any = 0.0) -> Tensor:
        """Return the probability of the concept, elementwise."""
        return self.floor + (self.ceiling - self.floor) * self.latent(evidence, strength).sigmoid()

    def log_odds(self, evidence: Any, strength: Any = 0.0) -> Tensor:
        """Return the log-odds of the concept in nats, elementwise."""
        latent = self.latent(evidence, strength)
        if self.floor == 0 and self.ceiling == 1:
            return latent
        return torch.logit(self.floor + (self.ceiling - self.floor) * latent.sigmoid())

    def phase(self, evidence: Any, strength: Any) -> Tensor:
        """Return [evidence, strength]: the log-odds over a grid (one vector)."""
        return self.log_odds(array(evidence)[:, None], array(strength)[None, :])

    # -- the boundary --------------------------------------------------------------------------

    def crossover(self, strength: Any = 0.0) -> Tensor:
        """Return N*: the least evidence at which the log-odds reach 0; inf if none does."""
        missing = (self._middle() - self.b - self.pushed(strength)) / _positive(self.gamma)
        missing = torch.where(missing > 0, missing, torch.zeros_like(missing))
        if self.gamma == 0:
            return torch.where(missing > 0, torch.inf, torch.zeros_like(missing))
        return ungrown(missing, self.alpha, self.form)

    def boundary(self, evidence: Any) -> Tensor:
        """Return m*: the strength at which the log-odds are 0; NaN where none is (one vector)."""
        return self._solved(self._middle() - self.b - self.gamma * self.grown(evidence))

    def boundary_slope(self, strength: Any) -> Tensor:
        """Return dN*/dm (one vector).

        0 where the log-odds are above 0 without evidence, NaN where no evidence is enough.
        """
        m = array(strength).clone().requires_grad_(True)
        with torch.enable_grad():
            pushed = self.slopes[0] * (m if self.decay is None else self.decay(m) * m)
            missing = ((self._middle() - self.b - pushed) / _positive(self.gamma)).clamp(min=0)
            (slope,) = torch.autograd.grad(ungrown(missing, self.alpha, self.form).sum(), m)
        return torch.where(self.crossover(strength).isinf(), torch.nan, slope)

    def slope_at_boundary(self, strength: Any = 0.0) -> Tensor:
        """Return dp/dN at N*: how abruptly the behaviour flips as examples come in."""
        n = self.crossover(strength)
        base = n if self.form == "power" else 1 + n
        share = self.ceiling - self.floor
        p = (0.5 - self.floor) / share
        return share * p * (1 - p) * self.gamma * growth(base, self.alpha, self.form)

    def _middle(self) -> float:
        """Return the latent log-odds at which the probability is one half."""
        if not self.floor < 0.5 < self.ceiling:
            raise BeliefError(
                f"This belief's probabilities go from {self.floor:g} to {self.ceiling:g} and never "
                "cross one half, so there is no boundary. Look at `posterior` instead."
            )
        p = (0.5 - self.floor) / (self.ceiling - self.floor)
        return math.log(p / (1 - p))

    # -- control -------------------------------------------------------------------------------

    def attainable(self, evidence: Any) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest log-odds that valid strengths reach (one vector)."""
        n = array(evidence)
        if self.valid is None:
            limits = (torch.logit(torch.tensor(p).double()) for p in (self.floor, self.ceiling))
            low, high = (limit.expand(n.shape) for limit in limits)
            return low, high
        ends = [self.log_odds(n, m) for m in self.valid]
        return torch.minimum(*ends), torch.maximum(*ends)

    def strength_for(self, target: Any, evidence: Any, *, extrapolate: bool = False) -> Tensor:
        """Return the strength that brings the log-odds to a target, elementwise (one vector).

        Args:
            target: log-odds in nats.
            evidence: what the context holds.
            extrapolate: allow strengths beyond `valid`.

        Raises:
            BeliefError: a target out of reach; says what can be reached.
        """
        wanted, n = torch.broadcast_tensors(array(target), array(evidence))
        low, high = self.attainable(n)
        bad = (wanted < low - 1e-9) | (wanted > high + 1e-9)
        if not extrapolate and bool(bad.any()):
            first = int(bad.flatten().nonzero()[0])
            lo, hi, t, at = (float(x.flatten()[first]) for x in (low, high, wanted, n))
            raise BeliefError(
                f"{int(bad.sum())} of {bad.numel()} targets are out of reach: log-odds {t:.3g} "
                f"with evidence {at:g}, where strengths {self.valid} reach {lo:.3g} to "
                f"{hi:.3g}. Beyond them the law does not hold. Ask for a target within, give more "
                "evidence, or pass extrapolate=True."
            )
        p = (wanted.sigmoid() - self.floor) / (self.ceiling - self.floor)
        latent = wanted if (self.floor, self.ceiling) == (0.0, 1.0) else torch.logit(p)
        m = self._solved(latent - self.b - self.gamma * self.grown(n))
        if bool(m.isnan().any()):
            raise BeliefError(
                f"No strength brings the log-odds to {float(wanted[m.isnan()].flatten()[0]):.3g}: "
                f"steering fades ({self.decay}) or the read-out ends before. `attainable` says "
                "what can be reached."
            )
        return m

    def _solved(self, push: Tensor) -> Tensor:
        """Return m with D(m) * a*m = push, NaN where there is none; the one nearest to 0."""
        if len(self.slopes) != 1:
            raise BeliefError(
                f"The belief knows {len(self.slopes)} vectors: many strengths give the same "
                "log-odds. Fit a belief on the one that is to be set."
            )
        a = float(self.slopes[0])
        if a == 0:
            return torch.where(push == 0, 0.0, torch.nan)
        aim = push / a  # D(m) * m, of m's own sign
        if self.decay is None:
            return aim
        # D(m) * m rises up to its top, at width / sqrt(2 * power - 1), or for ever.
        width = torch.where(aim < 0, self.decay.below, self.decay.above)
        power = self.decay.power
        top = width / math.sqrt(2 * power - 1) if power > 0.5 else torch.full_like(width, 1e6)
        low, high = torch.zeros_like(aim), top * aim.sign()
        reach = self.decay(high) * high
        for _ in range(80):  # bisection: to the last bit of fp64
            middle = (low + high) / 2
            more = (self.decay(middle) * middle).abs() < aim.abs()
            low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        return torch.where(aim.abs() <= reach.abs(), (low + high) / 2, torch.nan)

    # -- identity ------------------------------------------------------------------------------

    def spec(self) -> dict[str, object]:
        """Return the plain dict with tensors from which `steer.load_artifact` rebuilds it."""
        return specs.encode(self)

    @property
    def digest(self) -> str:
        """sha256 over all parameters and ranges."""
        return specs.digest(self.spec())

    def __repr__(self) -> str:
        """Print the law with its numbers, and where it holds."""
        pushes = " + ".join(
            f"{a:.3g} m{at if len(self.slopes) > 1 else ''}" for at, a in enumerate(self.slopes)
        )
        grown_by = f"N^{1 - self.alpha:.3g}" if self.form == "power" else f"g(N; {self.alpha:.3g})"
        faded = "" if self.decay is None else "D(m) "
        said = f"Belief(log o = {faded}{pushes} {self.b:+.3g} + {self.gamma:.3g} {grown_by}"
        if (self.floor, self.ceiling) != (0.0, 1.0):
            said += f"; p from {self.floor:.3g} to {self.ceiling:.3g}"
        for name, found in (("N", self.evidence_range), ("m", self.strength_range)):
            said += f"; {name} in [{found[0]:g}, {found[1]:g}]" if found is not None else ""
        if self.valid is not None:
            said += f"; valid for m in [{self.valid[0]:.3g}, {self.valid[1]:.3g}]"
        return f"{said})"


def grown(n: Tensor, alpha: float, form: Form) -> Tensor:
    """Return g(N), elementwise.

    Raises:
        BeliefError: negative evidence.
    """
    if bool((n < 0).any()):
        raise BeliefError(
            f"Evidence of {float(n.min()):g} was given. It is an amount, such as a number of "
            "examples, and cannot be negative. Evidence for the opposite needs a belief of its own."
        )
    if form == "power":
        return torch.where(n > 0, n ** (1 - alpha), torch.zeros_like(n))
    if abs(1 - alpha) < 1e-9:
        return torch.log1p(n)
    return torch.expm1((1 - alpha) * torch.log1p(n)) / (1 - alpha)


def ungrown(g: Tensor, alpha: float, form: Form) -> Tensor:
    """Return N with g(N) as given, inf where no evidence is enough; the inverse of `grown`."""
    if form == "power":
        return g ** (1 / (1 - alpha))
    if abs(1 - alpha) < 1e-9:
        return torch.expm1(g)
    inside = 1 + (1 - alpha) * g
    return torch.where(inside > 0, inside.clamp(min=1e-300) ** (1 / (1 - alpha)) - 1, torch.inf)


def growth(base: Tensor, alpha: float, form: Form) -> Tensor:
    """Return dg/dN, of N in the form "power" and of 1 + N in the other."""
    return (1 - alpha if form == "power" else 1.0) * base**-alpha


def _positive(gamma: float) -> float:
    return gamma if gamma > 0 else 1.0
