"""Forecasts of the ideal observers: mixtures over runs, for numbers and for yes/no events.

Row t of a forecast is what is expected after t observations, so there is one row more than
observations. An observer without change points has a single run of weight 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class NumberForecast:
    """Mixtures of Student's t over the runs."""

    log_weight: Float[Tensor, "batch time run"]
    centre: Float[Tensor, "batch time run"]
    scale: Float[Tensor, "batch time run"]
    dof: Float[Tensor, "batch time run"]
    """Degrees of freedom."""

    def mean(self) -> Float[Tensor, "batch time"]:
        """Return the expected next number."""
        return (self.log_weight.exp() * self.centre).sum(-1)

    def variance(self) -> Float[Tensor, "batch time"]:
        """Return the variance of the next number.

        Infinite while a run that has weight has 2 degrees of freedom or fewer: with a shape of 1
        or less the prior has, and so has a change point. Take a shape above 1 to see spreads.
        """
        weight = self.log_weight.exp()
        inside = torch.where(
            self.dof > 2, self.scale.square() * self.dof / (self.dof - 2), torch.inf
        )
        about = inside + (self.centre - self.mean()[..., None]).square()
        return torch.where(weight > 0, weight * about, 0.0).sum(-1)

    def log_prob(self, x: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
        """Return the log density that each row gives to a number."""
        each = student_log_prob(x[..., None], self.centre, self.scale, self.dof)
        return (self.log_weight + each).logsumexp(-1)

    def score(self, x: Float[Tensor, "batch seen"]) -> Float[Tensor, "batch seen"]:
        """Return the log density of each observation given those before; its sum is evidence."""
        before = NumberForecast(
            *(v[:, :-1] for v in (self.log_weight, self.centre, self.scale, self.dof))
        )
        return before.log_prob(x.double())


@dataclass(frozen=True, slots=True, eq=False)
class EventForecast:
    """Mixtures of chances over the runs."""

    log_weight: Float[Tensor, "batch time run"]
    log_yes: Float[Tensor, "batch time run"]
    log_no: Float[Tensor, "batch time run"]

    def probability(self) -> Float[Tensor, "batch time"]:
        """Return the probability that the next event is a yes."""
        return self._log(self.log_yes).exp()

    def log_odds(self) -> Float[Tensor, "batch time"]:
        """Return the log-odds of a yes, in nats."""
        return self._log(self.log_yes) - self._log(self.log_no)

    def score(self, x: Float[Tensor, "batch seen"]) -> Float[Tensor, "batch seen"]:
        """Return the log probability of each event given those before; its sum is evidence."""
        yes, no = self._log(self.log_yes)[:, :-1], self._log(self.log_no)[:, :-1]
        return torch.where(x == 1, yes, no)

    def _log(self, each: Tensor) -> Tensor:
        return (self.log_weight + each).logsumexp(-1)


def student_log_prob(x: Tensor, centre: Tensor, scale: Tensor, dof: Tensor) -> Tensor:
    """Return the log density of Student's t with a centre and a scale."""
    return torch.distributions.StudentT(dof, centre, scale, validate_args=False).log_prob(x)
