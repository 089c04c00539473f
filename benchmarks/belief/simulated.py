"""Planted truth: does the fit recover a belief, and do its intervals hold what they promise?

Binomial counts over a grid of evidence and strength, simulated from the law itself, and from two
simulators that it does not know: questions that differ, and a read-out with a floor and a ceiling.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import steer
from benchmarks.result import Outcome, Result
from benchmarks.stats import Number
from benchmarks.task import Options
from steer.belief import Belief, Data

CONTROLS = ("no_effect_found_share", "additivity_false_positives")
N_SIMULATIONS = 200
QUESTIONS = 40
EVIDENCE = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
STRENGTHS = tuple(np.linspace(-1.0, 1.0, 9).tolist())
NAMES = ("a", "b", "gamma", "alpha")
TRUTH = Belief(a=2.0, b=-2.0, gamma=0.8, alpha=0.6)
ASKED = (0.93, 0.97)
"""Coverage of 95 % intervals over 200 simulations, where the simulator is the law."""

Simulator = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(evidence [cell], strength [cell], generator) -> successes out of QUESTIONS, [cell]."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """What the simulations of one simulator gave; [simulation, parameter]."""

    values: NDArray[np.float64]
    holds: NDArray[np.bool_]


def as_assumed(n: Tensor, m: Tensor, draw: torch.Generator) -> Tensor:
    """Draw from the law."""
    return _binomial(TRUTH.posterior(n, m).expand(QUESTIONS, -1), draw)


def questions_differ(n: Tensor, m: Tensor, draw: torch.Generator) -> Tensor:
    """Draw from the law with an intercept of its own for each question, one nat wide."""
    own = torch.randn(QUESTIONS, 1, generator=draw, dtype=torch.float64)
    return _binomial((TRUTH.log_odds(n, m) + own).sigmoid(), draw)


def saturated(n: Tensor, m: Tensor, draw: torch.Generator) -> Tensor:
    """Draw from a read-out that never falls below .05 nor rises above .9."""
    return _binomial((0.05 + 0.85 * TRUTH.posterior(n, m)).expand(QUESTIONS, -1), draw)


SIMULATORS: Mapping[str, Simulator] = {
    "as_assumed": as_assumed,
    "questions_differ": questions_differ,
    "saturated": saturated,
}


def measure_simulated(lm: steer.LM, options: Options) -> Outcome:
    """Fit simulated counts; `--limit` is the number of simulations. The model is not used.

    coverage_X is the share of simulations whose 95 % profile interval holds the planted X;
    misspecified_SIMULATOR_X the same where the law is not what made the data, which may fail.
    Controls: how often an effect of steering is found where none was planted, and how often the
    test of additivity rejects a law that is additive; both should be near .05.
    """
    del lm
    n_runs = N_SIMULATIONS if options.limit is None else max(2, options.limit)
    draw = torch.Generator().manual_seed(options.seed)
    runs = {name: _run(simulate, n_runs, draw) for name, simulate in SIMULATORS.items()}
    truth = np.array([float(TRUTH.slopes[0]), TRUTH.b, TRUTH.gamma, TRUTH.alpha])
    numbers: dict[str, Number] = {}
    for at, name in enumerate(NAMES):
        found = runs["as_assumed"]
        numbers[f"coverage_{name}"] = _share(found.holds[:, at])
        numbers[f"error_{name}"] = _mean(found.values[:, at] - truth[at])
        for other in ("questions_differ", "saturated"):
            numbers[f"misspecified_{other}_{name}"] = _share(runs[other].holds[:, at])
    numbers["boundary_max_abs"] = Number(_boundary_error())
    n, m = _cells()
    found_where_none, rejected = [], []
    for _ in range(n_runs):
        counts = as_assumed(n, m, draw)
        rejected.append(steer.belief.additivity(_data(n, m, counts)).p < 0.05)
        still = _binomial(TRUTH.posterior(n, 0.0).expand(QUESTIONS, -1), draw)
        found_where_none.append(not steer.belief.profile(_data(n, m, still), "a").holds(0.0))
    controls = {
        "no_effect_found_share": _share(np.array(found_where_none)),
        "additivity_false_positives": _share(np.array(rejected)),
    }
    tables = {
        name: {
            "coverage": dict(zip(NAMES, found.holds.mean(0).tolist(), strict=True)),
            "mean": dict(zip(NAMES, found.values.mean(0).tolist(), strict=True)),
        }
        for name, found in runs.items()
    }
    planted = dict(zip(NAMES, truth.tolist(), strict=True))
    return Outcome(
        numbers,
        controls,
        tables,
        {"planted": planted, "questions": QUESTIONS, "simulations": n_runs},
    )


def _cells() -> tuple[Tensor, Tensor]:
    grid = torch.meshgrid(torch.tensor(EVIDENCE), torch.tensor(STRENGTHS), indexing="ij")
    n, m = (x.flatten().double() for x in grid)
    return n, m


def _binomial(p: Tensor, draw: torch.Generator) -> Tensor:
    return (torch.rand(p.shape, generator=draw, dtype=torch.float64) < p).sum(0).double()


def _data(n: Tensor, m: Tensor, counts: Tensor) -> Data:
    return steer.belief.data_of(n, m, counts, trials=QUESTIONS, outcome_is="counts")


def _run(simulate: Simulator, n_runs: int, draw: torch.Generator) -> Runs:
    n, m = _cells()
    truth = (float(TRUTH.slopes[0]), TRUTH.b, TRUTH.gamma, TRUTH.alpha)
    values, holds = [], []
    for _ in range(n_runs):
        data = _data(n, m, simulate(n, m, draw))
        found = [steer.belief.profile(data, name) for name in NAMES]
        values.append([interval.value for interval in found])
        holds.append([f.holds(x) for f, x in zip(found, truth, strict=True)])
    return Runs(np.array(values), np.array(holds))


def _boundary_error() -> float:
    strength = torch.linspace(-2, 0.9, 50).double()
    return float(TRUTH.log_odds(TRUTH.crossover(strength), strength).abs().max())


def _share(found: NDArray[np.bool_]) -> Number:
    """Return a share with its Wilson interval."""
    n, p, z = len(found), float(np.mean(found)), 1.96
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Number(p, float(min(centre - half, p)), float(max(centre + half, p)))


def _mean(values: NDArray[np.float64]) -> Number:
    half = 1.96 * float(np.std(values, ddof=1)) / np.sqrt(len(values))
    centre = float(np.mean(values))
    return Number(centre, float(centre - half), float(centre + half))


def draw_simulated(result: Result, path: Path) -> list[Path]:
    """Draw the coverage per parameter and simulator beside the result's file."""
    # matplotlib is in the extra `plots`: numbers can be had without it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(*ASKED, color="#dfe8ea", label="asked of the right simulator")
    for shift, (name, mark) in enumerate(zip(SIMULATORS, "os^", strict=True)):
        keys = [
            f"coverage_{x}" if name == "as_assumed" else f"misspecified_{name}_{x}" for x in NAMES
        ]
        found = [result.numbers[key] for key in keys]
        y = np.array([number.value for number in found], float)
        ends = np.array([[number.lo, number.hi] for number in found], float)
        axes.errorbar(
            np.arange(len(NAMES)) + 0.15 * (shift - 1),
            y,
            yerr=np.abs(ends.T - y),
            fmt=mark,
            capsize=3,
            label=name.replace("_", " "),
        )
    axes.set_xticks(range(len(NAMES)), NAMES)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("share of 95 % intervals\nthat hold the truth")
    axes.legend(fontsize=8, loc="lower left")
    file = path.with_name(f"{path.stem}_coverage.png")
    figure.savefig(file, dpi=150)
    return [file]
