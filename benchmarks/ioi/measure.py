"""Indirect objects: patched maps against TransformerLens', AtP* against patches, a circuit."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import steer
from benchmarks.ioi.prompts import Pairs, drawn
from benchmarks.peers import transformer_lens
from benchmarks.result import Outcome
from benchmarks.stats import Number, percentiles
from benchmarks.task import Options
from steer import attribution, patching
from steer.interop import bridge_of
from steer.patching import PatchMap
from steer.sites import Site

CONTROLS = (
    "random_heads_faithfulness",
    "random_heads_same_blocks_faithfulness",
    "shuffled_heads_pearson",
)
N_TRAIN = 16
N_TEST = 32
SHARE = 0.1
"""Of all heads, at most, in the circuit."""
TOP = 30
N_RANDOM = 20
N_RESAMPLES = 1000
ESTIMATES = (("atp", False, 2), ("atp_drop", True, 0), ("atp_plain", False, 0))
"""Name, whether blocks are dropped (AtP* as published), over how many points is averaged."""
Array = NDArray[np.float64]


def measure_ioi(lm: steer.LM, options: Options) -> Outcome:
    """Measure maps, estimates and a circuit; `--limit` is the number of pairs to find them on.

    `atp` has its gradient averaged over two points on the way to what is written, `atp_drop` is
    AtP* as published, `atp_plain` the gradient of the corrupted run. The circuit is scored on
    twice as many pairs with other names.
    """
    n = options.limit or N_TRAIN
    return measured(lm, *drawn(lm, n, N_TEST * n // N_TRAIN, seed=options.seed), options.seed)


def measured(lm: steer.LM, train: Pairs, test: Pairs, seed: int) -> Outcome:
    """Return the same of given pairs."""
    metric = train.measure()
    streams = patching.sweep(lm, train.clean, train.corrupted, lm.sites("resid_pre"), metric)
    heads = patching.heads(lm)
    exact = patching.sweep(lm, train.clean, train.corrupted, heads, metric, scope=steer.ALL)
    numbers = {"lens_max_abs_diff": Number(_lens_difference(lm, train, streams, exact))}
    numbers |= {
        "logit_difference_clean": Number(float(exact.clean.mean())),
        "logit_difference_corrupted": Number(float(exact.corrupted.mean())),
    }
    estimates = {
        name: attribution.atp(
            lm,
            train.clean,
            train.corrupted,
            heads,
            metric,
            scope=steer.ALL,
            drop_blocks=drop_blocks,
            steps=steps,
        )
        for name, drop_blocks, steps in ESTIMATES
    }
    for name, estimate in estimates.items():
        numbers |= _agreement(name, estimate, exact, seed)
    found, controls, tables = _circuit(lm, train, test, exact, seed)
    controls["shuffled_heads_pearson"] = _shuffled(lm, estimates["atp"], exact, seed)
    p = exact.p_values(seed=seed)
    numbers["heads_beyond_chance"] = Number(float((p < 0.05).sum()))
    tables |= {
        "streams": _listed(streams.effect),
        "streams_columns": list(streams.columns),
        "heads": _listed(exact.by_head()[..., 0]),
        "p_values": _listed(p.reshape(lm.n_layers, -1)),
        "estimates": {k: _listed(m.by_head()[..., 0]) for k, m in estimates.items()},
    }
    specs = {
        "pairs": len(train.clean),
        "test_pairs": len(test.clean),
        "example": lm.tokenizer.decode(train.clean[0]),
    }
    return Outcome(numbers | found, controls, tables, specs)


def _lens_difference(lm: steer.LM, train: Pairs, streams: PatchMap, exact: PatchMap) -> float:
    """Return the largest difference from TransformerLens' own maps of the first pair."""
    one = train.first(1)
    metric = one.measure()
    batch = steer.Batch(torch.tensor([-1]), torch.tensor([0]))

    def scalar(logits: Tensor) -> Tensor:
        return metric(logits[:, -1], batch)[0]

    bridge = bridge_of(lm)
    clean, corrupted = (torch.tensor(rows, device=lm.device) for rows in (one.clean, one.corrupted))
    with torch.no_grad():
        theirs = transformer_lens.patched_streams(bridge, clean, corrupted, scalar)()
        their_heads = transformer_lens.patched_heads(bridge, clean, corrupted, scalar)()
    ours = streams.values[:, : theirs.shape[1], 0]
    our_heads = exact.values[:, 0, 0].reshape(their_heads.shape)
    return max(
        float((ours - theirs.cpu()).abs().max()), float((our_heads - their_heads.cpu()).abs().max())
    )


def _agreement(name: str, estimate: PatchMap, exact: PatchMap, seed: int) -> Mapping[str, Number]:
    """Return Pearson's correlation over heads and the overlap of the largest."""
    guess, truth = (_per_pair(one) for one in (estimate, exact))
    return {
        f"{name}_pearson": _resampled(guess, truth, _pearson, seed),
        f"{name}_top{TOP}_overlap": _resampled(guess, truth, _overlap, seed),
    }


