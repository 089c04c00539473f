"""How many rows fit: bytes of a row by the model's widths, and what is free on its device.

An upper estimate of the activations alive at one time; weights are not counted.
"""

from dataclasses import dataclass

import psutil
import torch

from steer.errors import PlanError
from steer.models.layout import Layout

SHARE = 0.5
"""Of what is free, unless a budget is given."""
MOST_TOKENS = 8192
"""Tokens of one pass: more bring nothing on any device and cost memory."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one row, from the widths of a model."""

    layout: Layout
    itemsize: int
    budget: int

    def row(self, tokens: int, columns: int, wide: int) -> int:
        """Return the bytes of a row that runs `tokens`, sees `columns`, and keeps `wide` logits."""
        of = self.layout
        s, heads, kv = self.itemsize, of.n_heads * of.d_head, of.n_kv_heads * of.d_head
        d_mlp = of.d_mlp or 4 * of.d_model
        # The stream, the norm's fp32 copy of it, and what an edit gathers and writes.
        stream = tokens * of.d_model * (3 * s + 3 * 4)
        attention = tokens * (2 * heads + 2 * kv) * s + columns * (4 * kv + 2 * heads) * s
        attention += tokens * columns * (1 + s)
        logits = wide * of.d_vocab * (s + 2 * 4)
        return stream + max(attention, tokens * d_mlp * 3 * s, logits)

    def kept(self, tokens: int, states: int, wide: int) -> int:
        """Return the bytes kept of one prompt: keys, values, states before blocks, logits."""
        of = self.layout
        cache = 2 * of.n_layers * of.n_kv_heads * of.d_head
        return (tokens * (cache + states * of.d_model) + wide * of.d_vocab) * self.itemsize

    def most_rows(self, tokens: int, columns: int, wide: int, kept: int) -> int:
        """Return how many rows of a pass fit beside what is kept.

        Raises:
            PlanError: not even one; says the smallest budget that would do.
        """
        one = self.row(tokens, columns, wide)
        fit = (self.budget - kept) // one
        if fit < 1:
            self.refuse(kept + one)
        return min(fit, max(1, MOST_TOKENS // tokens))

    def refuse(self, needed: int) -> None:
        """Refuse a budget below what one row needs.

        Raises:
            PlanError: always.
        """
        raise PlanError(
            f"A budget of {self.budget:,} bytes holds not one row of this sweep: it needs about "
            f"{needed:,}. The prompts' states and one row must fit at the same time. Give "
            f"budget={needed} or more, shorten the prompts, or measure fewer tokens."
        )


def free_bytes(device: torch.device) -> int:
    """Return what is free on a device, memory that torch holds unused included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)
