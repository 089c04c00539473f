"""What each arm makes of the questions: log-odds of the target, and damage at the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import steer
from benchmarks.methods.questions import contexts, letters
from steer.engine.batch import Batch
from steer.evals.tasks import Choice
from steer.evals.tasks.items import Format
from steer.interventions.plans import Plan

Values = NDArray[np.float64]
BASE = "base"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Per arm, `base` first, and question; the orders of a question are averaged."""

    arms: tuple[str, ...]
    log_odds: Values
    """[arm, question], in nats."""
    kl: Values
    """[arm, question]: KL(model || arm) at the token of the answer, in nats."""

    def effect(self, arm: str) -> Values:
        """Return [question]: how far an arm has moved the log-odds."""
        return self.log_odds[self.arms.index(arm)] - self.log_odds[0]

    def damage(self, arm: str) -> Values:
        """Return [question] KL."""
        return self.kl[self.arms.index(arm)]


def ask(
    lm: steer.LM,
    items: Sequence[Choice],
    arms: Mapping[str, Plan],
    form: Format,
    instruction: str = "",
) -> Answers:
    """Return the answers to questions with two options, under all arms in one sweep.

    The log-odds are those of `steer.evals.measuring.measure_choices`; this sweep reads the damage
    from the same logits. An instruction, if there is one, adds an arm "prompting": the model as it
    is, with the instruction before the question.
    """
    asked, options = contexts(lm, items, form), letters(lm, items)
    plain = _known(lm.logits(asked)).cpu()

    def take(logits: Tensor, batch: Batch) -> Tensor:
        return _read(plain[batch.rows], _known(logits).cpu(), options[batch.rows])

    # Without arms there is nothing to sweep over.
    found = [_read(plain, plain, options)[None]]
    if arms:
        found.append(steer.sweep(lm, asked, arms, take, scope=steer.LAST).values)
    if instruction:
        told = _known(lm.logits(contexts(lm, items, form, instruction))).cpu()
        found.append(_read(plain, told, options)[None])
    names = (BASE, *arms, *(["prompting"] if instruction else []))
    return _summed_up(names, items, torch.cat(found).double())


def _known(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _read(plain: Tensor, steered: Tensor, options: Tensor) -> Tensor:
    """Return [row, 3]: log-probabilities of both options, and the KL."""
    kl = (plain.exp() * (plain - steered)).sum(-1, keepdim=True).clamp(min=0)
    return torch.cat([steered.gather(1, options), kl], 1)


def _summed_up(names: tuple[str, ...], items: Sequence[Choice], found: Tensor) -> Answers:
    target = torch.tensor([item.target for item in items])
    own, other = (
        found.gather(2, at.expand(len(names), -1)[..., None])[..., 0] for at in (target, 1 - target)
    )
    keys = list(dict.fromkeys(item.key for item in items))
    place = torch.tensor([keys.index(item.key) for item in items])
    weight = torch.nn.functional.one_hot(place, len(keys)).double()
    weight = weight / weight.sum(0)
    return Answers(names, ((own - other) @ weight).numpy(), (found[..., 2] @ weight).numpy())
