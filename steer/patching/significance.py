"""Which cells of a map are more than chance: intervals, sign-flip tests, many cells at once. Pure.

Rows are the examples: an effect is a mean over them, and they are what is drawn again.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from steer.errors import PlanError

Array = NDArray[np.float64]
Correction = Literal["max", "holm", "fdr", "none"]
EXACT = 12
"""Up to so many rows all patterns of signs are tried."""


def quotients(change: Array, whole: Array, weights: Array) -> Array:
    """Return [draw, cell]: the mean change over the mean whole, rows weighted.

    Args:
        change: [cell, row]; NaN where a row lacks the cell.
        whole: [row], what the change is a share of.
        weights: [draw, row].
    """
    have = np.isfinite(change)
    above = weights @ np.where(have, change, 0.0).T
    below = weights @ (have * whole).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below


def interval(
    change: Array, whole: Array, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> tuple[Array, Array]:
    """Return the ends [cell] of percentile intervals, rows drawn again."""
    n = change.shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)
    found = quotients(change, whole, weights)
    tail = (1 - level) / 2
    lo, hi = np.nanquantile(found, [tail, 1 - tail], axis=0)
    return lo, hi


def p_values(
    change: Array, *, correction: Correction = "max", n_permutations: int = 2000, seed: int = 0
) -> Array:
    """Return [cell]: two-sided p-values of a mean change of zero, rows' signs turned at random.

    The null says that a row's change is as likely to point one way as the other. The same signs
    turn all cells, so what cells share is kept. With n rows no p-value is below 2 / 2**n.

    Args:
        change: [cell, row]; NaN where a row lacks the cell.
        correction: for many cells: "max" (the largest statistic of all cells, Westfall and Young
            1993: family-wise, knows that cells hang together), "holm" (family-wise), "fdr"
            (Benjamini and Hochberg 1995) or "none".
        n_permutations: how many, where the rows are too many to try all patterns.
        seed: of the patterns.

    Raises:
        PlanError: fewer than two rows, or an unknown correction.
    """
    n = change.shape[1]
    if correction not in get_args(Correction):
        known = ", ".join(get_args(Correction))
        raise PlanError(f"There is no correction {correction!r}. Give one of {known}.")
    if n < 2:
        raise PlanError(
            f"There is {n} pair of prompts. A permutation test needs several: with n of them no "
            "p-value is below 2 / 2**n. Give at least 6 for p < .05."
        )
    signs, exact = _signs(n, n_permutations, seed)
    have = np.isfinite(change)
    filled, count = np.where(have, change, 0.0), np.maximum(have.sum(1), 1)
    # Studentised: cells of unequal spread weigh the same in the largest of them.
    spread = np.sqrt((filled**2).sum(1) / count)
    scale = np.where(spread > 0, spread, 1.0) * np.sqrt(count)
    seen = np.abs(filled.sum(1)) / scale
    null = np.abs(signs @ filled.T) / scale
    reach = null.max(1, keepdims=True) if correction == "max" else null
    at_least = (reach >= seen - 1e-9).sum(0)
    raw = at_least / len(signs) if exact else (at_least + 1) / (len(signs) + 1)
    raw = np.where(have.any(1), raw, np.nan)
    return raw if correction in ("max", "none") else _adjusted(raw, correction)


def _signs(n: int, n_permutations: int, seed: int) -> tuple[Array, bool]:
    if n <= EXACT:
        every = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return 1.0 - 2.0 * every, True
    rng = np.random.default_rng(seed)
    return rng.choice([-1.0, 1.0], size=(n_permutations, n)), False


def _adjusted(raw: Array, correction: Correction) -> Array:
    known = np.isfinite(raw)
    p = raw[known]
    out = np.full(len(raw), np.nan)
    if correction == "fdr":
        # scipy.stats takes a second to import, and only this needs it.
        from scipy.stats import false_discovery_control

        out[known] = false_discovery_control(p)
        return out
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out[np.flatnonzero(known)[order]] = np.minimum(stepped, 1.0)
    return out
