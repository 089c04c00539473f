"""Which predictor a training run has come to follow: a trade of complexity against loss.

Wurgaft et al. 2025 (arXiv:2506.17859): after n steps of training a model predicts as a mixture of
Bayesian predictors, with log-weights

    log w_i = -complexity_i**beta * ln 2 - gamma * n**(1 - alpha) * loss_i,

the same discounted evidence as in `Belief`, gathered by training instead of context. One triple
(alpha, beta, gamma) serves every task diversity and every length of training of a setting. Where
the losses of the predictors on the items in context are known, they add
- gamma_context * items**(1 - alpha) * mean loss so far: the paper's second term, with a weight of
its own here. Added here: the time at which one predictor overtakes another, in closed form.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from steer import spec as specs
from steer.errors import BeliefError
from steer.odds.belief import array

Readout = Literal["probabilities", "mean"]
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Rational:
    """Weights of predictors after training, from their complexities and losses; see the module.

    Raises:
        BeliefError: parameters that are not finite or out of range.

    >>> law = Rational(alpha=0.5, beta=0.5, gamma=1.0)
    >>> law.transition(bits=[400.0, 100.0], losses=[1.0, 1.5])  # (ln 2 * (20 - 10) / .5)**2
    tensor(192.1812, dtype=torch.float64)
    """

    kind: ClassVar[str] = "steer.Rational"
    alpha: float
    """How fast further training is discounted, below 1."""
    beta: float
    """Exponent of the complexity in bits."""
    gamma: float
    """Weight of the loss of training."""
    gamma_context: float = 0.0
    """Weight of the loss within the context."""

    def __post_init__(self) -> None:
        """Check the parameters."""
        values = [self.alpha, self.beta, self.gamma, self.gamma_context]
        if not all(math.isfinite(x) for x in values) or min(values[1:]) < 0 or self.alpha >= 1:
            raise BeliefError(
                f"alpha={self.alpha:g}, beta={self.beta:g}, gamma={self.gamma:g}, gamma_context="
                f"{self.gamma_context:g} is not a law of training: alpha is below 1 and the others "
                "are not negative, or a predictor would gain by losing."
            )

    def log_weights(
        self, steps: Any, bits: Any, losses: Any, *, context: Any = None, items: Any = None
    ) -> Tensor:
        """Return [..., predictor]: log-weights, normalised.

        Args:
            steps: [...], of training, at least 0.
            bits: [..., predictor], complexities.
            losses: [..., predictor], average loss of each on the training tasks, in nats.
            context: [..., predictor], average loss of each over the items in context so far.
            items: [...], how many those are.
        """
        n, k, loss = array(steps), array(bits), array(losses)
        gained = _grown(n, self.alpha)[..., None] * loss
        logs = -math.log(2) * k**self.beta - self.gamma * gained
        if context is not None:
            within = _grown(array(items), self.alpha)[..., None] * array(context)
            logs = logs - self.gamma_context * within
        return logs.log_softmax(-1)

    def transition(self, bits: Any, losses: Any) -> Tensor:
        """Return [...]: the steps after which the first of two predictors outweighs the second.

        0 where it does from the start, infinite where it never will.

        Args:
            bits: [..., 2].
            losses: [..., 2].
        """
        k, loss = array(bits), array(losses)
        behind = math.log(2) * (k[..., 0] ** self.beta - k[..., 1] ** self.beta)
        gains = self.gamma * (loss[..., 1] - loss[..., 0])
        when = (behind.clamp(min=0) / gains.clamp(min=_TINY)) ** (1 / (1 - self.alpha))
        never = torch.where(behind > 0, torch.inf, 0.0)
        return torch.where(gains > _TINY, when, never)

    def spec(self) -> dict[str, object]:
        """Return the plain dict from which `steer.load_artifact` rebuilds it."""
        return specs.encode(self)

    @property
    def digest(self) -> str:
        """sha256 over the parameters."""
        return specs.digest(self.spec())


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What was seen in one setting, checked: models of every diversity after every length.

    Args:
        model: [diversity, step, row, position, outcome], what the trained models predict.
        predicted: [diversity, predictor, row, position, outcome], what each predictor does.
        steps: [step], of training.
        bits: [diversity, predictor].
        losses: [diversity, predictor].
        readout: "probabilities" over outcomes (Kullback-Leibler divergence), or the "mean" of a
            normal outcome with standard deviation `noise` (the divergence of two such normals).
        context: [diversity, predictor, row, position], the mean loss of each predictor over the
            items in context before that position (whatever where there are none), if known.
        items: [position], how many those are.

    Raises:
        BeliefError: shapes that do not fit, or values that are not finite.
    """

    model: Tensor
    predicted: Tensor
    steps: Tensor
    bits: Tensor
    losses: Tensor
    readout: Readout = "probabilities"
    noise: float = 1.0
    context: Tensor | None = None
    items: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        for name in ("model", "predicted", "steps", "bits", "losses", "context", "items"):
            if getattr(self, name) is None:
                continue
            value = array(getattr(self, name))
            object.__setattr__(self, name, value)
            if not bool(torch.isfinite(value).all()):
                raise BeliefError(
                    f"{name} holds {int((~torch.isfinite(value)).sum())} values that are not "
                    "finite, so no divergence can be taken. Look at the training that made them."
                )
        shapes = {name: tuple(getattr(self, name).shape) for name in ("model", "predicted")}
        fits = self.model.ndim == 5 and self.predicted.ndim == 5
        fits = fits and shapes["model"][0] == shapes["predicted"][0] == len(self.bits)
        fits = fits and shapes["model"][2:] == shapes["predicted"][2:]
        fits = fits and self.bits.shape == self.losses.shape == shapes["predicted"][:2]
        if not fits or self.steps.shape != shapes["model"][1:2]:
            raise BeliefError(
                f"The arrays do not fit: {shapes}, steps {tuple(self.steps.shape)}, bits "
                f"{tuple(self.bits.shape)}, losses {tuple(self.losses.shape)}. Give [diversity, "
                "step, row, position, outcome], [diversity, predictor, row, position, outcome], "
                "[step], [diversity, predictor] twice."
            )
        self._check_context(shapes["predicted"])

    def _check_context(self, predicted: tuple[int, ...]) -> None:
        shapes = [None if x is None else tuple(x.shape) for x in (self.context, self.items)]
        if shapes == [None, None] or shapes == [predicted[:4], predicted[3:4]]:
            return
        raise BeliefError(
            f"Losses within the context have shape {shapes[0]} and their items {shapes[1]}, where "
            f"{predicted[:4]} and {predicted[3:4]} go with these predictions. Give both, "
            "[diversity, predictor, row, position] and [position], or neither."
        )

    def plain(self) -> "Trained":
        """Return the same without the losses within the context."""
        return replace(self, context=None, items=None)

    def mixed(self, weights: Tensor) -> Tensor:
        """Return [diversity, step, row, position, outcome]: predictions mixed by weights.

        Weights are [diversity, step, predictor], or [diversity, step, row, position, predictor].
        """
        if weights.ndim == 3:
            return torch.einsum("dsi,dirpo->dsrpo", weights, self.predicted)
        return torch.einsum("dsrpi,dirpo->dsrpo", weights, self.predicted)

    def divergence(self, other: Tensor) -> Tensor:
        """Return [diversity, step]: the mean divergence of the models from a prediction, in nats.

        Args:
            other: as `model`, or with a step axis of length 1.
        """
        if self.readout == "mean":
            return ((self.model - other) ** 2).sum(-1).mean((-2, -1)) / (2 * self.noise**2)
        logs = self.model.clamp(min=_TINY).log() - other.clamp(min=_TINY).log()
        return (self.model * logs).sum(-1).mean((-2, -1))

    def alone(self) -> Tensor:
        """Return [diversity, step, predictor]: the divergence from each predictor alone."""
        each = [self.divergence(x[:, None]) for x in self.predicted.unbind(1)]
        return torch.stack(each, dim=-1)


