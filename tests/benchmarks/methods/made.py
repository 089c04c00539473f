"""Made-up questions and texts for a tiny model."""

from random import Random

from benchmarks.methods import questions
from benchmarks.methods.questions import Behaviour
from steer.evals.tasks import Choice
from steer.evals.tasks.parsing import rotations

WORDS = ["red", "blue", "warm", "cold", "tall", "thin", "old", "new", "wet", "dry", "fast", "slow"]
TEXTS = [f"the {a} {b} was {c}" for a, b, c in zip(WORDS, WORDS[3:], WORDS[5:], strict=False)][:4]


def made(n: int) -> list[Choice]:
    """Return questions with two options, each in both orders."""
    lot = Random(0)
    found: list[Choice] = []
    for key in range(n):
        first, second = lot.sample(WORDS, 2)
        found += rotations(str(key), f"q{key}?", [first, second], key % 2)
    return found


def behaviour(name: str = "made", n_held_out: int = 5) -> Behaviour:
    """Return them in three parts, the same at every call."""
    return questions.split(name, "Say red.", made(23), n_held_out, seed=0)


def keys(items: tuple[Choice, ...]) -> set[str]:
    """Return the questions of some items."""
    return {item.key for item in items}
