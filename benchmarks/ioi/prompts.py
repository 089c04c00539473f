"""Pairs of prompts of the indirect-object task, after Wang et al. 2022 (arXiv:2211.00593).

Own templates. The clean prompt names two people and then one of them again; what follows is the
other. In the corrupted prompt the second mention is the other one, so the answer is turned round:
one token differs, and both prompts are as likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import steer
from benchmarks.errors import BenchmarkError
from steer.engine import Measure


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Mary John Tom James Paul Mark Peter Anna Emma Sarah Laura Alice Kate Rose Jack Adam David "
    "Simon Henry Lucy Jane George Robert Michael Daniel Martin Frank Susan Linda Helen"
)
PLACES = _words("store park school station office garden market library")
THINGS = _words("drink book ring ball letter bag key gift")
TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "Then {a} and {b} had a long talk at the {place}, and {s} handed a {thing} to",
    "After {a} and {b} came back from the {place}, {s} passed a {thing} to",
    "While {a} and {b} were working at the {place}, {s} brought a {thing} to",
)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Token ids of clean and corrupted prompts, and of both answers, the clean one first."""

    clean: list[list[int]]
    corrupted: list[list[int]]
    right: list[int]
    wrong: list[int]

    def measure(self) -> Measure:
        """Return the logit of the clean prompt's answer over the corrupted one's."""
        return steer.patching.logit_difference(self.right, self.wrong)

    def first(self, n: int) -> "Pairs":
        """Return the first n of them."""
        return Pairs(self.clean[:n], self.corrupted[:n], self.right[:n], self.wrong[:n])


def drawn(lm: steer.LM, n_train: int, n_test: int, *, seed: int) -> tuple[Pairs, Pairs]:
    """Return pairs to find things on and pairs to test them on, which share no name.

    Raises:
        BenchmarkError: the tokenizer has too few of the names in one piece.
    """
    known = [(name, ids[0]) for name in NAMES if len(ids := _ids(lm, " " + name)) == 1]
    if len(known) < 6:
        raise BenchmarkError(
            f"The tokenizer of {lm.provenance.name} has {len(known)} of {len(NAMES)} names in one "
            "token; the pairs must differ in one token. Use another model."
        )
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(known), generator=draw).tolist()
    half = len(known) // 2
    parts = order[:half], order[half:]
    return tuple(  # type: ignore[return-value]
        _pairs(lm, [known[k] for k in part], n, draw)
        for part, n in zip(parts, (n_train, n_test), strict=True)
    )


def _pairs(lm: steer.LM, names: Sequence[tuple[str, int]], n: int, draw: torch.Generator) -> Pairs:
    texts: tuple[list[str], list[str]] = ([], [])
    right, wrong = [], []
    for at in range(n):
        a, b = torch.randperm(len(names), generator=draw)[:2].tolist()
        place, thing = (
            words[int(torch.randint(len(words), (1,), generator=draw))]
            for words in (PLACES, THINGS)
        )
        # Either name may be the one that comes again.
        again, other = (a, b) if at % 2 else (b, a)
        for row, subject in zip(texts, (again, other), strict=True):
            row.append(
                TEMPLATES[at % len(TEMPLATES)].format(
                    a=names[a][0], b=names[b][0], s=names[subject][0], place=place, thing=thing
                )
            )
        right.append(names[other][1])
        wrong.append(names[again][1])
    return Pairs(lm.rows(texts[0]), lm.rows(texts[1]), right, wrong)


def _ids(lm: steer.LM, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
