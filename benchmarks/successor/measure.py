"""Successor heads (Gould et al. 2023, arXiv:2312.09230): by patches and by what they write."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

import probes
import steer
from benchmarks.result import Outcome
from benchmarks.stats import Number
from benchmarks.successor.words import Family, families, runs
from benchmarks.task import Options
from steer import Site, patching

CONTROLS = ("mean_head_successor_score", "shuffled_order_successor_score", "chance_overlap")
N_PAIRS = 12
TOP = 10
PERIODS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)


def measure_successor(lm: steer.LM, options: Options) -> Outcome:
    """Measure the heads and the feature; `--limit` is the number of pairs of each sequence.

    `successor_score`: the share of words for which what a head writes, having attended to that
    word alone, prefers the next word among all words of the sequence. By patches: the heads with
    the largest effect on which word comes next, in each sequence.
    """
    known = families(lm)
    every = patching.heads(lm)
    maps = {f.name: _patched(lm, f, every, options.limit or N_PAIRS) for f in known}
    written = {f.name: _written(lm, f, every) for f in known}
    scores = torch.stack([_score(written[f.name], f.steps) for f in known])
    mean = scores.mean(0)
    best = int(mean.argmax())
    tops = {name: _top(found.effect[:, 0]) for name, found in maps.items()}
    shared = [k for k in range(len(every)) if sum(k in top for top in tops.values()) >= 3]
    numbers = {
        "accuracy": Number(float(np.mean([_accuracy(lm, f) for f in known]))),
        "best_successor_score": _over([float(x) for x in scores[:, best]]),
        "best_successor_score_alone": Number(float(scores.max())),
        "top_heads_shared_by_three": Number(float(len(shared))),
        "top_overlap": _over(_overlaps(list(tops.values()))),
        "best_head_rank_in_patching": _over(
            [float((m.effect[:, 0] > m.effect[best, 0]).sum() + 1) for m in maps.values()]
        ),
        "score_effect_rank_correlation": _over(
            [_rank(s, maps[f.name].effect[:, 0]) for s, f in zip(scores, known, strict=True)]
        ),
        "heads": Number(float(len(every))),
    }
    features, table = _features(lm, known, options.seed)
    controls = {
        CONTROLS[0]: Number(float(mean.mean()), *_range(mean)),
        CONTROLS[1]: _shuffled(written, known, options.seed),
        CONTROLS[2]: Number(TOP / (2 * len(every) - TOP)),
    }
    tables = {
        "families": {f.name: list(f.words) for f in known},
        "effects": {name: m.by_head()[..., 0].tolist() for name, m in maps.items()},
        "scores": {f.name: s.tolist() for f, s in zip(known, scores, strict=True)},
        "best_head": str(every[best]),
        "shared": [str(every[k]) for k in shared],
        "significant": {name: int((m.p_values() < 0.05).sum()) for name, m in maps.items()},
        "features": table,
    }
    specs = {"pairs": {name: len(m.into) for name, m in maps.items()}, "top": TOP}
    return Outcome(numbers | features, controls, tables, specs)


def _patched(lm: steer.LM, family: Family, every: Sequence[Site], n: int) -> patching.PatchMap:
    some = runs(lm, family, n)
    return patching.sweep(
        lm, some.clean, some.corrupted, every, some.measure(), scope=steer.ALL, direction="noise"
    )


def _accuracy(lm: steer.LM, family: Family) -> float:
    """Return how often the next word is the likeliest of all tokens."""
    some = runs(lm, family, 100)
    best = lm.logits(some.clean).argmax(-1)
    return float((best == torch.tensor(some.right)).float().mean())


def _written(lm: steer.LM, family: Family, every: Sequence[Site]) -> Tensor:
    """Return [head, word, word]: logits of all words by what each head writes, seeing one alone.

    A prompt of one word: attention has nowhere else to go, so z is the value of that word. All but
    one head of a block silenced, what its attention adds is read through the final norm.
    """
    rows = [[k] for k in family.ids]
    last = Site(lm.n_layers - 1, "resid_post")
    ids = torch.tensor(family.ids)
    found = []
    n = len(rows)
    for base in lm.sites("z"):
        mine = [site for site in every if site.layer == base.layer]
        z = lm.capture(rows, [base])[base]
        keep = torch.eye(len(mine), device=z.device, dtype=z.dtype)[:, None, :, None]
        alone = (keep * z).flatten(0, 1)
        out = Site(base.layer, "attn_out")
        silent = lm.capture(rows, [out], plan=[steer.Patch(base, torch.zeros_like(z))])[out]
        many = [row for _ in mine for row in rows]
        made = lm.capture(many, [out], plan=[steer.Patch(base, alone)])[out]
        # Without the bias that all heads share.
        wrote = made - silent.repeat(len(mine), *[1] * (silent.ndim - 1))
        logits = lm.logits(many, [steer.Patch(last, wrote, scope=steer.LAST)])
        found.append(logits[:, ids].unflatten(0, (len(mine), n)).float().cpu())
    return torch.cat(found)


def _score(logits: Tensor, steps: Sequence[tuple[int, int]]) -> Tensor:
    """Return [head]: the share of words whose next one is preferred."""
    here, after = torch.tensor(steps).T
    return (logits[:, here].argmax(-1) == after).float().mean(1)


def _shuffled(written: dict[str, Tensor], known: Sequence[Family], seed: int) -> Number:
    """Return the best head's mean score with each sequence in a random order: what luck gives."""
    draw = torch.Generator().manual_seed(seed)
    best = []
    for _ in range(20):
        each = []
        for family in known:
            n = len(family.ids)
            order = torch.randperm(n, generator=draw).tolist()
            steps = [(order[a], order[b]) for a, b in family.steps]
            each.append(_score(written[family.name], steps))
        best.append(float(torch.stack(each).mean(0).max()))
    return Number(float(np.mean(best)), min(best), max(best))


