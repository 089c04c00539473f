"""`monitor`: is the promised false-positive rate kept, and what does watching cost?"""

from functools import partial

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

import probes
import steer
from benchmarks.reading.sets import LONGEST, clinical_and_others, sentences
from benchmarks.result import Outcome
from benchmarks.speed.harness import Pair, near, settle_of, time_pairs
from benchmarks.speed.inputs import decode, decoding, token_batch
from benchmarks.stats import Number
from benchmarks.task import Options

CONTROLS = ("bare_over_bare_decode", "naive_false_positive_rate", "other_kind_false_positive_rate")
RATE, CONFIDENCE = 0.02, 0.95
N_TRAIN = 300
"""Texts of each label on which the probe is fitted."""
N_CALIBRATE = 800
N_SPLITS = 400
WAYS = ("last", "mean", "max", "rolling")
Score = partial(probes.fit_logistic, l2=10.0)


def measure_monitor(lm: steer.LM, options: Options) -> Outcome:
    """Calibrate a monitor of clinical questions on others; `--limit` is the number of timed pairs.

    Benign texts are exam questions of other subjects. One part fits the probe, one calibrates the
    threshold, the rest is scored. The promise is broken where more than `RATE` of the rest fires;
    over many splits into calibration and rest that may happen in 5 % of them. The control takes
    the rate's quantile itself as threshold, as is often done: it breaks every second promise.
    """
    site = steer.Site(lm.n_layers // 2, "resid_post")
    rng = np.random.default_rng(options.seed)
    clinical, others = (
        _short(lm, [texts[k] for k in rng.permutation(len(texts))])
        for texts in clinical_and_others()
    )
    x = [_states(lm, side[:N_TRAIN], site) for side in (clinical, others)]
    probe = Score(torch.cat(x), [1] * len(x[0]) + [0] * len(x[1]))
    benign, target = others[N_TRAIN:], clinical[N_TRAIN:]
    tokens = {name: _scores(lm, rows, site, probe) for name, rows in (
        ("benign", benign), ("target", target), ("other kind", _short(lm, sentences())),
    )}  # fmt: skip
    numbers: dict[str, Number] = {}
    table: dict[str, object] = {}
    for how in WAYS:
        each = {name: probes.aggregate(*parts, how) for name, parts in tokens.items()}
        found, told = _kept(each, rng)
        numbers |= {f"{how}_{name}": value for name, value in found.items()}
        table[how] = told
    controls = {
        CONTROLS[1]: numbers.pop("mean_naive_false_positive_rate"),
        CONTROLS[2]: numbers["mean_other_kind_fires"],
    }
    numbers = {k: v for k, v in numbers.items() if "naive" not in k}
    numbers["monitor_max_abs_diff"] = Number(_as_monitored(lm, benign[:16], site, probe, tokens))
    timed, control, seconds = _latency(lm, site, probe, options)
    specs = {
        "rate": RATE,
        "confidence": CONFIDENCE,
        "calibrated_on": N_CALIBRATE,
        "benign": len(benign),
        "target": len(target),
        "site": str(site),
        "probe": repr(probe),
    }
    return Outcome(numbers | timed, controls | control, {"ways": table, "seconds": seconds}, specs)


def _short(lm: steer.LM, texts: list[str]) -> list[list[int]]:
    return [row for row in lm.rows(texts) if len(row) <= LONGEST]


def _states(lm: steer.LM, rows: list[list[int]], site: steer.Site) -> Tensor:
    """Return [row, d]: the mean state over a text's tokens."""
    acts = lm.capture(rows, [site], scope=steer.PROMPT)
    assert acts.mask is not None
    return (acts[site] * acts.mask[..., None]).sum(1) / acts.mask.sum(1, keepdim=True)


def _scores(
    lm: steer.LM, rows: list[list[int]], site: steer.Site, probe: probes.LinearProbe
) -> tuple[Tensor, Tensor]:
    """Return scores and mask [row, token]."""
    parts = []
    for start in range(0, len(rows), 256):
        acts = lm.capture(rows[start : start + 256], [site], scope=steer.PROMPT)
        assert acts.mask is not None
        scores = probe.scores(acts[site].float())
        parts.append((scores, acts.mask))
    width = max(scores.shape[1] for scores, _ in parts)
    pad = [torch.nn.functional.pad(s, (0, width - s.shape[1])) for s, _ in parts]
    masks = [torch.nn.functional.pad(m, (0, width - m.shape[1])) for _, m in parts]
    return torch.cat(pad), torch.cat(masks)


def _kept(
    each: dict[str, Tensor], rng: np.random.Generator
) -> tuple[dict[str, Number], dict[str, object]]:
    """Return rates on what was not calibrated on, over many splits."""
    benign = each["benign"]
    rates, naive, hits, elsewhere = [], [], [], []
    for _ in range(N_SPLITS):
        order = torch.from_numpy(rng.permutation(len(benign)))
        calibrated, rest = benign[order[:N_CALIBRATE]], benign[order[N_CALIBRATE:]]
        threshold = probes.calibrate(calibrated, rate=RATE, confidence=CONFIDENCE)
        rates.append(float(threshold.fired(rest).float().mean()))
        naive.append(float((rest > calibrated.quantile(1 - RATE)).float().mean()))
        hits.append(float(threshold.fired(each["target"]).float().mean()))
        elsewhere.append(float(threshold.fired(each["other kind"]).float().mean()))
    n = len(benign) - N_CALIBRATE
    first = round(rates[0] * n)
    found = {
        "false_positive_rate": Number(rates[0], *_exact(first, n)),
        "mean_false_positive_rate": Number(float(np.mean(rates))),
        "promises_broken": Number(float(np.mean(np.array(rates) > RATE))),
        "naive_false_positive_rate": Number(
            float(np.mean(naive)), *np.quantile(naive, [0.025, 0.975])
        ),
        "naive_promises_broken": Number(float(np.mean(np.array(naive) > RATE))),
        "detected": Number(float(np.mean(hits)), min(hits), max(hits)),
        "other_kind_fires": Number(float(np.mean(elsewhere)), min(elsewhere), max(elsewhere)),
    }
    return found, {"rates": rates, "naive": naive}


def _exact(k: int, n: int) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of k in n."""
    lo = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    hi = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return lo, hi


def _as_monitored(
    lm: steer.LM,
    rows: list[list[int]],
    site: steer.Site,
    probe: probes.LinearProbe,
    tokens: dict[str, tuple[Tensor, Tensor]],
) -> float:
    """Return the largest difference of a Monitor's own readings from those used here."""
    worst = 0.0
    for how in ("last", "mean", "max"):
        read = steer.Read(site, probe, scope=steer.PROMPT, reduce=how)
        ids = lm.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
        with lm.attached([steer.Monitor(read)]) as run:
            lm.model(**ids.to(lm.device))
        scores, mask = (x[: len(rows)] for x in tokens["benign"])
        mine = probes.aggregate(scores, mask, how)
        reads = run.receipt[0].reads
        assert reads is not None
        worst = max(worst, float((reads - mine).abs().max()))
    return worst


@torch.no_grad()
def _latency(
    lm: steer.LM, site: steer.Site, probe: probes.LinearProbe, options: Options
) -> tuple[dict[str, Number], dict[str, Number], dict[str, object]]:
    """Return the time of decoding under a monitor over that without."""
    prompt = token_batch(lm, 1, 32, seed=1)
    read = steer.Read(site, probe, scope=steer.GENERATED, reduce="rolling")
    bare = decode(lm, lm.model, prompt)

    def watched() -> Tensor:
        with lm.attached([steer.Monitor(read)]):
            return bare()

    n = near(options)
    pairs = {"decode_over_bare": Pair(watched, bare, n), CONTROLS[0]: Pair(bare, bare, n)}
    timings = time_pairs(pairs, settle=settle_of(lm.device))
    ratios = {name: timing.ratio(seed=options.seed) for name, timing in timings.items()}
    seconds: dict[str, object] = {
        name: float(np.median(timing.top)) for name, timing in timings.items()
    }
    per_token = seconds["decode_over_bare"]
    assert isinstance(per_token, float)
    added = (ratios["decode_over_bare"].value or 1.0) - 1.0
    tokens = decoding(lm)
    seconds["decoding"] = tokens
    return (
        {
            "decode_over_bare": ratios["decode_over_bare"],
            "added_milliseconds_per_token": Number(1000 * added * per_token / 64),
        },
        {CONTROLS[0]: ratios[CONTROLS[0]]},
        seconds,
    )
