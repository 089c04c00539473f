"""What a belief says of a plan before anything runs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steer.errors import BeliefError
from steer.interventions.arithmetic import Number, Relative
from steer.interventions.believed import Control, Count, Forecast, identity_of
from steer.interventions.gates import Read
from steer.interventions.linear import Add
from steer.interventions.plans import Plan, Rows, as_items
from steer.lm import LM
from steer.odds import Belief
from steer.prompts import Prompts
from steer.protocols import Intervention
from steer.tokens import Prompt

BAND = 1.0
"""Nats around the boundary in which a small change of context or strength flips the behaviour."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prediction:
    """What is expected of each row; all tensors [row]."""

    evidence: Tensor
    strength: Tensor
    """Of the steering that the belief knows."""
    log_odds: Tensor
    posterior: Tensor
    boundary: Tensor
    """The strength at which this row's log-odds would be 0."""
    near: Tensor
    """bool: within a nat of the boundary, where behaviour flips abruptly."""
    extrapolated: Tensor
    """bool: evidence or strength outside of what the belief was fitted on or is valid for."""
    uncovered: tuple[str, ...]
    """Interventions of the plan of which the belief knows nothing; they are not in the numbers."""

    def __repr__(self) -> str:
        """Print one line for each row, and what is not known."""
        head = f"{'row':>4} {'evidence':>9} {'strength':>9} {'log-odds':>9} {'p':>6}"
        lines = [head]
        for row in range(len(self.evidence)):
            marks = []
            if self.near[row]:
                marks.append(f"near the boundary (strength {float(self.boundary[row]):.2f})")
            if self.extrapolated[row]:
                marks.append("extrapolated")
            lines.append(
                f"{row:>4} {float(self.evidence[row]):>9.3g} {float(self.strength[row]):>9.3g} "
                f"{float(self.log_odds[row]):>9.2f} {float(self.posterior[row]):>6.3f}"
                f"  {', '.join(marks)}".rstrip()
            )
        lines += [f"not covered by the belief: {said}" for said in self.uncovered]
        return "\n".join(lines)


def predict(
    lm: LM,
    belief: Belief,
    plan: Plan,
    prompts: Prompts,
    *,
    evidence: Number | Tensor | Count | None = None,
) -> Prediction:
    """Return what a belief expects of a plan at some prompts; nothing is run.

    The strengths are those of the Controls, and of every Add that is the steering on which the
    belief was fitted (by its digest). What else the plan holds is named, not guessed.

    Args:
        lm: the model; its tokenizer counts evidence.
        belief: the fitted belief.
        plan: see `LM.attached`.
        prompts: see `LM`.
        evidence: a number, [row], or a Count; None takes it from the plan's Control or Forecast.

    Raises:
        BeliefError: no evidence is given and none is in the plan, or it is read in the pass.
    """
    rows = lm.rows(prompts)
    lists = plan.plans if isinstance(plan, Rows) else [as_items(plan, "The plan")] * len(rows)
    if len(lists) != len(rows):
        raise BeliefError(
            f"The plan is Rows of {len(lists)}, but there are {len(rows)} prompts. Give one plan "
            "for each prompt ([] for none)."
        )
    found = [_evidence(list(items), evidence) for items in lists]
    amounts = torch.stack([_of_row(value, row, rows) for row, value in enumerate(found)])
    strength = torch.zeros(len(rows), dtype=torch.float64)
    uncovered: dict[str, None] = {}
    for row, items in enumerate(lists):
        for item in items:
            known = _strength(item, belief, row)
            if known is None:
                uncovered[repr(item)] = None
            else:
                strength[row] += known
    log_odds = belief.log_odds(amounts, strength)
    outside = [_outside(amounts, belief.evidence_range), _outside(strength, belief.valid)]
    return Prediction(
        amounts,
        strength,
        log_odds,
        belief.posterior(amounts, strength),
        belief.boundary(amounts),
        log_odds.abs() <= BAND,
        outside[0] | outside[1],
        tuple(uncovered),
    )


def _outside(values: Tensor, known: tuple[float, float] | None) -> Tensor:
    if known is None:
        return torch.zeros_like(values, dtype=torch.bool)
    return (values < known[0]) | (values > known[1])


def _evidence(items: list[Intervention], given: object) -> object:
    if given is not None:
        return given
    of = [item.evidence for item in items if isinstance(item, Control | Forecast)]
    if not of:
        raise BeliefError(
            "Nothing says how much evidence the prompts hold: the plan has neither a Control nor a "
            "Forecast for every row. Give evidence=, a number or one for each prompt."
        )
    return of[0]


def _of_row(value: object, row: int, rows: list[list[int]]) -> Tensor:
    if isinstance(value, Read):
        raise BeliefError(
            f"The evidence is {value!r}, which is known only when the pass runs. A prediction "
            "beforehand needs a number: capture the reading, and give it as evidence=."
        )
    if isinstance(value, Count):
        ids = torch.tensor(rows[row])[None]
        return value.of(Prompt(torch.ones_like(ids, dtype=torch.bool), ids))[0]
    values = torch.as_tensor(value, dtype=torch.float64)
    return values[row] if values.ndim else values


def _strength(item: Intervention, belief: Belief, row: int) -> float | None:
    """Return the strength that an intervention gives a row; None where the belief knows it not."""
    if isinstance(item, Forecast):
        return 0.0
    if isinstance(item, Control):
        same = item.belief is belief or getattr(item.belief, "digest", "") == belief.digest
        if not same or item.doses is None:
            return None
        return float(item.doses[row] if item.doses.ndim else item.doses)
    if not isinstance(item, Add) or isinstance(item.strength, Relative):
        return None
    if identity_of(item.site, item.direction, item.scope) != belief.intervention:
        return None
    return float(item.strength[row] if isinstance(item.strength, Tensor) else item.strength)
