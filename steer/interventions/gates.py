"""Reading while a pass runs: Read, and what it drives: When (gates) and Monitor (records).

Values are running reductions over the row's tokens in scope so far, so that cached, uncached and
chunked passes agree. Who computes and latches them is the run (`steer.running`); here are only the
values and the pure reductions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions.recipe import Recipe, Shared, batch_length
from steer.protocols import Intervention, Probe
from steer.scopes import GENERATED, PROMPT, Scope
from steer.sites import AnySite
from steer.step import Step

Reduce = Literal["last", "mean", "max", "rolling"]
Latch = Literal["prompt", "token"]
REDUCES = ("last", "mean", "max", "rolling")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Read(Shared):
    """Read a probe at a site: one number per row, reduced over its tokens in scope.

    "last" is the latest token in scope, "mean" and "max" run over all so far, "rolling" is the mean
    of the latest `window`. Units are the probe's own (probabilities for a logistic probe).

    Raises:
        PlanError: an unknown reduction, or a window below 1.
    """

    kind: ClassVar[str] = "steer.Read"
    site: AnySite
    probe: Probe
    scope: Scope = PROMPT
    reduce: Reduce = "last"
    window: int = 8

    def __post_init__(self) -> None:
        """Check the reduction."""
        if self.reduce not in REDUCES:
            raise PlanError(
                f"There is no reduction {self.reduce!r}: a Read reduces over tokens by "
                f"{', '.join(REDUCES)}."
            )
        if self.window < 1:
            raise PlanError(f"A rolling mean over {self.window} tokens is empty. Use 1 or more.")

    def spec(self) -> dict[str, object]:
        """Return the plain dict with tensors from which it is rebuilt."""
        from steer.spec import encode  # the one method here that identity needs

        return encode(self)

    def __repr__(self) -> str:
        """Say where, what and how."""
        return f"Read({self.site}, {self.probe!r}, scope={self.scope!r}, reduce={self.reduce!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class When(Recipe):
    """Apply an intervention only in rows (or at tokens) whose reading is above a threshold.

    Conditional steering (Lee et al. 2024, arXiv:2409.05907), decided for each row on its own; their
    first code decided for the whole batch on row 0. latch="prompt" decides once, when the prompt is
    complete, and holds for the whole generation and for all its beams. latch="token" decides at
    each token by the reading so far. A row without a reading stays closed.

    Raises:
        PlanError: an unknown latch; a prompt latch on a read of generated tokens; at attach, a
            read that comes later in the pass than the edit that it gates.
    """

    kind: ClassVar[str] = "steer.When"
    read: Read
    inner: Intervention
    above: int | float | Tensor = 0.5
    """The threshold: a number, or one for each row [batch]."""
    latch: Latch = "prompt"

    def __post_init__(self) -> None:
        """Check the latch."""
        if self.latch not in ("prompt", "token"):
            raise PlanError(
                f"There is no latch {self.latch!r}: 'prompt' decides once per row when its prompt "
                "is complete, 'token' at each token by the reading so far."
            )
        if self.latch == "prompt" and self.read.scope == GENERATED:
            raise PlanError(
                "A gate latched on the prompt cannot read GENERATED tokens: they come after it has "
                'decided. Read PROMPT, or use latch="token".'
            )

    @property
    def site(self) -> AnySite:
        """Where the inner intervention acts."""
        return self.inner.site

    @property
    def scope(self) -> Scope:
        """Where the inner intervention may act."""
        return self.inner.scope

    def gate(self, step: Step) -> Tensor:
        """Return [row, pos or 1] bool: where the gate is open; NaN readings are closed."""
        reading = step.reads[self.read, self.latch]
        if not isinstance(self.above, Tensor):
            return reading > self.above
        return reading > step.of_row(self.above, reading).to(reading.dtype)

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return the inner edit where the gate is open, the untouched bits elsewhere."""
        gate = self.gate(step).to(h.device)
        gate = gate.reshape(*gate.shape, *[1] * (h.ndim - gate.ndim))
        return torch.where(gate, self.inner.edit(h, step), h)

    def reads(self) -> Sequence[tuple[Read, str]]:
        """Return the reading that opens it."""
        return ((self.read, self.latch),)

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(above=self.above)

    def parts(self) -> Sequence[object]:
        """Return what it wraps."""
        return (self.inner,)

    def __repr__(self) -> str:
        """Say what opens it and what it gates."""
        above = f"[{len(self.above)} rows]" if isinstance(self.above, Tensor) else f"{self.above:g}"
        return f"When({self.read!r} > {above}, {self.inner!r}, latch={self.latch!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Monitor(Recipe):
    """Record a read per row and token without editing; the scores are in the receipt."""

    kind: ClassVar[str] = "steer.Monitor"
    read: Read

    @property
    def site(self) -> AnySite:
        """Where it reads."""
        return self.read.site

    @property
    def scope(self) -> Scope:
        """Which tokens it reads."""
        return self.read.scope

    def edit(self, h: Tensor, step: Step) -> Tensor:  # noqa: ARG002 - every edit is given one
        """Return h itself."""
        return h

    def reads(self) -> Sequence[tuple[Read, str]]:
        """Return what it records."""
        return ((self.read, "token"),)

    def __repr__(self) -> str:
        """Say what it reads."""
        return f"Monitor({self.read!r})"


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """What a reduction carries from pass to pass; all tensors [row] (recent: [row, window])."""

    count: Tensor
    total: Tensor
    best: Tensor
    latest: Tensor
    recent: Tensor

    @classmethod
    def fresh(cls, n_rows: int, window: int, device: torch.device) -> "Running":
        """Return the state before the first token."""
        nan = torch.full((n_rows,), float("nan"), device=device)
        return cls(
            torch.zeros(n_rows, device=device),
            torch.zeros(n_rows, device=device),
            torch.full((n_rows,), float("-inf"), device=device),
            nan,
            torch.full((n_rows, window), float("nan"), device=device),
        )


