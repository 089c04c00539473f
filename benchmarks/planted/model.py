"""The transformers in which a shape is planted, and what they do at the last token."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

import manifolds
import steer
from benchmarks.planted.shapes import Shape, answers, prompts
from benchmarks.toy.training import small_llama, train
from benchmarks.toy.words import words
from steer.sites import AnySite

Chart = manifolds.Curve | manifolds.Surface
Natural = manifolds.Behavior | manifolds.BehaviorSurface


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one is trained."""

    width: int = 64
    n_layers: int = 2
    steps: int = 500
    batch_size: int = 128
    rate: float = 3e-3
    held_out: float = 0.2
    """Share of the prompts that training never sees."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Prompts, their places, and what the model does at the last token of each."""

    rows: list[list[int]]
    places: Float[Tensor, "row dim"]
    states: Mapping[AnySite, Float[Tensor, "row d_model"]]
    outputs: Float[Tensor, "row bin"]
    """Probabilities of the answers, and in the last bin of everything else."""

    def where(self, keep: Tensor) -> "Reading":
        """Return the rows that a mask or an index selects."""
        at = torch.arange(len(self.rows))[keep]
        states = {site: h[at] for site, h in self.states.items()}
        return Reading(
            [self.rows[i] for i in at.tolist()], self.places[at], states, self.outputs[at]
        )


def planted(shape: Shape, recipe: Recipe, seed: int) -> tuple[steer.LM, Reading, Reading]:
    """Return a transformer trained on a shape, its training prompts, and those held out."""
    rows, places = prompts(shape)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=draw)
    n_out = round(recipe.held_out * len(rows))
    out, seen = order[:n_out], order[n_out:]
    right = torch.zeros(len(rows), len(shape.words))
    right[:, shape.first_answer :] = answers(shape, places)
    model = small_llama(len(shape.words), width=recipe.width, n_layers=recipe.n_layers, seed=seed)
    adam = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.rate, total_steps=recipe.steps)
    steps = tqdm(range(recipe.steps), f"training a {shape.name}, seed {seed}", leave=False)
    picks = (seen[torch.randint(len(seen), (recipe.batch_size,), generator=draw)] for _ in steps)
    train(model, ((rows[at], right[at]) for at in picks), adam, rates)
    lm = steer.wrap(model, words(shape.words))
    return lm, read(lm, shape, rows[seen], places[seen]), read(lm, shape, rows[out], places[out])


def read(lm: steer.LM, shape: Shape, rows: Tensor, places: Tensor) -> Reading:
    """Return the states at every block and the outputs, at the last token."""
    listed, out = rows.tolist(), steer.Site.logits()
    sites = lm.sites("resid_post")
    acts = lm.capture(listed, [*sites, out], scope=steer.LAST)
    states: dict[AnySite, Tensor] = {site: acts[site].float().cpu() for site in sites}
    return Reading(listed, places, states, bins(shape, acts[out]).cpu())


def bins(shape: Shape, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row bin"]:
    """Return the probabilities of the answers, and in the last bin of everything else."""
    p = logits.float().softmax(-1)
    first = shape.first_answer
    return torch.cat([p[:, first:], p[:, :first].sum(-1, keepdim=True)], -1)


def fit_chart(shape: Shape, states: Tensor, places: Tensor) -> Chart:
    """Return the ring, line or torus of states; the torus through whole places only."""
    if shape.dim == 1:
        return manifolds.fit_curve(states, places[:, 0], period=shape.periods[0])
    keep = _whole(places)
    return manifolds.fit_surface(states[keep], places[keep], periods=shape.periods)


def fit_natural(shape: Shape, reading: Reading) -> Natural:
    """Return the ring, line or torus of natural outputs."""
    if shape.dim == 1:
        u = reading.places[:, 0]
        return manifolds.fit_behavior(reading.outputs, u, period=shape.periods[0])
    keep = _whole(reading.places)
    return manifolds.fit_behavior_surface(
        reading.outputs[keep], reading.places[keep], periods=shape.periods
    )


def _whole(places: Tensor) -> Tensor:
    """Return which places are whole: a fourth of a torus's, through which it is as exact."""
    return ((places - places.round()).abs() < 1e-4).all(-1)


def coordinates(chart: Chart | Natural, x: Tensor) -> Float[Tensor, "*batch dim"]:
    """Return where x is on a chart, with an axis for the coordinates."""
    u = chart.encode(x)
    return u[..., None] if chart.dim == 1 else u


def points(chart: Chart | Natural, u: Float[Tensor, "*batch dim"]) -> Tensor:
    """Return what lies at coordinates with an axis of their own."""
    return chart.decode(u[..., 0] if chart.dim == 1 else u)
