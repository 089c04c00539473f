"""Four predictors of a belief along a text, on one scale: that of the belief law.

An observer says how sure it is; the law log o = b + gamma N^(1 - alpha) says how sure the model is
after N like items. An observer that is as sure as after N like items is therefore predicted at
that log-odds, with one gamma and alpha for each concept. So all observers agree with the law on
texts that do not switch, but for the shape of their growth, and differ on those that do. The
fourth predictor is the law itself, on the counts of both concepts, blind to their order.

Fits are by variable projection: the law is linear in b and the two gammas, and the two alphas and
the observer's one rate are searched on a grid, for all bootstrap resamples at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steer.odds.observers import BetaBernoulli, ChangePoint, Exact, Forgetting

ALPHAS = torch.linspace(-0.435, 0.99, 20, dtype=torch.float64)
"""Near 1 the first item says nearly all."""
KEEPS = 1 - 1 / torch.logspace(0.2, 2.3, 16, dtype=torch.float64)
"""From 1.6 to 200 items of memory."""
HAZARDS = torch.logspace(-4, -0.5, 16, dtype=torch.float64)
UNIFORM = BetaBernoulli()
"""Before any item every chance of a positive one is as likely as another."""
NO_RATE = torch.zeros(1, dtype=torch.float64)

Counts = Float[Tensor, "concept rate sequence reading"]
"""Like items that make as sure: for positive, for negative; both at least 0."""


def as_count(log_odds: Tensor) -> Tensor:
    """Return after how many like items the exact observer has these log-odds; signed.

    Under a uniform prior n like items give log(1 + n).
    """
    return log_odds.sign() * torch.expm1(log_odds.abs())


def _exact(events: Tensor, _: Tensor) -> Tensor:
    return as_count(Exact(UNIFORM).observe(events.double()).log_odds())


def _forgetting(events: Tensor, keep: Tensor) -> Tensor:
    return as_count(Forgetting(UNIFORM, keep).observe(events.double()).log_odds())


def _change_point(events: Tensor, hazard: Tensor) -> Tensor:
    return as_count(ChangePoint(UNIFORM, hazard).observe(events.double()).log_odds())


Observe = Callable[[Tensor, Tensor], Tensor]
OBSERVERS: Mapping[str, tuple[Observe, Tensor]] = MappingProxyType(
    {
        "exact": (_exact, NO_RATE),
        "forgetting": (_forgetting, KEEPS),
        "change_point": (_change_point, HAZARDS),
    }
)
"""Each observer with the rates it may have."""
PREDICTORS = (*OBSERVERS, "law")


def rates_of(name: str) -> Tensor:
    """Return the rates that a predictor may have; 0 alone where it has none."""
    return OBSERVERS[name][1] if name in OBSERVERS else NO_RATE


def counts_of(name: str, events: Bool[Tensor, "sequence item"]) -> Counts:
    """Return what a predictor makes of every sequence at every rate."""
    if name == "law":
        both = torch.stack([events, ~events])[:, None].double().cumsum(-1)
        return torch.nn.functional.pad(both, (1, 0))
    observe, rates = OBSERVERS[name]
    every = events.repeat(len(rates), 1)
    signed = observe(every, rates.repeat_interleave(len(events)))
    signed = signed.unflatten(0, (len(rates), len(events)))
    return torch.stack([signed.clamp_min(0), (-signed).clamp_min(0)])


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The law and the rate that fit best, one for each resample of the contexts."""

    rate: Int[Tensor, " resample"]
    """Which of the predictor's rates."""
    alpha: Float[Tensor, "resample concept"]
    coefficients: Float[Tensor, "resample 3"]
    """b, and gamma of positive and of negative items."""

    def predict(self, counts: Counts) -> Float[Tensor, "resample sequence reading"]:
        """Return the log-odds of every sequence at every reading."""
        # [resample, sequence, reading, concept]
        chosen = counts[:, self.rate].permute(1, 2, 3, 0)
        grown = _power(chosen, 1 - self.alpha[:, None, None])
        b, gammas = self.coefficients[:, 0], self.coefficients[:, 1:]
        signed = gammas * torch.tensor([1.0, -1.0], dtype=torch.float64)
        return b[:, None, None] + (grown * signed[:, None, None]).sum(-1)


def fit_law(
    counts: Float[Tensor, "concept rate observation"],
    log_odds: Float[Tensor, "resample observation"],
) -> Fit:
    """Return the least-squares fit of every resample, over the whole grid of alphas and rates."""
    first, second = torch.cartesian_prod(ALPHAS, ALPHAS).unbind(-1)
    # [rate, alphas, observation]
    positive, negative = (
        _power(counts[c][:, None], 1 - alpha[None, :, None])
        for c, alpha in ((0, first), (1, second))
    )
    design = torch.stack([torch.ones_like(positive), positive, -negative], -1).flatten(0, 1)
    q, r = torch.linalg.qr(design)
    # |y|^2 is the same for all of the grid, so the best is where the projection is longest.
    projected = torch.einsum("gok,so->sgk", q, log_odds)
    best = projected.square().sum(-1).argmax(1)
    along = projected[torch.arange(len(best)), best]
    coefficients = torch.linalg.solve_triangular(r[best], along[..., None], upper=True)[..., 0]
    n = len(first)
    alpha = torch.stack([first[best % n], second[best % n]], -1)
    return Fit(best // n, alpha, coefficients)


def _power(counts: Tensor, exponent: Tensor) -> Tensor:
    """Return counts to a power, 0 at 0."""
    return torch.where(counts > 0, counts.clamp_min(1e-300) ** exponent, 0.0)
