"""`speed_probes`: all blocks fitted at once, against a loop over scikit-learn."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import probes
import steer
from benchmarks.reading.sets import contrast
from benchmarks.result import Outcome
from benchmarks.stats import Number
from benchmarks.task import Options

CONTROLS = ("ours_over_ours",)
N_PAIRS = 1000
L2 = 1.0
STEP = 5
"""Every so many blocks are fitted by scikit-learn to its optimum too."""


def measure_speed_probes(lm: steer.LM, options: Options) -> Outcome:
    """Fit and score every block both ways; `--limit` is the number of texts, 2,000 by default.

    The same work: for each block a fit on all texts, and one on four fifths that is scored on the
    last fifth. scikit-learn's solver is the default (lbfgs), behind a StandardScaler: with its
    default tolerance, which stops before the optimum, on all blocks, and with tol=1e-8 on every
    fifth block; a loop's time is the sum over its blocks, so that is multiplied by the number of
    blocks over that of those. Both sides use all cores. lbfgs stops by the loss, which is flat at
    its least, so whether the optimum is the same is judged by scikit-learn's newton-cholesky on
    those blocks, untimed.
    """
    n = (options.limit or 2 * N_PAIRS) // 2
    data = contrast(lm, "myopic", n, options.seed)
    sites = lm.sites("resid_post")
    acts = lm.capture(data.rows, sites)
    x = torch.stack([acts[site] for site in sites]).double()
    y = data.labels
    train, test = (part.numpy() for part in probes.split(y, seed=0))
    arrays, labels = x.cpu().numpy(), np.array(y)

    def ours() -> probes.LinearProbe:
        return probes.fit_logistic(x, y, l2=L2, seed=0)

    def loop(blocks: Sequence[int], tol: float) -> tuple[float, np.ndarray, np.ndarray]:
        start = time.perf_counter()
        weights, scores = [], []
        for k in blocks:
            site = arrays[k]
            scaler, part = StandardScaler().fit(site), StandardScaler().fit(site[train])
            whole = _fit(np.asarray(scaler.transform(site)), labels, tol)
            fit = _fit(np.asarray(part.transform(site[train])), labels[train], tol)
            held = fit.decision_function(np.asarray(part.transform(site[test])))
            weights.append(whole.coef_[0] / scaler.scale_)
            scores.append(roc_auc_score(labels[test], held))
        return time.perf_counter() - start, np.array(weights), np.array(scores)

    ours()  # warm
    seconds, probe = [], ours()
    for _ in range(3):
        start = time.perf_counter()
        probe = ours()
        seconds.append(time.perf_counter() - start)
    every, some = range(len(arrays)), range(0, len(arrays), STEP)
    plain, _, _ = loop(every, 1e-4)
    part, weights, scores = loop(some, 1e-8)
    exact = part * len(every) / len(some)
    mine = float(np.median(seconds))
    mine_weights = probe.weight.cpu().numpy()[::STEP]
    optimum = np.array([_optimum(arrays[k], labels) for k in some])
    aurocs = np.array(probe.diagnostics["held_out_auroc"])[::STEP]
    numbers = {
        "sklearn_over_ours": Number(exact / mine, exact / max(seconds), exact / min(seconds)),
        "sklearn_default_over_ours": Number(
            plain / mine, plain / max(seconds), plain / min(seconds)
        ),
        "largest_relative_weight_error": _error(mine_weights, optimum),
        "largest_relative_weight_error_of_lbfgs": _error(weights, optimum),
        "largest_auroc_difference": Number(float(np.abs(aurocs - scores).max())),
        "seconds": Number(mine, min(seconds), max(seconds)),
    }
    control = Number(seconds[1] / seconds[0])
    tables = {"ours": seconds, "sklearn": exact, "sklearn_default": plain}
    specs = {"texts": len(y), "blocks": len(sites), "l2": L2, "device": str(x.device)}
    return Outcome(numbers, {CONTROLS[0]: control}, {"seconds": tables}, specs)


def _fit(x: np.ndarray, y: np.ndarray, tol: float) -> LogisticRegression:
    return LogisticRegression(C=1 / L2, tol=tol, max_iter=20_000).fit(x, y)


def _optimum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the weights [d_model] that scikit-learn's second-order solver ends at."""
    scaler = StandardScaler().fit(x)
    solver = LogisticRegression(C=1 / L2, tol=1e-10, max_iter=200, solver="newton-cholesky")
    return solver.fit(np.asarray(scaler.transform(x)), y).coef_[0] / scaler.scale_


def _error(weights: np.ndarray, optimum: np.ndarray) -> Number:
    return Number(float(np.abs(weights - optimum).max() / np.abs(optimum).max()))
