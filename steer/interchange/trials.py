"""Interchange trials: a base prompt, a source prompt, and what the model should then say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from steer.engine import Batch
from steer.errors import PlanError
from steer.interventions import Patch
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.prompts import Prompts
from steer.scopes import LAST, Scope
from steer.sites import AnySite
from steer.sweep import sweep as run_arms


@dataclass(frozen=True, slots=True)
class Trials:
    """Pairs of prompts whose causal variable is exchanged, and the answers that should follow.

    The base is run with the source's value of the variable; `expected` is what a model says in
    which the site carries exactly that variable (interchange intervention, Geiger et al. 2021,
    arXiv:2106.02997).
    """

    base: tuple[tuple[int, ...], ...]
    source: tuple[tuple[int, ...], ...]
    expected: tuple[int, ...]
    """A token id for each trial."""
    among: tuple[int, ...] | None = None
    """Token ids that compete; None for the whole vocabulary."""
    scope: Scope = LAST
    """One token of each prompt, in base and source each for itself."""

    def __len__(self) -> int:
        """Return how many trials there are."""
        return len(self.base)

    def __getitem__(self, chosen: slice | Sequence[int]) -> "Trials":
        """Return some of the trials."""
        at = range(len(self))[chosen] if isinstance(chosen, slice) else chosen
        base, source = ([rows[k] for k in at] for rows in (self.base, self.source))
        expected = tuple(self.expected[k] for k in at)
        return replace(self, base=tuple(base), source=tuple(source), expected=expected)

    def relabelled(self, *, seed: int = 0) -> "Trials":
        """Return the same pairs with the answers dealt out anew: a variable that is not there.

        An arbitrary but fixed function of the expected answer would still be the variable; so it
        is the trials' answers that are permuted.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return replace(self, expected=tuple(self.expected[k] for k in order))


def trials(
    lm: LM,
    base: Prompts,
    source: Prompts,
    expected: Sequence[int],
    *,
    among: Sequence[int] | None = None,
    scope: Scope = LAST,
) -> Trials:
    """Return interchange trials of prompts.

    Args:
        lm: the model, whose tokenizer reads the prompts.
        base: prompts that are run.
        source: one for each of them, whose value is written.
        expected: token id that should come next, for each.
        among: token ids that compete for it; all by default.
        scope: the token that is exchanged; exactly one in each prompt.

    Raises:
        PlanError: lists of different lengths, or an expected answer that does not compete.
    """
    rows, others = lm.rows(base), lm.rows(source)
    if not len(rows) == len(others) == len(expected):
        raise PlanError(
            f"There are {len(rows)} base prompts, {len(others)} source prompts and "
            f"{len(expected)} answers. A trial has one of each. Give lists of one length."
        )
    left_out = set(expected) - set(among) if among is not None else set[int]()
    if left_out:
        raise PlanError(
            f"Token {min(left_out)} is expected, but is not among the {len(among or ())} that "
            "compete, so it could never win. Add it to `among`."
        )
    return Trials(
        tuple(map(tuple, rows)),
        tuple(map(tuple, others)),
        tuple(expected),
        None if among is None else tuple(among),
        scope,
    )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of trials, with Wilson's interval at 95 %."""

    value: float
    lo: float
    hi: float
    n: int

    def __repr__(self) -> str:
        """Say the share and its interval."""
        return f"{self.value:.3f} [{self.lo:.3f}, {self.hi:.3f}] of {self.n}"


def accuracy_of(hits: Tensor) -> Accuracy:
    """Return the share of [trial] bool, with Wilson's interval."""
    n = len(hits)
    p, z = float(hits.float().mean()), 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Accuracy(p, max(0.0, middle - half), min(1.0, middle + half), n)


def states_of(lm: LM, rows: Sequence[Sequence[int]], site: AnySite, scope: Scope) -> Tensor:
    """Return [row, d]: what is at the site, at the one token of each row.

    Raises:
        PlanError: a scope that holds more than one token somewhere.
    """
    acts = lm.capture([list(row) for row in rows], [site], scope=scope)
    if acts.mask is not None and bool((acts.mask.sum(1) != 1).any()):
        counts = acts.mask.sum(1)
        raise PlanError(
            f"{scope!r} holds {int(counts.min())} to {int(counts.max())} tokens of a prompt. An "
            "interchange exchanges one token of each. Choose one: steer.LAST, steer.at(3)."
        )
    values = acts[site] if acts.mask is None else acts[site][:, 0]
    if values.ndim != 2:
        raise PlanError(
            f"{site} has all heads, {list(values.shape[1:])}. A subspace lies in one vector. Name "
            "the head: steer.Site(layer, component, head)."
        )
    return values


def interchange_accuracy(
    lm: LM, some: Trials, site: AnySite, bases: Mapping[str, Tensor | None]
) -> dict[str, Accuracy]:
    """Return how often exchanging each subspace gives the expected answer; one sweep.

    Args:
        lm: the model.
        some: trials, best others than those that a subspace was fitted on.
        site: where.
        bases: by name, [k, d] orthonormalised; None exchanges the whole state.

    Raises:
        PlanError: no subspace is named, or a scope of several tokens.
    """
    if not bases:
        raise PlanError("No subspace was given. Name at least one, such as {'whole': None}.")
    hits = hits_of(lm, some, site, bases)
    return {name: accuracy_of(row) for name, row in zip(bases, hits, strict=True)}


def hits_of(lm: LM, some: Trials, site: AnySite, bases: Mapping[str, Tensor | None]) -> Tensor:
    """Return [subspace, trial] bool: where the expected answer comes first."""
    source = states_of(lm, some.source, site, some.scope)
    states_of(lm, some.base, site, some.scope)  # refuses a scope that does not fit the base
    arms: dict[str, Plan] = {
        name: [Patch(site, source, basis, some.scope)] for name, basis in bases.items()
    }
    swept = run_arms(lm, [list(row) for row in some.base], arms, hit(some))
    return swept.values > 0.5


def hit(some: Trials):
    """Return the measure of whether the expected token comes first among those that compete."""
    expected = torch.tensor(some.expected)
    among = None if some.among is None else torch.tensor(some.among)

    def measure(logits: Tensor, batch: Batch) -> Tensor:
        right = expected[batch.rows].to(logits.device)
        if among is None:
            return (logits.argmax(-1) == right).float()
        best = among.to(logits.device)[logits[:, among.to(logits.device)].argmax(-1)]
        return (best == right).float()

    return measure
