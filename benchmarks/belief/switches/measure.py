"""Readings under resamples of the contexts: fits before a switch, errors and lags after it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks import stats
from benchmarks.belief.switches.law import Fit, fit_law
from benchmarks.belief.switches.texts import Arm, Design, Readings

N_RESAMPLES = 400

Curves = Float[Tensor, "resample arm reading"]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The readings under resamples of the contexts; the first resample is the data themselves."""

    readings: Readings
    weight: Float[Tensor, "resample context"]
    """Sums to 1 over contexts."""
    sequences: Bool[Tensor, "sequence item"]
    """The different sequences of events."""
    sequence: Int[Tensor, "arm context"]
    """Which of them a text follows."""

    def curves(self) -> Curves:
        """Return the mean log-odds over contexts."""
        return torch.einsum("sc,acr->sar", self.weight, self.readings.log_odds)


# -- fits and errors -----------------------------------------------------------------------------


def sample_of(readings: Readings, seed: int) -> Sample:
    """Return the readings with their resamples, drawn with replacement from the contexts."""
    n = readings.n_contexts
    drawn = stats.counts(n, N_RESAMPLES, np.random.default_rng(seed))
    weight = torch.tensor(np.concatenate([np.ones((1, n)), drawn])) / n
    sequences, place = readings.events.flatten(0, 1).unique(dim=0, return_inverse=True)
    return Sample(readings, weight, sequences, place.unflatten(0, readings.events.shape[:2]))


def fit_before(sample: Sample, counts: Tensor, design: Design) -> Fit:
    """Return the fit on what the texts with the latest switch hold before it.

    Those of the earlier switches begin with the same items.
    """
    arms = of_kind(sample.readings.arms, "switch", design.longest)
    upto = design.longest + 1
    seen = sample.sequence[arms, 0]
    return fit_law(counts[:, :, seen, :upto].flatten(2), sample.curves()[:, arms, :upto].flatten(1))


def errors_after(
    sample: Sample, predicted: Float[Tensor, "resample sequence reading"]
) -> Float[Tensor, "resample arm context"]:
    """Return the mean absolute error of each text's readings after the switch, in nats."""
    gap = (predicted[:, sample.sequence] - sample.readings.log_odds).abs()
    return torch.where(_after(sample.readings), gap, torch.nan).nanmean(-1)


def tuned_errors(sample: Sample, counts: Tensor) -> Float[Tensor, "resample arm context"]:
    """Return the errors where rate and law were fitted on the switches of the other contexts.

    What precedes a switch says little on how fast an observer would follow one, so this asks
    whether any rate would do. Contexts are split in two halves by turns.
    """
    readings = sample.readings
    half = torch.arange(readings.n_contexts) % 2
    found = torch.empty(len(sample.weight), len(readings.arms), readings.n_contexts).double()
    for side in (0, 1):
        weight = sample.weight * (half != side)
        weight = weight / weight.sum(1, keepdim=True)
        error = errors_after(sample, fit_whole(sample, counts, weight).predict(counts))
        # A resample without a context of the other half has no fit.
        error = torch.where(weight.sum(1).isfinite()[:, None, None], error, torch.nan)
        found[:, :, half == side] = error[:, :, half == side]
    return found


def fit_whole(sample: Sample, counts: Tensor, weight: Float[Tensor, "resample context"]) -> Fit:
    """Return the fit on all readings of the texts that switch, before and after."""
    readings = sample.readings
    arms = of_kind(readings.arms, "switch")
    there = readings.log_odds[arms, 0].isfinite()
    seen = counts[:, :, sample.sequence[arms, 0]][:, :, there]
    curves = torch.einsum("sc,aco->sao", weight, readings.log_odds[arms])[:, there]
    return fit_law(seen, curves.nan_to_num())


def floor_of(sample: Sample) -> Float[Tensor, "resample arm context"]:
    """Return the error of the mean of the other contexts: no curve of the item alone does better.

    What remains are the nouns and adjectives of the text.
    """
    y = sample.readings.log_odds
    others = (y.sum(1, keepdim=True) - y) / (y.shape[1] - 1)
    gap = torch.where(_after(sample.readings), (y - others).abs(), torch.nan).nanmean(-1)
    return gap.expand(len(sample.weight), -1, -1)


def _after(readings: Readings) -> Bool[Tensor, "arm context reading"]:
    reading = torch.arange(readings.log_odds.shape[-1])
    before = torch.tensor([arm.before for arm in readings.arms])
    return (reading > before[:, None, None]) & readings.log_odds.isfinite()


def mean_over(
    sample: Sample, error: Tensor, kind: str, before: int | None = None
) -> Float[Tensor, " resample"]:
    """Return the mean over contexts and the arms of a kind."""
    arms = of_kind(sample.readings.arms, kind, before)
    known = torch.where(sample.weight > 0, sample.weight, torch.nan)[:, None]
    # Contexts that a resample left out do not count, unmeasured ones make it unmeasured.
    terms = torch.where(known.isnan(), 0.0, error[:, arms] * known)
    return terms.sum(-1).mean(-1)


def of_kind(arms: Sequence[Arm], kind: str, before: int | None = None) -> list[int]:
    """Return the numbers of the arms of a kind, positive first, if asked with one switch only."""
    return [i for i, arm in enumerate(arms) if arm.kind == kind and before in (None, arm.before)]


# -- lags, overshoot, shift ----------------------------------------------------------------------


def first_crossing(signed: Float[Tensor, "*curve reading"]) -> Float[Tensor, "*curve"]:
    """Return where a curve that begins below 0 first reaches it, between readings by a line.

    inf where it does not; nan where it begins at or above 0. Readings that are nan come last and
    count as not reaching.
    """
    above = signed >= 0
    first = above.long().argmax(-1, keepdim=True)
    here, there = signed.gather(-1, (first - 1).clamp_min(0)), signed.gather(-1, first)
    at = (first - 1 + here / (here - there))[..., 0]
    at = torch.where(above.any(-1), at, torch.inf)
    return torch.where(above[..., 0], torch.nan, at)


def lags_of(sample: Sample, curves: Curves) -> dict[int, Float[Tensor, " resample"]]:
    """Return the items from the switch to log-odds 0, for each arm that switches."""
    arms = sample.readings.arms
    return {
        a: first_crossing(arms[a].toward * curves[:, a, arms[a].before :])
        for a in of_kind(arms, "switch")
    }


def shift_of(sample: Sample, kind: str) -> Float[Tensor, " resample"]:
    """Return the movement towards the other concept, from before the switch to the text's end."""
    arms = sample.readings.arms
    longest = max(arm.before for arm in arms)
    moved = []
    for a in of_kind(arms, kind, longest):
        curve = arms[a].toward * sample.curves()[:, a, : longest + arms[a].after + 1]
        moved.append(last_quarter(curve) - last_quarter(curve[:, : longest + 1]))
    return torch.stack(moved).mean(0)


def last_quarter(curve: Float[Tensor, "*curve reading"]) -> Float[Tensor, "*curve"]:
    """Return the mean of the last quarter of the readings."""
    return curve[..., -max(1, curve.shape[-1] // 4) :].mean(-1)
