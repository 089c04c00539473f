"""Counting contexts: `41, 42, 43, 4` is to go on with the last digit of 44.

Two-digit numbers are two tokens in most tokenizers of today, so the first digit is given and the
state at it is about to say the second. Train and test introductions were written together and
split before anything was fitted.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

import steer
from benchmarks.errors import BenchmarkError

NUMBERS = tuple(range(13, 100))
"""What is about to be said; three numbers of two digits come before each."""
TRAIN = ("Count: ", "The pages are numbered ", "In order: ", "She counted aloud: ")
TEST = ("The next numbers are ", "Bus stops: ")
SHOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Counting:
    """Prompts that are about to say the last digit of a number, and how they were read."""

    rows: list[list[int]]
    number: Int[Tensor, " row"]
    digits: Int[Tensor, " ten"]
    """The tokens of the ten digits."""
    states: Float[Tensor, "site row d_model"]
    logits: Float[Tensor, "row ten"]
    """Of the ten digits, unsteered."""

    @property
    def correct(self) -> Tensor:
        """[row] bool: the likeliest digit is the right one."""
        return self.logits.argmax(-1) == self.number % 10


def read(lm: steer.LM, introductions: tuple[str, ...], numbers: tuple[int, ...]) -> Counting:
    """Return the states after every block at the last token, for each introduction and number.

    Raises:
        BenchmarkError: a tokenizer in which a digit is not one token.
    """
    digits = [ids_of(lm, str(d)) for d in range(10)]
    if any(len(ids) != 1 for ids in digits) or len(ids_of(lm, "47")) != 2:
        raise BenchmarkError(
            "This tokenizer does not write 47 as the two tokens 4 and 7, and the task reads the "
            "state between them. Use a model that writes digit by digit, as SmolLM2 and Gemma do."
        )
    bos = lm.tokenizer.bos_token_id
    rows, number = [], []
    for introduction in introductions:
        for n in numbers:
            shown = "".join(f"{k}, " for k in range(n - SHOWN, n))
            ids = ids_of(lm, f"{introduction}{shown}{n // 10}")
            rows.append(ids if bos is None else [bos, *ids])
            number.append(n)
    sites = lm.sites("resid_post")
    acts = lm.capture(rows, [*sites, steer.Site.logits()], scope=steer.LAST)
    tokens = torch.tensor([ids[0] for ids in digits])
    logits = acts[steer.Site.logits()][:, tokens].float()
    states = torch.stack([acts[site].float() for site in sites])
    return Counting(rows, torch.tensor(number), tokens, states, logits)


def ids_of(lm: steer.LM, text: str) -> list[int]:
    """Return the token ids of a text, without special tokens."""
    found = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [int(i) for i in found]