def weights_of(law: Rational, data: Trained) -> Tensor:
    """Return what a law weighs each predictor with, sum 1 over the last axis.

    [diversity, step, predictor]; [diversity, step, row, position, predictor] where the data hold
    losses within the context. For `Trained.mixed`, whose `divergence` then says how far the models
    are from the law.
    """
    return _log_weights(data, law.alpha, law.beta, law.gamma, law.gamma_context).exp()


def fit_rational(data: Trained, *, cells: Tensor | None = None, starts: int = 4) -> Rational:
    """Return the law whose mixtures are nearest to the models, over all diversities and steps.

    Three numbers (arXiv:2506.17859), by the divergence itself in nats. Where the data hold losses
    within the context, gamma_context is a fourth, searched from the law of three on: the law that
    is returned is never further from the models than that one. alpha discounts both kinds of
    evidence.

    Args:
        data: what was seen.
        cells: [diversity, step], which of it to fit on; all by default.
        starts: how many of the best points of a coarse grid to refine (L-BFGS).

    Raises:
        BeliefError: fewer than four cells: three parameters would fit anything.
    """
    shape = data.model.shape[:2]
    chosen = torch.ones(shape, dtype=torch.bool) if cells is None else cells
    if int(chosen.sum()) < 4:
        raise BeliefError(
            f"{int(chosen.sum())} cells of diversity and training were given; the law has three "
            "parameters. Give at least four, over several diversities."
        )
    apart, theta = _searched(data.plain(), chosen, _grid(data), starts)
    if data.context is not None:
        nearer, longer = _searched(data, chosen, _context_grid(data, theta), starts)
        theta = longer if nearer < apart else theta
    one_less, *others = theta.exp().tolist()
    return Rational(1 - one_less, *others)


