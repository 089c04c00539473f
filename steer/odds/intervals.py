"""How sure the parameters are: bootstrap over questions, and profile likelihood.

Fisher scoring of the law with all resamples (or all values of a profile) as one batch: for
probabilities and counts the Bernoulli likelihood, for log-odds the Gaussian one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.special import chdtri
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.belief import Form, grown
from steer.odds.data import Data
from steer.odds.refits import refitted

NAMES = ("a", "b", "gamma", "alpha")
ROUNDS = 60
"""At most this many steps; most fits stop after five to ten."""
LEAST_GAMMA, LEAST_ALPHA, MOST_ALPHA = 1e-4, -3.0, 0.995
_ADJUSTMENTS = 16
_RIDGE = 1 - torch.logspace(math.log10(1 - MOST_ALPHA), math.log10(1 - LEAST_ALPHA), 121).double()
"""Geometric in 1 - alpha: b and gamma grow as its inverse where they trade against each other."""


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
    data: Data,
    *,
    decay: bool = False,
    bounded: bool = False,
    form: Form = "power",
    resamples: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> Mapping[str, Interval]:
    """Return intervals of all parameters, by name, from questions drawn with replacement.

    Readings of one question are not independent, so questions are drawn and not readings; without
    questions each observation is its own. The plain law of one vector takes all resamples at once;
    with decay, bounds, several vectors (a0, a1, ...) or another form each is fitted anew, about a
    tenth of a second each.

    Raises:
        BeliefError: fewer than 5 questions.
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
    if decay or bounded or form != "power" or data.strength.shape[1] > 1:
        point, found = refitted(data, unit, drawn, decay=decay, bounded=bounded, form=form)
    else:
        point, found = _reweighed(data, unit, drawn)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return {
        name: Interval(point[name], *values.quantile(ends).tolist())
        for name, values in found.items()
    }


