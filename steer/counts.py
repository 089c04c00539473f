"""The numbers of a receipt while a plan is at work: tables [line, row], one for each device.

Sums are kept where they arise and only read at the end, so that no pass waits for a device. Not
locked: who counts (`steer.running`) holds the lock.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from steer.receipt import Line
from steer.wiring import Wiring

Scores = list[tuple[Tensor, Tensor, Tensor]]
"""(row, position, score) of the tokens that a Monitor saw."""
Place = tuple[Tensor, Tensor]
"""(line, row) of each value."""

SUMS = ("eligible", "generated", "edited", "size", "gate")
LATEST = ("reads", "predicted", "realised", "dose")
"""Of these the latest value holds; NaN before the first."""


class Counts:
    """Tables that grow with the rows of the batch."""

    def __init__(self, wiring: Wiring) -> None:
        """Start with empty tables."""
        self._wiring = wiring
        self.seen = torch.zeros(len(set(wiring.arms)) or 1, 0)
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    def see(self, arms: Tensor, rows: Tensor, tokens: Tensor, n_rows: int) -> None:
        """Count real tokens, [row of the pass], to their arms and rows."""
        n_arms = 1 + max(0, *self._wiring.arms, int(arms.max()) if len(arms) else 0)
        self.seen = _grown(self.seen, n_arms, n_rows)
        self.seen.index_put_((arms, rows), tokens.float(), accumulate=True)

    def add(self, name: str, place: Place, values: Tensor) -> None:
        """Add to a sum."""
        self._table(name, values.device).index_put_(place, values, accumulate=True)

    def note(self, name: str, place: Place, values: Tensor) -> None:
        """Keep the latest values."""
        values = values.float()
        line, rows = (at.to(values.device) for at in place)
        self._table(name, values.device).index_put_((line, rows), values)

    def _table(self, name: str, device: torch.device) -> Tensor:
        n_lines, n_rows = len(self._wiring.items), self.seen.shape[1]
        held = self._tables.get((name, device), torch.zeros(0, 0, device=device))
        self._tables[name, device] = _grown(held, n_lines, n_rows, _fill(name))
        return self._tables[name, device]

    def readings(self) -> tuple[Tensor, Tensor]:
        """Return [line, row] the latest value read, and whether any token was in scope so far."""
        return self._counted("reads"), self._counted("eligible") > 0

    def silent(self) -> list[tuple[int, int]]:
        """Return (arm, line of the arm) of what saw no token in scope; waits for the devices."""
        fired = self._counted("eligible").sum(1) > 0
        arms = self._wiring.arms
        return [(arm, arms[:at].count(arm)) for at, arm in enumerate(arms) if not bool(fired[at])]

    def lines(self, arms: Sequence[int], scores: dict[int, Scores]) -> dict[int, list[Line]]:
        """Return the receipt's lines of some arms; waits for the devices."""
        edits = self._wiring.edits
        found = {name: self._counted(name) for name in (*SUMS, *LATEST)}
        gated = {at for op in edits if op.gates for at in op.lines}
        read = gated | {at for op in edits if op.monitor for at in op.lines}
        believed = {at for op in edits if op.believed for at in op.lines}
        lines: dict[int, list[Line]] = {arm: [] for arm in arms}
        for at, arm in enumerate(self._wiring.arms):
            if arm not in lines:
                continue
            item = self._wiring.items[at]
            count = {name: table[at] for name, table in found.items()}
            seen = self.seen[arm] if arm < len(self.seen) else torch.zeros_like(count["eligible"])
            line = Line(
                repr(item),
                str(item.site),
                seen.long(),
                count["eligible"].long(),
                count["edited"].long(),
                count["size"] / count["edited"].clamp(min=1),
                count["gate"] / count["eligible"].clamp(min=1) if at in gated else None,
                count["reads"] if at in read else None,
                _joined(scores[at]) if at in scores else None,
                *(count[n] if at in believed else None for n in ("predicted", "realised", "dose")),
                generated=count["generated"].long(),
            )
            lines[arm].append(line)
        return lines

    def _counted(self, name: str) -> Tensor:
        n_lines, n_rows = len(self._wiring.items), self.seen.shape[1]
        total = torch.full((n_lines, n_rows), _fill(name))
        for (of, _), table in self._tables.items():
            if of == name:
                mine = _grown(table.cpu(), n_lines, n_rows, _fill(name))
                total = torch.where(mine.isnan(), total, mine) if name in LATEST else total + mine
        return total


def _fill(name: str) -> float:
    return float("nan") if name in LATEST else 0.0


def _joined(scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
    row, position, score = (torch.cat(part).cpu() for part in zip(*scores, strict=True))
    return row, position, score


def _grown(table: Tensor, n_lines: int, n_rows: int, fill: float = 0.0) -> Tensor:
    """Return a table of at least so many lines and rows."""
    lines, rows = max(n_lines - table.shape[0], 0), max(n_rows - table.shape[1], 0)
    if not lines and not rows:
        return table
    return torch.nn.functional.pad(table, (0, rows, 0, lines), value=fill)
