"""Ablated: what taking something away did to each prompt, with no other run to compare with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer.patching import significance
from steer.patching.significance import Correction


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ablated:
    """A metric with each of some things taken away, prompt by prompt; on the host."""

    names: tuple[str, ...]
    values: Tensor
    """[name, prompt]"""
    natural: Tensor
    """[prompt]: with nothing taken away."""

    @property
    def change(self) -> Tensor:
        """[name]: the mean change of the metric, in its own units."""
        return (self.values - self.natural).double().mean(1)

    def interval(self, *, level: float = 0.95, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return the ends [name] of the change's interval, prompts drawn again."""
        moved = (self.values - self.natural).double().numpy()
        ends = significance.interval(moved, np.ones(moved.shape[1]), level=level, seed=seed)
        return torch.from_numpy(ends[0]), torch.from_numpy(ends[1])

    def p_values(self, *, correction: Correction = "max", seed: int = 0) -> Tensor:
        """Return [name]: of no change, signs of prompts turned; see `significance.p_values`."""
        moved = (self.values - self.natural).double().numpy()
        return torch.from_numpy(significance.p_values(moved, correction=correction, seed=seed))

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """Return the n largest changes by size."""
        order = self.change.abs().argsort(descending=True)[:n].tolist()
        return [(self.names[k], float(self.change[k])) for k in order]

    def plot(self) -> Any:
        """Return a plotly figure of the changes, with intervals where there are several prompts."""
        from steer.plots import bars  # plotly is only loaded by whoever draws

        ends = self.interval() if len(self.natural) > 1 else None
        return bars(
            self.names,
            self.change.numpy(),
            None if ends is None else (ends[0].numpy(), ends[1].numpy()),
            title=f"change of the metric, from {float(self.natural.mean()):.3g}, "
            f"{len(self.natural)} prompts",
        )

    def __repr__(self) -> str:
        """Say what was taken away, and the largest change."""
        name, change = self.top(1)[0]
        return (
            f"Ablated({len(self.names)} x {len(self.natural)} prompts, metric "
            f"{float(self.natural.mean()):.3g}; largest change {change:+.3g}: {name})"
        )
