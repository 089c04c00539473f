"""How often a model answers right, unsteered, before anything is fitted or steered.

Whole answers, written out greedily, so that answers of several tokens count as well.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from scipy.stats import binomtest

import steer
from benchmarks.data.rings import Concepts
from benchmarks.errors import BenchmarkError
from benchmarks.rings.reading import with_bos
from benchmarks.stats import LEVEL, Number

N_TOKENS = 6
"""Tokens written for an answer: the longest answer of one word takes fewer."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers among the prompts asked."""

    n_right: int
    n_asked: int
    constant: float
    """The share that the best constant answer would get: chance."""

    @property
    def number(self) -> Number:
        """The share of right answers, with its Wilson interval."""
        exact = binomtest(self.n_right, self.n_asked)
        lo, hi = exact.proportion_ci(LEVEL, method="wilson")
        return Number(self.n_right / self.n_asked, float(lo), float(hi))

    @property
    def above_chance(self) -> bool:
        """Whether the interval lies above what the best constant answer would get."""
        lo = self.number.lo
        return lo is not None and lo > self.constant


def accuracy_of(lm: steer.LM, concepts: Concepts, *, most: int | None, seed: int) -> Accuracy:
    """Return how often the model answers the questions of all contexts right.

    Args:
        lm: the model.
        concepts: the questions.
        most: ask at most so many, drawn at random; None is all.
        seed: of the drawing.
    """
    asked = [
        (z, text)
        for context in (*concepts.train, *concepts.test)
        for z in range(len(concepts))
        if (text := context.prompt(concepts, z)) is not None
    ]
    drawn = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
    chosen = [asked[i] for i in drawn[:most].tolist()]
    right = 0
    for first in range(0, len(chosen), BATCH):
        some = chosen[first : first + BATCH]
        rows = [with_bos(lm, text) for _, text in some]
        written = lm.generate(rows, max_new_tokens=N_TOKENS)
        right += sum(
            says(answer, concepts.spellings(z))
            for (z, _), answer in zip(some, written, strict=True)
        )
    often = Counter(z for z, _ in chosen).most_common(1)[0][1]
    return Accuracy(right, len(chosen), often / len(chosen))


def says(answer: str, spellings: tuple[str, ...]) -> bool:
    """Return whether an answer begins with one of the spellings as a whole word or number."""
    text = answer.lstrip()
    return any(
        text.startswith(word) and not text[len(word) : len(word) + 1].isalnum()
        for word in {spelling.strip() for spelling in spellings}
    )


def require_able(accuracy: Accuracy, concepts: Concepts) -> None:
    """Refuse a model that does no better than a constant answer.

    Raises:
        BenchmarkError: says the accuracy, its interval and chance.
    """
    if accuracy.above_chance:
        return
    raise BenchmarkError(
        f"The model answers {accuracy.n_right} of {accuracy.n_asked} questions about "
        f"{concepts.name} correctly, an accuracy of {accuracy.number}, and the best constant "
        f"answer gets {accuracy.constant:.3g}: that is chance. Steering answers that are not there "
        "shows nothing. Use a model that can add, or the task in which lists of the "
        "same concepts are continued."
    )