def _per_pair(found: PatchMap) -> Array:
    """Return [head, pair]: the change in the metric."""
    return found.change[:, 0].double().numpy()


def _resampled(
    guess: Array, truth: Array, statistic: Callable[[Array, Array], float], seed: int
) -> Number:
    rng = np.random.default_rng(seed)
    picks = rng.integers(guess.shape[1], size=(N_RESAMPLES, guess.shape[1]))
    found = [statistic(guess[:, pick].mean(1), truth[:, pick].mean(1)) for pick in picks]
    return percentiles(statistic(guess.mean(1), truth.mean(1)), np.array(found))


def _pearson(guess: Array, truth: Array) -> float:
    return float(np.corrcoef(guess, truth)[0, 1])


def _overlap(guess: Array, truth: Array) -> float:
    n = min(TOP, len(guess))
    first, second = (set(np.argsort(-np.abs(x))[:n].tolist()) for x in (guess, truth))
    return len(first & second) / n


def _shuffled(lm: steer.LM, estimate: PatchMap, exact: PatchMap, seed: int) -> Number:
    """Return the correlation with the heads of each block exchanged: what blocks alone give."""
    guess, truth = (_per_pair(one).mean(1) for one in (estimate, exact))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(N_RESAMPLES):
        turned = rng.permuted(guess.reshape(lm.n_layers, -1), axis=1).ravel()
        found.append(_pearson(turned, truth))
    return percentiles(float(np.mean(found)), np.array(found))


def _circuit(
    lm: steer.LM, train: Pairs, test: Pairs, exact: PatchMap, seed: int
) -> tuple[dict[str, Number], dict[str, Number], dict[str, object]]:
    """Return how faithful a circuit found on some pairs is on others, and its controls."""
    every = patching.heads(lm)
    size = max(1, int(SHARE * len(every)))
    measure = train.measure()
    first = attribution.find_circuit(lm, train.clean, train.corrupted, measure, size=size)
    greedy = attribution.refine_circuit(lm, train.clean, train.corrupted, first, measure)
    by_size = attribution.threshold_circuit(exact, size)
    draw = torch.Generator().manual_seed(seed)
    anywhere = [_random(every, size, draw) for _ in range(N_RANDOM)]
    in_place = [_same_blocks(every, greedy, draw) for _ in range(N_RANDOM)]
    rest = [site for site in every if site not in greedy]
    less = attribution.without_each(greedy)
    asked = [greedy, by_size, rest, first, *anywhere, *in_place, *less]
    found = attribution.faithfulness(lm, test.clean, test.corrupted, asked, test.measure())
    lo, hi = found.interval(seed=seed)
    share = found.share
    n = 4 + N_RANDOM
    scored = [Number(float(share[k]), float(lo[k]), float(hi[k])) for k in range(4)]
    drops = share[0] - share[n + N_RANDOM :]
    numbers = {
        "circuit_faithfulness": scored[0],
        "threshold_circuit_faithfulness": scored[1],
        "without_circuit_faithfulness": scored[2],
        "unrefined_circuit_faithfulness": scored[3],
        "circuit_heads": Number(float(size)),
        "heads": Number(float(len(every))),
        "least_drop_without_a_head": Number(float(drops.min())),
        "overlap_greedy_threshold": Number(attribution.overlap(greedy, by_size)),
    }
    controls = {
        CONTROLS[0]: _spread(share[4:n]),
        CONTROLS[1]: _spread(share[n : n + N_RANDOM]),
    }
    tables = {
        "circuit": [str(site) for site in greedy],
        "drops": drops.tolist(),
        "random": share[4:n].tolist(),
    }
    return numbers, controls, tables


def _random(every: Sequence[Site], size: int, draw: torch.Generator) -> list[Site]:
    return [every[k] for k in torch.randperm(len(every), generator=draw)[:size].tolist()]


def _same_blocks(
    every: Sequence[Site], circuit: Sequence[Site], draw: torch.Generator
) -> list[Site]:
    """Return as many heads of each block as the circuit has there, none of the circuit's own."""
    chosen = []
    for layer in sorted({site.layer or 0 for site in circuit}):
        wanted = sum(site.layer == layer for site in circuit)
        left = [s for s in every if s.layer == layer and s not in circuit]
        chosen += _random(left, min(wanted, len(left)), draw)
    return chosen


def _spread(shares: Tensor) -> Number:
    """Return the mean over random circuits, with the range of 95 % of them."""
    lo, hi = np.quantile(shares.numpy(), [0.025, 0.975])
    return Number(float(shares.mean()), float(lo), float(hi))


def _listed(values: Tensor) -> object:
    return [[None if np.isnan(x) else x for x in row] for row in values.tolist()]
