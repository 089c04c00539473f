"""How likely a model finds each option of a question, under many plans in one sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.engine.batch import Batch
from steer.errors import PlanError
from steer.evals.measuring.rendering import Row, context, options
from steer.evals.tasks.items import Choice, Format
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.scopes import LAST, OUTPUT
from steer.sweep import sweep

Values = NDArray[np.float64]
BASE = "base"
"""The name of the model as it is among the arms of what was measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What each arm made of each question; orders of one question are averaged."""

    arms: tuple[str, ...]
    """`base` first."""
    keys: tuple[str, ...]
    log_odds: Values
    """[arm, question]: of the target against all other options, in nats."""
    chosen: Values
    """[arm, question]: share of the orders in which the target is the likeliest option."""

    def of(self, arm: str) -> tuple[Values, Values]:
        """Return (log-odds, chosen) [question] of an arm."""
        at = self.arms.index(arm)
        return self.log_odds[at], self.chosen[at]


def measure_choices(
    lm: LM,
    items: Sequence[Choice],
    arms: Mapping[str, Plan],
    *,
    form: Format = "chat",
    per_token: bool = False,
    instruction: str = "",
) -> Measured:
    """Return the log-odds of the target options under each arm, and of the model as it is.

    An option counts as generated, as in `lm.score`. Where every option is one token, one row asks
    for all options of a question at once.

    Args:
        lm: the model.
        items: questions, all orders of each.
        arms: names and plans.
        form: chat or plain.
        per_token: compare options by the mean over their tokens instead of the sum.
        instruction: stands before every question.

    Raises:
        PlanError: logits that are not numbers.
        SteerError: an arm does not fit, or an intervention never fires in it.
    """
    contexts = [context(lm, item, form, instruction) for item in items]
    tails = [options(lm, item) for item in items]
    if all(len(tail) == 1 for one in tails for tail in one):
        found = _letters(lm, contexts, tails, arms)
    else:
        found = _continuations(lm, contexts, tails, arms)
    if bool(found.isnan().any()):
        raise PlanError(
            "Some log-probabilities are not numbers: under an arm the logits overflow. Its effect "
            "would be no number either. Give the plan less strength, or smaller factors."
        )
    if per_token:
        found = found / _padded([[len(tail) for tail in one] for one in tails], 1.0)
    return summed_up((BASE, *arms), items, found)


def summed_up(arms: tuple[str, ...], items: Sequence[Choice], found: Tensor) -> Measured:
    """Return the measures of log-probabilities [arm, item, option]; -inf: no such option."""
    targets = torch.tensor([item.target for item in items])
    own = found.gather(2, targets.expand(len(arms), -1)[..., None])[..., 0]
    others = found.scatter(2, targets.expand(len(arms), -1)[..., None], -torch.inf)
    odds = own - others.logsumexp(2)
    chosen = (own > others.max(2).values).double()
    keys = tuple(dict.fromkeys(item.key for item in items))
    place = torch.tensor([keys.index(item.key) for item in items])
    return Measured(arms, keys, _by_key(odds, place, keys), _by_key(chosen, place, keys))


def _by_key(values: Tensor, place: Tensor, keys: Sequence[str]) -> Values:
    total = torch.zeros(len(values), len(keys), dtype=torch.float64)
    total.index_add_(1, place, values.double())
    return (total / torch.bincount(place, minlength=len(keys))).numpy()


def _letters(
    lm: LM, contexts: Sequence[Row], tails: Sequence[Sequence[Row]], arms: Mapping[str, Plan]
) -> Tensor:
    tokens = _padded([[tail[0] for tail in one] for one in tails], -1).long()

    def take(logits: Tensor, batch: Batch) -> Tensor:
        known = logits.float().log_softmax(-1).cpu()
        asked = tokens[batch.rows]
        return known.gather(1, asked.clamp(min=0)).masked_fill(asked < 0, -torch.inf)

    swept = sweep(lm, list(contexts), {BASE: [], **arms}, take, scope=LAST)
    return swept.values.double()


def _continuations(
    lm: LM, contexts: Sequence[Row], tails: Sequence[Sequence[Row]], arms: Mapping[str, Plan]
) -> Tensor:
    pairs = [(at, n) for at, one in enumerate(tails) for n in range(len(one))]
    whole = [[*contexts[at], *tails[at][n]] for at, n in pairs]
    lengths = [len(contexts[at]) for at, _ in pairs]

    def take(logits: Tensor, batch: Batch) -> Tensor:
        return continuation_log_probs(logits, batch, whole)

    swept = sweep(
        lm, whole, {BASE: [], **arms}, take, scope=OUTPUT, prompt_lengths=lengths
    ).values.double()
    width = max(len(one) for one in tails)
    found = torch.full((len(swept), len(tails), width), -torch.inf, dtype=torch.float64)
    item, option = torch.tensor(pairs).unbind(1)
    return found.index_put((torch.arange(len(swept))[:, None], item, option), swept)


def continuation_log_probs(logits: Tensor, batch: Batch, whole: Sequence[Row]) -> Tensor:
    """Return [row]: the log-probability of what follows the first position in scope.

    Args:
        logits: [row, n, vocab] at the positions of OUTPUT.
        batch: which rows of `whole` they are, and at which positions.
        whole: all rows, prompts with what follows.
    """
    assert batch.positions is not None
    positions = batch.positions
    targets = torch.zeros_like(positions)
    real = positions >= 0
    for at, row in enumerate(batch.rows.tolist()):
        tokens = torch.tensor(whole[row])
        real[at] &= positions[at] + 1 < len(tokens)  # the last token predicts what is not there
        targets[at] = tokens[(positions[at] + 1).clamp(0, len(tokens) - 1)]
    known = logits.float().log_softmax(-1).gather(2, targets.to(logits.device)[..., None])[..., 0]
    return torch.where(real.to(known.device), known, 0.0).sum(1)


def _padded(rows: Sequence[Sequence[int]], fill: int | float) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
