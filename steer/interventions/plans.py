"""Plans: a list of interventions applied in order, or one such list for each row of the batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from steer import spec as specs
from steer.errors import PlanError
from steer.protocols import Intervention


@dataclass(frozen=True, slots=True, eq=False, init=False, repr=False)
class Rows:
    """One plan for each row of the user's batch, before beams and return sequences expand it.

    `Rows([plan0, [], plan2])` steers row 0 and row 2 and leaves row 1 alone.

    Raises:
        PlanError: Rows inside Rows, or an entry that is not a plan; before block 0, another number
            of plans than rows.
    """

    kind: ClassVar[str] = "steer.Rows"
    plans: tuple[tuple[Intervention, ...], ...]

    def __init__(self, plans: Sequence["Plan"]) -> None:
        """Freeze the plans."""
        frozen = []
        for at, plan in enumerate(plans):
            if isinstance(plan, Rows):
                raise PlanError(
                    f"Rows inside Rows at row {at}: a row of the batch has no rows of its own. "
                    "Give each row a plain list of interventions."
                )
            frozen.append(as_items(plan, f"Row {at} of Rows"))
        object.__setattr__(self, "plans", tuple(frozen))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.plans)

    def __getitem__(self, row: int) -> tuple[Intervention, ...]:
        """Return the plan of one row."""
        return self.plans[row]

    def spec(self) -> dict[str, object]:
        """Return the plain dict with tensors from which it is rebuilt."""
        return specs.encode(self)

    @property
    def digest(self) -> str:
        """sha256 over the plans in order."""
        return specs.digest(self.spec())

    def __repr__(self) -> str:
        """Say how many rows do what."""
        busy = sum(1 for plan in self.plans if plan)
        return f"Rows({len(self.plans)} rows, {busy} with interventions)"


Plan = Sequence[Intervention] | Rows
"""A list, applied in order, or one list for each row of the batch."""


def as_items(plan: object, what: str = "The plan") -> tuple[Intervention, ...]:
    """Return the interventions of a plain plan as a tuple.

    Raises:
        PlanError: a lone intervention, or something in the list that is none.
    """
    if isinstance(plan, Intervention):
        raise PlanError(
            f"{what} is a lone {type(plan).__name__}. A plan is a list, because order matters: "
            "write [intervention]."
        )
    if isinstance(plan, str) or not isinstance(plan, Sequence):
        raise TypeError(f"{what} is a list of interventions or steer.Rows, not {type(plan)}.")
    for at, item in enumerate(plan):
        if isinstance(item, Rows):
            raise PlanError(
                f"{what} holds Rows at place {at}. Rows is a whole plan: pass it alone, and put "
                "interventions meant for every row into each of its lists."
            )
        if not isinstance(item, Intervention):
            raise PlanError(
                f"{what} holds {type(item).__name__} at place {at}, which has no site, scope and "
                "edit. Wrap a function in steer.Custom(site, fn)."
            )
    return tuple(plan)


def items_of(plan: Plan) -> Iterator[tuple[Intervention, int | None]]:
    """Yield each intervention with the row it belongs to (None: every row), in order."""
    if isinstance(plan, Rows):
        for row, items in enumerate(plan.plans):
            for item in items:
                yield item, row
        return
    for item in as_items(plan):
        yield item, None
