"""What an interchange accuracy must be compared with: chance, rotations, arbitrary answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer.interchange.fitting import Subspace, Training, fit_das
from steer.interchange.trials import Accuracy, Trials, accuracy_of, hits_of
from steer.lm import LM


@dataclass(frozen=True, slots=True)
class Controls:
    """A subspace's accuracy beside those that it must beat; all on the same trials."""

    found: Accuracy
    whole: Accuracy
    """The whole state exchanged: what any subspace of this site could reach."""
    untouched: Accuracy
    """Nothing exchanged: how often the base's own answer is the expected one."""
    random: Accuracy
    """Random subspaces of as many dimensions, all trials of all draws together."""
    arbitrary: Accuracy | None
    """The same method taught permuted answers, scored on permuted answers."""

    def __repr__(self) -> str:
        """Say all of them."""
        parts = [
            f"found {self.found!r}",
            f"whole state {self.whole!r}",
            f"untouched {self.untouched!r}",
            f"random subspaces {self.random!r}",
        ]
        if self.arbitrary is not None:
            parts.append(f"arbitrary answers {self.arbitrary!r}")
        return "Controls(" + "; ".join(parts) + ")"


def controls(
    lm: LM,
    held_out: Trials,
    subspace: Subspace,
    *,
    train: Trials | None = None,
    training: Training = Training(),  # noqa: B008 - frozen
    n_random: int = 10,
    seed: int = 0,
) -> Controls:
    """Return a subspace's accuracy on held-out trials, and its controls'.

    Args:
        lm: the model.
        held_out: trials that it was not fitted on.
        subspace: what was fitted.
        train: the trials that it was fitted on: with them, DAS of as many dimensions is taught
            permuted answers. A method that learns those too finds what one tells it to find.
        training: of that control; the same as the subspace's.
        n_random: how many random subspaces.
        seed: of the draws.

    Raises:
        PlanError: as in `interchange_accuracy`.
    """
    site = subspace.site
    draws = random_subspaces(subspace.dims, subspace.basis.shape[1], n_random, seed=seed)
    bases: dict[str, Tensor | None] = {"found": subspace.basis, "whole": None}
    bases |= {f"random {k}": basis for k, basis in enumerate(draws)}
    hits = hits_of(lm, held_out, site, bases)
    arbitrary = None
    if train is not None:
        taught = train.relabelled(seed=seed)
        fake = fit_das(lm, taught, site, dims=subspace.dims, training=training)
        asked = held_out.relabelled(seed=seed + 1)
        arbitrary = accuracy_of(hits_of(lm, asked, site, {"arbitrary": fake.basis})[0])
    return Controls(
        accuracy_of(hits[0]),
        accuracy_of(hits[1]),
        accuracy_of(_untouched(lm, held_out, subspace)),
        accuracy_of(hits[2:].flatten()),
        arbitrary,
    )


def random_subspaces(dims: int, width: int, n: int, *, seed: int = 0) -> Sequence[Tensor]:
    """Return n orthonormal [dims, width], uniform over all rotations."""
    draw = torch.Generator().manual_seed(seed)
    return list(torch.linalg.qr(torch.randn(n, width, dims, generator=draw))[0].mT.contiguous())


def _untouched(lm: LM, some: Trials, subspace: Subspace) -> Tensor:
    """Return [trial] bool: hits with the base's own states written back."""
    return hits_of(lm, replace(some, source=some.base), subspace.site, {"own": None})[0]
