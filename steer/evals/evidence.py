"""What a generation leaves in the audit log: its receipt in JSON, row by row."""

from collections.abc import Sequence

from torch import Tensor

from steer.evals.refusals import Refused
from steer.receipt import Line, Receipt

_PER_ROW = ("gate_open", "reads", "predicted", "realised", "dose")


def evidence_of(receipt: Receipt, row: int) -> list[dict[str, object]]:
    """Return what each intervention did to one row, in the order of the plan, as JSON values.

    `seen`, `eligible` and `edited` count tokens, `eligible_by_phase` those of the prompt and those
    that were generated; `relative_size` is the mean over edited tokens of
    |change| / |state|. What a row does not have, or is not a finite number, is None.
    """
    return [_line(line, row) for line in receipt.lines]


def require_fired(receipt: Receipt, rows: Sequence[int] | None = None) -> None:
    """Refuse an answer in which an intervention saw no token in scope, in any of some rows.

    Raises:
        Refused: never_fired, with the intervention, the site and the rows.
    """
    for line in receipt.lines:
        asked = range(len(line.eligible)) if rows is None else rows
        silent = [row for row in asked if int(line.eligible[row]) == 0]
        if silent:
            raise Refused(
                "never_fired",
                f"{line.intervention} at {line.site} saw no token in scope in the rows {silent} "
                f"({int(line.seen.sum())} tokens passed in all), so their answers are unsteered. "
                "An unsteered answer is no result of this plan. Mend the scope.",
            )


def _line(line: Line, row: int) -> dict[str, object]:
    made: dict[str, object] = {
        "intervention": line.intervention,
        "site": line.site,
        **{name: int(getattr(line, name)[row]) for name in ("seen", "eligible", "edited")},
        "relative_size": _finite(line.relative_size, row),
    }
    if line.generated is not None:
        after = int(line.generated[row])
        made["eligible_by_phase"] = {"prompt": int(line.eligible[row]) - after, "generated": after}
    for name in _PER_ROW:
        values = getattr(line, name)
        if values is not None:
            made[name] = _finite(values, row)
    if line.scores is not None:
        rows, positions, scores = line.scores
        own = (rows == row).nonzero().flatten().tolist()
        made["scores"] = [[int(positions[i]), _finite(scores, i)] for i in own]
    return made


def _finite(values: Tensor, at: int) -> float | None:
    found = values[at]
    return float(found) if bool(found.isfinite().all()) and found.ndim == 0 else None
