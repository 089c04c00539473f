"""Questions of our own, for models that know nothing."""

import pytest
import torch
from torch import Tensor

import steer
from steer.evals.tasks import Choice, Prompt
from steer.evals.tasks.parsing import rotations

WORDS = ["tea", "coffee", "milk", "water", "juice", "soup", "bread", "rice", "corn", "salt"]


@pytest.fixture
def letters() -> list[Choice]:
    """Return six questions of two options and one of three, in all orders."""
    found = []
    for at in range(6):
        pair = [WORDS[at], WORDS[at + 1]]
        found += rotations(str(at), f"Do you like {pair[0]} or {pair[1]}?", pair, at % 2)
    return found + rotations("three", "Which one?", WORDS[:3], 2)


@pytest.fixture
def endings() -> list[Choice]:
    """Return four questions whose options are several tokens."""
    return [
        Choice(str(at), f"She drank {WORDS[at]}", (f" and {WORDS[at + 1]}.", " then left now."), 0)
        for at in range(4)
    ]


@pytest.fixture
def requests() -> list[Prompt]:
    """Return four requests of each kind, all harmless in truth."""
    return [Prompt(f"How to make {WORDS[at]}?", harmful=at % 2 == 1) for at in range(8)]


@pytest.fixture
def texts() -> list[str]:
    """Return six passages."""
    return [" ".join(WORDS[(at + n) % 10] for n in range(24)) + "." for at in range(6)]


class Dot:
    """A probe: the coordinate along one direction."""

    def __init__(self, direction: Tensor) -> None:
        """Hold the direction."""
        self.direction = direction

    def scores(self, x: Tensor) -> Tensor:
        """Return the coordinate."""
        return x.float() @ self.direction.to(x.device)


def vector(lm: steer.LM, seed: int = 0, length: float = 4.0) -> Tensor:
    """Return a direction of a length."""
    drawn = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))
    return length * drawn / drawn.norm()


def add(lm: steer.LM, seed: int = 0, scope: steer.Scope = steer.ALL) -> list[steer.Add]:
    """Return a plan of one addition."""
    return [steer.Add(steer.Site(1), vector(lm, seed), scope=scope)]
