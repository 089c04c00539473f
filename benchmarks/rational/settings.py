"""Three settings of in-context learning: balls and urns, linear regression, classification.

After Wurgaft et al. 2025 (arXiv:2506.17859), in sizes that two cores train in minutes. A setting
draws tasks from a continuous prior, and sequences from some of those tasks; the number of tasks is
the task diversity. Every diversity takes the first tasks of one pool.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steer.odds import predictors
from steer.odds.rational import Readout

Programs = tuple[Callable[..., Tensor], Callable[..., Tensor]]
PREDICTORS = ("memorised", "generalised", "constant")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Sequences for all models at once."""

    inputs: Tensor
    """[model, row, token, input]."""
    targets: Tensor
    """[model, row, position]: colours or labels (integers), or numbers."""
    raw: Mapping[str, Tensor]
    """What the predictors read, each [model, row, ...]."""


class Setting(Protocol):
    """What a setting can do."""

    @property
    def name(self) -> str:
        """As it stands in the results."""
        ...

    @property
    def readout(self) -> Readout:
        """What a model's outputs are."""
        ...

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Inputs, outputs and tokens."""
        ...

    @property
    def read_at(self) -> slice:
        """The tokens whose outputs are predictions."""
        ...

    @property
    def noise(self) -> float:
        """Standard deviation of a normal outcome; 1 where outcomes are not normal."""
        ...

    @property
    def programs(self) -> Programs:
        """The memorising and the generalising predictor."""
        ...

    def pool(self, n_tasks: int, draw: torch.Generator) -> Mapping[str, Tensor]:
        """Return tasks from the prior, each value [task, ...]."""
        ...

    def sequences(self, tasks: Mapping[str, Tensor], draw: torch.Generator) -> Batch:
        """Return sequences; the values of tasks are [model, row, ...], one task for each."""
        ...

    def predict(self, tasks: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Return [row, position, outcome] of each predictor, in the order of PREDICTORS.

        The tasks are those of one diversity, [task, ...]; raw is [row, ...].
        """
        ...