def _searched(
    data: Trained, cells: Tensor, grid: Sequence[Tensor], starts: int
) -> tuple[float, Tensor]:
    """Return the least mean divergence and its log(1 - alpha), log beta, log gamma, ...."""

    def objective(theta: Tensor) -> Tensor:
        logs = _log_weights(data, 1 - theta[0].exp(), *theta[1:].exp().unbind())
        return data.divergence(data.mixed(logs.exp()))[cells].mean()

    def value_and_slope(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = torch.from_numpy(theta).requires_grad_()
        value = objective(at)
        (slope,) = torch.autograd.grad(value, at)
        return float(value.detach()), slope.numpy()

    with torch.no_grad():
        scores = torch.stack([objective(point) for point in grid])
    gammas = [(-25.0, 25.0)] * (len(grid[0]) - 2)
    bounds = [(math.log(1e-3), math.log(2.0)), (math.log(1e-3), math.log(1.5)), *gammas]
    found = [
        minimize(value_and_slope, grid[at].numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
        for at in scores.argsort()[:starts].tolist()
    ]
    best = min(found, key=lambda result: float(result.fun))
    return float(best.fun), torch.from_numpy(np.asarray(best.x))


def _log_weights(
    data: Trained,
    alpha: Tensor | float,
    beta: Tensor | float,
    gamma: Tensor | float,
    gamma_context: Tensor | float = 0.0,
) -> Tensor:
    """Return log-weights as `weights_of`; differentiable in the parameters."""
    grown = _grown(data.steps, alpha)[:, None] * data.losses[:, None]
    logs = -math.log(2) * data.bits[:, None] ** beta - gamma * grown
    if data.context is not None and data.items is not None:
        within = _grown(data.items, alpha)[:, None] * data.context.movedim(1, -1)
        logs = logs[:, :, None, None] - gamma_context * within[:, None]
    return logs.log_softmax(-1)


def nearest_mixture(data: Trained, *, n_iterations: int = 60) -> Tensor:
    """Return [diversity, step, predictor]: for each cell by itself, the weights nearest to it.

    No law binds the cells: this is what a law has to explain, and its divergence is a lower bound
    for every law. Cells do not interact, so one L-BFGS over all of them serves.
    """
    logits = torch.zeros(*data.model.shape[:2], data.predicted.shape[1], dtype=torch.float64)
    logits.requires_grad_()
    search = torch.optim.LBFGS([logits], max_iter=n_iterations, line_search_fn="strong_wolfe")

    def closure() -> float:
        search.zero_grad()
        apart = data.divergence(data.mixed(logits.softmax(-1)))
        # Each cell in units of its own: the widest would else hold back the others.
        loss = (apart / scale).sum()
        loss.backward()
        return float(loss.detach())

    with torch.no_grad():
        scale = data.alone().amin(-1).clamp(min=1e-6)
    search.step(closure)
    return logits.detach().softmax(-1)


def _grown(n: Tensor, alpha: Tensor | float) -> Tensor:
    """Return n**(1 - alpha), 0 at n = 0."""
    return torch.where(n > 0, n.clamp(min=_TINY) ** (1 - alpha), 0.0)


def _grid(data: Trained) -> list[Tensor]:
    """Return points (log(1 - alpha), log beta, log gamma) over the plausible range.

    gamma is scanned in units that make the largest evidence of the data e**1 to e**7 nats.
    """
    widest = float((data.losses.amax(-1) - data.losses.amin(-1)).max().clamp(min=_TINY))
    most = float(data.steps.max().clamp(min=1.0))
    points = []
    for alpha in (0.1, 0.4, 0.7, 0.9):
        unit = math.log(widest) + (1 - alpha) * math.log(most)
        for beta in (0.1, 0.2, 0.35, 0.5, 0.8):
            for nats in range(1, 8):
                point = [math.log(1 - alpha), math.log(beta), nats - unit]
                points.append(torch.tensor(point, dtype=torch.float64))
    return points


def _context_grid(data: Trained, theta: Tensor) -> list[Tensor]:
    """Return points of four numbers around a law of three.

    gamma_context is scanned in units that make the largest evidence in context e**-2 to e**5 nats.
    """
    assert data.context is not None
    assert data.items is not None
    widest = float((data.context.amax(1) - data.context.amin(1)).max().clamp(min=_TINY))
    unit = math.log(widest) + float(theta[0].exp()) * math.log(max(float(data.items.max()), 1.0))
    return [torch.cat([theta, theta.new_tensor([nats - unit])]) for nats in range(-2, 6)]
