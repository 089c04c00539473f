"""States at which methods are fitted: at the letter of an answer, and just before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

import steer
from benchmarks.methods.questions import contexts, letters
from steer.evals.tasks import Choice
from steer.evals.tasks.items import Format

CHUNK = 32


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What was read of some questions, each in all its orders."""

    positive: Float[Tensor, "site item d"]
    """At the letter of the target, which is appended to the question, as in CAA."""
    negative: Float[Tensor, "site item d"]
    """At the letter of the other option."""
    before: Float[Tensor, "site question d"]
    """At the last token before the answer, the orders of a question averaged."""
    log_odds: Float[Tensor, " question"]
    """Of the target there, the orders averaged, so that a taste for a letter cancels."""
    question: Tensor
    """[item]: which question an item is."""

    def at(self, site: int) -> "States":
        """Return the same at one of the sites."""
        one = slice(site, site + 1)
        return replace(
            self,
            positive=self.positive[one],
            negative=self.negative[one],
            before=self.before[one],
        )


def read(
    lm: steer.LM, items: Sequence[Choice], sites: Sequence[steer.Site], form: Format
) -> States:
    """Return the states at some sites; two passes for each item."""
    asked, options = contexts(lm, items, form), letters(lm, items)
    target = torch.tensor([item.target for item in items])
    own, other = (options.gather(1, at[:, None])[:, 0].tolist() for at in (target, 1 - target))
    logits = steer.Site.logits()
    positive, negative, before, odds = [], [], [], []
    for start in range(0, len(items), CHUNK):
        part = slice(start, start + CHUNK)
        rows = [[*row, token] for row, token in zip(asked[part], own[part], strict=True)]
        both = lm.capture(rows, [*sites, logits], scope=steer.at(-2) | steer.at(-1))
        states = torch.stack([both[site] for site in sites]).float().cpu()
        before.append(states[:, :, 0])
        positive.append(states[:, :, 1])
        known = both[logits][:, 0].float().log_softmax(-1).cpu()
        pair = [known.gather(1, torch.tensor(side[part])[:, None])[:, 0] for side in (own, other)]
        odds.append(pair[0] - pair[1])
        rows = [[*row, token] for row, token in zip(asked[part], other[part], strict=True)]
        acts = lm.capture(rows, list(sites), scope=steer.at(-1))
        negative.append(torch.stack([acts[site] for site in sites]).float().cpu())
    keys = list(dict.fromkeys(item.key for item in items))
    question = torch.tensor([keys.index(item.key) for item in items])
    return States(
        torch.cat(positive, 1),
        torch.cat(negative, 1),
        _averaged(torch.cat(before, 1), question, 1),
        _averaged(torch.cat(odds), question, 0),
        question,
    )


def _averaged(values: Tensor, question: Tensor, dim: int) -> Tensor:
    """Return the mean over the items of each question along an axis."""
    n = int(question.max()) + 1
    shape = list(values.shape)
    shape[dim] = n
    total = torch.zeros(shape, dtype=values.dtype).index_add(dim, question, values)
    count = torch.bincount(question, minlength=n).to(values.dtype)
    return total / count.view(-1, *[1] * (values.ndim - dim - 1))
