"""Texts whose evidence switches: items for a concept, then items for its opposite, in one text.

`I thought the soup was terrible. I thought the hotel was` is read at every `was`: after 0, 1, ...
items, so that one pass gives the whole course of a belief. No noun comes twice in a text: a model
that copies would answer with the adjective that the noun had before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import steer
from benchmarks.errors import BenchmarkError

READ_BYTES = 200_000_000
"""Logits held at a time: a few texts at 65 readings each."""


@dataclass(frozen=True, slots=True)
class Words:
    """What items are made of; of each kind those are used that are one token."""

    nouns: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]


WORDS = Words(
    nouns=(
        *("soup", "hotel", "movie", "book", "song", "train", "park", "beach", "car", "phone"),
        *("game", "museum", "show", "story", "lecture", "speech", "flight", "meal", "wine"),
        *("coffee", "tea", "bread", "cake", "salad", "pizza", "pasta", "sandwich", "chicken"),
        *("fish", "dessert", "restaurant", "bar", "club", "concert", "album", "band", "play"),
        *("novel", "poem", "article", "film", "series", "episode", "festival", "party"),
        *("wedding", "trip", "tour", "journey", "bus", "taxi", "room", "bed", "pool", "garden"),
        *("view", "staff", "service", "guide", "teacher", "class", "course", "lesson", "school"),
        *("gallery", "painting", "theater", "stadium", "match", "race", "team", "coach", "camera"),
        *("laptop", "screen", "keyboard", "software", "website", "shop", "store", "market"),
        *("jacket", "shirt", "dress", "hat", "chair", "table", "lamp", "apartment", "house"),
    ),
    positive=(
        *("great", "wonderful", "excellent", "amazing", "fantastic", "good", "lovely"),
        *("brilliant", "perfect", "superb"),
    ),
    negative=(
        *("terrible", "awful", "horrible", "bad", "poor", "dreadful", "boring"),
        *("disappointing", "nasty", "ugly"),
    ),
)
N_ADJECTIVES = 8
"""Of each concept; half of them are the words of the control that switches words only."""


@dataclass(frozen=True, slots=True)
class Design:
    """Which texts are written."""

    words: Words = WORDS
    switches: Mapping[int, int] = field(
        default_factory=lambda: MappingProxyType({4: 16, 8: 16, 16: 24, 32: 32})
    )
    """Items before the switch: items after it."""
    n_adjectives: int = N_ADJECTIVES

    @property
    def longest(self) -> int:
        """The latest switch."""
        return max(self.switches)

    @property
    def n_items(self) -> int:
        """Items of the longest text."""
        return max(before + after for before, after in self.switches.items())


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of text; each context makes one of it."""

    kind: str
    """switch, no_switch, other_words or shuffled."""
    first: int
    """Concept of the items before the switch: 1 positive, 0 negative."""
    before: int
    after: int

    @property
    def toward(self) -> int:
        """Sign of the log-odds towards the other concept: -1 where positive came first."""
        return 1 - 2 * self.first


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """The log-odds at every item of every text."""

    arms: tuple[Arm, ...]
    events: Bool[Tensor, "arm context item"]
    """Whether an item was positive; False beyond a text's end."""
    log_odds: Float[Tensor, "arm context reading"]
    """Positive over negative words in nats; nan beyond a text's end."""

    @property
    def n_contexts(self) -> int:
        """Number of contexts."""
        return self.events.shape[1]


def arms_of(design: Design) -> tuple[Arm, ...]:
    """Return the texts that each context makes."""
    last, after = design.longest, design.switches[design.longest]
    switches = [Arm("switch", c, t, n) for t, n in design.switches.items() for c in (1, 0)]
    same = [Arm(k, c, last, after) for k in ("no_switch", "other_words") for c in (1, 0)]
    return (*switches, *same, Arm("shuffled", 1, last, after))


def read_switches(lm: steer.LM, design: Design, n_contexts: int, seed: int) -> Readings:
    """Write the texts, run them once and return the log-odds.

    Raises:
        BenchmarkError: too few nouns or adjectives are one token of this tokenizer.
    """
    nouns, positive, negative = _one_token(lm, design)
    chance = np.random.default_rng(seed)
    arms = arms_of(design)
    events = _events(arms, design, n_contexts, chance)
    which = _adjectives(arms, design, n_contexts, chance)
    order = np.stack(
        [chance.permutation(len(nouns))[: design.n_items + 1] for _ in range(n_contexts)]
    )
    layout = _Layout.of(lm)
    rows, lengths = [], []
    for a, arm in enumerate(arms):
        n = arm.before + arm.after
        for c in range(n_contexts):
            adjectives = torch.where(events[a, c], positive[which[a, c]], negative[which[a, c]])
            rows.append(layout.text(nouns[order[c, : n + 1]].tolist(), adjectives[:n].tolist()))
            lengths.append(n)
    found = torch.full((len(rows), design.n_items + 1), torch.nan, dtype=torch.float64)
    # Texts of one length have their readings at the same positions.
    for n in sorted(set(lengths)):
        at = [i for i, length in enumerate(lengths) if length == n]
        found[at, : n + 1] = _log_odds(
            lm, [rows[i] for i in at], layout.positions(n + 1), positive, negative
        )
    return Readings(arms, events, found.unflatten(0, (len(arms), n_contexts)))


