"""The other direction: activations searched for so that the outputs go along M_y, then compared.

Searched on train contexts, judged on test contexts, for distant pairs. How much of the path found
lies on the fitted ring or line is the R2 of Wurgaft et al. 2026 (arXiv:2605.05115).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import manifolds
import steer
import steer.pullback
from benchmarks import stats
from benchmarks.rings.paths import Ring
from benchmarks.rings.reading import Bins, Reading
from benchmarks.stats import Grid, Number
from steer.sites import Site

MOST = 6
"""Pairs at most: a search costs some fifty passes back and forth."""
PROMPTS = 2
"""Train prompts that a path is searched on."""
FRACTIONS, OUTER = 9, 10
WAYS = ("found", "manifold", "chord")

CONTROLS = ("pullback_r2_chord", "pullback_r2_random")


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """Paths pulled back, and what they are worth where they were not searched for."""

    starts: Int[Tensor, " pair"]
    r2: Float[Tensor, " pair"]
    r2_chord: Float[Tensor, " pair"]
    r2_random: Float[Tensor, "draw pair"]
    train_loss: dict[str, Float[Tensor, " pair"]]
    test_loss: dict[str, Grid]
    """[pair, context], NaN where the model does not go on correctly unsteered."""
    evaluations: int


def pull(
    lm: steer.LM,
    ring: Ring,
    behavior: manifolds.Behavior,
    train: Reading,
    test: Reading,
    bins: Bins,
    *,
    seed: int = 0,
) -> Pulled:
    """Pull M_y back between distant pairs of some starts.

    Args:
        lm: the model.
        ring: M_h and its site.
        behavior: M_y.
        train: cases that the model answers correctly.
        test: cases of other contexts, from each of which a distant path starts.
        bins: the behaviour's.
        seed: of the random paths.
    """
    assert isinstance(ring.site, Site)
    starts = test.concept.unique()
    starts = starts[torch.linspace(0, len(starts) - 1, min(MOST, len(starts))).round().long()]
    rows = torch.stack([_some(train, int(start)) for start in starts])
    ends = starts + ring.order.way(starts, ring.order.half)
    found = steer.pullback.optimise(
        lm,
        train.rows,
        ring.site,
        ring.curve,
        behavior,
        starts.double(),
        ends.double(),
        bins=bins.probabilities,
        rows=rows,
        n_fractions=FRACTIONS,
        outer=OUTER,
    )
    on = found.on_manifold(ring.curve, seed=seed)
    paths = dict(zip(WAYS, (found.path, found.manifold, found.chord), strict=True))
    return Pulled(
        starts,
        on.found,
        on.chord,
        on.random,
        {name: path.loss for name, path in paths.items()},
        _held_out(lm, found, starts, test, bins),
        found.evaluations,
    )


def numbers_of(pulled: Pulled, seed: int) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return the numbers and the controls of the pull-back; intervals are over pairs."""

    def mean(values: Tensor) -> Number:
        return stats.mean(values.double().numpy()[:, None], seed=seed)

    def over(bottom: str) -> Number:
        return stats.ratio(pulled.test_loss["found"], pulled.test_loss[bottom], seed=seed)

    numbers = {
        "pullback_r2": mean(pulled.r2),
        "pullback_r2_gap": mean(pulled.r2 - pulled.r2_chord),
        "pullback_loss": stats.mean(pulled.test_loss["found"], seed=seed),
        "pullback_loss_over_chord": over("chord"),
        "pullback_loss_over_manifold": over("manifold"),
    }
    controls = {
        "pullback_r2_chord": mean(pulled.r2_chord),
        "pullback_r2_random": mean(pulled.r2_random.mean(0)),
    }
    return numbers, controls


def table(pulled: Pulled) -> dict[str, object]:
    """Return what is kept beside the numbers: every pair's R2 and losses."""
    return {
        "starts": pulled.starts.tolist(),
        "r2": _rounded(pulled.r2),
        "r2_chord": _rounded(pulled.r2_chord),
        "train_loss": {name: _rounded(loss) for name, loss in pulled.train_loss.items()},
        "test_loss": {
            name: [round(float(v), 6) for v in np.nanmean(loss, 1)]
            for name, loss in pulled.test_loss.items()
        },
        "evaluations": pulled.evaluations,
        "rows": len(pulled.starts) * FRACTIONS * PROMPTS,
    }


def _some(train: Reading, start: int) -> Int[Tensor, " prompt"]:
    """Return the train cases that a path is searched on; one twice where there is one only."""
    cases = (train.concept == start).nonzero()[:, 0]
    return cases[torch.arange(PROMPTS) % len(cases)]


def _held_out(
    lm: steer.LM,
    found: steer.pullback.PullBack,
    starts: Int[Tensor, " pair"],
    test: Reading,
    bins: Bins,
) -> dict[str, Grid]:
    """Return the squared Hellinger distance to the outputs wanted, in the test contexts."""
    asked = test.where(torch.isin(test.concept, starts))
    pair = torch.searchsorted(starts, asked.concept)
    paths = (found.path, found.manifold, found.chord)
    plans: list[steer.Plan] = [
        [steer.Patch(found.site, path.points[pair, at], found.basis, steer.LAST)]
        for path in paths
        for at in range(FRACTIONS)
    ]
    swept = steer.sweep(lm, asked.rows, plans, lambda logits, _: bins.probabilities(logits))
    outputs = swept.values.unflatten(0, (len(WAYS), FRACTIONS)).transpose(1, 2)
    gaps = manifolds.hellinger(outputs.double(), found.target[pair]).square().mean(-1)
    grids = {}
    for name, gap in zip(WAYS, gaps, strict=True):
        grid = np.full((len(starts), int(asked.context.max()) + 1), np.nan)
        grid[pair.numpy(), asked.context.numpy()] = gap.numpy()
        grids[name] = grid
    return grids


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 5) for v in values]
