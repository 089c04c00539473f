"""The sequences, and prompts that go on with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.ioi.prompts import Pairs

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "days": tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),  # noqa: SIM905
    "months": tuple(
        "January February March April May June July August September October November "  # noqa: SIM905
        "December".split()
    ),
    "letters": tuple(ascii_uppercase),
    "numbers": tuple(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "  # noqa: SIM905
        "sixteen seventeen eighteen nineteen twenty".split()
    ),
}
LENGTH = 4
CYCLIC = frozenset({"days", "months"})


@dataclass(frozen=True, slots=True)
class Family:
    """One sequence as tokens of a model."""

    name: str
    words: tuple[str, ...]
    ids: tuple[int, ...]
    places: tuple[int, ...]
    """Where each word is in the sequence, counted from 1."""

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Which words follow each other: indices into `ids`."""
        at = {place: k for k, place in enumerate(self.places)}
        turn = len(FAMILIES[self.name]) if self.name in CYCLIC else None
        found = []
        for k, place in enumerate(self.places):
            following = place + 1 if turn is None else place % turn + 1
            if following in at:
                found.append((k, at[following]))
        return found


def families(lm: steer.LM) -> list[Family]:
    """Return the sequences, each as far as its words are single tokens after a space.

    Raises:
        BenchmarkError: a sequence has fewer than seven such words.
    """
    found = []
    for name, words in FAMILIES.items():
        ids = [lm.tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in words]
        kept = [k for k, one in enumerate(ids) if len(one) == 1]
        if len(kept) < 7:
            raise BenchmarkError(
                f"The tokenizer of {lm.provenance.name} has {len(kept)} of the {len(words)} {name} "
                "in one token; each must be one, so that a head can read it. Use another model."
            )
        found.append(
            Family(
                name,
                tuple(words[k] for k in kept),
                tuple(int(ids[k][0]) for k in kept),
                tuple(k + 1 for k in kept),
            )
        )
    return found


def runs(lm: steer.LM, family: Family, n: int) -> Pairs:
    """Return pairs of runs of words; the corrupted one starts half the sequence away."""
    after = dict(family.steps)
    starts = []
    for k in range(len(family.ids)):
        chain = [k]
        while len(chain) <= LENGTH and chain[-1] in after:
            chain.append(after[chain[-1]])
        if len(chain) == LENGTH + 1:
            starts.append(chain)
    half = max(1, len(starts) // 2)
    pairs = [(one, starts[(k + half) % len(starts)]) for k, one in enumerate(starts)][:n]
    comma = lm.tokenizer(",", add_special_tokens=False)["input_ids"]
    head = lm.rows(["a"])[0][: len(lm.rows(["a"])[0]) - 1]  # what the tokenizer puts first, if any
    texts: tuple[list[list[int]], list[list[int]]] = ([], [])
    for pair in pairs:
        for rows, chain in zip(texts, pair, strict=True):
            row = list(head)
            for k in chain[:LENGTH]:
                row += [family.ids[k], *comma]
            rows.append(row)
    return Pairs(
        texts[0],
        texts[1],
        [family.ids[one[LENGTH]] for one, _ in pairs],
        [family.ids[other[LENGTH]] for _, other in pairs],
    )
