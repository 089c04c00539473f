"""Is a subspace's effect its own? The checks for the interpretability illusion of patching.

Makelov et al. 2023 (arXiv:2311.17030): a direction that varies with the variable but that nothing
reads, plus one that is read but never varies, has an effect when patched although neither does
anything in the model. The projection on the sum varies, and patching writes it onto what is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steer.attribution.slopes import run_rows, slopes_of, used_at
from steer.engine import Batch, Measure
from steer.errors import PlanError
from steer.interchange.controls import random_subspaces
from steer.interchange.trials import states_of
from steer.interventions import Patch
from steer.interventions.arithmetic import as_basis
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.patching.pairs import one_per_row, pairs_of, require_gap, source_metric
from steer.patching.significance import interval, quotients
from steer.prompts import Prompts
from steer.scopes import LAST, Scope
from steer.sites import Site
from steer.sweep import sweep as run_arms

WRITERS = {"mlp_post": "mlp_out", "z": "attn_out"}
PARTS = ("subspace", "read part", "unread part", "whole")
ENOUGH = 0.5
"""A subspace is called an illusion if its read part does less than this share of its effect."""
TOO_MUCH = 1.5
"""Or if it does more than so many times what the whole state does."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IllusionReport:
    """What patching a subspace does, and what its parts do by themselves."""

    site: Site
    dims: int
    effects: dict[str, tuple[float, float, float]]
    """Share of the gap (value, lower, upper): the subspace, its part that is read by what follows,
    its part that is not, the whole state, and "random" subspaces of as many dimensions."""
    lost: tuple[float, float, float]
    """The subspace's effect minus its read part's, with its interval."""
    exceeds: tuple[float, float, float]
    """The subspace's effect minus the whole state's, with its interval."""
    read_share: float
    """How much of the subspace (mean squared length of its directions) is read."""
    variance: dict[str, float]
    """Variance of the states per direction, over the mean per direction of the whole state's: of
    the subspace and of its read part. Near 0: it is dormant, no prompt ever moves it."""
    gradient_cosine: float
    """Length of the unit mean gradient of the metric within the subspace."""
    difference_cosine: float
    """Length of the unit mean difference of the pairs within it."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the effect is not the subspace's own; empty where nothing speaks against it.

        Its read part alone does less than half of what it does, and the loss is more than the
        pairs' spread. Or it does more than half as much again as the whole state does, and more
        than the pairs' spread: then it writes what the state itself never does, unless the rest
        of the state works against it.
        """
        effect, read = self.effects["subspace"][0], self.effects["read part"][0]
        whole, sign = self.effects["whole"][0], 1.0 if self.effects["subspace"][0] > 0 else -1.0
        lost, more = (min(sign * x[1], sign * x[2]) > 0 for x in (self.lost, self.exceeds))
        found = []
        if lost and sign * read < ENOUGH * abs(effect):
            found.append("its effect needs a part that nothing reads")
        if more and sign * whole < abs(effect) / TOO_MUCH:
            found.append("it does more than the whole state does")
        return tuple(found)

    @property
    def illusory(self) -> bool:
        """Whether anything speaks against the subspace; see `reasons`."""
        return bool(self.reasons)

    def __repr__(self) -> str:
        """Give the verdict and what it rests on."""
        shares = ", ".join(f"{name} {value:.2f}" for name, (value, _, _) in self.effects.items())
        why = " and ".join(self.reasons)
        verdict = f"an illusion: {why}" if why else "its read part has the effect"
        return (
            f"IllusionReport({self.site}, {self.dims} dimensions: {verdict}; shares of the gap: "
            f"{shares}; {self.read_share:.0%} of it is read, which varies "
            f"{self.variance['read part']:.2g} times as much as a direction of the state does)"
        )


def check_illusion(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    site: Site,
    basis: Tensor,
    metric: Measure,
    *,
    scope: Scope = LAST,
    n_random: int = 10,
    seed: int = 0,
) -> IllusionReport:
    """Patch a subspace, its parts and the whole state, clean values into corrupted runs.

    What follows reads a hidden layer (mlp_post, a head's z) through one linear map: its null space
    is the part that is not read. Elsewhere many parts of the model read, and the part that is read
    is taken to be the span of the metric's gradients over the pairs, in both runs: a first-order
    answer, which says so little of what only acts far away.

    Args:
        lm: the model.
        clean: prompts with the behaviour.
        corrupted: one for each of them, without it.
        site: a head by itself for z.
        basis: [k, d] or [d].
        metric: as in patching.sweep, differentiable.
        scope: the one token at which the subspace is exchanged.
        n_random: random subspaces of as many dimensions, for comparison.
        seed: of them.

    Raises:
        PlanError: as in patching.sweep; a subspace of another width; fewer than two pairs.
    """
    basis = as_basis(basis, "The subspace of check_illusion").float().cpu()
    into, out_of = pairs_of(lm, clean, corrupted, "denoise")
    own, other = (states_of(lm, rows, site, scope).float().cpu() for rows in (into, out_of))
    _require(basis, own, len(into))
    slopes = [_mean_slopes(lm, rows, site, metric, scope) for rows in (into, out_of)]
    read = _read_axes(lm, into, site, torch.cat(slopes), scope)
    parts = (basis @ read.mT @ read, basis - basis @ read.mT @ read)
    bases: dict[str, Tensor | None] = {"subspace": basis}
    bases |= {name: _kept(part) for name, part in zip(PARTS[1:3], parts, strict=True)}
    bases["whole"] = None
    draws = random_subspaces(len(basis), basis.shape[1], n_random, seed=seed)
    bases |= {f"random {k}": x for k, x in enumerate(draws)}
    moved, gap = _changes(lm, into, out_of, site, other, bases, metric, scope)
    random = moved[len(PARTS) :].mean(0, keepdims=True)
    told = _shares(np.concatenate([moved[: len(PARTS)], random]), gap, seed)
    # The gap as it is: whether something is lost does not hang on how well the gap is known.
    less = moved[:1] - moved[[1, 3]]
    lost, exceeds = _shares(less, np.full_like(gap, gap.mean()), seed)
    states = torch.cat([own, other]).double()
    return IllusionReport(
        site,
        len(basis),
        dict(zip((*PARTS, "random"), told, strict=True)),
        lost,
        exceeds,
        float(parts[0].square().sum() / len(basis)),
        {"subspace": _spread(states, basis), "read part": _spread(states, bases["read part"])},
        _within(slopes[0].mean(0), basis),
        _within((other - own).mean(0), basis),
    )


