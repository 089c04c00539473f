"""Observations of beliefs, checked: evidence, strengths and outcomes, one of each in every row."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.belief import array

OutcomeIs = Literal["log_odds", "probability", "counts"]
SMOOTHING = 1e-4
"""Probabilities are kept this far from 0 and 1, where log-odds have no end."""
FALLS = 3.0
"""Standard errors by which log-odds must fall with evidence to be refused."""


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Observations, checked: evidence [n], strength [n, vector], outcomes [n]."""

    evidence: Tensor
    strength: Tensor
    outcome: Tensor
    """Log-odds in nats, or the share of successes."""
    weight: Tensor
    """Trials behind each probability; 1 where none are given."""
    kind: OutcomeIs = "log_odds"
    question: Tensor | None = None
    """[n]: 0, 1, ...: which question each is about."""

    def __len__(self) -> int:
        """Return the number of observations."""
        return len(self.evidence)

    @property
    def log_odds(self) -> Tensor:
        """[n]: the outcomes as log-odds."""
        if self.kind == "counts":  # half a trial each side: log-odds stay finite
            return torch.logit((self.outcome * self.weight + 0.5) / (self.weight + 1))
        return self.outcome if self.kind == "log_odds" else torch.logit(self.outcome)

    @property
    def is_log_odds(self) -> bool:
        """Whether the outcomes are log-odds already."""
        return self.kind == "log_odds"

    @property
    def information(self) -> Tensor:
        """[n]: weights of least squares on log-odds: trials times p(1 - p), or as given."""
        p = self.log_odds.sigmoid()
        return self.weight if self.is_log_odds else self.weight * p * (1 - p)

    def take(self, rows: Tensor) -> "Data":
        """Return some observations, by mask or by number."""
        question = None if self.question is None else self.question[rows]
        return Data(
            self.evidence[rows],
            self.strength[rows],
            self.outcome[rows],
            self.weight[rows],
            self.kind,
            question,
        )


def data_of(
    evidence: Any,
    strength: Any,
    outcome: Any,
    *,
    trials: Any = None,
    outcome_is: OutcomeIs = "log_odds",
    question: Any = None,
    smoothing: float = SMOOTHING,
) -> Data:
    """Return checked observations, sorted so that their order never matters.

    Args:
        evidence: [n], at least 0.
        strength: [n], or [n, vector].
        outcome: [n]: log-odds in nats, probabilities, or counts of successes.
        trials: [n]: how many trials each probability or count is of.
        outcome_is: what the outcomes are.
        question: [n]: any ids; observations of one question share an intercept.
        smoothing: how far probabilities are kept from 0 and 1; counts get half a trial each side.

    Raises:
        BeliefError: unequal lengths, values that are not finite or out of range.
    """
    n, m, y = array(evidence), array(strength), array(outcome)
    m = m[:, None] if m.ndim == 1 else m
    count = torch.ones_like(y) if trials is None else array(trials).expand(y.shape)
    if n.ndim != 1 or n.shape != y.shape or m.ndim != 2 or len(m) != len(n):
        raise BeliefError(
            f"Evidence {tuple(n.shape)}, strength {tuple(array(strength).shape)} and outcome "
            f"{tuple(y.shape)} do not fit: each observation has one of each. Flatten the grid, for "
            "example by numpy.meshgrid(...) and .ravel()."
        )
    if not len(n):
        raise BeliefError(
            "No observations were given. A belief has four parameters, which need at least three "
            "amounts of evidence crossed with two strengths."
        )
    for what, values in (("evidence", n), ("strength", m), ("outcome", y), ("trials", count)):
        if not bool(torch.isfinite(values).all()):
            raise BeliefError(
                f"The {what} holds {int((~torch.isfinite(values)).sum())} values that are not "
                "finite. Drop those observations, and look at what made them."
            )
    if bool((n < 0).any()):
        raise BeliefError(
            f"Evidence of {float(n.min()):g} was given; it is an amount, and cannot be negative. "
            "Fit a belief of its own on contexts for the opposite."
        )
    if outcome_is == "counts":
        if trials is None or bool((y > count).any()) or bool((y < 0).any()):
            raise BeliefError(
                "Counts of successes need trials=, how many each is of, and none may be above it "
                f"(largest count {float(y.max()):g})."
            )
        y = y / count.clamp(min=1)
    elif outcome_is == "probability":
        if bool(((y < 0) | (y > 1)).any()):
            raise BeliefError(
                f"Probabilities from {float(y.min()):g} to {float(y.max()):g} were given. Pass "
                'log-odds with outcome_is="log_odds", counts with outcome_is="counts".'
            )
        y = y.clamp(smoothing, 1 - smoothing)
    ids = None
    if question is not None:
        known = {value: at for at, value in enumerate(sorted(set(_listed(question)), key=str))}
        ids = torch.tensor([known[value] for value in _listed(question)])
        if len(ids) != len(n):
            raise BeliefError(
                f"{len(ids)} question ids were given for {len(n)} observations. Give one each."
            )
    data = Data(n, m, y, count, outcome_is, ids)
    columns = [n, *m.T, y, count] + ([] if ids is None else [ids.double()])
    order = torch.arange(len(n))
    for column in reversed(columns):
        order = order[torch.argsort(column[order], stable=True)]
    return data.take(order)


def _listed(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def require_rising(data: Data) -> None:
    """Refuse data in which evidence for the concept lowers it.

    The law has no room for that (gamma is not negative), and a fit would hide it as gamma = 0. One
    weighted regression of log-odds on the strengths and log(1 + N): the slope in N is refused where
    it lies `FALLS` standard errors below 0.

    Raises:
        BeliefError: says how fast the log-odds fall.
    """
    columns = [data.strength, torch.ones(len(data), 1).double(), data.evidence.log1p()[:, None]]
    root = data.information.sqrt()[:, None]
    design, target = torch.cat(columns, dim=1) * root, data.log_odds[:, None] * root
    solved = torch.linalg.lstsq(design, target).solution
    left = ((design @ solved - target) ** 2).sum() / max(len(data) - design.shape[1], 1)
    error = (left * torch.linalg.pinv(design.T @ design)[-1, -1]).sqrt()
    slope = float(solved[-1, 0])
    if slope < -FALLS * max(float(error), 1e-9):
        raise BeliefError(
            f"Log-odds fall with evidence: by {-slope:.3g} nats (standard error {float(error):.2g})"
            " for each unit of log(1 + N). Evidence cannot speak against its own concept here, and "
            "the fit would report gamma = 0. Swap the sides of the outcome, or fit evidence for "
            "the opposite as a belief of its own."
        )