def _reweighed(
    data: Data, unit: Tensor, drawn: Tensor
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the parameters and [resample] of each; questions count as often as they are drawn."""
    times = torch.zeros(drawn.shape, dtype=torch.float64)
    times = times.scatter_add(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    point = estimates(data)
    parts = times.split(max(1, 2_000_000 // len(data)))
    found = torch.cat([scored(data, point, data.weight * part[:, unit]) for part in parts])
    return dict(zip(NAMES, point.tolist(), strict=True)), dict(
        zip(NAMES, found.unbind(1), strict=True)
    )


def profile(data: Data, name: str, *, level: float = 0.95, points: int = 81) -> Interval:
    """Return the likelihood interval of one parameter, the others fitted anew at each value.

    It shows what a bootstrap hides: parameters that trade against each other have long, lopsided
    intervals. An end is infinite (0 for gamma, 1 for alpha) where the data set no bound on that
    side. Observations count as independent; where questions differ, use `bootstrap`.

    Raises:
        BeliefError: an unknown parameter, or several vectors.
    """
    if name not in NAMES:
        raise BeliefError(f"There is no parameter {name!r}; they are {', '.join(NAMES)}.")
    at = NAMES.index(name)
    best, ridge = estimates(data), _ridge(data)
    bound = float(chdtri(1, 1 - level))
    side = torch.tensor([-1.0, 1.0]).double()
    reach = torch.full((2,), 5.0).double()
    values = rise = torch.zeros(0).double()
    for _ in range(_ADJUSTMENTS):
        tangent, error = _tangent(data, best, at)
        values, rise, found = _risen(data, best, at, (tangent, ridge), side * reach * error, points)
        if float(rise.min()) < -1e-6:  # the path found a better fit: measure from there
            best = found[int(rise.argmin())]
            values, rise = (
                values[:0],
                rise[:0],
            )  # were this the last round: no bound, not a wrong one
            continue
        factor = _better_reach(values, rise > bound, best[at], at)
        if bool((factor == 1).all()):
            break
        reach = reach * factor
    return Interval(float(best[at]), *_crossings(values, rise, bound, float(best[at]), at))


def _tangent(data: Data, best: Tensor, at: int) -> tuple[Tensor, float]:
    """Return how all parameters move with one along its profile, and its standard error."""
    jacobian, weight = _linearised(data, best[None], data.weight[None])
    information = ((jacobian * weight[..., None]).transpose(1, 2) @ jacobian)[0]
    # Scaled to a unit diagonal: a pseudo-inverse would call a long ridge well known.
    size = information.diagonal().clamp(min=1e-300).sqrt()
    scaled = information / size[:, None] / size + 1e-10 * torch.eye(4).double()
    covariance = torch.linalg.inv(scaled) / size[:, None] / size
    error = math.sqrt(max(float(covariance[at, at]) * _noise(data, best), 1e-300))
    return covariance[:, at] / covariance[at, at], error


def _risen(
    data: Data, best: Tensor, at: int, hints: tuple[Tensor, Tensor], ends: Tensor, points: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return values of one parameter, the rise of the deviance at each, and the fits."""
    half = points // 2
    share = torch.linspace(0, 1, half + 1).double()
    steps = torch.cat([(share[1:] * ends[0]).flip(0), share * ends[1]])
    values = (best[at] + steps).clamp(_least(at), _most(at))
    tangent, ridge = hints
    along = _bounded(best + (values - best[at])[:, None] * tangent)
    near = _on_ridge(data, ridge, values, at)
    own = torch.arange(4) == at
    along, near = (torch.where(own, values[:, None], start) for start in (along, near))
    straight = _loss(data, along, data.weight) < _loss(data, near, data.weight)
    starts = torch.where(straight[:, None], along, near)
    found = scored(data, starts, data.weight.expand(len(values), -1), free=~own)
    rise = (_deviance(data, found) - _deviance(data, best[None])) / _noise(data, best)
    return values, rise, found


def _better_reach(values: Tensor, over: Tensor, best: Tensor, at: int) -> Tensor:
    """Return [2]: how much further, or less far, to look below and above.

    Further where the bound is not met and the parameter can still move; less far where it is met
    within the first few values, which then say little of where.
    """
    factor = torch.ones(2).double()
    for end, mine in enumerate((values < best, values > best)):
        met = over[mine].flip(0) if end == 0 else over[mine]
        edge = bool(values[0] <= _least(at)) if end == 0 else bool(values[-1] >= _most(at))
        first = int(met.to(torch.int8).argmax()) if bool(met.any()) else len(met)
        if first == len(met):
            factor[end] = 1.0 if edge else 4.0
        elif first < len(met) // 5:
            factor[end] = 2.0 * (first + 1) / len(met)
    return factor


def _on_ridge(data: Data, ridge: Tensor, values: Tensor, at: int) -> Tensor:
    """Return [value, 4]: points of the ridge with these values, straight between its grid."""
    one, two = ridge[:-1], ridge[1:]
    loss = _loss(data, ridge, data.weight)
    between = (values[:, None] - one[:, at]) * (values[:, None] - two[:, at]) <= 0
    chosen = torch.where(between, loss[:-1] + loss[1:], torch.inf).argmin(1)
    one, two = one[chosen], two[chosen]
    gap = two[:, at] - one[:, at]
    share = torch.where(gap == 0, 0.0, (values - one[:, at]) / gap)[:, None]
    nearest = ridge[(values[:, None] - ridge[:, at]).abs().argmin(1)]
    return torch.where(between.any(1)[:, None], one + share * (two - one), nearest)


def _least(at: int) -> float:
    return {2: LEAST_GAMMA, 3: LEAST_ALPHA}.get(at, -math.inf)


def _most(at: int) -> float:
    return MOST_ALPHA if at == 3 else math.inf


def _crossings(
    values: Tensor, rise: Tensor, bound: float, best: float, at: int
) -> tuple[float, float]:
    """Return where the deviance has risen by the bound on either side, or the parameter's end."""
    ends = []
    natural = (0.0 if at == 2 else -math.inf, 1.0 if at == 3 else math.inf)
    for side, end in zip((-1, 1), natural, strict=True):
        mine = ((values - best) * side) > 0
        x, y = values[mine], rise[mine].clamp(min=0).sqrt()
        order = torch.argsort((x - best).abs())
        x, y = x[order], y[order]
        over = (y > math.sqrt(bound)).nonzero()[:, 0]
        if not len(over):
            ends.append(end)
            continue
        first = int(over[0])
        x0, y0 = (best, 0.0) if first == 0 else (float(x[first - 1]), float(y[first - 1]))
        share = (math.sqrt(bound) - y0) / max(float(y[first]) - y0, 1e-300)
        ends.append(x0 + share * (float(x[first]) - x0))
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
    ridge = _ridge(data)
    start = ridge[int(_loss(data, ridge, data.weight).argmin())]
    return scored(data, start, data.weight[None])[0]


def _ridge(data: Data) -> Tensor:
    """Return [alpha, 4]: the best fit at each of a grid of alphas.

    With alpha fixed the likelihood has one maximum, so these are found from anywhere; where
    parameters trade against each other they trace the ridge that a search would creep along.
    """
    g = torch.stack([grown(data.evidence, float(alpha), "power") for alpha in _RIDGE])
    plain = torch.stack([data.strength[:, 0], torch.ones_like(data.evidence)], dim=1)
    columns = torch.cat([plain.expand(len(g), -1, -1), g[..., None]], dim=-1)
    root = data.information.sqrt()
    target = (data.log_odds * root)[:, None].expand(len(g), -1, -1)
    solved = torch.linalg.lstsq(columns * root[:, None], target).solution[..., 0]
    starts = _bounded(torch.cat([solved, _RIDGE[:, None]], dim=1))
    free = torch.tensor([True, True, True, False])
    return scored(data, starts, data.weight.expand(len(starts), -1), free=free)


def scored(data: Data, start: Tensor, weight: Tensor, *, free: Tensor | None = None) -> Tensor:
    """Return [resample, 4] of greatest likelihood by damped Fisher scoring.

    Args:
        data: the observations.
        start: [4] or [resample, 4].
        weight: [resample, n].
        free: [4] bool: which parameters move; None is all.
    """
    theta = _bounded(start.expand(len(weight), 4))
    moving = torch.ones(4, dtype=torch.bool) if free is None else free
    worst = _loss(data, theta, weight)
    damping = torch.full((len(weight), 1, 1), 1e-6).double()
    for _ in range(ROUNDS):
        jacobian, w = _linearised(data, theta, weight)
        left = _residual(data, theta) * weight
        gradient = (jacobian.transpose(1, 2) @ left[..., None])[..., 0]
        held = ~moving | _pressed(theta, gradient)
        jacobian, gradient = jacobian * ~held[:, None], torch.where(held, 0.0, gradient)
        gram = (jacobian * w[..., None]).transpose(1, 2) @ jacobian
        scale = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-9)
        step = torch.linalg.solve(gram + damping * torch.diag_embed(scale) + _tiny(), gradient)
        step = torch.where(held, 0.0, step) * _room(theta, step)[:, None]
        tried = _bounded(theta + step)
        loss = _loss(data, tried, weight)
        better = loss <= worst
        gain = (gradient * (tried - theta)).sum(-1)
        theta = torch.where(better[:, None], tried, theta)
        worst = torch.where(better, loss, worst)
        still = (gain <= 1e-11 * (1 + worst.abs())) & (damping[:, 0, 0] < 1e-2)
        if bool(still.all()):
            break
        damping = torch.where(better[:, None, None], damping / 3, damping * 10).clamp(1e-9, 1e6)
    return theta