def _features(
    lm: steer.LM, known: Sequence[Family], seed: int
) -> tuple[dict[str, Number], dict[str, object]]:
    """Return whether a word's place modulo 10 can be read where no word of its sequence was seen.

    Whole sequences are held out, as in the paper's test of transfer; other periods beside it.
    """
    site = Site(0, "resid_post")
    rows = [[k] for f in known for k in f.ids]
    states = lm.capture(rows, [site])[site]
    places = [p for f in known for p in f.places]
    names = [f.name for f in known for _ in f.ids]
    found = probes.fit_fourier(states, places, PERIODS, groups=names, permutations=999, seed=seed)
    within = probes.fit_fourier(states, places, PERIODS, permutations=999, seed=seed)
    notes: Any = found.diagnostics
    inside: Any = within.diagnostics
    table = {
        "periods": list(PERIODS),
        "carried_r2": notes["held_out_r2"],
        "carried_p": notes["p_value"],
        "within_r2": inside["held_out_r2"],
        "within_p": inside["p_value"],
    }
    ten = PERIODS.index(10)
    numbers = {
        "mod10_r2_carried_over": Number(notes["held_out_r2"][ten]),
        "mod10_p_carried_over": Number(notes["p_value"][ten]),
        "mod10_r2_held_out_places": Number(inside["held_out_r2"][ten]),
        "mod10_p_held_out_places": Number(inside["p_value"][ten]),
    }
    return numbers, table


def _top(effect: Tensor) -> set[int]:
    return set(effect.abs().argsort(descending=True)[:TOP].tolist())


def _overlaps(tops: Sequence[set[int]]) -> list[float]:
    return [len(a & b) / len(a | b) for k, a in enumerate(tops) for b in tops[k + 1 :]]


def _rank(a: Tensor, b: Tensor) -> float:
    found: Any = spearmanr(a.numpy(), b.numpy())
    return float(found.statistic)


def _over(values: list[float]) -> Number:
    """Return the mean; the range is over sequences, or over pairs of them."""
    return Number(float(np.mean(values)), min(values), max(values))


def _range(values: Tensor) -> tuple[float, float]:
    lo, hi = np.quantile(values.numpy(), [0.025, 0.975])
    return float(lo), float(hi)
