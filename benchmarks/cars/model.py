"""The network, its training, and what it does at the last step of a trajectory."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

import manifolds
import steer
from benchmarks.cars.driving import GRID, PIXELS, Drives, bin_centres, drive, targets
from steer.models.tiny_tokenizer import tiny_tokenizer

WIDTH = 48
SITE = steer.ModuleSite("rnn", "output")
CELLS = (14, 10)
"""Cells of position and velocity; the states within one are averaged to a knot of M_h."""
LEAST = 4
"""States in a cell, for a knot."""
WARM = 6
"""Steps that the network needs to see before the velocity can be told."""


class Car(nn.Module):
    """A recurrent network from what was seen to the bin of the next state."""

    def __init__(self) -> None:
        """Take no settings."""
        super().__init__()
        self.rnn = nn.GRU(PIXELS + 3, WIDTH, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, GRID[0] * GRID[1])
        )

    def forward(self, seen: Tensor) -> Tensor:
        """Return logits [drive, step, bin]."""
        return self.head(self.rnn(seen)[0])


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one is trained."""

    drives: int = 2000
    steps: int = 700
    batch_size: int = 64
    rate: float = 4e-3


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """A trained network within the hooks, and the shapes of its states and outputs."""

    lm: steer.LM
    surface: manifolds.Surface
    """M_h over position and velocity, in shares of their ranges."""
    behavior: manifolds.BehaviorSurface
    """M_y over the same."""
    permuted: manifolds.Surface
    """Through the same knots in a wrong order."""
    states: Float[Tensor, "drive step d_model"]
    """Of held-out drives."""
    outputs: Float[Tensor, "drive step bin"]
    drives: Drives
    """Held out."""

    @property
    def network(self) -> Any:
        """The network itself, to be called on what was seen."""
        return cast("Any", self.lm.model)


def world(recipe: Recipe, seed: int, *, held_out: int = 300) -> World:
    """Return a network trained from one seed, and its shapes."""
    train = drive(recipe.drives, 2 * seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Car()
    _fit(model, train, recipe, seed)
    lm = steer.wrap(cast("Any", model.eval()), tiny_tokenizer(), modules_only=True)
    states, outputs = read(lm, train)
    places = train.states[:, WARM:].flatten(0, 1)
    cell, enough = _cells(places)
    kept = states[:, WARM:].flatten(0, 1)[enough]
    knots = _means(places[enough], cell[enough])
    centroids = _means(kept, cell[enough])
    shown = _means(outputs[:, WARM:].flatten(0, 1)[enough], cell[enough])
    surface = manifolds.fit_surface(centroids, knots, smoothing="loo")
    order = torch.randperm(len(knots), generator=torch.Generator().manual_seed(seed))
    permuted = manifolds.fit_surface(centroids, knots[order], subspace=surface.subspace)
    behavior = manifolds.fit_behavior_surface(shown, knots, other=False)
    test = drive(held_out, 2 * seed + 1)
    return World(lm, surface, behavior, permuted, *read(lm, test), test)


def read(
    lm: steer.LM, drives: Drives
) -> tuple[Float[Tensor, "drive step d_model"], Float[Tensor, "drive step bin"]]:
    """Return states and outputs at every step."""
    kept: list[Tensor] = []
    look = steer.Custom(SITE, lambda h, _: (kept.append(h), h)[1])
    with torch.no_grad(), lm.attached([look]):
        logits = cast("Any", lm.model)(drives.seen)
    return kept[0], logits.softmax(-1)


def expected(outputs: Float[Tensor, "*batch bin"]) -> Float[Tensor, "*batch 2"]:
    """Return the mean next state that outputs say, in shares of the ranges."""
    return outputs @ bin_centres().to(outputs)


def _fit(model: Car, drives: Drives, recipe: Recipe, seed: int) -> None:
    adam = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.rate, total_steps=recipe.steps)
    draw = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(recipe.steps), f"training a world model, seed {seed}", leave=False):
        at = torch.randint(len(drives.seen), (recipe.batch_size,), generator=draw)
        logits = model(drives.seen[at])
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets(drives.after[at]).flatten(0, 1)
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
        rates.step()


def _cells(places: Float[Tensor, "state 2"]) -> tuple[Tensor, Bool[Tensor, " state"]]:
    """Return the cell of each state, and whether enough of them share it."""
    counts = torch.tensor(CELLS)
    at = (places * counts).long().clamp_min(0).minimum(counts - 1)
    cell = at[:, 0] * CELLS[1] + at[:, 1]
    return cell, (torch.bincount(cell, minlength=CELLS[0] * CELLS[1]) >= LEAST)[cell]


def _means(values: Float[Tensor, "state k"], cell: Tensor) -> Float[Tensor, "knot k"]:
    known, of = cell.unique(return_inverse=True)
    total = values.new_zeros(len(known), values.shape[1]).index_add(0, of, values)
    return total / torch.bincount(of)[:, None]
