"""A circuit made better by exchanging its heads one at a time, each exchange run for real.

A greedy search takes a head for what it brings to the heads found so far, by a gradient. With few
heads to take, an early one can be wrong for the whole: heads that stand in for each other are
measured here together.
"""

from collections.abc import Sequence

from torch import Tensor
from tqdm.auto import tqdm

from steer.attribution.circuits import Heads, gains, nearness_to
from steer.engine import Measure
from steer.errors import PlanError
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.columns import Column, patch_of
from steer.patching.mapping import heads
from steer.patching.pairs import columns_of, pairs_of
from steer.prompts import Prompts
from steer.scopes import ALL
from steer.sites import Site
from steer.sweep import sweep as run_arms


def refine_circuit(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    circuit: Heads,
    metric: Measure,
    *,
    candidates: int = 12,
    rounds: int = 8,
    among: Heads | None = None,
    align: Align = "token",
) -> tuple[Site, ...]:
    """Return a circuit of the same size that comes nearer to the whole model's metric.

    Each round exchanges one head for one outside, whichever exchange brings the pairs' metrics
    nearest to the model's (mean square), until none does. All exchanges of a round are arms of one
    sweep, so nothing is estimated; gradients only say which heads outside are tried.

    Args:
        lm: the model.
        clean: prompts with the behaviour. Score the circuit on others.
        corrupted: one for each of them, without it.
        circuit: where to start, as from `find_circuit`.
        metric: as in patching.sweep, differentiable.
        candidates: how many heads outside are tried in each round.
        rounds: at most so many exchanges.
        among: heads that are cut where a circuit does not hold them; all z heads by default.
        align: as in patching.sweep.

    Raises:
        PlanError: an empty circuit, or one with a head that is not among them.
    """
    every = tuple(heads(lm) if among is None else among)
    here = tuple(circuit)
    if not here or not set(here) <= set(every):
        raise PlanError(
            f"A circuit of {len(here)} heads cannot be refined among {len(every)}: it is empty or "
            "holds others. Start from find_circuit(...) with the same `among`."
        )
    into, out_of = pairs_of(lm, clean, corrupted, "noise")
    (column,) = columns_of(lm, into, out_of, every, ALL, baseline="other", align=align, seed=0)
    nearness = nearness_to(lm, into, metric)
    score = _scores(lm, into, every, [here], column, nearness)[0]
    for _ in tqdm(range(rounds), "exchanges", delay=2, leave=False):
        order = gains(lm, into, every, here, column, nearness).argsort(descending=True).tolist()
        outside = [every[k] for k in order if every[k] not in here][:candidates]
        tried = [
            tuple(new if site == old else site for site in here) for old in here for new in outside
        ]
        if not tried:
            break
        found = _scores(lm, into, every, tried, column, nearness)
        best = int(found.argmax())
        # Rounding must not exchange heads to and fro.
        if float(found[best]) <= float(score) + 1e-6 * abs(float(score)):
            break
        here, score = tried[best], found[best]
    return here


def _scores(
    lm: LM,
    into: Sequence[Sequence[int]],
    every: Heads,
    circuits: Sequence[Heads],
    column: Column,
    nearness: Measure,
) -> Tensor:
    """Return [circuit]: the mean nearness with every head outside cut."""
    patches = {site: patch_of(site, column, None) for site in every}
    arms: list[Plan] = [[patches[s] for s in every if s not in set(one)] for one in circuits]
    return run_arms(lm, into, arms, nearness).values.double().mean(1)
