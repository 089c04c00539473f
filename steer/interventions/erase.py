"""Erase: what a linear probe could read of a concept, taken out of the states of a pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor

from steer.interventions.arithmetic import Strength, precise, scaled
from steer.interventions.linear import no_relative
from steer.interventions.recipe import Recipe, batch_length
from steer.protocols import Eraser
from steer.scopes import ALL, Scope
from steer.sites import AnySite
from steer.step import Step


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Erase(Recipe):
    """Take a concept out: h <- h + strength * (eraser(h) - h).

    With `probes.fit_erasure` this is least-squares concept erasure (Belrose et al. 2023,
    arXiv:2306.03819), which unlike `Ablate` leaves no linear trace of the concept, as its
    projection is oblique and about the mean. Later blocks can write the concept again: erase at
    each site to keep it out (there called concept scrubbing), each fitted on states in which the
    earlier ones are erased: `lm.capture(..., plan=[...])`.

    Raises:
        WidthMismatch: at attach, an eraser fitted on states of another width.
    """

    kind: ClassVar[str] = "steer.Erase"
    site: AnySite
    eraser: Eraser
    strength: Strength = 1.0
    scope: Scope = ALL

    def __post_init__(self) -> None:
        """Check the strength."""
        object.__setattr__(self, "strength", no_relative(self.strength, "Erase"))

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h without the concept."""
        x = precise(h)
        return scaled(h, self.eraser.apply(x) - x, self.strength, step)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        width = cast("int | None", getattr(self.eraser, "d_model", None))
        return {} if width is None else {"the eraser": width}

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(strength=self.strength)

    def __repr__(self) -> str:
        """Say where and what."""
        return f"Erase({self.site}, {self.eraser!r}, scope={self.scope!r})"
