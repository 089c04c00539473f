"""What one pass, and the passes of one growing batch, remember: tokens, selections, readings.

Owned by one forward call or one generate call; never shared between threads.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.interventions.gates import Running
from steer.scopes import Scope
from steer.step import Step
from steer.tokens import Prompt, Tokens


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


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass: its tokens, and what hooks leave for later hooks."""

    tokens: Tokens
    sequences: Sequences
    scopes: dict[tuple[Scope, int], Selection] = field(default_factory=dict)
    steps: dict[torch.device, Step] = field(default_factory=dict)
    bases: dict[str, Tensor] = field(default_factory=dict)
    reads: dict[object, Tensor] = field(default_factory=dict)

    def select(self, scope: Scope, rows: Tensor | None) -> Selection:
        """Return the tokens in scope, in the given rows of the user's batch."""
        key = (scope, id(rows))
        if key not in self.scopes:
            mask = scope.select(self.tokens.asked_of(rows))
            if rows is not None:
                mask = mask & rows[self.tokens.rows][:, None]
            count = int(mask.sum())
            self.scopes[key] = Selection(mask, count, count == mask.numel())
        return self.scopes[key]

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
