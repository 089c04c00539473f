"""Digits drawn from a Gaussian whose mean switches, and a model's reading of them, digit by digit.

The texts of `gaussian`. One text is one pass: the next digit's chances are read at every comma.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import steer
from benchmarks.errors import BenchmarkError

BATCH = 8
DIGITS = torch.arange(10, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class GaussianDesign:
    """Which texts are written."""

    means: tuple[tuple[float, float], ...] = ((2, 7), (7, 2), (3, 6), (6, 3))
    """Before and after the switch."""
    sigmas: tuple[float, ...] = (0.7, 1.5)
    before: int = 60
    after: int = 60


@dataclass(frozen=True, slots=True, eq=False)
class DigitReadings:
    """What a model expects after 1, 2, ... digits of every text."""

    digits: Int[Tensor, "text time"]
    probabilities: Float[Tensor, "text time digit"]
    """Of the next digit, over the mass of all ten."""
    mass: Float[Tensor, "text time"]
    """Probability of all ten digits together."""
    states: Float[Tensor, "text time d_model"]
    """The residual stream after the middle block."""

    def mean(self) -> Float[Tensor, "text time"]:
        """Return the expected next digit."""
        return self.probabilities @ DIGITS

    def spread(self) -> Float[Tensor, "text time"]:
        """Return the standard deviation of the next digit."""
        about = (DIGITS - self.mean()[..., None]).square()
        return (self.probabilities * about).sum(-1).sqrt()


def draw_digits(design: GaussianDesign, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return [text, time] digits that switch and the same digits of each text in random order.

    Texts of a condition follow one another: means change slowest, then sigmas.
    """
    chance = np.random.default_rng(seed)
    first, second, sigma = (v.numpy()[:, None] for v in conditions(design, n))
    time = np.arange(design.before + design.after)
    normal = chance.standard_normal((len(first), len(time)))
    drawn = np.where(time < design.before, first, second) + sigma * normal
    digits = drawn.round().clip(0, 9).astype(int)
    return torch.tensor(digits), torch.tensor(chance.permuted(digits, axis=1))


def conditions(design: GaussianDesign, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean before, the mean after and the sigma of each text."""
    rows = [(a, b, s) for a, b in design.means for s in design.sigmas for _ in range(n)]
    first, second, sigma = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return first, second, sigma


def read_digits(lm: steer.LM, digits: Int[Tensor, "text time"]) -> DigitReadings:
    """Return the readings at the comma after every digit, in one pass over each text.

    Raises:
        BenchmarkError: a digit or the comma is not one token.
    """
    found = [_ids(lm, piece) for piece in (*"0123456789", ",")]
    if any(len(one) != 1 for one in found) or len({one[0] for one in found}) < 11:
        raise BenchmarkError(
            "The tokenizer does not give each digit and the comma one token of its own, so the "
            "next digit's chance is in no single place. Run this task on another model."
        )
    *ids, comma = (one[0] for one in found)
    bos = lm.tokenizer.bos_token_id
    # Some tokenizers put BOS in front and others do not: it is put in by id.
    start = [bos] if isinstance(bos, int) else []
    rows = [start + [i for d in row for i in (ids[d], comma)] for row in digits.tolist()]
    scope = reduce(or_, (steer.at(len(start) + 2 * t + 1) for t in range(digits.shape[1])))
    site, out = steer.Site(_middle(lm), "resid_post"), steer.Site.logits()
    probabilities, mass, states = [], [], []
    for at in range(0, len(rows), BATCH):
        acts = lm.capture(rows[at : at + BATCH], [site, out], scope=scope)
        logits = acts[out].reshape(-1, digits.shape[1], acts[out].shape[-1])
        chosen = logits[..., ids].double().cpu()
        probabilities.append(chosen.softmax(-1))
        whole = logits.float().logsumexp(-1).double().cpu()
        mass.append((chosen.logsumexp(-1) - whole).exp())
        states.append(acts[site].reshape(*logits.shape[:2], -1).double().cpu())
    return DigitReadings(digits, *(torch.cat(v) for v in (probabilities, mass, states)))


def _ids(lm: steer.LM, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def _middle(lm: steer.LM) -> int:
    config = getattr(lm.model.config, "text_config", lm.model.config)
    return int(config.num_hidden_layers) // 2
