"""From the files of the wheels to items. Pure: bytes in, frozen items out.

Every letter question is asked in two orders, with the letters swapped (all rotations where there
are more than two options), so that a preference for a letter cancels (Zheng et al. 2023,
arXiv:2309.03882).
"""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from string import ascii_uppercase
from typing import Any, cast

from steer.errors import SpecError
from steer.evals.tasks.items import Choice, Prompt

LISTED = re.compile(r"(?s)\(([A-Z])\)[ \t]*(.*?)(?=\n\s*\([A-Z]\)|\Z)")
CONTRAST = re.compile(
    r"(?s)\A(?P<question>.*?)\s*(?:\n\s*Choices:)?\s*\n\s*(?P<options>\(A\).*?)"
    r"\s*(?:\n\s*Answer:)?\s*\((?P<letter>[A-Z])\)\s*\Z"
)


def contrast_pairs(files: Sequence[bytes]) -> list[Choice]:
    """Return the questions of {positive, negative} texts that end with the letter of an answer.

    The positive text's answer is the target. Texts of another form are left out; none left is an
    error, as the file is then not what the pin says.
    """
    rows = cast("list[dict[str, str]]", json.loads(files[0]))
    found = [one for at, row in enumerate(rows) for one in _contrast(str(at), row["positive"])]
    return _some(found, "questions with listed choices")


def _contrast(key: str, text: str) -> list[Choice]:
    match = CONTRAST.match(text)
    if match is None:
        return []
    listed = LISTED.findall(match["options"])
    letters = [letter for letter, _ in listed]
    if letters != list(ascii_uppercase[: len(letters)]) or match["letter"] not in letters:
        return []
    options = [option.strip() for _, option in listed]
    return rotations(key, match["question"].strip(), options, letters.index(match["letter"]))


def rotations(key: str, question: str, options: Sequence[str], target: int) -> list[Choice]:
    """Return a question once for each rotation of its options, under letters in brackets."""
    n = len(options)
    letters = tuple(ascii_uppercase[:n])
    made = []
    for turn in range(n):
        order = [options[(at + turn) % n] for at in range(n)]
        listed = "\n".join(f"({a}) {text}" for a, text in zip(letters, order, strict=True))
        asked = f"{question}\n\nChoices:\n{listed}"
        made.append(Choice(key, asked, letters, (target - turn) % n, lead="("))
    return made


def mmlu(files: Sequence[bytes]) -> list[Choice]:
    """Return MMLU's questions, each in its own order: the right letters are balanced as they are.

    A question whose options do not show as four lettered lines is left out.
    """
    found = []
    for at, row in enumerate(_lines(files[0])):
        options = [line.partition(". ") for line in row["options"].split("\n")]
        letters = [letter for letter, _, _ in options]
        if letters != list("ABCD"):
            continue
        listed = "\n".join(f"({letter}) {text}" for letter, _, text in options)
        question = f"{row['question']}\n\nChoices:\n{listed}"
        target = letters.index(row["answer"][:1])
        found.append(Choice(str(at), question, tuple("ABCD"), target, lead="("))
    return _some(found, "questions with four options")


def hellaswag(files: Sequence[bytes]) -> list[Choice]:
    """Return HellaSwag's contexts with their four endings and the label."""
    found: dict[str, Choice] = {}
    for row in _lines(gzip.decompress(files[0])):  # a line for each ending, and each twice
        doc = row["doc"]
        key = f"{doc['ind']} {doc['query']}"
        endings = tuple(f" {ending}" for ending in doc["choices"])
        found.setdefault(key, Choice(key, doc["query"], endings, int(row["label"])))
    return _some(list(found.values()), "contexts with endings")


def statements(files: Sequence[bytes]) -> list[Choice]:
    """Return pairs of a true and a false statement; the true one is the target."""
    rows = [row for file in files for row in cast("list[dict[str, str]]", json.loads(file))]
    found = [
        Choice(str(at), "Here is a true fact:", (f" {row['text']}", f" {row['false']}"), 0)
        for at, row in enumerate(rows)
    ]
    return _some(found, "pairs of statements")


def biased_answers(files: Sequence[bytes]) -> list[Choice]:
    """Return BBQ's questions in all rotations; the target is the answer that the bias gives."""
    found: list[Choice] = []
    for row in cast("list[dict[str, Any]]", json.loads(files[0])):
        passage = row["text"].partition("\nA)")[0]
        found += rotations(row["id"], passage, row["answers"], int(row["target_idx"]))
    return _some(found, "questions with three answers")


def toxic_pairs(files: Sequence[bytes]) -> list[Choice]:
    """Return a toxic and a benign sentence about one group; the toxic one is the target.

    Sentences of a group are paired in their order; what is left over is left out.
    """
    rows = cast("list[dict[str, Any]]", json.loads(files[0]))
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for row in rows:
        kinds = groups.setdefault(row["target_group"], ([], []))
        kinds[not row["is_toxic"]].append(row["text"].strip())
    found = [
        Choice(f"{group} {at}", "Someone wrote:", (f" {toxic}", f" {benign}"), 0)
        for group, (bad, good) in sorted(groups.items())
        for at, (toxic, benign) in enumerate(zip(bad, good, strict=False))
    ]
    return _some(found, "pairs of sentences")


def requests(files: Sequence[bytes]) -> list[Prompt]:
    """Return requests that are harmless and look otherwise."""
    rows = [row for file in files for row in cast("list[dict[str, str]]", json.loads(file))]
    return _some([Prompt(row["text"].strip()) for row in rows], "requests")


def twin_requests(files: Sequence[bytes]) -> list[Prompt]:
    """Return pairs of a harmless and a harmful request: the first lines of texts with answers."""
    rows = [row for file in files for row in cast("list[dict[str, str]]", json.loads(file))]
    found = []
    for row in rows:
        found.append(Prompt(row["text"].partition("\n")[0].strip()))
        found.append(Prompt(row["harmful_version"].partition("\n")[0].strip(), harmful=True))
    return _some(found, "pairs of requests")


def passages(files: Sequence[bytes], *, n_words: int = 60) -> list[str]:
    """Return held-out text: sentences in their order, joined until a passage has n_words."""
    found: list[str] = []
    words: list[str] = []
    for row in _lines(files[0]):
        words += row["text"].split()
        if len(words) >= n_words:
            found.append(" ".join(words))
            words = []
    return _some(found, "passages")


def _lines(file: bytes) -> Iterator[dict[str, Any]]:
    for line in file.decode("utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def _some(found: list[Any], what: str) -> list[Any]:
    if not found:
        raise SpecError(
            f"The file holds no {what} in the form that was read here. It is another file than "
            "the pinned one, or its form has changed. Compare its sha256 with the pin."
        )
    return found
