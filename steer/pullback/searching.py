"""The search: controls of a spline, moved by L-BFGS until the outputs follow the behaviour."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from steer.errors import PlanError, WidthMismatch
from steer.interventions.arithmetic import require_finite
from steer.lm import LM
from steer.prompts import Prompts
from steer.pullback.objective import Bins, Objective, require_bins, spline_map
from steer.pullback.result import Path, PullBack
from steer.pullback.shapes import (
    Behaviour,
    Chart,
    Coordinates,
    Plane,
    ends_of,
    require_on,
    require_same_ends,
)
from steer.pullback.suffix import require_gradients, suffix_of
from steer.sites import Site, require_sites

INNER = 5
"""Iterations of L-BFGS between two looks at the loss, as published."""
SETTLED = 1e-3
"""Relative change of the loss between two looks at which the search ends, as published."""


def optimise(
    lm: LM,
    prompts: Prompts,
    site: Site,
    chart: Chart,
    behavior: Behaviour,
    u0: Coordinates,
    u1: Coordinates,
    *,
    bins: Bins,
    rows: Tensor | Sequence[Sequence[int]] | None = None,
    subspace: Plane | None = None,
    n_controls: int = 10,
    n_fractions: int = 20,
    components: int = 32,
    norm_weight: float | int = 0.0,
    outer: int = 50,
    max_rows: int = 512,
) -> PullBack:
    """Find the paths of activations whose outputs go along the behaviour manifold from u0 to u1.

    The pull-back of Wurgaft et al. 2026 (arXiv:2605.05115). A path is a natural cubic spline from
    chart.decode(u0) to chart.decode(u1) through controls that are free in the first components of
    a subspace; it is written at the last token of each prompt, which keeps its own other
    components and all that is off the subspace. The loss is the squared Hellinger distance of the
    outputs to behavior.decode(behavior.path(u0, u1)), averaged over fractions and prompts, plus
    norm_weight times the squared departure of the path's norm from the straight line between those
    of its ends. L-BFGS (strong Wolfe) starts from the chord, and stops when `outer` rounds of five
    iterations are done or one changes the loss by less than a thousandth. Unlike theirs, the
    components that stay are the chord's in `points`, all pairs share one search (the loss is a sum
    over pairs), and each pair keeps the best path that it had.

    Only the blocks above the site run, on one token a row, with the prompts' keys and values from
    one pass. One evaluation is pairs * fractions * prompts such rows, forward and back, and a
    search takes some five to ten evaluations a round.

    Args:
        lm: the model. Its weights keep their gradients' state; none is written.
        prompts: see `LM`; as a rule those whose answer is the start of the path.
        site: where the chart was fitted.
        chart: M_h, with a subspace.
        behavior: M_y, fitted with the same coordinates.
        u0: where paths begin: a number or [pair]; [dim] or [pair, dim].
        u1: where they end.
        bins: logits [row, vocab] -> probabilities [row, bin], the behaviour's bins; differentiable.
        rows: [pair, prompt], which prompts each pair is optimised on; all of them by default.
        subspace: with mean and orthonormal basis; the chart's own by default.
        n_controls: free points between the ends.
        n_fractions: points at which outputs are compared, the ends included.
        components: how many of the subspace may bend.
        norm_weight: 0 for the published weekdays, .0005 for months, .001 for ages, in the units of
            the activations there.
        outer: rounds at most.
        max_rows: rows of one pass; fewer need less memory.

    Raises:
        PlanError: no prompts, ends that coincide or lie outside a shape, a behaviour with other
            coordinates or bins, a number that cannot be, inference mode, an attached plan.
        WidthMismatch: a chart of another width than the site.
    """
    require_gradients()
    _require_numbers(n_controls, n_fractions, components, outer, max_rows, norm_weight)
    require_same_ends(chart, behavior)
    require_sites([site])
    plane = chart.subspace if subspace is None else subspace
    _require_width(lm, site, plane)
    start, end = (ends_of(u, chart, name) for u, name in ((u0, "u0"), (u1, "u1")))
    start, end = _broadcast(start, end)
    corners = _corners(chart, behavior, start, end)
    suffix = suffix_of(lm, lm.rows(prompts), site)
    of_pair = _rows_of(rows, len(start), suffix.n_prompts)
    assert suffix.base.read is not None
    natural = suffix.base.read[:, 0].float()
    require_bins(bins(natural), len(natural), behavior.n_bins)

    device = plane.basis.device
    shares = torch.linspace(0, 1, n_fractions, dtype=torch.float64, device=device)[:, None]
    path = behavior.path(start, end, n_fractions)
    objective = Objective(
        suffix,
        plane.basis[:components].double(),
        plane.mean.double(),
        bins,
        behavior.decode(path).double().to(device),
        of_pair,
        torch.lerp(corners[0][:, None], corners[1][:, None], shares),
        float(norm_weight),
        max_rows,
    )
    found = _search(objective, spline_map(n_controls, n_fractions).to(device), outer)
    along = chart.decode(chart.path(start, end, n_fractions)).double()
    on_chart = (along - objective.mean) @ objective.basis.mT
    return PullBack(
        site,
        start,
        end,
        objective.basis,
        objective.target,
        _path(objective, found.coordinates),
        _path(objective, objective.along_chord),
        _path(objective, on_chart),
        torch.stack(found.losses),
        found.evaluations,
        n_controls,
        suffix.why_whole,
    )


@dataclass(slots=True, eq=False)
class _Found:
    """What a search has so far; the best of each pair."""

    coordinates: Tensor
    loss: Tensor
    losses: list[Tensor]
    evaluations: int = 0


def _search(objective: Objective, spline: Tensor, outer: int) -> _Found:
    """Return the best paths found."""
    chord = objective.along_chord
    # In units of the chord's length per component, so that pairs and components weigh alike.
    unit = (chord[:, -1] - chord[:, 0]).norm(dim=-1)[:, None, None] / chord.shape[-1] ** 0.5
    bend = spline[:, 1:-1]
    free = chord.new_zeros(len(chord), bend.shape[1], chord.shape[2]).requires_grad_()
    best = _Found(chord, chord.new_full((len(chord),), torch.inf), [])

    def closure() -> Tensor:
        with torch.no_grad():
            c = chord + unit * (bend @ free)
        losses, slope = objective.slope(c)
        require_finite(losses, "The loss of a pull-back")
        best.evaluations += 1
        if best.evaluations == 1:
            best.losses.append(losses)
        better = losses < best.loss
        best.loss = torch.where(better, losses, best.loss)
        best.coordinates = torch.where(better[:, None, None], c, best.coordinates)
        free.grad = unit * (bend.mT @ slope)
        return losses.sum()

    search = torch.optim.LBFGS(
        [free],
        lr=1,
        max_iter=INNER,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )
    for _ in tqdm(range(outer), desc="pull-back", delay=2, leave=False):
        search.step(closure)
        before, after = float(best.losses[-1].sum()), float(best.loss.sum())
        best.losses.append(best.loss)
        if before - after <= SETTLED * before:
            break
    return best


def _path(objective: Objective, c: Tensor) -> Path:
    outputs = objective.outputs(c)
    return Path(objective.points(c), outputs, objective.loss_of(outputs, c))


def _corners(
    chart: Chart, behavior: Behaviour, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the points [pair, d_model] at both ends.

    Raises:
        PlanError: they lie outside a shape, or coincide.
    """
    u = torch.cat([start, end])
    points = chart.decode(u).double()
    require_on(chart, u, points, "the chart")
    require_on(behavior, u, behavior.decode(u).double(), "the behaviour")
    first, last = points.chunk(2)
    same = ((last - first).norm(dim=-1) <= 1e-9 * first.norm(dim=-1)).nonzero()[:, 0].tolist()
    if same:
        raise PlanError(
            f"u0 and u1 are the same point of the chart ({start[same[0]].tolist()} and "
            f"{end[same[0]].tolist()}), so there is no way between them. Choose two concepts."
        )
    return first, last