@dataclass(frozen=True, slots=True)
class Urns:
    """Balls drawn from one of several urns; the next colour is predicted before each ball."""

    name: str = "urns"
    n_colours: int = 8
    n_balls: int = 32
    readout: Readout = "probabilities"
    noise: float = 1.0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """A token for each ball, the first one blank."""
        return self.n_colours + 1, self.n_colours, self.n_balls

    @property
    def read_at(self) -> slice:
        """Everywhere."""
        return slice(None)

    @property
    def programs(self) -> Programs:
        """Exact Bayes, of known tasks and of their prior."""
        return predictors.urns_memorised, predictors.urns_generalised

    def pool(self, n_tasks: int, draw: torch.Generator) -> Mapping[str, Tensor]:
        """Return urns from the flat Dirichlet."""
        raw = -torch.rand(n_tasks, self.n_colours, generator=draw).clamp(min=1e-12).log()
        return {"urns": raw / raw.sum(-1, keepdim=True)}

    def sequences(self, tasks: Mapping[str, Tensor], draw: torch.Generator) -> Batch:
        """Draw balls."""
        urns = tasks["urns"]
        flat = urns.reshape(-1, self.n_colours)
        drawn = torch.multinomial(flat, self.n_balls, replacement=True, generator=draw)
        balls = drawn.reshape(*urns.shape[:2], self.n_balls)
        blank = torch.full_like(balls[..., :1], self.n_colours)
        shifted = torch.cat([blank, balls[..., :-1]], dim=-1)
        one_hot = torch.nn.functional.one_hot(shifted, self.n_colours + 1).float()
        return Batch(one_hot, balls, {"balls": balls})

    def predict(self, tasks: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Ask both, and the uniform distribution."""
        balls = raw["balls"]
        general = predictors.urns_generalised(balls, n_colours=self.n_colours)
        known = predictors.urns_memorised(tasks["urns"].double(), balls)
        return known, general, torch.full_like(general, 1 / self.n_colours)


@dataclass(frozen=True, slots=True)
class Regression:
    """Pairs (x, y) of a noisy linear function; y is predicted at each x.

    A token holds an x and the pair before it: with x and y in tokens of their own, most of a short
    training goes into learning to bind the two.
    """

    name: str = "regression"
    n_features: int = 4
    n_pairs: int = 16
    noise: float = 1.0
    readout: Readout = "mean"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Features of this x and of the one before, and the y before."""
        return 2 * self.n_features + 1, 1, self.n_pairs

    @property
    def read_at(self) -> slice:
        """Everywhere."""
        return slice(None)

    @property
    def programs(self) -> Programs:
        """Exact Bayes, of known tasks and of their prior."""
        return predictors.regression_memorised, predictors.regression_generalised

    def pool(self, n_tasks: int, draw: torch.Generator) -> Mapping[str, Tensor]:
        """Return standard normal weights."""
        return {"weights": torch.randn(n_tasks, self.n_features, generator=draw)}

    def sequences(self, tasks: Mapping[str, Tensor], draw: torch.Generator) -> Batch:
        """Draw pairs."""
        weights = tasks["weights"]
        shape = (*weights.shape[:2], self.n_pairs)
        x = torch.randn(*shape, self.n_features, generator=draw)
        y = (x * weights[..., None, :]).sum(-1) + self.noise * torch.randn(shape, generator=draw)
        pairs = torch.cat([x, y[..., None]], dim=-1)
        before = torch.nn.functional.pad(pairs, (0, 0, 1, 0))[..., :-1, :]
        return Batch(torch.cat([x, before], dim=-1), y, {"x": x, "y": y})

    def predict(self, tasks: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Ask both, and the mean of the prior, which is 0."""
        x, y = raw["x"].double(), raw["y"].double()
        weights = tasks["weights"].double()
        known = predictors.regression_memorised(weights, x, y, noise=self.noise)
        general = predictors.regression_generalised(x, y, noise=self.noise)
        return known[..., None], general[..., None], torch.zeros_like(general)[..., None]


@dataclass(frozen=True, slots=True)
class Classes:
    """Labelled items, then a noisy copy of one of them, whose label is predicted."""

    name: str = "classes"
    n_features: int = 8
    n_items: int = 8
    spread: float = 0.8
    """How much larger an item's noise is than its class mean."""
    readout: Readout = "probabilities"
    noise: float = 1.0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """A token for each item with its label, and the query: features, label, is it the query."""
        return self.n_features + 2, 2, self.n_items + 1

    @property
    def read_at(self) -> slice:
        """At the query."""
        return slice(-1, None)

    @property
    def programs(self) -> Programs:
        """Exact Bayes, of known tasks and of their prior."""
        return predictors.classes_memorised, predictors.classes_generalised

    def pool(self, n_tasks: int, draw: torch.Generator) -> Mapping[str, Tensor]:
        """Return class means with labels; a task is one class."""
        means = torch.randn(n_tasks, self.n_features, generator=draw) * self.n_features**-0.5
        # One of each label in every pair: a pool of few classes has both.
        first = torch.randint(2, ((n_tasks + 1) // 2,), generator=draw)
        return {"means": means, "labels": torch.stack([first, 1 - first], 1).flatten()[:n_tasks]}

    def sequences(self, tasks: Mapping[str, Tensor], draw: torch.Generator) -> Batch:
        """Draw items; each sequence holds the classes of `n_items` neighbouring rows' tasks."""
        means, labels = tasks["means"], tasks["labels"]
        n_models, n_rows = labels.shape
        order = torch.rand(n_models, n_rows, n_rows, generator=draw).argsort(-1)[
            ..., : self.n_items
        ]
        flat = order.flatten(1)
        mean = torch.gather(means, 1, flat[..., None].expand(-1, -1, self.n_features))
        mean = mean.reshape(n_models, n_rows, self.n_items, -1)
        label = torch.gather(labels, 1, flat).reshape(n_models, n_rows, self.n_items)
        copied = torch.randint(self.n_items, (n_models, n_rows, 1), generator=draw)
        at = copied[..., None].expand(-1, -1, 1, self.n_features)
        both = torch.cat([mean, torch.gather(mean, 2, at)], dim=2)
        noise = torch.randn(both.shape, generator=draw) * self.n_features**-0.5
        seen = (both + self.spread * noise) * (1 + self.spread**2) ** -0.5
        x, query = seen[:, :, :-1], seen[:, :, -1]
        said = torch.nn.functional.pad(2.0 * label - 1, (0, 1))
        asks = torch.zeros_like(said)
        asks[..., -1] = 1.0
        # Features have variance 1 / n: brought to the size of the label for the embedding.
        inputs = torch.cat([seen * self.n_features**0.5, said[..., None], asks[..., None]], dim=-1)
        return Batch(inputs, torch.gather(label, 2, copied), {"x": x, "y": label, "query": query})

    def predict(self, tasks: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Ask both, and an even chance."""
        x, y, query = raw["x"].double(), raw["y"], raw["query"].double()
        means, labels = tasks["means"].double(), tasks["labels"]
        known = predictors.classes_memorised(means, labels, x, y, query, noise=self.spread)
        general = predictors.classes_generalised(x, y.double(), query, noise=self.spread)
        even = torch.full_like(general, 0.5)
        return known[:, None], general[:, None], even[:, None]


SETTINGS: tuple[Setting, ...] = (Urns(), Regression(), Classes())