def running(read: Read, scores: Tensor, chosen: Tensor, state: Running) -> tuple[Tensor, Running]:
    """Return the value at each token, [row, pos], reduced over the tokens in scope so far.

    Args:
        read: which reduction.
        scores: [row, pos], anything at tokens out of scope.
        chosen: [row, pos] bool, tokens in scope.
        state: what earlier passes left.

    Returns:
        The values (NaN before a row's first token in scope) and the state for the next pass.
    """
    # Only what this reduction carries: a decode step is short, and each small tensor is felt in it.
    return _REDUCERS[read.reduce](torch.where(chosen, scores.float(), 0.0), chosen, state)


def _last(scores: Tensor, chosen: Tensor, state: Running) -> tuple[Tensor, Running]:
    if scores.shape[1] == 1:
        latest = torch.where(chosen, scores, state.latest[:, None])
    else:
        order = torch.arange(scores.shape[1], device=scores.device)
        where = torch.where(chosen, order, -1).cummax(1).values
        found = scores.gather(1, where.clamp(min=0))
        latest = torch.where(where >= 0, found, state.latest[:, None])
    return latest, replace(state, latest=latest[:, -1])


def _mean(scores: Tensor, chosen: Tensor, state: Running) -> tuple[Tensor, Running]:
    count = state.count[:, None] + chosen.cumsum(1)
    total = state.total[:, None] + scores.cumsum(1)
    return total / count, replace(state, count=count[:, -1], total=total[:, -1])


def _max(scores: Tensor, chosen: Tensor, state: Running) -> tuple[Tensor, Running]:
    low = torch.where(chosen, scores, float("-inf"))
    best = torch.maximum(state.best[:, None], low.cummax(1).values)
    # Scores are finite: where none was in scope yet, the best is still what it began with.
    value = torch.where(best > float("-inf"), best, float("nan"))
    return value, replace(state, best=best[:, -1])


def _rolling(scores: Tensor, chosen: Tensor, state: Running) -> tuple[Tensor, Running]:
    if scores.shape[1] == 1:
        return _rolled_by_one(scores, chosen, state)
    # Queue = latest `window` of earlier passes, then this pass; those in scope are moved to the
    # front in order, averaged over windows of the queue, and the averages put back at their tokens.
    recent = state.recent
    window = recent.shape[1]
    queue = torch.cat([recent, scores], dim=1)
    member = torch.cat([~recent.isnan(), chosen], dim=1)
    rank = member.cumsum(1)
    front = torch.argsort(~member, dim=1, stable=True)
    packed = torch.where(member, queue, 0.0).gather(1, front)
    sums = torch.nn.functional.pad(packed.cumsum(1), (window, 0))
    n = torch.arange(1, packed.shape[1] + 1, device=scores.device).clamp(max=window)
    means = (sums[:, window:] - sums[:, :-window]) / n
    here = rank[:, window:]
    value = torch.where(here > 0, means.gather(1, (here - 1).clamp(min=0)), float("nan"))
    last = rank[:, -1:]
    index = last - window + torch.arange(window, device=scores.device)
    kept = torch.where(index >= 0, packed.gather(1, index.clamp(min=0)), float("nan"))
    return value, replace(state, recent=kept)


def _rolled_by_one(scores: Tensor, chosen: Tensor, state: Running) -> tuple[Tensor, Running]:
    # One token: what was kept moves up by one, NaN (not yet) before it, where it is in scope. A
    # row that has read less than a window keeps its readings at the end.
    moved = torch.cat([state.recent[:, 1:], scores], dim=1)
    kept = torch.where(chosen, moved, state.recent)
    # A score that is NaN itself must not pass for a token that was not there.
    value = torch.where(chosen & scores.isnan(), scores, kept.nanmean(1, keepdim=True))
    return value, replace(state, recent=kept)


_REDUCERS: Mapping[str, Callable[[Tensor, Tensor, Running], tuple[Tensor, Running]]] = {
    "last": _last,
    "mean": _mean,
    "max": _max,
    "rolling": _rolling,
}