def _broadcast(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    if len(start) != len(end) and 1 not in (len(start), len(end)):
        raise PlanError(
            f"u0 has {len(start)} ends and u1 has {len(end)}. A path needs one of each: give as "
            "many, or one for all."
        )
    first, last = torch.broadcast_tensors(start, end)
    return first.contiguous(), last.contiguous()


def _rows_of(rows: Tensor | Sequence[Sequence[int]] | None, n_pairs: int, n: int) -> Tensor:
    """Return [pair, prompt] on the host."""
    if rows is None:
        return torch.arange(n).expand(n_pairs, n)
    found = torch.as_tensor(rows).cpu()
    fits = found.ndim == 2 and len(found) == n_pairs and found.shape[1] > 0
    if not fits or found.is_floating_point() or int(found.min()) < 0 or int(found.max()) >= n:
        raise PlanError(
            f"rows has the shape {list(found.shape)} for {n_pairs} pairs and {n} prompts. It says "
            f"which prompts each pair is optimised on: [{n_pairs}, prompt], numbers from 0 to "
            f"{n - 1}."
        )
    return found


def _require_width(lm: LM, site: Site, plane: Plane) -> None:
    width = plane.basis.shape[-1]
    lm.registry.layout.tap(site)
    if width != lm.d_model:
        raise WidthMismatch(
            f"The subspace lies in {width} dimensions, but the stream of this model at {site} is "
            f"{lm.d_model} wide. It was fitted on another model or site. Refit it on this one."
        )


def _require_numbers(
    n_controls: int,
    n_fractions: int,
    components: int,
    outer: int,
    max_rows: int,
    norm_weight: float | int,
) -> None:
    least = {
        "n_controls": (n_controls, 1, "without a control the only path is the chord"),
        "n_fractions": (n_fractions, 3, "the two ends are fixed"),
        "components": (components, 1, "without one there is nowhere to bend"),
        "outer": (outer, 1, "no round is no search"),
        "max_rows": (max_rows, 1, "a pass has rows"),
        "norm_weight": (norm_weight, 0, "a negative weight would ask for strange norms"),
    }
    for name, (value, bound, why) in least.items():
        if not value >= bound:
            raise PlanError(f"{name} is {value}, but {why}. Give {bound} or more.")
