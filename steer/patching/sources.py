"""What is written into a patched token: the other run's value, or a baseline.

All are tensors [row, position, ...] in the positions of the prompts that are patched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from steer.errors import PlanError

Baseline = Literal["other", "zero", "mean", "conditional_mean", "resample", "gaussian"]
BASELINES: tuple[str, ...] = get_args(Baseline)
NOISE = 3.0
"""Standard deviations of the Gaussian baseline, as Meng et al. 2022 (arXiv:2202.05262)."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Two runs of the same pairs: what is patched, and what values are taken from."""

    own: Tensor
    """[row, position, ...] of the prompts that are patched; zeros where there is no token."""
    other: Tensor
    """[row, place, ...] of the others."""
    own_ids: Tensor
    """[row, position] token ids, -1 where there is none."""
    other_ids: Tensor
    places: Tensor
    """[row, position]: where in the other prompt the value comes from, -1 for nowhere."""


def written(runs: Runs, baseline: Baseline, *, seed: int) -> Tensor:
    """Return [row, position, ...]: what is written at each token.

    Where the other prompt has no counterpart, "other" and "resample" write what is there already.

    Raises:
        PlanError: an unknown baseline, or one row only to resample from.
    """
    if baseline not in BASELINES:
        raise PlanError(f"There is no baseline {baseline!r}. Give one of {', '.join(BASELINES)}.")
    if baseline == "other":
        return _elsewhere(runs, runs.other)
    if baseline == "zero":
        return torch.zeros_like(runs.own)
    if baseline == "mean":
        return _tokens(runs).mean(0).to(runs.own.dtype).expand_as(runs.own)
    if baseline == "conditional_mean":
        return _conditional(runs)
    if baseline == "resample":
        return _elsewhere(runs, _other_rows(runs, seed))
    return _noisy(runs, seed)


def _tokens(runs: Runs) -> Tensor:
    """Return [token, ...] of the other prompts, in at least fp32."""
    return runs.other[runs.other_ids.to(runs.other.device) >= 0].float()


def _elsewhere(runs: Runs, values: Tensor) -> Tensor:
    places = runs.places.to(values.device)
    rows = torch.arange(len(values), device=values.device)[:, None]
    found = values[rows, places.clamp(min=0)]
    keep = (places < 0).reshape(*places.shape, *[1] * (values.ndim - 2))
    return torch.where(keep, runs.own, found)


def _conditional(runs: Runs) -> Tensor:
    """Return the mean over the other prompts' tokens of the same id; the overall mean elsewhere.

    Context-aware mean ablation, as "All for One" (arXiv:2509.09650): what the context adds is
    removed, what the token itself brings is kept.
    """
    tokens = _tokens(runs)
    ids = runs.other_ids[runs.other_ids >= 0]
    kinds, kind = ids.unique(return_inverse=True)
    one_hot = torch.nn.functional.one_hot(kind, len(kinds)).to(tokens)
    flat = tokens.flatten(1)
    means = one_hot.mT @ flat / one_hot.sum(0)[:, None]
    table = torch.cat([means, flat.mean(0, keepdim=True)])
    at = torch.searchsorted(kinds, runs.own_ids.contiguous()).clamp(max=len(kinds) - 1)
    known = kinds[at] == runs.own_ids
    chosen = torch.where(known, at, len(kinds)).to(table.device)
    return table[chosen].reshape(runs.own.shape).to(runs.own.dtype)


def _other_rows(runs: Runs, seed: int) -> Tensor:
    """Return the other prompts' values with the rows exchanged, none staying where it was."""
    n = len(runs.other)
    if n < 2:
        raise PlanError(
            "There is one pair of prompts, so no other row to resample from. Give more pairs, or "
            'use baseline="mean" or "zero".'
        )
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=draw)
    # One cycle through all rows in random order: each gets another one's values.
    taken = torch.empty_like(order).scatter(0, order, order.roll(1))
    lengths = (runs.other_ids >= 0).sum(1)
    columns = torch.arange(runs.other.shape[1]).clamp(max=(lengths[taken] - 1)[:, None])
    device = runs.other.device
    return runs.other[taken[:, None].to(device), columns.to(device)]


def _noisy(runs: Runs, seed: int) -> Tensor:
    real = runs.own[runs.own_ids.to(runs.own.device) >= 0].float()
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(runs.own.shape, generator=draw).to(runs.own.device)
    return (runs.own.float() + NOISE * real.std() * noise).to(runs.own.dtype)


def ids_of(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """Return [row, width] token ids, padded on the right with -1."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(row)) for row in rows], True, -1)
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1)
