"""The manifold of mean and spread together, and how far off it states are after a change of mean.

A curve over the mean knows one spread only, and what a model expects after a change is wide: off
the curve need not be off the manifold. Texts of one wide law are the control.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
import steer
from benchmarks.normals.reading import LENGTH, Readings, draw, read, stretches
from benchmarks.normals.switching import AFTER, BEFORE, Texts

MEANS = tuple(2 + 5 * k / 6 for k in range(7))
SIGMAS = (0.5, 0.8, 1.2, 1.8, 2.6)
N_TEXTS, N_PERMUTED = 3, 5
COMPONENTS = 5
"""Principal components of M_h: more are noise of the averages, far from which every text is."""
WIDE = (4.5, 2.0)
"""Mean and standard deviation of the wide texts: the middle of a change, and its spread."""
SOON = 12
"""Digits after a change that count as soon after it."""


@dataclass(frozen=True, slots=True, eq=False)
class OffPlane:
    """Distances to M_h over (mean, log of the spread), in units of those of steady texts."""

    off: Float[Tensor, "text time"]
    """Of texts whose mean changes."""
    wide: Float[Tensor, "text time"]
    """Of texts of one wide law."""
    permuted: Float[Tensor, " draw"]
    """Of texts whose mean changes, soon after it, to surfaces through laws in a wrong order."""


def off_plane(lm: steer.LM, block: int, texts: Texts, seed: int) -> OffPlane:
    """Fit the surface at a block on texts of one law each, and measure those of a change.

    Args:
        lm: the model.
        block: where the states are read.
        texts: with a change, and without, read at that block.
        seed: of the texts, and of the wrong orders.
    """
    laws = [(mean, sigma) for mean in MEANS for sigma in SIGMAS]
    u = torch.tensor(laws).double()
    u[:, 1] = u[:, 1].log()
    train = _read(lm, draw(laws, N_TEXTS, LENGTH, seed), stretches(), block)
    wide = _read(lm, draw([WIDE], texts.n, BEFORE + AFTER, seed + 1), texts.after, block)
    x = train.states[0].flatten(0, 1)
    places = u.repeat_interleave(N_TEXTS * len(train.after), 0)
    surface = manifolds.fit_surface(x, places, n_components=COMPONENTS, smoothing="loo")
    off, unit = _distances(surface, texts)
    chooser = torch.Generator().manual_seed(seed)
    permuted = []
    for _ in range(N_PERMUTED):
        wrong = u[torch.randperm(len(u), generator=chooser)]
        wrong = wrong.repeat_interleave(N_TEXTS * len(train.after), 0)
        other = manifolds.fit_surface(x, wrong, subspace=surface.subspace, smoothing="loo")
        apart, own = _distances(other, texts)
        permuted.append(apart[:, texts.first : texts.first + SOON].mean() / own)
    within = surface.distance(surface.flatten(wide.states[0])).double()
    return OffPlane(off / unit, within / unit, torch.stack(permuted))


def _distances(surface: manifolds.Surface, texts: Texts) -> tuple[Tensor, Tensor]:
    """Return the distances of texts with a change, [text, time], and the mean of those without."""
    off = surface.distance(surface.flatten(texts.states)).double()
    return off[: texts.n], off[texts.n :].mean()


def _read(lm: steer.LM, digits: Tensor, after: tuple[int, ...], block: int) -> Readings:
    return read(lm, digits, torch.zeros(len(digits)), after, [block])
