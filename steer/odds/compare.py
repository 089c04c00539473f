"""Rivals of the law, on the same observations: who predicts cells that nobody saw?

Each rival takes `Data` and returns a function of (evidence, strength) to log-odds. The law's claim
is that evidence and steering add up in log-odds; each rival drops or loosens one part of it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import chdtrc, fdtrc
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.belief import grown
from steer.odds.data import Data
from steer.odds.fit import fitted, projected
from steer.odds.intervals import estimates

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
    # Heavy, and one rival's need alone: importing steer does not load it.
    from sklearn.isotonic import IsotonicRegression

    n, m, y = data.evidence.numpy(), data.strength[:, 0].numpy(), data.log_odds.numpy()
    x = np.log1p(n)
    rising = bool(np.corrcoef(m, y)[0, 1] >= 0) if np.ptp(m) else True
    in_n = IsotonicRegression(increasing=True, out_of_bounds="clip")
    in_m = IsotonicRegression(increasing=rising, out_of_bounds="clip")
    of_m = np.zeros_like(y)
    for _ in range(20):  # backfitting converges geometrically
        of_n = in_n.fit(x, y - of_m).predict(x)
        of_m = in_m.fit(m, y - of_n).predict(m)
    curves = [_smooth(in_n.predict, x), _smooth(in_m.predict, m)]

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


Curve = Callable[[np.ndarray], np.ndarray]


def _smooth(steps: Curve, x: np.ndarray) -> Curve:
    from scipy.interpolate import PchipInterpolator  # heavy, as above

    places = np.unique(x)
    if len(places) == 1:
        return lambda at: np.full_like(at, steps(places)[0])
    curve = PchipInterpolator(places, steps(places))
    return lambda at: curve(np.clip(at, places[0], places[-1]))


@dataclass(frozen=True, slots=True)
class Additivity:
    """Likelihood-ratio test of whether evidence and steering add up in log-odds."""

    statistic: float
    """chi2(1), or F(1, questions - 1) where questions are known."""
    p: float
    interaction: float
    """Nats per unit of strength and of N**(1 - alpha)."""

    def __repr__(self) -> str:
        """Say what was found."""
        verdict = "does not add up" if self.p < 0.05 else "is consistent with adding up"
        return (
            f"Additivity(statistic {self.statistic:.3g}, p = {self.p:.3g}, interaction "
            f"{self.interaction:.3g}: this {verdict})"
        )


def additivity(data: Data) -> Additivity:
    """Test the law against the law with a term m * N**(1 - alpha) (one vector).

    Without questions: a likelihood-ratio test, Gaussian for log-odds and Bernoulli else. With
    questions, whose readings are not independent: a Wald test whose variance comes from the
    questions (cluster sandwich). Either way alpha stays free, by its derivative as a column.

    Raises:
        BeliefError: too few cells to leave a degree of freedom.
    """
    n, m = data.evidence, data.strength
    cells = len(torch.cat([n[:, None], m], dim=1).unique(dim=0))
    if cells < 7:
        raise BeliefError(
            f"{cells} cells cannot test additivity: the fuller law has 5 parameters. Add strengths "
            "or amounts of evidence."
        )
    alpha = float(estimates(data)[3])
    g = grown(n, alpha, "power")
    bend = g * n.clamp(min=1e-12).log()
    plain = torch.cat([_columns(n, m, alpha), bend[:, None]], dim=1)
    crossed = torch.cat([plain, m * g[:, None]], dim=1)
    solved, information = _maximised(data, crossed)
    if data.question is None:
        losses = [
            _loss(data, columns @ _maximised(data, columns)[0]) for columns in (plain, crossed)
        ]
        if data.is_log_odds:
            statistic = len(data) * math.log(max(losses[0], 1e-300) / max(losses[1], 1e-300))
        else:
            statistic = 2 * (losses[0] - losses[1])
        return Additivity(statistic, float(chdtrc(1, max(statistic, 0.0))), float(solved[-1]))
    latent = crossed @ solved
    left = data.weight * (data.outcome - (latent if data.is_log_odds else latent.sigmoid()))
    groups = int(data.question.max()) + 1
    scores = torch.zeros(groups, crossed.shape[1]).double()
    scores = scores.index_add(0, data.question, crossed * left[:, None])
    bread = torch.linalg.pinv(information)
    variance = float((bread @ (scores.T @ scores) @ bread)[-1, -1]) * groups / (groups - 1)
    statistic = float(solved[-1]) ** 2 / max(variance, 1e-300)
    return Additivity(statistic, float(fdtrc(1, groups - 1, statistic)), float(solved[-1]))


def _maximised(data: Data, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients of greatest likelihood and their information."""
    if data.is_log_odds:
        weighted = columns * data.weight[:, None]
        gram = weighted.T @ columns
        return torch.linalg.lstsq(gram, weighted.T @ data.outcome).solution, gram
    solved = _solve(data, columns)
    gram = torch.eye(columns.shape[1]).double()
    for _ in range(12):  # Newton's steps from a start that is nearly there
        p = (columns @ solved).sigmoid()
        weighted = columns * (data.weight * (p * (1 - p)).clamp(min=1e-12))[:, None]
        gram = weighted.T @ columns
        gradient = columns.T @ (data.weight * (data.outcome - p))
        solved = solved + torch.linalg.lstsq(gram, gradient).solution
    return solved, gram


