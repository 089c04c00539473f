"""Each row's next token: its own temperature, its own generator, its own log-probabilities."""

import secrets
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steer.bookkeeping import Pass
from steer.evals.batching.asked import Asked, Sampling
from steer.sites import AnySite


class Chooser(LogitsProcessor):
    """Chooses for every row of a batch, inside generate.

    generate knows one temperature for the whole batch. So it is asked for the likeliest token, and
    sees scores in which the token that was drawn for a row is the only one left.
    """

    def __init__(self, rows: Sequence[Asked], allowed: Callable[[Tensor], None]) -> None:
        """Draw the seeds that nobody gave.

        Args:
            rows: of the batch.
            allowed: told, before each choice, which rows have logits that are all numbers: [row].
        """
        self.rows = rows
        self.allowed = allowed
        self.seeds = [_seed(row.sampling) for row in rows]
        self.logits: Tensor | None = None
        self.log_probs: list[Tensor] = []
        self.top: list[tuple[Tensor, Tensor]] = []
        self._n_top = max(row.top for row in rows)
        self._drawn = _groups(rows)
        self._generators: dict[int, torch.Generator] = {}

    def take(self, _site: AnySite, logits: Tensor, _now: Pass) -> None:
        """Keep the model's own logits for the next token."""
        self.logits = logits[:, -1].detach()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return scores whose largest entry is each row's choice."""
        assert self.logits is not None
        # Minus infinity is a token that the model rules out; the rest is an overflow.
        fine = ~(self.logits.isnan() | (self.logits == float("inf"))).any(-1)
        self.allowed(fine)
        if not bool(fine.all()):
            scores = torch.where(fine[:, None], scores, torch.zeros_like(scores))
        chosen = scores.argmax(-1)
        for sampling, rows in self._drawn.items():
            chosen = chosen.index_copy(
                0, rows.to(chosen.device), self._draw(sampling, rows, scores)
            )
        log_probs = self.logits.float().log_softmax(-1)
        self.log_probs.append(log_probs.gather(1, chosen[:, None])[:, 0])
        if self._n_top:
            found = log_probs.topk(min(self._n_top, log_probs.shape[-1]), dim=-1)
            self.top.append((found.indices, found.values))
        picked = torch.full_like(scores, float("-inf"))
        return picked.scatter(1, chosen[:, None], 0.0)

    def _draw(self, sampling: tuple[float, int, float], rows: Tensor, scores: Tensor) -> Tensor:
        temperature, top_k, top_p = sampling
        warped = scores[rows.to(scores.device)]
        nothing = torch.empty(0, dtype=torch.long)
        warpers = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
        warpers += [TopKLogitsWarper(top_k)] if top_k else []
        warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        for warp in warpers:
            warped = warp(nothing, warped)  # type: ignore[arg-type]
        probabilities = warped.softmax(-1)
        # One draw per row: each has a generator of its own, and multinomial takes only one.
        drawn = [
            torch.multinomial(p, 1, generator=self._generator(row, p.device))
            for row, p in zip(rows.tolist(), probabilities, strict=True)
        ]
        return torch.cat(drawn)

    def _generator(self, row: int, device: torch.device) -> torch.Generator:
        if row not in self._generators:
            seed = self.seeds[row]
            assert seed is not None
            self._generators[row] = torch.Generator(device).manual_seed(seed)
        return self._generators[row]


def _seed(sampling: Sampling) -> int | None:
    if sampling.temperature == 0:
        return None
    return secrets.randbits(48) if sampling.seed is None else sampling.seed


def _groups(rows: Sequence[Asked]) -> dict[tuple[float, int, float], Tensor]:
    """Return the rows that draw, by how they do."""
    found: dict[tuple[float, int, float], list[int]] = {}
    for at, row in enumerate(rows):
        if row.sampling.temperature > 0:
            one = row.sampling
            found.setdefault((one.temperature, one.top_k, one.top_p), []).append(at)
    return {key: torch.tensor(at) for key, at in found.items()}
