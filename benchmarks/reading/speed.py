"""`speed_probes`: all blocks fitted at once, against a loop over scikit-learn."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import probes
import steer
from benchmarks.reading.sets import contrast
from benchmarks.result import Outcome
from benchmarks.speed.harness import Pair, settle_of, time_pairs
from benchmarks.stats import Number
from benchmarks.task import Options

CONTROLS = ("ours_over_ours",)
N_PAIRS = 1000
L2 = 1.0


def measure_speed_probes(lm: steer.LM, options: Options) -> Outcome:
    """Fit and score every block both ways; `--limit` is the number of texts, 2,000 by default.

    The same work: for each block a fit on all texts, and one on four fifths that is scored on the
    last fifth. scikit-learn's solver is the default (lbfgs), behind a StandardScaler, once to
    where its optimum is ours to 1e-5 (tol=1e-8), once with its default tolerance, which stops
    before that. Both use all cores.
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

    def theirs(tol: float) -> Callable[[], list[tuple[np.ndarray, float]]]:
        def loop() -> list[tuple[np.ndarray, float]]:
            found = []
            for site in arrays:
                scaler = StandardScaler().fit(site)
                whole = _fit(np.asarray(scaler.transform(site)), labels, tol)
                part = StandardScaler().fit(site[train])
                fit = _fit(np.asarray(part.transform(site[train])), labels[train], tol)
                scores = fit.decision_function(part.transform(site[test]))
                weight = whole.coef_[0] / scaler.scale_
                found.append((weight, float(roc_auc_score(labels[test], scores))))
            return found

        return loop

    probe, exact = ours(), theirs(1e-8)()
    weights = np.stack([weight for weight, _ in exact])
    error = np.abs(probe.weight.cpu().numpy() - weights).max() / np.abs(weights).max()
    aurocs = np.array(probe.diagnostics["held_out_auroc"])
    apart = float(np.abs(aurocs - np.array([score for _, score in exact])).max())
    pairs = {
        "sklearn_over_ours": Pair(theirs(1e-8), ours, 1),
        "sklearn_default_over_ours": Pair(theirs(1e-4), ours, 1),
        "ours_over_ours": Pair(ours, ours, 3),
    }
    timings = time_pairs(pairs, settle=settle_of(lm.device))
    ratios = {name: timing.ratio(seed=options.seed) for name, timing in timings.items()}
    numbers = {name: value for name, value in ratios.items() if name not in CONTROLS}
    numbers |= {
        "largest_relative_weight_error": Number(float(error)),
        "largest_auroc_difference": Number(apart),
        "seconds": Number(float(np.median(timings["ours_over_ours"].bottom))),
    }
    seconds = {name: [t.top.tolist(), t.bottom.tolist()] for name, t in timings.items()}
    specs = {"texts": len(y), "blocks": len(sites), "l2": L2, "device": str(x.device)}
    return Outcome(numbers, {CONTROLS[0]: ratios[CONTROLS[0]]}, {"seconds": seconds}, specs)


def _fit(x: np.ndarray, y: np.ndarray, tol: float) -> LogisticRegression:
    return LogisticRegression(C=1 / L2, tol=tol, max_iter=20_000).fit(x, y)