def _shares(moved: np.ndarray, gap: np.ndarray, seed: int) -> list[tuple[float, float, float]]:
    """Return (share of the gap, lower, upper) of each row, pairs drawn again."""
    lo, hi = interval(moved, gap, seed=seed)
    value = quotients(moved, gap, np.ones((1, moved.shape[1])))[0]
    return [(float(a), float(b), float(c)) for a, b, c in zip(value, lo, hi, strict=True)]


def _require(basis: Tensor, states: Tensor, n: int) -> None:
    if basis.shape[1] != states.shape[1] or n < 2:
        raise PlanError(
            f"A subspace of width {basis.shape[1]} was given for states of width "
            f"{states.shape[1]} and {n} pairs. It must be as wide as the site, and an interval "
            "over pairs needs two or more."
        )


def _kept(part: Tensor) -> Tensor | None:
    """Return an orthonormal basis of the rows' span; an empty one is patched as nothing."""
    _, sizes, axes = torch.linalg.svd(part, full_matrices=False)
    axes = axes[sizes > 1e-4]
    return axes if len(axes) else part.new_zeros(0, part.shape[1])


def _changes(
    lm: LM,
    into: Sequence[Sequence[int]],
    out_of: Sequence[Sequence[int]],
    site: Site,
    source: Tensor,
    bases: dict[str, Tensor | None],
    metric: Measure,
    scope: Scope,
) -> tuple[np.ndarray, np.ndarray]:
    """Return [subspace, pair], the changes of the metric, and [pair], the gap."""
    arms: dict[str, Plan] = {
        name: []
        if basis is not None and len(basis) == 0
        else [Patch(site, source.to(lm.dtype).to(lm.device), basis, scope)]
        for name, basis in bases.items()
    }
    swept = run_arms(lm, into, arms, metric)
    before = one_per_row(swept.natural, "the prompts that are patched")
    after = source_metric(lm, out_of, metric)
    require_gap(after, before)
    values = one_per_row(swept.values.flatten(), "a patched pass").reshape(len(arms), -1)
    return (values - before).double().numpy(), (after - before).double().numpy()


def _mean_slopes(
    lm: LM, rows: Sequence[Sequence[int]], site: Site, metric: Measure, scope: Scope
) -> Tensor:
    """Return [row, d]: the metric's gradient at the site's token."""
    acts = lm.capture([list(row) for row in rows], [site], scope=scope)
    at = (acts.positions if acts.mask is None else acts.positions[:, 0]).cpu()
    found = []
    for part in slopes_of(lm, rows, [site], metric):
        slope = part.slopes[site][0].float().cpu()
        found.append(slope[torch.arange(len(slope)), at[part.rows]])
    return torch.cat(found)


def _read_axes(
    lm: LM, rows: Sequence[Sequence[int]], site: Site, slopes: Tensor, scope: Scope
) -> Tensor:
    """Return [k, d] orthonormal: the directions that what follows reads."""
    if site.component not in WRITERS:
        _, sizes, axes = torch.linalg.svd(slopes, full_matrices=False)
        return axes[sizes > 1e-4 * sizes[0]]
    jacobian = _jacobian(lm, rows[0], site, Site(site.layer, WRITERS[site.component]), scope)
    _, sizes, axes = torch.linalg.svd(jacobian, full_matrices=False)
    return axes[sizes > 1e-4 * sizes[0]]


def _jacobian(lm: LM, row: Sequence[int], site: Site, out: Site, scope: Scope) -> Tensor:
    """Return [d_model, d]: how what is added to the stream depends on the site, at one token."""
    acts = lm.capture([list(row)], [site], scope=scope)
    at = int(acts.positions.reshape(-1)[0])
    opened: dict[object, Tensor] = {}
    made: dict[object, Tensor] = {}

    def start(_: object, h: Tensor) -> Tensor:
        opened[site] = torch.zeros_like(h).requires_grad_()
        return h + opened[site]

    def keep(_: object, h: Tensor) -> Tensor:
        made[out] = h
        return h

    def nothing(logits: Tensor, _: Batch) -> Tensor:
        return logits[:, 0]

    with torch.enable_grad():
        run_rows(lm, [row], torch.tensor([0]), [used_at(site, start), used_at(out, keep)], nothing)
        whole = made[out][0, at]
        each = torch.eye(len(whole), device=whole.device, dtype=whole.dtype)
        (found,) = torch.autograd.grad(whole, opened[site], each, is_grads_batched=True)
    return found[:, 0, at].float().cpu()


def _spread(states: Tensor, basis: Tensor | None) -> float:
    if basis is None or not len(basis):
        return 0.0
    centred = states - states.mean(0)
    mine = (centred @ basis.double().mT).square().mean()
    return float(mine / centred.square().mean())


def _within(vector: Tensor, basis: Tensor) -> float:
    return float((basis @ vector).norm() / vector.norm().clamp(min=1e-12))
