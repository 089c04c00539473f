"""What one pass, and the passes of one growing batch, remember: tokens, selections, readings.

Owned by one forward call or one generate call; never shared between threads.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steer.interventions.gates import Running
from steer.scopes import Scope
from steer.step import Step
from steer.tokens import Prompt, Tokens

if TYPE_CHECKING:
    from steer.wiring import Edit


@dataclass(slots=True, eq=False)
class Sequences:
    """What passes share while the same rows grow: prompts, caches, readings so far."""

    prompt: Prompt | None
    row_ids: Tensor
    """[row]: which row of the user's batch each row of the prompt is."""
    n_rows: int
    """Rows of the user's batch, of which this may be a part."""
    generating: bool = False
    column: int = 0
    """Columns already in the cache."""
    seen: int = 0
    """Columns already counted."""
    declared: Tensor | None = None
    state: dict[object, Running] = field(default_factory=dict)
    latched: dict[object, Tensor] = field(default_factory=dict)
    repeats: dict[int, Prompt] = field(default_factory=dict)
    begun: Prompt | None = None
    """What the first pass of declared rows held, for the text spans of later ones."""
    ends: tuple[int, ...] = ()
    """Token ids that end a row. What generate feeds to a row from its end token on, while other
    rows go on, is padding: it leads to no output token and would not exist in a run of its own."""
    ended: Tensor | None = None
    """[row] bool: rows whose end token has been fed."""
    stopped: Tensor | None = None
    """[row] bool: rows that whoever declared them has ended, by a stop string or a limit of their
    own. Written between passes; what is fed to them from then on is padding."""
    arms: Tensor | None = None
    """[row]: which arm of a sweep each row is; None outside sweeps."""
    places: Tensor | None = None
    """[row, 1]: positions, where each row of a sweep's pass is one token of its prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which tokens of a pass an operation is about."""

    mask: Tensor
    """[row, pos] bool on the host."""
    count: int
    full: bool
    moved: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return (mask, row index, column index) on a device, moved once."""
        if device not in self.moved:
            row, column = self.mask.nonzero(as_tuple=True)
            self.moved[device] = (self.mask.to(device), row.to(device), column.to(device))
        return self.moved[device]

    def first(self, n: int) -> "Selection":
        """Return the selection among the first rows."""
        return Selection.of(self.mask[:n])

    @classmethod
    def of(cls, mask: Tensor) -> "Selection":
        """Count the tokens of a mask."""
        count = int(mask.sum())
        return cls(mask, count, count == mask.numel())


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass: its tokens, and what hooks leave for later hooks."""

    tokens: Tokens
    sequences: Sequences
    scopes: dict[object, Selection] = field(default_factory=dict)
    steps: dict[torch.device, Step] = field(default_factory=dict)
    bases: dict[str, Tensor] = field(default_factory=dict)
    reads: dict[object, Tensor] = field(default_factory=dict)
    whole: "Pass | None" = None
    """The pass of all rows, of which this holds the first (see `first`)."""

    def first(self, n: int) -> "Pass":
        """Return the pass of the first rows only, which have begun; readings of others are NaN."""
        whole = self if self.whole is None else self.whole
        if n == len(self.tokens.rows):
            return self
        reads = {key: _rows(values, n) for key, values in self.reads.items()}
        return Pass(whole.tokens.first(n), self.sequences, reads=reads, whole=whole)

    def select(self, scope: Scope, rows: Tensor | None) -> Selection:
        """Return the tokens in scope, in the given rows [arm, batch] of the user's batch."""
        key = (scope, id(rows))
        if key not in self.scopes:
            if self.whole is not None:
                self.scopes[key] = self.whole.select(scope, rows).first(len(self.tokens.rows))
            else:
                self.scopes[key] = Selection.of(_selected(self.tokens, scope, rows))
        return self.scopes[key]

    def chosen(self, op: "Edit") -> Selection:
        """Return the tokens on which an operation acts: each row's own scope."""
        if len(op.asked) == 1:
            return self.select(*op.asked[0])
        if id(op) not in self.scopes:
            if self.whole is not None:
                self.scopes[id(op)] = self.whole.chosen(op).first(len(self.tokens.rows))
            else:
                masks = [self.select(scope, rows).mask for scope, rows in op.asked]
                self.scopes[id(op)] = Selection.of(torch.stack(masks).any(0))
        return self.scopes[id(op)]

    def ranks(self, op: "Edit") -> Tensor:
        """Return [row, pos]: how many tokens of the row's scope come before each token."""
        tokens = self.tokens
        if self.whole is not None:
            return self.whole.ranks(op)[: len(tokens.rows)]
        if tokens.from_start:
            return self.chosen(op).mask.cumsum(1) - 1
        end = int(tokens.positions.max()) + 1
        every = torch.arange(end).expand(len(tokens.rows), end)
        before = replace(tokens, positions=every, ids=None, fresh=None)
        masks = [_selected(before, scope, rows) for scope, rows in op.asked]
        rank = torch.stack(masks).any(0).cumsum(1) - 1
        return rank.gather(1, tokens.positions.clamp(min=0))

    def step(self, device: torch.device) -> Step:
        """Return what edits may know, on their device, moved once."""
        if device not in self.steps:
            t = self.tokens
            self.steps[device] = Step(
                t.positions.to(device),
                t.rows.to(device),
                None if t.prompt_lengths is None else t.prompt_lengths.to(device),
                t.phase,
                None if t.ids is None else t.ids.to(device),
            )
        return self.steps[device]


def _selected(tokens: Tokens, scope: Scope, rows: Tensor | None) -> Tensor:
    if rows is None:
        return scope.select(tokens)
    mine = tokens.of(rows)
    if not bool(mine.any()):  # most arms of a sweep have no row in a pass
        return torch.zeros_like(tokens.mask)
    return scope.select(tokens.asked_of(rows)) & mine[:, None]


def _rows(values: Tensor, n: int) -> Tensor:
    missing = n - len(values)
    if missing <= 0:
        return values[:n]
    return torch.cat([values, values.new_full((missing, *values.shape[1:]), float("nan"))])
