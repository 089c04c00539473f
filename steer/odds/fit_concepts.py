"""Fitting several concepts at once: multinomial maximum likelihood of the softmax law.

For fixed alphas the cross-entropy is convex in everything else, so a few starts over alpha reach
the optimum; all parameters are then refined together. See `Concepts` for the law.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.belief import Form, array
from steer.odds.concepts import Concepts
from steer.odds.design import identified

STARTS = (0.0, 0.4, 0.8)
"""Alphas, the same for all concepts, from which the refinement starts."""
UNEVEN = 1e-3
"""How far from 1 the probabilities of an observation may sum."""


def fit_concepts(
    names: Sequence[str],
    evidence: Any,
    strength: Any,
    outcome: Any,
    *,
    outcome_is: Literal["probability", "counts"] = "probability",
    form: Form = "power",
) -> Concepts:
    """Return the concepts that fit observations best, with a and b of mean zero over concepts.

    Args:
        names: of the concepts.
        evidence: [n, concept], at least 0.
        strength: [n] or [n, vector].
        outcome: [n, concept]: probabilities that sum to one, or counts of choices.
        outcome_is: what the outcomes are. Counts weigh an observation by how many they are.
        form: of the evidence; see `Belief`.

    Raises:
        BeliefError: malformed data; a design that does not identify the law, with what to add.
    """
    n, m, y = array(evidence), array(strength), array(outcome)
    m = m[:, None] if m.ndim == 1 else m
    _require_fitting(names, n, m, y, outcome_is)
    for at, name in enumerate(names):
        missing = identified(n[:, at], m).missing
        if missing:
            raise BeliefError(
                f"This design does not identify the concept {name!r}. " + " ".join(missing)
            )
    order = np.lexsort(torch.cat([n, m, y], dim=1).numpy().T[::-1])
    n, m, y = n[order.copy()], m[order.copy()], y[order.copy()]
    unit = m.abs().amax(0).clamp(min=1e-300)
    loss = _Loss(n, m / unit, y, form)
    found = [
        minimize(
            loss,
            loss.start(alpha),
            jac=True,
            method="L-BFGS-B",
            bounds=loss.bounds,
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 3000, "maxfun": 30000},
        )
        for alpha in STARTS
    ]
    best = min(found, key=lambda result: float(result.fun))
    a, b, gamma, alpha = loss.parts(torch.from_numpy(best.x))
    return Concepts(names, a / unit, b, gamma, alpha, form).centred()


class _Loss:
    """Cross-entropy and gradient of a vector of free numbers; the first concept's a and b are 0."""

    def __init__(self, evidence: Tensor, strength: Tensor, outcome: Tensor, form: Form) -> None:
        self.n, self.m, self.y = evidence, strength, outcome
        self.form: Form = form
        self.n_concepts, self.n_vectors = evidence.shape[1], strength.shape[1]
        free = (self.n_concepts - 1) * (self.n_vectors + 1)
        bounds: list[tuple[float | None, float | None]] = [(None, None)] * free
        bounds += [(-14.0, 6.0)] * self.n_concepts
        self.bounds = bounds + [(-3.0, 4.0)] * self.n_concepts

    def start(self, alpha: float) -> NDArray[np.float64]:
        """Return where the search begins: no steering, equal chances."""
        level = [0.0] * ((self.n_concepts - 1) * (self.n_vectors + 1))
        rate = math.atanh(alpha) if self.form == "power" else alpha
        return np.array(level + [math.log(0.3)] * self.n_concepts + [rate] * self.n_concepts)

    def parts(self, free: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a [concept, vector], b, gamma and alpha [concept]."""
        rest, k = self.n_concepts - 1, self.n_vectors
        a = torch.cat([torch.zeros(1, k).double(), free[: rest * k].reshape(rest, k)])
        b = torch.cat([torch.zeros(1).double(), free[rest * k : rest * (k + 1)]])
        gamma, rate = free[rest * (k + 1) :].reshape(2, -1)
        return a, b, gamma.exp(), torch.tanh(rate) if self.form == "power" else rate

    def __call__(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        free = torch.from_numpy(theta).clone().requires_grad_()
        with torch.enable_grad():
            a, b, gamma, alpha = self.parts(free)
            logs = (self.m @ a.T + b + gamma * self._grown(alpha)).log_softmax(-1)
            loss = -(self.y * logs).sum() / self.y.sum()
            (slope,) = torch.autograd.grad(loss, free)
        return float(loss.detach()), slope.numpy()

    def _grown(self, alpha: Tensor) -> Tensor:
        if self.form == "power":
            return torch.where(self.n > 0, self.n.clamp(min=1e-12) ** (1 - alpha), 0.0)
        rate = torch.where((1 - alpha).abs() < 1e-6, 1e-6, 1 - alpha)
        return torch.expm1(rate * self.n.log1p()) / rate


def _require_fitting(
    names: Sequence[str], n: Tensor, m: Tensor, y: Tensor, outcome_is: str
) -> None:
    shapes = (tuple(n.shape), tuple(m.shape), tuple(y.shape))
    if n.ndim != 2 or n.shape != y.shape or n.shape[1] != len(names) or len(m) != len(n):
        raise BeliefError(
            f"Evidence, strength and outcome have the shapes {shapes} for {len(names)} concepts. "
            "They are [n, concept], [n] or [n, vector], and [n, concept]."
        )
    for what, values in (("evidence", n), ("strength", m), ("outcome", y)):
        if not bool(torch.isfinite(values).all()):
            raise BeliefError(
                f"The {what} holds {int((~torch.isfinite(values)).sum())} values that are not "
                "finite. Drop those observations, and look at what made them."
            )
    if bool((n < 0).any()) or bool((y < 0).any()):
        raise BeliefError(
            f"The least evidence is {float(n.min()):g} and the least outcome {float(y.min()):g}. "
            "Both are amounts, and cannot be negative."
        )
    sums = y.sum(1)
    if outcome_is == "probability" and bool(((sums - 1).abs() > UNEVEN).any()):
        raise BeliefError(
            f"The probabilities of an observation sum to {float(sums.min()):g} up to "
            f"{float(sums.max()):g}, not to 1. Divide by the sum if other outcomes were left out "
            'on purpose, or pass counts with outcome_is="counts".'
        )
    if outcome_is == "counts" and bool((sums <= 0).any()):
        raise BeliefError(
            f"{int((sums <= 0).sum())} observations have no counts at all. Leave them out."
        )
