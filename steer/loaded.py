"""A plan loaded into the buffers of a compiled session: its masks, pass by pass, and its receipt.

Scopes are settled on the host before each pass; what the edits did is counted on the device and
read once. The arithmetic is in `steer.lowered`, the session in `steer.compiled`.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steer.bookkeeping import Pass, Sequences
from steer.errors import NeverFired, PlanError
from steer.interventions.plans import Plan
from steer.lowered import Buffers, Limits, limits_exceeded, lower, places_of
from steer.receipt import Line, Receipt
from steer.sites import Site
from steer.tokens import Tokens
from steer.wiring import Wiring


class Loaded:
    """A plan in the buffers of a session, and what it has done so far."""

    def __init__(
        self, wiring: Wiring, plan: Plan, bank: Mapping[Site, Buffers], limits: Limits
    ) -> None:
        """Write the plan into the buffers."""
        self._wiring, self._bank, self._limits = wiring, bank, limits
        self._places = places_of(plan, wiring.items, list(bank), limits)
        self.declared: Sequences | None = None
        self.thread = threading.get_ident()
        self.n_passes = 0
        self._seen = torch.zeros(0, dtype=torch.long)
        self._eligible = torch.zeros(len(wiring.items), 0, dtype=torch.long)
        self._settled: tuple[Tensor, Tensor] | None = None
        terms = []
        for place in self._places:
            buffers = bank[place.site]
            found = lower(place.item, buffers.shift.shape[-1], buffers.shift.dtype)
            limits_exceeded(
                f"directions in {place.item!r}", found.read.shape[1], limits.rank, "rank"
            )
            terms.append(found)
        for place, found in zip(self._places, terms, strict=True):
            bank[place.site].put(place.slot, place.rows, found)

    def __repr__(self) -> str:
        """Say how much is loaded."""
        return f"Loaded({len(self._wiring.items)} interventions, {self.n_passes} passes)"

    def prompt(self, lengths: Sequence[int] | Tensor) -> None:
        """Declare how many tokens each row's prompt has, as `run.prompt` of `lm.attached` does.

        Raises:
            PlanError: not one positive number per row.
        """
        counts = torch.as_tensor(lengths, dtype=torch.long).cpu()
        if counts.ndim != 1 or len(counts) == 0 or bool((counts < 1).any()):
            raise PlanError(
                f"run.prompt takes one positive number of tokens for each row, not {lengths!r}."
            )
        self.declared = Sequences(None, torch.arange(len(counts)), len(counts), declared=counts)

    def begin(self, now: Pass) -> Tensor:
        """Count the tokens of a pass and return the masks [site * slot, row, pos], on the host.

        Raises:
            PlanError: rows or values that do not fit the batch, or a pass larger than the buffers.
            ScopeError: a row lacks a scope.
        """
        tokens, n_rows = now.tokens, now.sequences.n_rows
        self._check(tokens, n_rows)
        self.n_passes += 1
        grown = max(n_rows, len(self._seen))
        self._seen = _grown(self._seen, grown)
        self._eligible = _grown(self._eligible, grown)
        self._seen.index_add_(0, tokens.rows, tokens.mask.sum(1))
        slots, order = self._limits.slots, list(self._bank)
        shape = (len(order) * slots, self._limits.batch, tokens.positions.shape[1])
        masks = torch.zeros(shape, dtype=torch.bool)
        for place in self._places:
            member = torch.isin(tokens.rows, place.rows)
            asked = tokens if place.every else replace(tokens, asked=member)
            chosen = place.item.scope.select(asked) & member[:, None]
            self._eligible[place.line].index_add_(0, tokens.rows, chosen.sum(1))
            masks[order.index(place.site) * slots + place.slot, : len(chosen)] |= chosen
        return masks

    def _check(self, tokens: Tokens, n_rows: int) -> None:
        limits_exceeded("rows", len(tokens.rows), self._limits.batch, "batch")
        limits_exceeded("tokens", int(tokens.positions.max()) + 1, self._limits.tokens, "tokens")
        limits_exceeded("tokens", tokens.positions.shape[1], self._limits.tokens, "tokens")
        fixed = [] if self._wiring.n_rows is None else [("Rows", self._wiring.n_rows)]
        for what, n in (*fixed, *self._wiring.row_counts):
            if n != n_rows:
                raise PlanError(
                    f"{what} has one entry for each of {n} rows, but the batch has {n_rows}. Which "
                    "row gets which cannot be guessed. Give one entry per prompt."
                )

    def settle(self) -> None:
        """Read the counters from the device, before the buffers serve another plan."""
        self._settled = self._counted()
        self._bank = {}

    def _counted(self) -> tuple[Tensor, Tensor]:
        edited = torch.zeros(self._eligible.shape)
        size = torch.zeros(self._eligible.shape)
        for place in self._places:
            rows = place.rows[place.rows < edited.shape[1]]
            buffers = self._bank[place.site]
            edited[place.line, rows] += buffers.n_edited[place.slot].cpu()[rows]
            size[place.line, rows] += buffers.size[place.slot].cpu()[rows]
        return edited, size

    @property
    def receipt(self) -> Receipt:
        """What each intervention did so far, per row; waits for the device."""
        edited, size = self._settled or self._counted()
        lines = [
            Line(
                repr(item),
                str(item.site),
                self._seen.clone(),
                self._eligible[at].clone(),
                edited[at].long(),
                size[at] / edited[at].clamp(min=1),
            )
            for at, item in enumerate(self._wiring.items)
        ]
        return Receipt(lines, self.n_passes)

    def require_fired(self) -> None:
        """Refuse a plan of which some intervention saw no token in scope.

        Raises:
            NeverFired: says which, where and why.
        """
        for line in self.receipt.lines:
            if not line.fired:
                why = f"none of the {int(line.seen.sum())} tokens seen was in its scope"
                raise NeverFired(
                    f"{line.intervention} at {line.site} never fired: "
                    f"{why if self.n_passes else 'no pass ran through the compiled session'}. Its "
                    "effect would be reported without having happened. Check the scope, run passes "
                    "through fast.model, or leave the intervention out."
                )


def _grown(counts: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(counts, (0, n - counts.shape[-1]))
