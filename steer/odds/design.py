"""What a design cannot tell: which parameters, and which cells to add.

Counting rules say what can never be told, the singular values of the law's Jacobian what can hardly
be told: two parameters that trade against each other leave one small.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.belief import array

HARDLY = 1e3
"""Condition number of the scaled Jacobian above which two parameters are told apart only barely."""


@dataclass(frozen=True, slots=True)
class Design:
    """What a set of cells (evidence, strength) identifies."""

    missing: tuple[str, ...]
    """Sentences: which parameter is not identified at all, and which cells would do."""
    weak: tuple[str, ...]
    """Sentences: what is identified only barely."""

    def __repr__(self) -> str:
        """Say what is missing, or that nothing is."""
        said = [*self.missing, *self.weak]
        return "\n".join(said) if said else "a, b, gamma and alpha are identified."


def identified(evidence: Any, strength: Any, alpha: float = 0.5) -> Design:
    """Return what the cells [n] and [n] or [n, vector] identify of a law with about this alpha."""
    n = array(evidence)
    m = array(strength)
    m = m[:, None] if m.ndim == 1 else m
    missing, weak = [], []
    for at, column in enumerate(m.T):
        found = column.unique()
        if len(found) < 2:
            name = "a" if m.shape[1] == 1 else f"a[{at}]"
            missing.append(
                f"{name} is not identified: there is one strength, {float(found[0]):g}. Add a "
                f"second strength at the same amounts of evidence, such as {0 if found[0] else 1}."
            )
    amounts = n.unique()
    if len(amounts) < 3:
        missing.append(
            f"gamma and alpha are not identified: there are {len(amounts)} amounts of evidence "
            f"({', '.join(f'{float(x):g}' for x in amounts)}), and a curve in N needs at least "
            "three. Add amounts on a logarithmic grid, such as 0, 1, 2, 4, ..., 64."
        )
    positive = amounts[amounts > 0]
    if len(positive) and bool(amounts[0] > 0) and float(positive[-1] / positive[0]) < 30:
        weak.append(
            f"b is told only by extrapolation: there is no cell with N = 0, and N spans "
            f"{float(positive[0]):g} to {float(positive[-1]):g}. Add N = 0."
        )
    if len(positive) > 1 and float(positive[-1] / positive[0]) < 30:
        weak.append(
            f"gamma and alpha trade against each other: N spans {float(positive[0]):g} to "
            f"{float(positive[-1]):g}, less than one and a half decades. Add N up to "
            f"{30 * float(positive[0]):g}, and read their profile intervals."
        )
    if not missing:
        g = torch.where(n > 0, n.clamp(min=1e-9) ** (1 - alpha), 0.0)
        bent = torch.where(n > 0, g * n.clamp(min=1e-9).log(), 0.0)
        jacobian = torch.cat([m, torch.ones(len(n), 1).double(), g[:, None], bent[:, None]], dim=1)
        values = torch.linalg.svdvals(jacobian / jacobian.norm(dim=0).clamp(min=1e-12))
        if float(values[-1]) * HARDLY < float(values[0]):
            missing.append(
                "The strengths and the evidence vary together, so that their effects cannot be "
                f"told apart (condition {float(values[0] / values[-1].clamp(min=1e-300)):.1g}). "
                "Cross them: every strength at every amount of evidence."
            )
    return Design(tuple(missing), tuple(weak))


def require_identified(evidence: Tensor, strength: Tensor) -> None:
    """Refuse a design from which the law cannot be fitted.

    Raises:
        BeliefError: says what is not identified, and what to add.
    """
    found = identified(evidence, strength)
    if found.missing:
        raise BeliefError("This design does not identify the law. " + " ".join(found.missing))
