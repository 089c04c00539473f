"""Many-shot sentiment: which statements stand in a context, and where a question is asked.

A statement is `I thought the soup was terrible.` One text of many statements holds every question
at once: what the model expects after the `was` of statement n + 1 is its answer to a question after
n statements of evidence. The nouns of the statements that are read stand nowhere else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np

import steer
from benchmarks.errors import BenchmarkError

Item = tuple[str, str]
"""A noun and the adjective that it gets."""

NOUN_LIST = """
hotel soup movie book concert restaurant lecture weather train garden museum painting coffee bread
cake wine beach castle lesson meeting dinner lunch breakfast salad sandwich pizza cheese song album
opera novel poem story essay speech letter report interview game match race party wedding holiday
trip journey flight bus bridge tower palace church park zoo farm village city town street market
shop store mall bank office school college library hospital clinic gym pool lake river mountain
forest desert island harbor station airport car truck bike boat ship plane phone laptop camera
radio television computer keyboard printer lamp chair table bed carpet curtain mirror window door
kitchen bathroom bedroom house apartment cottage tent blanket jacket
"""
POSITIVE_LIST = "good great excellent wonderful amazing fantastic perfect beautiful lovely nice"
NEGATIVE_LIST = "bad terrible horrible awful poor dreadful ugly nasty boring disappointing"
N_ADJECTIVES = 8
N_QUESTIONS, N_CONTEXT, N_FIT = 40, 24, 16
"""Nouns that are asked about, that only give evidence, and on which the direction is fitted."""


@dataclass(frozen=True, slots=True)
class SentimentItems:
    """The words of one run; no noun is in two of the three sets."""

    questions: tuple[str, ...]
    context: tuple[str, ...]
    fit: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def adjectives(self, concept: int) -> tuple[str, ...]:
        """Return the adjectives of a concept: 1 for the positive, -1 for the negative."""
        return self.positive if concept > 0 else self.negative


@dataclass(frozen=True, slots=True)
class Design:
    """After how many statements it is asked, and how often; every question once in every cell.

    Short texts give the cells of little evidence cheaply. Long texts are read everywhere: once at
    each of `few`, and in a window of `width` statements round each of `many`, so that few long
    texts are enough. As many questions as groups times width, as many texts of a concept.

    Raises:
        BenchmarkError: windows that overlap, or more readings in a text than questions.
    """

    few: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 12, 16)
    many: tuple[int, ...] = (24, 32, 48, 64, 96, 128)
    groups: int = 8
    """Groups of questions, and long texts."""
    width: int = 5
    """Questions in a group, and statements in a window."""

    def __post_init__(self) -> None:
        """Check that each question can stand once in each cell and once in each text."""
        read = self.long_evidence
        if list(read) != sorted(set(read)) or min(read) < 0:
            raise BenchmarkError(
                f"Windows of {self.width} statements round {self.many} overlap each other or "
                f"{self.few}: a statement would be read twice. Move them apart or make them "
                "narrower."
            )
        needed = len(self.many) + -(-len(self.few) // self.width)
        turns_back = len(self.few) > self.groups and self.groups % self.width == 0
        if needed > self.groups or turns_back:
            raise BenchmarkError(
                f"{self.groups} groups of {self.width} questions do not go round: a long text "
                f"needs {needed} groups, and where there are fewer groups than cells of little "
                "evidence their number must be no multiple of the width, or a question would "
                "stand twice in a text. Change one of them."
            )

    @property
    def n_questions(self) -> int:
        """How many questions, and how many texts of each concept."""
        return self.groups * self.width

    @property
    def evidence(self) -> tuple[int, ...]:
        """The cells."""
        return (*self.few, *self.many)

    @property
    def long_evidence(self) -> tuple[int, ...]:
        """After how many statements a long text is read."""
        first = self.width // 2
        windows = (n - first + i for n in self.many for i in range(self.width))
        return (*self.few, *windows)

    def placed(self) -> tuple[list[list[int]], list[list[int]]]:
        """Return the questions of each long and each short text, at its readings in order.

        Latin squares: in every cell, over all texts of a concept, each question stands once.
        """
        g, w = self.groups, self.width
        long = [
            [
                *(w * ((t + len(self.many) + j // w) % g) + j % w for j in range(len(self.few))),
                *(w * ((t + at) % g) + i for at in range(len(self.many)) for i in range(w)),
            ]
            for t in range(g)
        ]
        short = [
            [w * ((s + j) % g) + (j % w + 1 + s // g) % w for j in range(len(self.few))]
            for s in range(g * (w - 1))
        ]
        return long, short

    def cell_of(self, evidence: int) -> int:
        """Return the cell that a reading after so many statements belongs to."""
        return int(np.argmin([abs(evidence - n) for n in self.evidence]))


@dataclass(frozen=True, slots=True)
class Text:
    """One context: its statements, and the questions that are read in it."""

    concept: int
    """1: all its adjectives are positive, -1: negative."""
    order: int
    """Number of the context; the same in both concepts, with the same nouns in the same order."""
    items: tuple[Item, ...]
    evidence: tuple[int, ...]
    questions: tuple[int, ...]


def choose_items(lm: steer.LM, *, seed: int) -> SentimentItems:
    """Return words that are one token each in this model, drawn by the seed.

    Raises:
        BenchmarkError: the tokenizer has too few of them as single tokens.
    """
    candidates = NOUN_LIST.split()
    nouns = [noun for noun in candidates if len(ids_of(lm, f" {noun}")) == 1]
    sides = [
        [word for word in words.split() if len(ids_of(lm, f" {word}")) == 1][:N_ADJECTIVES]
        for words in (POSITIVE_LIST, NEGATIVE_LIST)
    ]
    needed = N_QUESTIONS + N_CONTEXT + N_FIT
    if len(nouns) < needed or min(map(len, sides)) < N_ADJECTIVES:
        raise BenchmarkError(
            f"Of the {len(candidates)} nouns {len(nouns)} are single tokens of this model, of the "
            f"adjectives {len(sides[0])} and {len(sides[1])}; {needed} and {N_ADJECTIVES} are "
            "needed, so that a log-odds is read at one token. Use another model."
        )
    drawn = [nouns[at] for at in np.random.default_rng(seed).permutation(len(nouns))]
    ends = (N_QUESTIONS, N_QUESTIONS + N_CONTEXT, needed)
    return SentimentItems(
        tuple(drawn[: ends[0]]),
        tuple(drawn[ends[0] : ends[1]]),
        tuple(drawn[ends[1] : ends[2]]),
        tuple(sides[0]),
        tuple(sides[1]),
    )


def texts_of(
    items: SentimentItems, design: Design, *, seed: int
) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
    """Return the long and the short texts of both concepts.

    Raises:
        BenchmarkError: fewer questions than the design asks.
    """
    if len(items.questions) < design.n_questions:
        raise BenchmarkError(
            f"The design asks {design.n_questions} questions but there are "
            f"{len(items.questions)} question nouns. Add nouns, or use fewer groups."
        )
    rng = np.random.default_rng(seed)
    long, short = design.placed()
    made: list[list[Text]] = [[], []]
    for kind, (questions, evidence) in enumerate(
        ((long, design.long_evidence), (short, design.few))
    ):
        for at, asked in enumerate(questions):
            order = at + kind * len(long)
            made[kind] += _both_concepts(items, order, evidence, asked, rng)
    return tuple(made[0]), tuple(made[1])


def _both_concepts(
    items: SentimentItems,
    order: int,
    evidence: Sequence[int],
    asked: Sequence[int],
    rng: np.random.Generator,
) -> Iterator[Text]:
    n = evidence[-1] + 1
    nouns = _shuffled_rounds(items.context, n, rng)
    for place, question in zip(evidence, asked, strict=True):
        nouns[place] = items.questions[question]
    for concept in (1, -1):
        said = [str(word) for word in rng.choice(items.adjectives(concept), n)]
        yield Text(
            concept,
            order,
            tuple(zip(nouns, said, strict=True)),
            tuple(evidence),
            tuple(asked),
        )


def _shuffled_rounds(words: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return n words: all of them in random order, then all of them in another, and so on."""
    rounds = [rng.permutation(len(words)) for _ in range(-(-n // len(words)))]
    return [str(words[int(at)]) for at in np.concatenate(rounds)[:n]]


def statement(item: Item) -> str:
    """Return one statement, without the space before it."""
    return f"I thought the {item[0]} was {item[1]}."


def question(noun: str) -> str:
    """Return one question: a statement that stops before its adjective."""
    return f"I thought the {noun} was"


def ids_of(lm: steer.LM, text: str) -> list[int]:
    """Return the ids of a text, without any that the tokenizer would add."""
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def with_bos(lm: steer.LM, text: str) -> list[int]:
    """Return the ids of a text after the BOS token, put in by id: not every tokenizer adds it."""
    bos = lm.tokenizer.bos_token_id
    return [*([bos] if isinstance(bos, int) else []), *ids_of(lm, text)]


def row_of(lm: steer.LM, text: Text) -> tuple[list[int], list[int]]:
    """Return the ids of a text up to its last question, and where it is read: each `was`.

    Statement by statement, so that a statement has the same ids wherever it stands.
    """
    row = with_bos(lm, "")
    places = []
    for at, item in enumerate(text.items):
        space = " " if at else ""
        asked = ids_of(lm, f"{space}{question(item[0])}")
        if at in text.evidence:
            places.append(len(row) + len(asked) - 1)
        row += asked if at == len(text.items) - 1 else ids_of(lm, f"{space}{statement(item)}")
    return row, places


def at_all(positions: Sequence[int]) -> steer.Scope:
    """Return the scope of several positions."""
    return reduce(or_, (steer.at(position) for position in positions))
