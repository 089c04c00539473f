"""`probe_layers`: where in a model concepts can be read, and how far a score is the probe's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

import probes
import steer
from benchmarks.reading.sets import CONTRASTS, SETS, Labelled
from benchmarks.result import Outcome
from benchmarks.stats import Number
from benchmarks.task import Options

CONTROLS = (
    *(f"{name}_{what}" for name in SETS for what in ("shuffled_peak", "bag_of_words")),
    "transfer_shuffled",
)
N_TEXTS = 200
"""Pairs of a contrast set, or texts of each label."""
L2 = 10.0
LINEAR = partial(probes.fit_logistic, l2=L2)
HIDDEN = partial(probes.fit_mlp, hidden=16, l2=L2)


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What was measured of one set."""

    curve: probes.LayerCurve
    hidden: probes.LayerCurve
    shuffled: probes.LayerCurve
    words: float
    selectivity: probes.Selectivity
    description: probes.Description
    n: int


def measure_probe_layers(lm: steer.LM, options: Options) -> Outcome:
    """Fit probes at the last token of every block; `--limit` is the number of texts of each label.

    Peaks are chosen on the texts on which they are scored: so is that of shuffled labels, which
    says what such a choice gives by itself.
    """
    n = options.limit or N_TEXTS
    sites = lm.sites("resid_post")
    states: dict[str, Tensor] = {}
    data: dict[str, Labelled] = {}
    found: dict[str, Read] = {}
    for name, make in tqdm(SETS.items(), "sets", leave=False):
        data[name] = make(lm, n, options.seed)
        acts = lm.capture(data[name].rows, sites)
        states[name] = torch.stack([acts[site] for site in sites]).float()
        found[name] = _read(states[name], data[name], options.seed)
    numbers: dict[str, Number] = {}
    controls: dict[str, Number] = {}
    for name, one in found.items():
        numbers |= _numbers(name, one)
        controls[f"{name}_shuffled_peak"] = _score(one.shuffled.scores[one.shuffled.peak])
        controls[f"{name}_bag_of_words"] = Number(one.words)
    carried, control, table = _transfer(states, data, found, options.seed)
    tables = {
        "curves": {name: _listed(one.curve) for name, one in found.items()},
        "hidden": {name: _listed(one.hidden) for name, one in found.items()},
        "shuffled": {name: _listed(one.shuffled) for name, one in found.items()},
        "depth": {
            name: [one.curve.depth, *one.curve.depth_interval] for name, one in found.items()
        },
        "transfer": table,
    }
    specs = {"l2": L2, "texts": {name: one.n for name, one in found.items()}, "token": "last"}
    return Outcome(numbers | carried, controls | control, tables, specs)


def _read(x: Tensor, data: Labelled, seed: int) -> Read:
    y, groups = data.labels, data.groups
    curve = probes.layer_curve(LINEAR, x, y, groups=groups, seed=seed)
    paired = len(set(groups)) < len(groups)
    return Read(
        curve,
        probes.layer_curve(HIDDEN, x, y, groups=groups, seed=seed),
        probes.layer_curve(LINEAR, x, _shuffled(data, seed), groups=groups, seed=seed),
        _bag_of_words(data, seed),
        # Both texts of a pair, or texts with the same last token, get the same control label.
        probes.selectivity(
            LINEAR,
            x[curve.peak],
            y,
            groups if paired else [row[-2] for row in data.rows],
            n_seeds=3,
            seed=seed,
        ),
        probes.description_length(LINEAR, x[curve.peak], y, seed=seed),
        len(y),
    )


def _shuffled(data: Labelled, seed: int) -> list[int]:
    """Return labels dealt anew: within each pair by lot, or over all texts."""
    rng = np.random.default_rng(seed)
    if len(set(data.groups)) == len(data.groups):
        return rng.permutation(data.labels).tolist()
    turned = {group: bool(rng.integers(2)) for group in dict.fromkeys(data.groups)}
    return [
        1 - label if turned[group] else label
        for label, group in zip(data.labels, data.groups, strict=True)
    ]


def _bag_of_words(data: Labelled, seed: int) -> float:
    """Return the AUROC of the words alone, on the same split: what needs no model."""
    train, test = probes.split(data.labels, groups=data.groups, seed=seed)
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", binary=True)
    texts, y = np.array(data.texts), np.array(data.labels)
    fit = LogisticRegression(max_iter=2000).fit(counts.fit_transform(texts[train]), y[train])
    return float(roc_auc_score(y[test], fit.decision_function(counts.transform(texts[test]))))


def _numbers(name: str, one: Read) -> dict[str, Number]:
    curve, peak = one.curve, one.curve.peak
    hidden = one.hidden.scores[one.hidden.peak].value
    return {
        f"{name}_peak_auroc": _score(curve.scores[peak]),
        f"{name}_peak_block": Number(float(peak)),
        f"{name}_depth": Number(
            None if curve.depth is None else float(curve.depth),
            float(curve.depth_interval[0]),
            float(curve.depth_interval[1]),
        ),
        f"{name}_mlp_minus_linear": Number(hidden - curve.scores[peak].value),
        f"{name}_selectivity": _score(one.selectivity.selectivity[0]),
        f"{name}_compression": Number(one.description.compression[0]),
    }


def _transfer(
    states: Mapping[str, Tensor],
    data: Mapping[str, Labelled],
    found: Mapping[str, Read],
    seed: int,
) -> tuple[dict[str, Number], dict[str, Number], dict[str, object]]:
    """Return how probes of one contrast set read the others, at the block that is best for all."""
    names = list(CONTRASTS)
    each = torch.tensor([[s.value for s in found[name].curve.scores] for name in names])
    site = int(each.mean(0).argmax())
    sets = {name: (states[name][site], data[name].labels) for name in names}
    groups = {name: [f"{name} {group}" for group in data[name].groups] for name in names}
    true = probes.transfer(LINEAR, sets, groups=groups, seed=seed)
    dealt = {name: (states[name][site], _shuffled(data[name], seed)) for name in names}
    false = probes.transfer(LINEAR, dealt, groups=groups, seed=seed)
    off = ~torch.eye(len(names), dtype=torch.bool)
    numbers = {
        "transfer_own": _spread(true.auroc.diagonal()),
        "transfer_carried": _spread(true.auroc[off]),
        "transfer_cosine": _spread(true.cosine[off]),
        "transfer_block": Number(float(site)),
    }
    table: dict[str, object] = {"names": names, "auroc": true.auroc.tolist()}
    return numbers, {"transfer_shuffled": _spread(false.auroc[off])}, table


def _score(one: probes.Score) -> Number:
    return Number(one.value, one.lo, one.hi)


def _spread(values: Tensor) -> Number:
    """Return the mean; the range is over sets, or over pairs of them."""
    return Number(float(values.mean()), float(values.min()), float(values.max()))


def _listed(curve: probes.LayerCurve) -> Sequence[Sequence[float]]:
    return [[one.value, one.lo, one.hi] for one in curve.scores]
