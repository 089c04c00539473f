"""Rivals of the law, on the same observations: who predicts cells that nobody saw?

Each rival takes `Data` and returns a function of (evidence, strength) to log-odds. The law's claim
is that evidence and steering add up in log-odds; each rival drops or loosens one part of it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.stats import chi2
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.belief import grown
from steer.odds.fit import Data, fitted, projected

Predictor = Callable[[Tensor, Tensor], Tensor]
"""(evidence [n], strength [n, vector]) -> log-odds [n]."""
Rival = Callable[[Data], Predictor]


def law(data: Data) -> Predictor:
    """Return the additive law itself."""
    belief = fitted(data)
    return lambda n, m: belief.log_odds(n, _one(m))


def fading_law(data: Data) -> Predictor:
    """Return the additive law with an effect of steering that fades at large strengths."""
    belief = fitted(data, decay=True)
    return lambda n, m: belief.log_odds(n, _one(m))


def no_discount(data: Data) -> Predictor:
    """Return log o = a*m + b + gamma*N: every further example counts as much as the first."""
    solved = _solve(data, _columns(data.evidence, data.strength, 0.0))
    return lambda n, m: _columns(n, m, 0.0) @ solved


def logistic_per_strength(data: Data) -> Predictor:
    """Return a curve in N of its own for each strength, interpolated between strengths.

    Outside the strengths seen, the nearest ones are continued straight on.
    """
    strengths = data.strength[:, 0].unique()
    _, _, _, alpha = projected(data)
    rows = [data.take(data.strength[:, 0] == m) for m in strengths]
    solved = torch.stack([_solve(part, _curve(part.evidence, alpha)) for part in rows])

    def predict(n: Tensor, m: Tensor) -> Tensor:
        return (_curve(n, alpha) * _between(m[:, 0], strengths, solved)).sum(1)

    return predict


def additive_in_probability(data: Data) -> Predictor:
    """Return p = f(N) + c*m: the two add up in probability, not in log-odds."""
    _, _, _, alpha = projected(data)
    p = data.log_odds.sigmoid()
    columns = _columns(data.evidence, data.strength, alpha)
    solved = torch.linalg.lstsq(columns, p[:, None]).solution[:, 0]
    return lambda n, m: torch.logit((_columns(n, m, alpha) @ solved).clamp(1e-3, 1 - 1e-3))


def free_interaction(data: Data) -> Predictor:
    """Return the law with a further term in m * N**(1 - alpha): the two need not add up."""
    _, _, _, alpha = projected(data)
    solved = _solve(data, _crossed(data.evidence, data.strength, alpha))
    return lambda n, m: _crossed(n, m, alpha) @ solved


def monotone_spline(data: Data) -> Predictor:
    """Return f(N) + g(m) in log-odds with f and g any monotone curves, fitted in turns."""
    n, m, y = data.evidence.numpy(), data.strength[:, 0].numpy(), data.log_odds.numpy()
    x = np.log1p(n)
    of_m = np.zeros_like(y)
    for _ in range(20):  # backfitting converges geometrically
        in_n = IsotonicRegression(increasing="auto", out_of_bounds="clip").fit(x, y - of_m)
        of_n = in_n.predict(x)
        in_m = IsotonicRegression(increasing="auto", out_of_bounds="clip").fit(m, y - of_n)
        of_m = in_m.predict(m)
    curves = [_smooth(in_n, x), _smooth(in_m, m)]

    def predict(evidence: Tensor, strength: Tensor) -> Tensor:
        found = curves[0](np.log1p(evidence.numpy())) + curves[1](strength[:, 0].numpy())
        return torch.from_numpy(found)

    return predict


BASELINES: Mapping[str, Rival] = {
    "no_discount": no_discount,
    "logistic_per_strength": logistic_per_strength,
    "additive_in_probability": additive_in_probability,
    "free_interaction": free_interaction,
    "monotone_spline": monotone_spline,
}
"""Every rival by name."""
WITHOUT_INTERACTION = (
    "no_discount",
    "logistic_per_strength",
    "additive_in_probability",
    "monotone_spline",
)


def _one(m: Tensor) -> Tensor:
    return m[:, 0] if m.shape[1] == 1 else m


def _curve(n: Tensor, alpha: float) -> Tensor:
    return torch.stack([torch.ones_like(n), grown(n, alpha, "power")], dim=1)


def _columns(n: Tensor, m: Tensor, alpha: float) -> Tensor:
    return torch.cat([m, _curve(n, alpha)], dim=1)


def _crossed(n: Tensor, m: Tensor, alpha: float) -> Tensor:
    return torch.cat([_columns(n, m, alpha), m * grown(n, alpha, "power")[:, None]], dim=1)


def _solve(data: Data, columns: Tensor) -> Tensor:
    root = data.information.sqrt()
    return torch.linalg.lstsq(
        columns * root[:, None], (data.log_odds * root)[:, None], driver="gelsd"
    ).solution[:, 0]


def _between(at: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Return [n, ...]: values at known places, straight between them and beyond."""
    if len(known) == 1:
        return values.expand(len(at), -1)
    right = torch.searchsorted(known, at).clamp(1, len(known) - 1)
    left = right - 1
    share = ((at - known[left]) / (known[right] - known[left]))[:, None]
    return values[left] * (1 - share) + values[right] * share