def _events(
    arms: Sequence[Arm], design: Design, n_contexts: int, chance: np.random.Generator
) -> Bool[Tensor, "arm context item"]:
    """Return whether each item is positive; shuffled texts hold the items of the latest switch."""
    item = np.arange(design.n_items)
    whole = np.zeros((len(arms), n_contexts, design.n_items), dtype=bool)
    for a, arm in enumerate(arms):
        second = arm.first if arm.kind in ("no_switch", "other_words") else 1 - arm.first
        one = np.where(item < arm.before, arm.first, second).astype(bool)
        one &= item < arm.before + arm.after
        whole[a] = one
        if arm.kind == "shuffled":
            n = arm.before + arm.after
            whole[a, :, :n] = chance.permuted(whole[a, :, :n], axis=1)
    return torch.tensor(whole)


def _adjectives(
    arms: Sequence[Arm], design: Design, n_contexts: int, chance: np.random.Generator
) -> Int[Tensor, "arm context item"]:
    """Return which adjective each item takes: the same at one place in all texts of a context.

    So texts share what comes before the first switch. The control of other words draws from one
    half of the words before the place of the switch and from the other half after it.
    """
    drawn = chance.integers(0, design.n_adjectives, (n_contexts, design.n_items))
    half = design.n_adjectives // 2
    late = np.arange(design.n_items) >= design.longest
    split = drawn % half + half * late
    return torch.tensor(np.stack([split if arm.kind == "other_words" else drawn for arm in arms]))


@dataclass(frozen=True, slots=True)
class _Layout:
    """The ids of what stands between nouns and adjectives."""

    bos: list[int]
    opening: list[int]
    again: list[int]
    was: list[int]
    stop: list[int]

    @classmethod
    def of(cls, lm: steer.LM) -> "_Layout":
        bos = lm.tokenizer.bos_token_id
        # Some tokenizers put BOS in front and others do not: it is put in by id.
        return cls(
            [bos] if isinstance(bos, int) else [],
            *(_ids(lm, piece) for piece in ("I thought the", " I thought the", " was", ".")),
        )

    def text(self, nouns: Sequence[int], adjectives: Sequence[int]) -> list[int]:
        """Return the ids of the items, and of a last one that ends at `was`."""
        ids = list(self.bos)
        for i, noun in enumerate(nouns):
            ids += [*(self.again if i else self.opening), noun, *self.was]
            if i < len(adjectives):
                ids += [adjectives[i], *self.stop]
        return ids

    def positions(self, n: int) -> list[int]:
        """Return where the first n readings are: at the last token of each `was`."""
        first = len(self.bos) + len(self.opening) + len(self.was)
        step = len(self.again) + len(self.was) + len(self.stop) + 2
        return [first + step * i for i in range(n)]


def _log_odds(
    lm: steer.LM,
    rows: Sequence[list[int]],
    positions: Sequence[int],
    positive: Tensor,
    negative: Tensor,
) -> Float[Tensor, "row reading"]:
    scope = reduce(or_, (steer.at(p) for p in positions))
    config = getattr(lm.model.config, "text_config", lm.model.config)
    each = max(1, READ_BYTES // (4 * len(positions) * int(config.vocab_size)))
    found = []
    for first in range(0, len(rows), each):
        logits = lm.logits([*rows[first : first + each]], scope=scope)
        logits = logits.reshape(-1, len(positions), logits.shape[-1])
        odds = [
            logits[..., t.to(logits.device)].double().logsumexp(-1) for t in (positive, negative)
        ]
        found.append((odds[0] - odds[1]).cpu())
    return torch.cat(found)


def _one_token(lm: steer.LM, design: Design) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    needs = (design.n_items + 1, design.n_adjectives, design.n_adjectives)
    for kind, need in zip(("nouns", "positive", "negative"), needs, strict=True):
        words = getattr(design.words, kind)
        ids = [_ids(lm, f" {word}") for word in words]
        single = [one[0] for one in ids if len(one) == 1]
        if len(single) < need:
            raise BenchmarkError(
                f"Of {len(words)} {kind} words {len(single)} are one token of this model's "
                f"tokenizer, and {need} are needed: readings are at the same place in every text, "
                "and no noun comes twice. Run this task on another model, or with other words."
            )
        found.append(torch.tensor(single if kind == "nouns" else single[:need]))
    return found[0], found[1], found[2]


def _ids(lm: steer.LM, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
