"""The questions of `methods`: loaded, split by their keys, and rendered as token rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.methods import sentiment
from steer.evals.measuring.rendering import Row, context, options
from steer.evals.tasks import Choice, items_of, task
from steer.evals.tasks.items import Format

BEHAVIOURS = ("survival_instinct", "corrigibility", "myopia")
N_HELD_OUT = 48
"""Questions of a behaviour on which methods are compared."""
N_FIT, N_VALIDATE = 48, 12
"""Other questions: on which methods are fitted, and on which the block is chosen."""
N_TEXTS, N_DRAWN = 10, 24


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The three parts of a behaviour's questions; all orders of a question are in one part."""

    name: str
    instruction: str
    fit: tuple[Choice, ...]
    validation: tuple[Choice, ...]
    held_out: tuple[Choice, ...]
    form: Format = "chat"


def load(limit: int | None, seed: int) -> list[Behaviour]:
    """Return the behaviours, with `limit` held-out questions each; from pinned wheels."""
    found = []
    for name in BEHAVIOURS:
        one = task(name)
        items = [item for item in items_of(one, 1 << 30) if isinstance(item, Choice)]
        found.append(split(name, one.instruction, items, limit or N_HELD_OUT, seed))
    return found


def load_sentiment(limit: int | None, seed: int) -> list[Behaviour]:
    """Return the one behaviour that small models have; from no wheel."""
    items = sentiment.questions()
    made = split(sentiment.NAME, sentiment.INSTRUCTION, items, limit or N_HELD_OUT, seed)
    return [replace(made, form="plain")]


def texts(seed: int) -> list[str]:
    """Return ordinary held-out text, on which damage is measured."""
    drawn = items_of(task("perplexity"), N_DRAWN, seed=seed)
    return [text for text in drawn if isinstance(text, str)][:N_TEXTS]


def split(
    name: str, instruction: str, items: Sequence[Choice], n_held_out: int, seed: int
) -> Behaviour:
    """Return the parts of questions with two options, drawn by their keys.

    Where there are few, the held-out ones come first and the rest is shared out in proportion.

    Raises:
        BenchmarkError: too few are left to fit on.
    """
    two = [item for item in items if len(item.options) == 2]
    keys = list(dict.fromkeys(item.key for item in two))
    Random(seed).shuffle(keys)
    held, rest = keys[:n_held_out], keys[n_held_out:]
    n_validate = min(N_VALIDATE, len(rest) // 5)
    validate, fit = rest[:n_validate], rest[n_validate : n_validate + N_FIT]
    if not validate or len(fit) < 8:
        raise BenchmarkError(
            f"{name} has {len(keys)} questions of two options; {n_held_out} are held out and "
            f"{len(rest)} are left to fit on and to choose a block on, which needs at least 10. "
            "Give a smaller --limit."
        )
    parts = [tuple(item for item in two if item.key in set(part)) for part in (fit, validate, held)]
    return Behaviour(name, instruction, parts[0], parts[1], parts[2])


def contexts(
    lm: steer.LM, items: Sequence[Choice], form: Format, instruction: str = ""
) -> list[Row]:
    """Return the tokens of each question up to its answer."""
    return [context(lm, item, form, instruction) for item in items]


def letters(lm: steer.LM, items: Sequence[Choice]) -> Tensor:
    """Return [item, option]: the token of each option.

    Raises:
        BenchmarkError: an option of several tokens, which has no single answer token.
    """
    tails = [options(lm, item) for item in items]
    if any(len(tail) != 1 for one in tails for tail in one):
        raise BenchmarkError(
            "This model's tokenizer splits a letter of an answer, and states and damage are read "
            "at the one token of the answer. Use another model."
        )
    return torch.tensor([[tail[0] for tail in one] for one in tails])
