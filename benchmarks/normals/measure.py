"""Numbers of `beliefs_gaussian`: read, probe, fit, choose a block, steer, watch a change."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
import steer
from benchmarks import stats
from benchmarks.belief.gaussian import PRIOR, binned, divergence
from benchmarks.errors import BenchmarkError
from benchmarks.normals import fields as probing
from benchmarks.normals.numbers import CONTROLS as CONTROLS
from benchmarks.normals.numbers import Measured, numbers_of
from benchmarks.normals.plane import off_plane
from benchmarks.normals.reading import (
    LENGTH,
    MEAN,
    MEANS,
    SIGMA,
    SIGMAS,
    Readings,
    draw,
    read,
    shuffled,
    stretches,
)
from benchmarks.normals.steering import N_POINTS, fit_shapes, walk
from benchmarks.normals.switching import switch, texts_of
from benchmarks.normals.tables import tables_of
from benchmarks.result import Outcome
from benchmarks.task import Options
from steer.odds.observers import Exact

N_TRAIN, N_TEST, N_BASE, N_SWITCH = 5, 3, 8, 8
ABLE = 0.5
"""The least slope of the model's mean on the mean of the law."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The texts of one parameter: train, test, and their digits exchanged among them."""

    train: Readings
    test: Readings
    mixed: Readings


def measure_normals(lm: steer.LM, options: Options) -> Outcome:
    """Return the numbers; `--limit` is the number of test texts for each law.

    Raises:
        BenchmarkError: a model whose expectation does not follow the mean of the digits.
    """
    n_test, seed = options.limit or N_TEST, options.seed
    blocks = range(lm.n_layers)
    means = _grid(lm, [(mean, SIGMA) for mean in MEANS], torch.tensor(MEANS), n_test, seed, blocks)
    slope = _slope(means.test)
    if slope < ABLE:
        raise BenchmarkError(
            f"When the mean of the digits goes from {MEANS[0]:g} to {MEANS[-1]:g}, what this model "
            f"expects next moves {slope:.2f} times as far (with the digits exchanged among the "
            f"texts {_slope(means.mixed):.2f}). It holds no belief about the mean that could be "
            "steered. Use another model."
        )
    spreads = _grid(
        lm, [(MEAN, s) for s in SIGMAS], torch.tensor(SIGMAS).log(), n_test, seed + 50, blocks
    )
    base = draw([(MEANS[0], SIGMA)], N_BASE, LENGTH, seed + 99)
    base_read = read(lm, base, torch.full((N_BASE,), MEANS[0]), [LENGTH], [0])
    by_block = _missed(lm, means.train, seed)
    block = int(by_block.argmin())
    shapes = fit_shapes(means.train, block, seed, field=True)
    wide = fit_shapes(spreads.train, block, seed)
    narrow = draw([(MEAN, SIGMAS[0])], N_BASE, LENGTH, seed + 199)
    narrow_read = read(lm, narrow, torch.zeros(N_BASE), [LENGTH], [0])
    texts = texts_of(lm, block, N_SWITCH, seed + 300)
    measured = Measured(
        block,
        by_block,
        means.test,
        means.mixed,
        spreads.test,
        *_kl_of_observer(means.test),
        probing.fields(means.train, means.test, block, seed),
        probing.fields(spreads.train, spreads.test, block, seed),
        _encoded(means),
        _encoded(spreads),
        _encoded_wrong(means, block, seed),
        _encoded_wrong(spreads, block, seed),
        walk(lm, shapes, base_read, seed=seed),
        walk(lm, wide, narrow_read, ("vector", "manifold", "permuted"), seed=seed),
        switch(texts, shapes),
        off_plane(lm, block, texts, seed + 400),
        shapes,
    )
    numbers, controls = numbers_of(measured, seed)
    specs = {
        "laws": {"means": list(MEANS), "sigma": SIGMA, "sigmas": list(SIGMAS), "mean": MEAN},
        "texts": {"train": N_TRAIN, "test": n_test, "steered": N_BASE, "switched": N_SWITCH},
        "read_after": list(stretches()),
        "n_points": N_POINTS,
        "site": str(shapes.site),
        "components": shapes.curve.subspace.k,
        "interval": f"{stats.LEVEL:.0%} bootstrap over texts",
    }
    return Outcome(numbers, controls, tables_of(measured), specs)


def _grid(
    lm: steer.LM,
    laws: list[tuple[float, float]],
    u: Tensor,
    n_test: int,
    seed: int,
    blocks: range,
) -> Grid:
    def of(n: int, seed: int) -> tuple[Tensor, Tensor]:
        return draw(laws, n, LENGTH, seed), u.double().repeat_interleave(n)

    (train, ut), (test, us) = of(N_TRAIN, seed), of(n_test, seed + 1)
    mixed = shuffled(test, seed)
    return Grid(
        read(lm, train, ut, stretches(), blocks),
        read(lm, test, us, stretches(), blocks),
        read(lm, mixed, us, stretches(), blocks[:1]),
    )


def _slope(readings: Readings) -> float:
    """Return the slope of what is expected on the mean of the law."""
    x, y = readings.u.numpy(), readings.mean.mean(1).numpy()
    return float(np.polyfit(x, y, 1)[0])


def _kl_of_observer(readings: Readings) -> tuple[Tensor, Tensor]:
    """Return KL(exact Bayesian observer || model), and || uniform, [text, read] each."""
    seen = binned(Exact(PRIOR).observe(readings.digits.double()))[:, list(readings.after)]
    uniform = torch.full_like(readings.probabilities, 0.1)
    return divergence(seen, readings.probabilities), divergence(seen, uniform)


def _encoded(grid: Grid) -> Float[Tensor, "block text read"]:
    """Return where on M_h of each block the test states are."""
    found = [
        manifolds.fit_curve(x.flatten(0, 1), grid.train.labels).encode(xt.flatten(0, 1))
        for x, xt in zip(grid.train.states, grid.test.states, strict=True)
    ]
    return torch.stack(found).unflatten(1, grid.test.states.shape[1:3]).double()


def _encoded_wrong(grid: Grid, block: int, seed: int) -> Float[Tensor, "draw text read"]:
    """Return where they are on curves through texts that had each other's labels."""
    x, xt = grid.train.states[block].flatten(0, 1), grid.test.states[block].flatten(0, 1)
    found = [
        manifolds.fit_curve(x, probing.relabelled(grid.train, seed + draw)).encode(xt)
        for draw in range(probing.N_DRAWS)
    ]
    return torch.stack(found).unflatten(1, grid.test.states.shape[1:3]).double()


def _missed(lm: steer.LM, train: Readings, seed: int) -> Float[Tensor, " block"]:
    """Return by block how far steered outputs are from those wanted (Hellinger), on train texts.

    The texts of the lowest mean, sent along a curve that was fitted without them: its lowest place
    is left out, and paths go from the second one up.
    """
    lowest = train.u == train.u.min()
    base, others = train.where(lowest), train.where(~lowest)
    missed = []
    for block in range(len(train.states)):
        shapes = fit_shapes(others, block, seed)
        found = walk(lm, shapes, base, ("manifold",), seed=seed, n_points=4)
        wanted = shapes.behavior.decode(found.u).double()
        missed.append(manifolds.hellinger(found.outputs["manifold"], wanted).mean())
    return torch.stack(missed)
