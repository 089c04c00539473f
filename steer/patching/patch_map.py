"""PatchMap: what each patch did to each pair of prompts, and what of it is more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from steer.errors import PlanError
from steer.patching import significance
from steer.patching.significance import Correction
from steer.sites import AnySite, Site

Direction = Literal["denoise", "noise"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PatchMap:
    """Patches at places x columns, measured for every pair of prompts; all tensors on the host."""

    places: tuple[str, ...]
    """What was patched: sites, one for each row of the map, with their neurons if asked for."""
    sites: tuple[AnySite, ...]
    """[place]: the site of each."""
    columns: tuple[str, ...]
    """At which tokens: positions with the token that all pairs share there, or scopes."""
    values: Tensor
    """[place, column, pair]: the metric with the patch; NaN where a pair has no such token."""
    into: Tensor
    """[pair]: the metric of the prompts that are patched, without any."""
    out_of: Tensor
    """[pair]: the metric of the prompts whose values are written."""
    direction: Direction
    baseline: str
    token_blocks: int
    """What the patched passes ran: tokens times blocks."""

    @property
    def clean(self) -> Tensor:
        """[pair]: the metric of the clean prompts."""
        return self.out_of if self.direction == "denoise" else self.into

    @property
    def corrupted(self) -> Tensor:
        """[pair]: the metric of the corrupted prompts."""
        return self.into if self.direction == "denoise" else self.out_of

    @property
    def change(self) -> Tensor:
        """[place, column, pair]: how far each patch moves the metric, in its own units."""
        return self.values - self.into

    @property
    def effect(self) -> Tensor:
        """[place, column]: the mean change as a share of the mean gap between the two runs.

        0 where a patch does nothing, 1 where it does what exchanging the whole prompt does. Over
        pairs, not a mean of shares: a pair that barely differs would else outweigh all others.
        """
        ones = np.ones((1, len(self.into)))
        found = significance.quotients(self._cells(), self._gap(), ones)[0]
        return self._map(found)

    def interval(
        self, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the ends [place, column] of the effect's interval, pairs drawn again.

        Raises:
            PlanError: one pair only.
        """
        if len(self.into) < 2:
            raise PlanError(
                "There is one pair of prompts, so nothing can be drawn again. An interval over "
                "prompts needs several. Give more pairs."
            )
        lo, hi = significance.interval(
            self._cells(), self._gap(), level=level, n_resamples=n_resamples, seed=seed
        )
        return self._map(lo), self._map(hi)

    def p_values(
        self, *, correction: Correction = "max", n_permutations: int = 2000, seed: int = 0
    ) -> Tensor:
        """Return [place, column]: p-values of no change, corrected for the number of cells.

        Signs of whole pairs are turned; see `significance.p_values`.

        Raises:
            PlanError: one pair only, or an unknown correction.
        """
        found = significance.p_values(
            self._cells(), correction=correction, n_permutations=n_permutations, seed=seed
        )
        return self._map(found)

    def top(self, n: int = 10) -> list[tuple[str, str, float]]:
        """Return the n largest effects by size: place, column, effect."""
        flat = self.effect.flatten()
        order = flat.abs().nan_to_num(-1.0).argsort(descending=True)[:n].tolist()
        width = len(self.columns)
        return [(self.places[k // width], self.columns[k % width], float(flat[k])) for k in order]

    def by_head(self) -> Tensor:
        """Return [layer, head, column]: the effect as a grid, for a map of single heads.

        Raises:
            PlanError: its places are not single heads, the same number in every layer.
        """
        heads = [site for site in self.sites if isinstance(site, Site) and site.head is not None]
        layers = list(dict.fromkeys(site.layer for site in heads))
        n_heads = len(heads) // max(len(layers), 1)
        grid = [(layer, head) for layer in layers for head in range(n_heads)]
        if len(heads) < len(self.sites) or [(s.layer, s.head) for s in heads] != grid:
            raise PlanError(
                f"This map's places are {', '.join(self.places[:3])}, ...: not every head of some "
                "layers in order. Only those make a grid. Patch patching.heads(lm)."
            )
        return self.effect.reshape(len(layers), n_heads, len(self.columns))

    def plot(self) -> Any:
        """Return a plotly figure of the effect, places by columns."""
        # plotly is only loaded by whoever draws.
        from steer.plots import heat_map

        return heat_map(
            self.effect.numpy(),
            rows=self.places,
            columns=self.columns,
            title=f"{self.direction}, {self.baseline}: share of the gap, {len(self.into)} pairs",
        )

    def __repr__(self) -> str:
        """Say what was patched, and the largest effect."""
        place, column, effect = self.top(1)[0]
        return (
            f"PatchMap({len(self.places)} places x {len(self.columns)} columns x "
            f"{len(self.into)} pairs, {self.direction}, {self.baseline}; largest {effect:.2f} at "
            f"{place}, {column}; {self.token_blocks:,} token-blocks)"
        )

    def _cells(self) -> np.ndarray:
        return self.change.double().flatten(0, 1).numpy()

    def _gap(self) -> np.ndarray:
        return (self.out_of - self.into).double().numpy()

    def _map(self, cells: np.ndarray) -> Tensor:
        return torch.from_numpy(cells).reshape(len(self.places), len(self.columns))


def joined_names(places: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return a name for each arm, places first."""
    return [f"{place} @ {column}" for place in places for column in columns]
