"""How sure the parameters are: bootstrap over questions, and profile likelihood.

Fisher scoring of the law with all resamples (or all values of a profile) as one batch: for
probabilities and counts the Bernoulli likelihood, for log-odds the Gaussian one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.special import chdtri
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.fit import Data, projected

NAMES = ("a", "b", "gamma", "alpha")
ROUNDS = 25
LEAST_GAMMA, MOST_ALPHA = 1e-4, 0.995


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and where it may lie."""

    value: float
    lo: float
    hi: float

    def __repr__(self) -> str:
        """Print value and ends."""
        return f"{self.value:.3g} [{self.lo:.3g}, {self.hi:.3g}]"

    def holds(self, truth: float) -> bool:
        """Say whether a value lies inside."""
        return self.lo <= truth <= self.hi


def bootstrap(
    data: Data, *, resamples: int = 400, level: float = 0.95, seed: int = 0
) -> Mapping[str, Interval]:
    """Return intervals of a, b, gamma and alpha from questions drawn with replacement.

    Readings of one question are not independent, so questions are drawn and not readings; without
    questions each observation is its own.

    Raises:
        BeliefError: fewer than 5 questions, or several vectors.
    """
    unit = torch.arange(len(data)) if data.question is None else data.question
    n_units = int(unit.max()) + 1
    if n_units < 5:
        raise BeliefError(
            f"A bootstrap over {n_units} questions says nothing of other questions. Collect at "
            "least 5, better 20."
        )
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_units, (resamples, n_units), generator=draw)
    times = torch.zeros(resamples, n_units, dtype=torch.float64)
    times = times.scatter_add(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    point = estimates(data)
    parts = times.split(max(1, 2_000_000 // len(data)))
    found = torch.cat([scored(data, point, data.weight * part[:, unit]) for part in parts])
    tail = (1 - level) / 2
    lo, hi = found.quantile(tail, dim=0), found.quantile(1 - tail, dim=0)
    return {
        name: Interval(float(point[at]), float(lo[at]), float(hi[at]))
        for at, name in enumerate(NAMES)
    }


def profile(data: Data, name: str, *, level: float = 0.95, points: int = 81) -> Interval:
    """Return the likelihood interval of one parameter, the others fitted anew at each value.

    It shows what a bootstrap hides: parameters that trade against each other have long, lopsided
    intervals. Observations count as independent; where questions differ, use `bootstrap`.

    Raises:
        BeliefError: an unknown parameter, or several vectors.
    """
    if name not in NAMES:
        raise BeliefError(f"There is no parameter {name!r}; they are {', '.join(NAMES)}.")
    at = NAMES.index(name)
    best = estimates(data)
    jacobian, weight = _linearised(data, best[None], data.weight[None])
    information = (jacobian * weight[..., None]).transpose(1, 2) @ jacobian
    noise = _noise(data, best)
    reach = 5 * float((torch.linalg.pinv(information)[0, at, at] * noise).sqrt())
    values = best[at] + torch.linspace(-reach, reach, points).double()
    values = values.clamp(min=LEAST_GAMMA) if name == "gamma" else values
    values = values.clamp(max=MOST_ALPHA) if name == "alpha" else values
    starts = best.repeat(points, 1)
    starts[:, at] = values
    free = torch.arange(4) != at
    found = scored(data, starts, data.weight.expand(points, -1), free=free)
    rise = (_deviance(data, found) - _deviance(data, best[None])) / noise
    bound = float(chdtri(1, 1 - level))
    return Interval(float(best[at]), *_crossings(values, rise, bound, float(best[at])))


def _crossings(values: Tensor, rise: Tensor, bound: float, best: float) -> tuple[float, float]:
    """Return where the deviance has risen by the bound on either side, straight between points."""
    ends = []
    for side in (-1, 1):
        mine = ((values - best) * side) >= 0
        x, y = values[mine], rise[mine]
        order = torch.argsort((x - best).abs())
        x, y = x[order], y[order]
        over = (y > bound).nonzero()[:, 0]
        if not len(over):
            ends.append(float(x[-1]) if len(x) else best)
            continue
        at = int(over[0])
        x0, y0 = (best, 0.0) if at == 0 else (float(x[at - 1]), float(y[at - 1]))
        share = (bound - y0) / max(float(y[at]) - y0, 1e-300)
        ends.append(x0 + share * (float(x[at]) - x0))
    return ends[0], ends[1]


def estimates(data: Data) -> Tensor:
    """Return [4]: a, b, gamma, alpha of greatest likelihood.

    Raises:
        BeliefError: several vectors.
    """
    if data.strength.shape[1] != 1:
        raise BeliefError(
            f"Intervals are for one steering vector, but the data have {data.strength.shape[1]}. "
            "Take the observations in which one of them varies."
        )
    a, b, gamma, alpha = projected(data)
    start = torch.tensor([float(a[0]), b, gamma, alpha]).double()
    return scored(data, start, data.weight[None])[0]


def scored(data: Data, start: Tensor, weight: Tensor, *, free: Tensor | None = None) -> Tensor:
    """Return [resample, 4] of greatest likelihood by damped Fisher scoring.

    Args:
        data: the observations.
        start: [4] or [resample, 4].
        weight: [resample, n].
        free: [4] bool: which parameters move; None is all.
    """
    theta = start.expand(len(weight), 4).clone()
    moving = torch.ones(4, dtype=torch.bool) if free is None else free
    worst = _loss(data, theta, weight)
    damping = torch.full((len(weight), 1, 1), 1e-6).double()
    for _ in range(ROUNDS):
        jacobian, w = _linearised(data, theta, weight)
        jacobian = jacobian * moving
        left = _residual(data, theta) * weight
        gram = (jacobian * w[..., None]).transpose(1, 2) @ jacobian
        gradient = (jacobian.transpose(1, 2) @ left[..., None])[..., 0]
        scale = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-9)
        step = torch.linalg.solve(gram + damping * torch.diag_embed(scale) + _tiny(), gradient)
        tried = _bounded(theta + torch.where(moving, step, 0.0))
        loss = _loss(data, tried, weight)
        better = loss <= worst
        theta = torch.where(better[:, None], tried, theta)
        worst = torch.where(better, loss, worst)
        damping = torch.where(better[:, None, None], damping / 3, damping * 10).clamp(1e-9, 1e6)
    return theta


def _tiny() -> Tensor:
    return 1e-12 * torch.eye(4).double()


def _bounded(theta: Tensor) -> Tensor:
    a, b, gamma, alpha = theta.unbind(-1)
    return torch.stack([a, b, gamma.clamp(min=LEAST_GAMMA), alpha.clamp(-3.0, MOST_ALPHA)], dim=-1)


def _latent(data: Data, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return ([resample, n], [resample, n]): the log-odds, and N**(1 - alpha)."""
    a, b, gamma, alpha = (part[..., None] for part in theta.unbind(-1))
    n = data.evidence
    g = torch.where(n > 0, n.clamp(min=1e-12) ** (1 - alpha), 0.0)
    return a * data.strength[:, 0] + b + gamma * g, g


def _linearised(data: Data, theta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Jacobian of the log-odds [resample, n, 4] and the information of each reading."""
    latent, g = _latent(data, theta)
    bend = -theta[:, 2:3] * g * data.evidence.clamp(min=1e-12).log()
    m = data.strength[:, 0].expand_as(g)
    jacobian = torch.stack([m, torch.ones_like(g), g, bend], dim=-1)
    p = latent.sigmoid()
    return jacobian, weight if data.is_log_odds else weight * (p * (1 - p)).clamp(min=1e-12)


def _residual(data: Data, theta: Tensor) -> Tensor:
    latent, _ = _latent(data, theta)
    return data.outcome - (latent if data.is_log_odds else latent.sigmoid())


def _loss(data: Data, theta: Tensor, weight: Tensor) -> Tensor:
    latent, _ = _latent(data, theta)
    if data.is_log_odds:
        return (weight * (latent - data.outcome) ** 2).sum(-1) / 2
    softplus = torch.nn.functional.softplus(latent)
    return (weight * (softplus - data.outcome * latent)).sum(-1)


def _deviance(data: Data, theta: Tensor) -> Tensor:
    return 2 * _loss(data, theta, data.weight)


def _noise(data: Data, theta: Tensor) -> float:
    """Return the variance of a log-odds reading; 1 where the likelihood says it itself."""
    if not data.is_log_odds:
        return 1.0
    return max(float(_deviance(data, theta[None])) / max(len(data) - 4, 1), 1e-300)