def _smooth(steps: IsotonicRegression, x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    places = np.unique(x)
    if len(places) == 1:
        return lambda at: np.full_like(at, steps.predict(places)[0])
    curve = PchipInterpolator(places, steps.predict(places))
    return lambda at: curve(np.clip(at, places[0], places[-1]))


@dataclass(frozen=True, slots=True)
class Additivity:
    """Likelihood-ratio test of whether evidence and steering add up in log-odds."""

    statistic: float
    p: float
    interaction: float
    """Nats per unit of strength and of N**(1 - alpha)."""

    def __repr__(self) -> str:
        """Say what was found."""
        verdict = "does not add up" if self.p < 0.05 else "is consistent with adding up"
        return (
            f"Additivity(chi2(1) = {self.statistic:.3g}, p = {self.p:.3g}, interaction "
            f"{self.interaction:.3g}: this {verdict})"
        )


def additivity(data: Data) -> Additivity:
    """Test the law against the law with a term m * N**(1 - alpha) (one vector).

    Gaussian in log-odds, over means of questions where these are given, so that readings of one
    question do not count as independent.

    Raises:
        BeliefError: too few cells to leave a degree of freedom.
    """
    cells = _cell_means(data)
    _, _, _, alpha = projected(cells)
    n, m = cells.evidence, cells.strength
    plain, crossed = _columns(n, m, alpha), _crossed(n, m, alpha)
    if len(cells) <= crossed.shape[1] + 1:
        raise BeliefError(
            f"{len(cells)} cells cannot test additivity: the fuller law has {crossed.shape[1] + 1} "
            "parameters. Add strengths or amounts of evidence."
        )
    errors = [_error(cells, columns) for columns in (plain, crossed)]
    statistic = len(cells) * math.log(max(errors[0], 1e-300) / max(errors[1], 1e-300))
    solved = _solve(cells, crossed)
    return Additivity(statistic, float(chi2.sf(max(statistic, 0.0), 1)), float(solved[-1]))


def _error(data: Data, columns: Tensor) -> float:
    left = data.log_odds - columns @ _solve(data, columns)
    return float((data.information * left**2).sum() / data.information.sum())


def _cell_means(data: Data) -> Data:
    keys = torch.cat([data.evidence[:, None], data.strength], dim=1)
    cells, cell = keys.unique(dim=0, return_inverse=True)
    size = torch.zeros(len(cells)).double().index_add(0, cell, torch.ones(len(cell)).double())
    mean = torch.zeros(len(cells)).double().index_add(0, cell, data.log_odds) / size
    return Data(cells[:, 0], cells[:, 1:], mean, size)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison:
    """Errors on held-out observations, and which rival wins."""

    errors: Mapping[str, float]
    """Mean absolute error in nats, by name."""
    correlations: Mapping[str, float]
    aic: Mapping[str, float]
    """Akaike's criterion of the law and of the rivals that are linear in their parameters."""

    @property
    def best(self) -> str:
        """The name with the least held-out error."""
        return min(self.errors, key=lambda name: self.errors[name])

    def __repr__(self) -> str:
        """Print one line for each, the best first."""
        order = sorted(self.errors, key=lambda name: self.errors[name])
        lines = [f"{'':26}{'error (nats)':>13}{'r':>7}{'AIC':>9}"]
        for name in order:
            aic = f"{self.aic[name]:>9.1f}" if name in self.aic else ""
            lines.append(f"{name:26}{self.errors[name]:>13.3f}{self.correlations[name]:>7.3f}{aic}")
        return "\n".join([*lines, f"Least held-out error: {self.best}."])


def compare(train: Data, held_out: Data) -> Comparison:
    """Return how well the law and its rivals, fitted on some observations, predict others."""
    rivals: dict[str, Rival] = {"law": law, **BASELINES}
    errors, correlations, aic = {}, {}, {}
    truth = held_out.log_odds
    for name, rival in rivals.items():
        predictor = rival(train)
        predicted = predictor(held_out.evidence, held_out.strength)
        errors[name] = float((predicted - truth).abs().mean())
        correlations[name] = correlation(predicted, truth)
        if name in _PARAMETERS:
            left = train.log_odds - predictor(train.evidence, train.strength)
            variance = float((left**2).mean())
            aic[name] = len(train) * math.log(max(variance, 1e-300)) + 2 * _PARAMETERS[name]
    return Comparison(errors, correlations, aic)


_PARAMETERS = {"law": 4, "no_discount": 3, "additive_in_probability": 4, "free_interaction": 5}


def correlation(x: Tensor, y: Tensor) -> float:
    """Return Pearson's r; 0 where one of them does not vary."""
    a, b = x - x.mean(), y - y.mean()
    return float((a @ b) / (a.norm() * b.norm()).clamp(min=1e-300))
