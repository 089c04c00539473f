"""Ideal observers: what an agent that draws the right conclusions would expect next.

Three beliefs about a stream (it never changes; its past fades; it changes at unknown moments), each
for numbers and for yes/no events. Pure arrays; the forecasts they make are in `forecasts`, what a
model does with the same stream is the benchmarks' affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.forecasts import EventForecast, NumberForecast, student_log_prob

Stream = Tensor | NDArray | Sequence
"""[batch, time]: one sequence a row."""

Made = TypeVar("Made", covariant=True)
"""The kind of forecast: of numbers or of events."""


@runtime_checkable
class Prior(Protocol[Made]):
    """What an observer needs of a conjugate family: additive statistics and a forecast."""

    def start(self) -> Tensor:
        """Return [k]: the natural parameters before any observation."""
        ...

    def statistics(self, x: Tensor) -> Tensor:
        """Return [..., k]: what each observation adds to them."""
        ...

    def log_prob(self, state: Tensor, x: Tensor) -> Tensor:
        """Return the log predictive density of x under parameters [..., k]."""
        ...

    def forecast(self, log_weight: Tensor, state: Tensor) -> Made:
        """Return the forecast of parameters [batch, time, run, k]."""
        ...


@dataclass(frozen=True, slots=True)
class NormalInverseGamma:
    """The conjugate prior of a normal stream with unknown mean and variance.

    The predictive density is Student's t with 2 shape degrees of freedom, centre `mean` and squared
    scale rate (kappa + 1) / (shape kappa).

    Args:
        mean: what the mean is expected to be.
        kappa: how many observations that expectation is worth.
        shape: half as many observations as the expectation of the variance is worth.
        rate: shape times the expected variance, roughly.

    Raises:
        BeliefError: a kappa, shape or rate that is not above 0.
    """

    mean: float = 0.0
    kappa: float = 1.0
    shape: float = 1.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        """Check the signs."""
        given = {"kappa": self.kappa, "shape": self.shape, "rate": self.rate}
        _require_positive(given, "normal-inverse-gamma")

    # Parameters are kept as (kappa, kappa m, a, 2 b + kappa m^2), in which an observation is an
    # addition, with the origin moved to the prior mean: the last entry is then no difference of two
    # large numbers when the data lie far from 0.

    def start(self) -> Float[Tensor, " k"]:
        """Return the natural parameters before any observation."""
        return torch.tensor([self.kappa, 0.0, self.shape, 2 * self.rate], dtype=torch.float64)

    def statistics(self, x: Float[Tensor, "*stream"]) -> Float[Tensor, "*stream k"]:
        """Return 1, z, 1/2 and z^2 of each observation, z counted from the prior mean."""
        z = x - self.mean
        one = torch.ones_like(z)
        return torch.stack([one, z, one / 2, z.square()], -1)

    def log_prob(self, state: Float[Tensor, "*run k"], x: Tensor) -> Tensor:
        """Return the log density of Student's t at x."""
        return student_log_prob(x, *self._student(state))

    def forecast(
        self, log_weight: Float[Tensor, "batch time run"], state: Float[Tensor, "batch time run k"]
    ) -> NumberForecast:
        """Return the mixture of Student's t."""
        return NumberForecast(log_weight, *self._student(state))

    def _student(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kappa, total, shape, squares = state.unbind(-1)
        rate = (squares - total.square() / kappa) / 2
        scale = (rate * (kappa + 1) / (shape * kappa)).sqrt()
        return self.mean + total / kappa, scale, 2 * shape


@dataclass(frozen=True, slots=True)
class BetaBernoulli:
    """The conjugate prior of yes/no events with an unknown chance; 1 and 1 make it uniform.

    Args:
        positive: how many yes the prior is worth.
        negative: how many no.

    Raises:
        BeliefError: one that is not above 0.
    """

    positive: float = 1.0
    negative: float = 1.0

    def __post_init__(self) -> None:
        """Check the signs."""
        given = {"positive": self.positive, "negative": self.negative}
        _require_positive(given, "Beta-Bernoulli")

    def start(self) -> Float[Tensor, " k"]:
        """Return the pseudo-counts before any observation."""
        return torch.tensor([self.positive, self.negative], dtype=torch.float64)

    def statistics(self, x: Float[Tensor, "*stream"]) -> Float[Tensor, "*stream k"]:
        """Return a count of yes and one of no for each event.

        Raises:
            BeliefError: an event that is neither 0 nor 1.
        """
        strange = x[(x != 0) & (x != 1)]
        if strange.numel():
            raise BeliefError(
                f"An event is {float(strange[0]):g}, and Beta-Bernoulli counts only yes (1) and no "
                "(0). Threshold the stream, or use NormalInverseGamma for numbers."
            )
        return torch.stack([x, 1 - x], -1)

    def log_prob(self, state: Float[Tensor, "*run k"], x: Tensor) -> Tensor:
        """Return the log probability of the event x."""
        return (torch.where(x == 1, state[..., 0], state[..., 1]) / state.sum(-1)).log()

    def forecast(
        self, log_weight: Float[Tensor, "batch time run"], state: Float[Tensor, "batch time run k"]
    ) -> EventForecast:
        """Return the mixture of chances."""
        chance = state.log() - state.sum(-1, keepdim=True).log()
        return EventForecast(log_weight, chance[..., 0], chance[..., 1])


@dataclass(frozen=True, slots=True)
class Exact(Generic[Made]):
    """The observer for whom nothing ever changes: Bayes' rule on all that was seen, equally."""

    prior: Prior[Made]

    def observe(self, x: Stream) -> Made:
        """Return the forecasts after 0, 1, ... observations of each sequence.

        Raises:
            BeliefError: a stream that is not [batch, time] or not finite, or not of the prior's
                kind.
        """
        seen = self.prior.statistics(_stream(x)).cumsum(1)
        state = self.prior.start() + torch.nn.functional.pad(seen, (0, 0, 1, 0))
        return self.prior.forecast(_alone(state), state[:, :, None])


@dataclass(frozen=True, slots=True, eq=False)
class Forgetting(Generic[Made]):
    """The observer whose past fades: an observation k steps ago counts keep^k as much.

    It never remembers more than 1 / (1 - keep) observations. All natural parameters fade towards
    the prior, which makes the state the posterior to the power keep times the prior to the power
    1 - keep at each step; fading kappa alone to 0 would forget the prior too.

    Args:
        prior: what is believed before any observation.
        keep: above 0 and at most 1 (1 is `Exact`); a number, or one for each sequence [batch].

    Raises:
        BeliefError: a keep outside.
    """

    prior: Prior[Made]
    keep: float | Tensor = 0.9

    def __post_init__(self) -> None:
        """Check the rate."""
        _require_share("keep", self.keep, least_excluded=True)

    def observe(self, x: Stream) -> Made:
        """Return the forecasts after 0, 1, ... observations of each sequence.

        Raises:
            BeliefError: as `Exact.observe`; another number of keeps than sequences.
        """
        seen = self.prior.statistics(_stream(x))
        keep = _per_sequence("keep", self.keep, len(seen))[:, None, None]
        n = seen.shape[1]
        ago = torch.arange(n + 1)[:, None] - torch.arange(1, n + 1)
        weight = torch.where(ago >= 0, keep ** ago.clamp_min(0), 0.0)
        state = self.prior.start() + weight @ seen
        return self.prior.forecast(_alone(state), state[:, :, None])


@dataclass(frozen=True, slots=True, eq=False)
class ChangePoint(Generic[Made]):
    """The observer for whom the stream starts afresh with chance `hazard` before each observation.

    The exact posterior over how long the present run has lasted, by the recursion of Adams and
    MacKay 2007 (arXiv:0710.3742). They let a change come after an observation, we before the next:
    the same numbers, but a forecast already allows for a change that no observation has shown.
    Memory grows with the square of the length: a forecast holds [batch, time + 1, time + 1].

    Args:
        prior: what is believed before any observation, and again after each change.
        hazard: from 0 (`Exact`) to 1; a number, or one for each sequence [batch].

    Raises:
        BeliefError: a hazard outside.
    """

    prior: Prior[Made]
    hazard: float | Tensor = 0.05

    def __post_init__(self) -> None:
        """Check the chance."""
        _require_share("hazard", self.hazard, least_excluded=False)

    def observe(self, x: Stream) -> Made:
        """Return the forecasts after 0, 1, ... observations of each sequence.

        The weight of run r after t observations is the probability that the next one continues the
        run of the last r; r = 0 is a change.

        Raises:
            BeliefError: as `Exact.observe`; another number of hazards than sequences.
        """
        stream = _stream(x)
        seen, start = self.prior.statistics(stream), self.prior.start()
        n_batch, n = stream.shape
        hazard = _per_sequence("hazard", self.hazard, n_batch)[:, None]
        fresh = start.expand(n_batch, 1, -1)
        # Before the first observation there is one run, of length 0, whatever the hazard.
        state, log_weight = fresh, torch.zeros(n_batch, 1, dtype=torch.float64)
        states, log_weights = [state], [log_weight]
        for t in range(n):
            joint = log_weight + self.prior.log_prob(state, stream[:, t, None])
            joint = joint - joint.logsumexp(1, keepdim=True)
            grown = joint + torch.log1p(-hazard)
            log_weight = torch.cat([hazard.log().expand(n_batch, 1), grown], 1)
            state = torch.cat([fresh, state + seen[:, t, None]], 1)
            states.append(state)
            log_weights.append(log_weight)
        return self.prior.forecast(_runs(log_weights, n), _runs_of(states, start, n))


Observer = Exact[Made] | Forgetting[Made] | ChangePoint[Made]


def _runs(log_weights: list[Tensor], n: int) -> Tensor:
    """Return [batch, time, run]; runs longer than what was seen have no weight."""
    pad = torch.nn.functional.pad
    return torch.stack([pad(w, (0, n + 1 - w.shape[1]), value=-torch.inf) for w in log_weights], 1)


def _runs_of(states: list[Tensor], start: Tensor, n: int) -> Tensor:
    """Return [batch, time, run, k]; impossible runs get the prior's own parameters."""
    whole = [torch.cat([s, start.expand(s.shape[0], n + 1 - s.shape[1], -1)], 1) for s in states]
    return torch.stack(whole, 1)


def _alone(state: Tensor) -> Tensor:
    """Return the log weights of a forecast with a single run."""
    return torch.zeros(*state.shape[:2], 1, dtype=torch.float64)


def _stream(x: Stream) -> Tensor:
    values = torch.as_tensor(x, dtype=torch.float64)
    if values.ndim != 2:
        raise BeliefError(
            f"The stream has the shape {list(values.shape)}, and observers take [batch, time]. "
            "Give one sequence as a batch of one: x[None]."
        )
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        row, at = bad[0].tolist()
        raise BeliefError(
            f"Observation {at} of sequence {row} is {float(values[row, at])}, and no belief "
            "survives that. Cut the sequences to equal length, or leave the sequence out."
        )
    return values


def _per_sequence(name: str, given: float | Tensor, n: int) -> Tensor:
    value = torch.as_tensor(given, dtype=torch.float64)
    if value.ndim > 1 or (value.ndim == 1 and len(value) not in (1, n)):
        raise BeliefError(
            f"{name} has the shape {list(value.shape)} for {n} sequences. Give one number, or one "
            "for each sequence."
        )
    return value.expand(n)


def _require_positive(given: dict[str, float], family: str) -> None:
    for name, value in given.items():
        if not value > 0:
            raise BeliefError(
                f"{name} is {value:g}, but a {family} prior worth nothing or less than nothing has "
                "no predictive density. Give a number above 0; a small one says little."
            )


def _require_share(name: str, given: float | Tensor, *, least_excluded: bool) -> None:
    value = torch.as_tensor(given, dtype=torch.float64)
    low = value <= 0 if least_excluded else value < 0
    outside = value[low | ~(value <= 1)]
    if outside.numel():
        least = "above 0" if least_excluded else "at least 0"
        raise BeliefError(
            f"{name} is {float(outside.flatten()[0]):g}, and it is a share of 1 in each step. "
            f"Give a number {least} and at most 1."
        )