def _pressed(theta: Tensor, gradient: Tensor) -> Tensor:
    """Return which parameters lie at a bound and are pressed against it, [resample, 4]."""
    gamma, alpha = theta[:, 2], theta[:, 3]
    # A step that ends at a bound lands within rounding of it.
    low = (gamma <= LEAST_GAMMA + 1e-9) & (gradient[:, 2] < 0)
    ends = ((alpha <= LEAST_ALPHA + 1e-9) & (gradient[:, 3] < 0)) | (
        (alpha >= MOST_ALPHA - 1e-9) & (gradient[:, 3] > 0)
    )
    return torch.stack([torch.zeros_like(low), torch.zeros_like(low), low, ends], dim=-1)


def _room(theta: Tensor, step: Tensor) -> Tensor:
    """Return the share of each step, [resample], that stays within the bounds."""
    least = torch.tensor([-math.inf, -math.inf, LEAST_GAMMA, LEAST_ALPHA]).double()
    most = torch.tensor([math.inf, math.inf, math.inf, MOST_ALPHA]).double()
    ahead = torch.where(step < 0, least - theta, most - theta)
    share = torch.where(step == 0, torch.inf, ahead / step)
    return share.clamp(min=0, max=1).amin(-1)


def _tiny() -> Tensor:
    return 1e-12 * torch.eye(4).double()


def _bounded(theta: Tensor) -> Tensor:
    a, b, gamma, alpha = theta.unbind(-1)
    return torch.stack(
        [a, b, gamma.clamp(min=LEAST_GAMMA), alpha.clamp(LEAST_ALPHA, MOST_ALPHA)], dim=-1
    )


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
