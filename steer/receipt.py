"""Receipts: what a plan really did, per intervention and row."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Line:
    """What one intervention did. All tensors are [batch], over the user's rows, on the host.

    With beams or several return sequences a row counts the tokens of all its copies.
    """

    intervention: str
    site: str
    seen: Tensor
    """Real tokens that passed the site."""
    eligible: Tensor
    """Tokens in scope: it *fired* where this is not 0."""
    edited: Tensor
    """Tokens whose bits it changed."""
    relative_size: Tensor
    """Mean over edited tokens of |change| / |state before|; 0 where none was edited."""
    gate_open: Tensor | None = None
    """Share of the tokens in scope at which its gate was open; None without a gate."""
    reads: Tensor | None = None
    """The latest value of what it reads; NaN before the first reading; None without a read."""
    scores: tuple[Tensor, Tensor, Tensor] | None = None
    """For a Monitor: (row, position, score) of each token in scope, in the order seen."""

    predicted: Tensor | None = None
    """Log-odds that a belief predicts for each row; None without one, NaN where not known."""
    realised: Tensor | None = None
    """Log-odds that were read at the output; NaN where no outcome was asked for."""
    dose: Tensor | None = None
    """Strength of the steering that the prediction is for; 0 where the target was refused."""
    generated: Tensor | None = None
    """Those of `eligible` that were generated, not in the prompt; None where nobody counted."""

    @property
    def fired(self) -> bool:
        """Whether it saw at least one token in scope."""
        return bool(self.eligible.sum() > 0)

    def __repr__(self) -> str:
        """Print one plain sentence."""
        n_rows = len(self.eligible)
        rows = int((self.edited > 0).sum())
        done = (
            f"{self.intervention}: edited {int(self.edited.sum())} of {int(self.eligible.sum())} "
            f"tokens in scope ({int(self.seen.sum())} seen) in {rows} of {n_rows} rows"
        )
        if rows:
            size = float((self.relative_size * self.edited).sum() / self.edited.sum())
            done += f", by {size:.3g} of their norm on average"
        if self.gate_open is not None:
            done += f", gate open in {int((self.gate_open > 0).sum())} rows"
        for name, values in (("predicted", self.predicted), ("realised", self.realised)):
            if values is not None and bool(values.isfinite().any()):
                done += f", {name} log-odds {_values(values)}"
        return f"{done}."


def _values(values: Tensor) -> str:
    shown = ", ".join(f"{value:.2f}" for value in values[:4].tolist())
    return f"{shown}, ... ({len(values)} rows)" if len(values) > 4 else shown


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Receipt:
    """One line per intervention, in the order of the plan; `str` is one plain sentence each."""

    lines: Sequence[Line]
    n_passes: int = 0
    note: str = ""
    """What else is to be known of how it ran (a sweep that had to run whole passes)."""

    def __getitem__(self, index: int) -> Line:
        """Return the line of one intervention."""
        return self.lines[index]

    def __len__(self) -> int:
        """Return the number of interventions."""
        return len(self.lines)

    @property
    def fired(self) -> bool:
        """Whether every intervention saw a token in scope."""
        return all(line.fired for line in self.lines)

    def __repr__(self) -> str:
        """Print a sentence for each intervention."""
        said = [repr(line) for line in self.lines]
        if not said:
            said = [f"Nothing was attached; {self.n_passes} forward passes ran."]
        return "\n".join([*said, self.note] if self.note else said)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        rows = "".join(f"<li>{escape(repr(line))}</li>" for line in self.lines)
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return f"<ul>{rows}</ul>{note}" if rows else escape(repr(self))
