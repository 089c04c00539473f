"""Fitting a belief: variable projection over alpha, then maximum likelihood of all parameters.

For a fixed alpha the log-odds are linear in a, b and gamma, so one batched least-squares solve over
a grid of alphas gives a start that cannot be missed (Golub and Pereyra 1973); the Bernoulli
cross-entropy is then minimised over everything at once. The paper (arXiv:2511.00617) fits curves
by least squares; cross-entropy weighs each outcome by what it can tell.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.optimize import minimize
from torch import Tensor

from steer.odds.belief import Belief, Decay, Form, grown
from steer.odds.data import SMOOTHING, Data, OutcomeIs, data_of, require_rising
from steer.odds.design import require_identified

ALPHAS = torch.linspace(-0.95, 0.98, 194, dtype=torch.float64)
STUCK = 1e-4
"""A slope of the loss that no minimum has: the search is begun again from other alphas."""
LEAST_EFFECT = 0.9
"""Share of its effect that steering must keep for a strength to count as valid."""
_NODES = 15


def fit(
    evidence: Any,
    strength: Any,
    outcome: Any,
    *,
    trials: Any = None,
    outcome_is: OutcomeIs = "log_odds",
    question: Any = None,
    decay: bool = False,
    bounded: bool = False,
    form: Form = "power",
    smoothing: float = SMOOTHING,
    intervention: str | None = None,
) -> Belief:
    """Return the belief that fits observations best.

    Args:
        evidence: [n]; see `data_of` for this and the next.
        strength: [n] or [n, vector].
        outcome: [n].
        trials: [n], of probabilities and counts.
        outcome_is: "log_odds" (least squares), "probability" or "counts" (cross-entropy).
        question: [n] ids: questions differ by a normal intercept, integrated out for probabilities
            and counts (Gauss-Hermite), and estimated from residuals for log-odds.
        decay: also fit how steering fades at large strengths; the strengths at which nine tenths
            of the effect are left become `valid`. Its power stays 1: with the handful of strengths
            of an experiment, power and width cannot be told apart.
        bounded: also fit a floor and a ceiling of the probability.
        form: of the evidence; see `Belief`.
        smoothing: how far probabilities are kept from 0 and 1.
        intervention: digest of the steering (`steer.belief.identity`), kept in the belief.

    Raises:
        BeliefError: malformed data; a design that does not identify the law, with what to add;
            log-odds that fall with evidence.
    """
    data = data_of(
        evidence,
        strength,
        outcome,
        trials=trials,
        outcome_is=outcome_is,
        question=question,
        smoothing=smoothing,
    )
    require_identified(data.evidence, data.strength)
    require_rising(data)
    return replace(fitted(data, decay=decay, bounded=bounded, form=form), intervention=intervention)


def fitted(
    data: Data, *, decay: bool = False, bounded: bool = False, form: Form = "power"
) -> Belief:
    """Return the belief that fits checked data best."""
    # In units of the largest strength: the minimiser's stopping rule would else see the user's.
    largest = data.strength.abs().amax(0)
    unit = torch.where(largest > 0, largest.max() if decay else largest, 1.0)
    whole, data = data, replace(data, strength=data.strength / unit)
    n_vectors = data.strength.shape[1]
    a, b, gamma, alpha = projected(data, form)
    start = [*a.tolist(), b, _softminus(gamma), _unsquashed(alpha)]
    if decay:
        reach = float(data.strength.abs().max())
        start += [_log(2 * reach), _log(2 * reach)]
    if bounded:
        start += [-5.0, 5.0]
    spread = data.question is not None and not data.is_log_odds
    if spread:
        start += [_log(0.3)]
    model = _Model(data, n_vectors, decay, bounded, spread, form)
    found = _minimised(model, start)
    if _slope_left(found, model.bounds) > STUCK:
        elsewhere = [
            _minimised(model, [*start[: n_vectors + 2], rate, *start[n_vectors + 3 :]])
            for rate in (0.0, 0.55, 1.5)
        ]
        found = min([found, *elsewhere], key=lambda result: float(result.fun))
    belief = _in_units(model.belief(torch.from_numpy(found.x)), unit, whole)
    if data.question is not None and data.is_log_odds:
        left = data.log_odds - belief.log_odds(data.evidence, _squeezed(whole.strength))
        belief = replace(belief, spread=_spread(left, data.question))
    return belief


def _minimised(model: "_Model", start: list[float]) -> Any:
    return minimize(
        model,
        torch.tensor(start).double().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=model.bounds,
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 2000, "maxfun": 20000},
    )


def _slope_left(found: Any, bounds: list[tuple[float | None, float | None]]) -> float:
    """Return the largest slope of the loss that a step within the bounds could still follow."""
    left = 0.0
    for at, slope, (low, high) in zip(found.x, found.jac, bounds, strict=True):
        pinned = (low is not None and at <= low and slope > 0) or (
            high is not None and at >= high and slope < 0
        )
        left = left if pinned else max(left, abs(float(slope)))
    return left


def _in_units(belief: Belief, unit: Tensor, data: Data) -> Belief:
    """Return a belief fitted in another unit of strength, in the unit of the data."""
    low, high = valid = (float(data.strength.min()), float(data.strength.max()))
    faded, one = belief.decay, float(unit[0])
    if faded is not None:
        faded = replace(faded, below=faded.below * one, above=faded.above * one)
        reach = faded.within(LEAST_EFFECT)
        valid = (max(reach[0], low), min(reach[1], high))
    a = belief.slopes / unit
    return replace(belief, a=a, decay=faded, strength_range=(low, high), valid=valid)


def projected(data: Data, form: Form = "power") -> tuple[Tensor, float, float, float]:
    """Return a, b, gamma, alpha of weighted least squares on log-odds, gamma not negative."""
    y = data.log_odds
    root = data.information.sqrt()
    g = torch.stack([grown(data.evidence, float(alpha), form) for alpha in ALPHAS])
    shared = torch.cat([data.strength, torch.ones(len(y), 1, dtype=y.dtype)], dim=1)
    design = torch.cat([shared.expand(len(g), -1, -1), g[..., None]], dim=-1) * root[:, None]
    target = (y * root).expand(len(g), -1)[..., None]
    solved = torch.linalg.lstsq(design, target).solution
    error = ((design @ solved - target) ** 2).sum((1, 2))
    error = torch.where(solved[:, -1, 0] < 0, torch.inf, error)
    if not bool(torch.isfinite(error).any()):  # evidence against: the best that is not negative
        flat = torch.linalg.lstsq(shared * root[:, None], (y * root)[:, None]).solution[:, 0]
        return flat[:-1], float(flat[-1]), 1e-6, 0.5
    best = int(error.argmin())
    *a, b, gamma = solved[best, :, 0].tolist()
    return torch.tensor(a).double(), b, gamma, float(ALPHAS[best])


class _Model:
    """The objective of the refinement: loss and gradient of a vector of free numbers."""

    def __init__(
        self, data: Data, n_vectors: int, decay: bool, bounded: bool, spread: bool, form: Form
    ) -> None:
        self.data, self.n = data, n_vectors
        self.form: Form = form
        self.decay, self.bounded, self.spread = decay, bounded, spread
        top = 50.0
        bounds: list[tuple[float | None, float | None]] = [(None, None)] * (n_vectors + 1)
        bounds += [(-14.0, top), (-3.0, 4.0)]
        reach = float(data.strength.abs().max())
        bounds += [(_log(0.2 * reach), _log(50 * reach))] * 2 if decay else []
        bounds += [(-12.0, -0.2), (0.2, 12.0)] if bounded else []
        bounds += [(-6.0, 3.0)] if spread else []
        self.bounds = bounds
        nodes, weights = _hermite()
        self.nodes, self.log_weights = nodes, weights.log()

    def __call__(self, theta: Any) -> tuple[float, Any]:
        free = torch.from_numpy(theta).clone().requires_grad_(True)
        with torch.enable_grad():
            loss = self._loss(free)
            (gradient,) = torch.autograd.grad(loss, free)
        return float(loss.detach()), gradient.numpy()

    def _parts(self, free: Tensor) -> dict[str, Tensor]:
        at = self.n
        parts = {"a": free[:at], "b": free[at], "gamma": free[at + 1].exp()}
        parts["alpha"] = torch.tanh(free[at + 2]) if self.form == "power" else free[at + 2]
        at += 3
        if self.decay:
            parts["below"], parts["above"] = free[at].exp(), free[at + 1].exp()
            at += 2
        if self.bounded:
            parts["floor"], parts["ceiling"] = free[at].sigmoid(), free[at + 1].sigmoid()
            at += 2
        if self.spread:
            parts["spread"] = free[at].exp()
        return parts

    def _loss(self, free: Tensor) -> Tensor:
        data, p = self.data, self._parts(free)
        m = data.strength
        if self.decay:
            m = m / (1 + (m / torch.where(m < 0, p["below"], p["above"])) ** 2)
        n = data.evidence
        if self.form == "power":
            g = torch.where(n > 0, n.clamp(min=1e-12) ** (1 - p["alpha"]), 0.0)
        else:
            rate = 1 - p["alpha"]
            rate = torch.where(rate.abs() < 1e-6, 1e-6, rate)
            g = torch.expm1(rate * n.log1p()) / rate
        latent = m @ p["a"] + p["b"] + p["gamma"] * g
        if data.is_log_odds:
            odds = latent if not self.bounded else torch.logit(self._bound(latent, p))
            return ((odds - data.outcome) ** 2 * data.weight).sum() / data.weight.sum()
        if not self.spread:
            return -self._log_likelihood(latent, p).sum() / data.weight.sum()
        assert data.question is not None
        each = latent[:, None] + p["spread"] * self.nodes
        one = self._log_likelihood(each, p)
        groups = int(data.question.max()) + 1
        summed = torch.zeros(groups, one.shape[1], dtype=one.dtype).index_add(0, data.question, one)
        return -(summed + self.log_weights).logsumexp(1).sum() / data.weight.sum()

    def _bound(self, latent: Tensor, p: dict[str, Tensor]) -> Tensor:
        return p["floor"] + (p["ceiling"] - p["floor"]) * latent.sigmoid()

    def _log_likelihood(self, latent: Tensor, p: dict[str, Tensor]) -> Tensor:
        shape = (-1, *[1] * (latent.ndim - 1))
        y, weight = self.data.outcome.reshape(shape), self.data.weight.reshape(shape)
        if self.bounded:
            chance = self._bound(latent, p)
            return weight * (y * chance.log() + (1 - y) * (1 - chance).log())
        success = torch.nn.functional.logsigmoid(latent)
        return weight * (y * success + (1 - y) * (success - latent))

    def belief(self, free: Tensor) -> Belief:
        p = {name: value.detach() for name, value in self._parts(free).items()}
        faded = Decay(float(p["below"]), float(p["above"])) if self.decay else None
        n = self.data.evidence
        return Belief(
            p["a"],
            float(p["b"]),
            float(p["gamma"]),
            float(p["alpha"]),
            self.form,
            float(p.get("floor", 0.0)),
            float(p.get("ceiling", 1.0)),
            faded,
            float(p.get("spread", 0.0)),
            (float(n.min()), float(n.max())),
        )


def _hermite() -> tuple[Tensor, Tensor]:
    nodes, weights = hermegauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def _log(value: float) -> float:
    return math.log(max(value, 1e-12))


def _softminus(gamma: float) -> float:
    return _log(max(gamma, 1e-4))


def _unsquashed(alpha: float) -> float:
    return math.atanh(min(max(alpha, -0.99), 0.99))


def _squeezed(strength: Tensor) -> Tensor:
    return strength[:, 0] if strength.shape[1] == 1 else strength


def _spread(left: Tensor, question: Tensor) -> float:
    """Return the standard deviation of question means beyond what noise within them explains."""
    groups = int(question.max()) + 1
    size = torch.zeros(groups).double().index_add(0, question, torch.ones_like(left))
    mean = torch.zeros(groups).double().index_add(0, question, left) / size
    within = ((left - mean[question]) ** 2).sum() / max(len(left) - groups, 1)
    return float((mean.var() - (within / size).mean()).clamp(min=0).sqrt()) if groups > 1 else 0.0
