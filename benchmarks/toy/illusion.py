"""The illusion of subspace patching, planted: who is fooled, and what the checks say."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import steer
from benchmarks.result import Outcome
from benchmarks.stats import Number
from benchmarks.task import Options
from benchmarks.toy.dormant import N_WORDS, SITE, Planted, answers, planted, rows_of
from steer import Site, interchange, patching

CONTROLS = ("random_direction_effect", "genuine_called_illusory", "stream_called_illusory")
N_SEEDS = 3
N_PAIRS = 64
STREAM = Site(1, "resid_mid")
TRAINING = interchange.Training(epochs=20, batch_size=64, learning_rate=0.05)


@dataclass(frozen=True, slots=True)
class Seen:
    """What plain patching and the checks say of one model."""

    planted: interchange.IllusionReport
    learned: interchange.IllusionReport
    genuine: interchange.IllusionReport
    stream: interchange.IllusionReport
    fooled: interchange.Accuracy
    """How often the planted direction's exchange gives the source's answer."""
    cosine: float
    """Of what alignment search finds in the MLP to what was planted there."""
    accuracy: float


def measure_illusion(lm: steer.LM, options: Options) -> Outcome:
    """Make the models and ask; `--limit` is the number of seeds. The loaded model is not used."""
    del lm
    seeds = range(options.seed, options.seed + (options.limit or N_SEEDS))
    seen = [_seen(planted(seed), seed) for seed in seeds]
    numbers = {
        "planted_effect": _over([one.planted.effects["subspace"][0] for one in seen]),
        "planted_read_part_effect": _over([one.planted.effects["read part"][0] for one in seen]),
        "planted_accuracy": _over([one.fooled.value for one in seen]),
        "planted_called_illusory": _over([float(one.planted.illusory) for one in seen]),
        "learned_effect": _over([one.learned.effects["subspace"][0] for one in seen]),
        "learned_read_part_effect": _over([one.learned.effects["read part"][0] for one in seen]),
        "learned_called_illusory": _over([float(one.learned.illusory) for one in seen]),
        "learned_cosine_to_planted": _over([one.cosine for one in seen]),
        "whole_mlp_effect": _over([one.planted.effects["whole"][0] for one in seen]),
        "genuine_effect": _over([one.genuine.effects["subspace"][0] for one in seen]),
        "stream_effect": _over([one.stream.effects["subspace"][0] for one in seen]),
        "model_accuracy": _over([one.accuracy for one in seen]),
    }
    controls = {
        CONTROLS[0]: _over([one.planted.effects["random"][0] for one in seen]),
        CONTROLS[1]: _over([float(one.genuine.illusory) for one in seen]),
        CONTROLS[2]: _over([float(one.stream.illusory) for one in seen]),
    }
    tables = {
        "effects": [
            {name: {k: list(v) for k, v in report.effects.items()} for name, report in _each(one)}
            for one in seen
        ],
        "reports": [{name: repr(report) for name, report in _each(one)} for one in seen],
    }
    return Outcome(numbers, controls, tables, {"site": str(SITE), "pairs": N_PAIRS})


def _each(one: Seen) -> list[tuple[str, interchange.IllusionReport]]:
    return [
        ("planted", one.planted),
        ("learned", one.learned),
        ("genuine", one.genuine),
        ("stream", one.stream),
    ]


def _seen(made: Planted, seed: int) -> Seen:
    lm = made.lm
    clean, corrupted = _pairs(seed)
    right, wrong = answers(clean), answers(corrupted)
    metric = patching.logit_difference(right.tolist(), wrong.tolist())
    both = [N_WORDS, N_WORDS + 1]
    some = interchange.trials(lm, corrupted.tolist(), clean.tolist(), right.tolist(), among=both)
    half = N_PAIRS // 2
    found = interchange.fit_das(lm, some[:half], SITE, dims=1, within=None, training=TRAINING)
    stream = interchange.fit_das(lm, some[:half], STREAM, dims=1, within=None, training=TRAINING)
    test = (clean[half:].tolist(), corrupted[half:].tolist())
    metric = patching.logit_difference(right[half:].tolist(), wrong[half:].tolist())

    def check(site: Site, direction: Tensor) -> interchange.IllusionReport:
        return interchange.check_illusion(lm, *test, site, direction, metric, seed=seed)

    hits = interchange.interchange_accuracy(lm, some[half:], SITE, {"": made.direction})
    return Seen(
        check(SITE, made.direction),
        check(SITE, found.basis),
        check(SITE, made.genuine),
        check(STREAM, stream.basis),
        hits[""],
        float((found.basis @ made.direction).abs()[0]),
        made.accuracy,
    )


def _pairs(seed: int) -> tuple[Tensor, Tensor]:
    """Return pairs that differ in their first token, which is from the other set; half each way."""
    rows = rows_of(N_PAIRS, 77 + seed)
    other = (rows[:, 0] + N_WORDS // 2) % N_WORDS
    return rows, torch.cat([other[:, None], rows[:, 1:]], 1)


def _over(values: list[float]) -> Number:
    """Return the mean over seeds; the range is over seeds."""
    return Number(float(np.mean(values)), min(values), max(values))
