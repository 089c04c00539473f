"""Intervals by refitting: for the laws that `bootstrap`'s fast path does not know.

Questions are drawn with replacement and everything is fitted again, by `fitted` itself. One fit for
each resample: each ends at another place, so they do not batch.
"""

import torch
from torch import Tensor

from steer.odds.belief import Belief, Form
from steer.odds.data import Data
from steer.odds.fit import fitted


def refitted(
    data: Data, unit: Tensor, drawn: Tensor, *, decay: bool, bounded: bool, form: Form
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the parameters of the data and [resample] of each, by name.

    A question that is drawn twice counts as two questions: its intercept is drawn twice as well.

    Args:
        data: the observations.
        unit: [n], the question of each, 0, 1, ...
        drawn: [resample, question], which questions each resample holds.
        decay: as in `fit`.
        bounded: as in `fit`.
        form: as in `fit`.
    """
    rows_of = [torch.nonzero(unit == at)[:, 0] for at in range(int(unit.max()) + 1)]
    found = []
    for questions in drawn.tolist():
        rows = torch.cat([rows_of[at] for at in questions])
        lengths = torch.tensor([len(rows_of[at]) for at in questions])
        again = data.take(rows)
        if data.question is not None:
            again = Data(
                again.evidence,
                again.strength,
                again.outcome,
                again.weight,
                again.kind,
                torch.repeat_interleave(torch.arange(len(questions)), lengths),
            )
        found.append(parameters(fitted(again, decay=decay, bounded=bounded, form=form)))
    point = parameters(fitted(data, decay=decay, bounded=bounded, form=form))
    return point, {
        name: torch.tensor([one[name] for one in found], dtype=torch.float64) for name in point
    }


def parameters(belief: Belief) -> dict[str, float]:
    """Return a belief's numbers by name: a, or a0, a1, ...; decay and bounds where it has them."""
    slopes = belief.slopes.tolist()
    named = {"a": slopes[0]} if len(slopes) == 1 else {f"a{i}": x for i, x in enumerate(slopes)}
    named |= {"b": belief.b, "gamma": belief.gamma, "alpha": belief.alpha}
    if belief.decay is not None:
        named |= {"decay_below": belief.decay.below, "decay_above": belief.decay.above}
    if (belief.floor, belief.ceiling) != (0.0, 1.0):
        named |= {"floor": belief.floor, "ceiling": belief.ceiling}
    return named | ({"spread": belief.spread} if belief.spread else {})