def _loss(data: Data, latent: Tensor) -> float:
    if data.is_log_odds:
        return float((data.weight * (latent - data.outcome) ** 2).sum())
    return _cross_entropy(data, latent)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison:
    """Errors on held-out observations, and which rival wins."""

    errors: Mapping[str, float]
    """Mean absolute error in nats, by name."""
    correlations: Mapping[str, float]
    aic: Mapping[str, float]
    """Akaike's criterion of the law and of the rivals that are linear in their parameters: of the
    likelihood of the outcomes, Gaussian for log-odds and Bernoulli else."""
    log_loss: Mapping[str, float]
    """Mean held-out cross-entropy of a trial in nats; the outcome of log-odds is their
    probability."""

    @property
    def best(self) -> str:
        """The name with the least held-out error."""
        return min(self.errors, key=lambda name: self.errors[name])

    def __repr__(self) -> str:
        """Print one line for each, the best first."""
        order = sorted(self.errors, key=lambda name: self.errors[name])
        lines = [f"{'':26}{'error (nats)':>13}{'r':>7}{'log-loss':>10}{'AIC':>9}"]
        for name in order:
            aic = f"{self.aic[name]:>9.1f}" if name in self.aic else ""
            lines.append(
                f"{name:26}{self.errors[name]:>13.3f}{self.correlations[name]:>7.3f}"
                f"{self.log_loss[name]:>10.4f}{aic}"
            )
        return "\n".join([*lines, f"Least held-out error: {self.best}."])


def compare(train: Data, held_out: Data) -> Comparison:
    """Return how well the law and its rivals, fitted on some observations, predict others."""
    rivals: dict[str, Rival] = {"law": law, **BASELINES}
    errors, correlations, aic, log_loss = {}, {}, {}, {}
    truth = held_out.log_odds
    for name, rival in rivals.items():
        predictor = rival(train)
        predicted = predictor(held_out.evidence, held_out.strength)
        errors[name] = float((predicted - truth).abs().mean())
        correlations[name] = correlation(predicted, truth)
        log_loss[name] = _cross_entropy(held_out, predicted) / float(held_out.weight.sum())
        if name in _PARAMETERS:
            deviance = _deviance(train, predictor(train.evidence, train.strength))
            aic[name] = deviance + 2 * _PARAMETERS[name]
    return Comparison(errors, correlations, aic, log_loss)


_PARAMETERS = {"law": 4, "no_discount": 3, "additive_in_probability": 4, "free_interaction": 5}


def _deviance(data: Data, latent: Tensor) -> float:
    """Return -2 log-likelihood, up to a constant of the data; the Gaussian variance is fitted."""
    if not data.is_log_odds:
        return 2 * _cross_entropy(data, latent)
    return len(data) * math.log(max(_loss(data, latent) / len(data), 1e-300))


def _cross_entropy(data: Data, latent: Tensor) -> float:
    """Return the cross-entropy of all trials in nats."""
    share = data.outcome.sigmoid() if data.is_log_odds else data.outcome
    return float((data.weight * (torch.nn.functional.softplus(latent) - share * latent)).sum())


def correlation(x: Tensor, y: Tensor) -> float:
    """Return Pearson's r; 0 where one of them does not vary."""
    a, b = x - x.mean(), y - y.mean()
    return float((a @ b) / (a.norm() * b.norm()).clamp(min=1e-300))
