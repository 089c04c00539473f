"""Gradients of a metric at sites: one forward and one backward pass for all sites and rows.

A zero that wants a gradient is added at each site; its gradient is the site's. Rows of a batch do
not interact, so the gradient of the sum over rows is each row's own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.engine import Batch, Measure
from steer.errors import PlanError
from steer.interventions import Custom
from steer.lm import LM
from steer.protocols import Intervention
from steer.sites import AnySite, Site
from steer.step import Step

MAX_TOKENS = 4096
"""Padded tokens of one pass, with its graph."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some pairs' states and gradients."""

    rows: Tensor
    """[row]: which prompts."""
    states: Mapping[AnySite, Tensor]
    """[row, position, ...]"""
    slopes: Mapping[AnySite, Tensor]
    """[way, row, position, ...]: the gradient of each row's metric; with blocks dropped, once
    through everything and then without each block in turn."""
    metric: Tensor
    """[row]"""
    mask: Tensor
    """[row, position] bool: real tokens."""


def slopes_of(
    lm: LM,
    rows: Sequence[Sequence[int]],
    sites: Sequence[AnySite],
    metric: Measure,
    *,
    drop_blocks: bool = False,
    edits: Callable[[Tensor], Sequence[Intervention]] = lambda _: (),
    max_tokens: int = MAX_TOKENS,
) -> Iterator[Part]:
    """Yield the states and the gradients at some sites, some prompts at a time.

    Where there are edits, states are those before and gradients those after them.

    Args:
        lm: the model.
        rows: token ids.
        sites: where.
        metric: (logits, batch) -> [row], of the logits at the last token.
        drop_blocks: also with the gradient through each block's outputs stopped, one block at a
            time: these are further rows of the same passes.
        edits: [row] numbers of some prompts -> interventions on a batch of those; of no use
            together with drop_blocks.
        max_tokens: padded tokens of one pass.

    Raises:
        PlanError: within inference mode, or a site that no gradient reaches.
    """
    if torch.is_inference_mode_enabled():
        raise PlanError(
            "Gradients were asked for within torch.inference_mode, which keeps none. Call it "
            "outside, or under torch.no_grad, which is lifted here."
        )
    n_ways = 1 + (lm.n_layers if drop_blocks else 0)
    longest = max(len(row) for row in rows)
    at_once = max(1, max_tokens // (longest * n_ways))
    for numbers in torch.arange(len(rows)).split(at_once):
        yield _part(lm, rows, numbers, sites, metric, n_ways, edits(numbers))


def _part(
    lm: LM,
    rows: Sequence[Sequence[int]],
    numbers: Tensor,
    sites: Sequence[AnySite],
    metric: Measure,
    n_ways: int,
    edits: Sequence[Intervention],
) -> Part:
    n = len(numbers)
    zeros: dict[AnySite, Tensor] = {}
    states: dict[AnySite, Tensor] = {}

    def keep(site: AnySite, h: Tensor) -> Tensor:
        states[site] = h[:n].detach()
        return h

    def open_to(site: AnySite, h: Tensor) -> Tensor:
        zeros[site] = torch.zeros_like(h).requires_grad_()
        return h + zeros[site]

    plan: list[Intervention] = [
        *(used_at(site, keep) for site in sites),
        *edits,
        *(used_at(site, open_to) for site in sites),
    ]
    if n_ways > 1:
        stopped = torch.arange(-1, lm.n_layers).repeat_interleave(n).to(lm.device)
        plan += [
            _stopped(site, stopped == site.layer)
            for component in ("attn_out", "mlp_out")
            for site in lm.sites(component)
        ]
    with torch.enable_grad():
        values, mask = run_rows(lm, rows, numbers.repeat(n_ways), plan, metric)
        found = gradients(values, zeros)
    split = {site: slope.unflatten(0, (n_ways, n)) for site, slope in found.items()}
    return Part(numbers, states, split, values[:n].detach().cpu(), mask[:n].to(lm.device))


def run_rows(
    lm: LM,
    rows: Sequence[Sequence[int]],
    numbers: Tensor,
    plan: Sequence[Intervention],
    metric: Measure,
) -> tuple[Tensor, Tensor]:
    """Return the metric [row] and the mask [row, position] of some prompts, in one pass with graph.

    Args:
        lm: the model.
        rows: token ids of all prompts.
        numbers: [row], which of them; one may come several times.
        plan: what is attached.
        metric: as in `slopes_of`.
    """
    ids = [torch.tensor(list(rows[k])) for k in numbers.tolist()]
    lengths = torch.tensor([len(row) for row in ids])
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    told = {"input_ids": padded, "attention_mask": mask.long()}
    with lm.attached(plan):
        made = lm.model(**{k: v.to(lm.device) for k, v in told.items()}, use_cache=False)
    last = made.logits[torch.arange(len(lengths)), (lengths - 1).to(made.logits.device)]
    return metric(last, Batch(torch.full((len(lengths),), -1), numbers)), mask


def gradients(
    values: Tensor, zeros: Mapping[AnySite, Tensor], *, keep_graph: bool = False
) -> dict[AnySite, Tensor]:
    """Return the gradient of the sum of the values with respect to each tensor.

    Args:
        values: with their graph.
        zeros: tensors in it.
        keep_graph: further gradients will be taken of the same pass.

    Raises:
        PlanError: one has none.
    """
    if not values.requires_grad:
        raise PlanError(
            "The metric has no gradient: it is constant, or was made from detached logits. "
            "Attribution follows the gradient from the metric to each site. Use a differentiable "
            "metric, such as a difference of logits."
        )
    slopes = torch.autograd.grad(
        values.sum(), list(zeros.values()), allow_unused=True, retain_graph=keep_graph
    )
    missing = [str(site) for site, slope in zip(zeros, slopes, strict=True) if slope is None]
    if missing:
        raise PlanError(
            f"No gradient reaches {', '.join(missing)}: nothing after it that the metric reads "
            "depends on it differentiably (quantised weights do not let gradients through, and a "
            "site above the metric has none). Choose another site, or patch it."
        )
    return {site: slope for site, slope in zip(zeros, slopes, strict=True) if slope is not None}


def used_at(site: AnySite, use: Callable[[AnySite, Tensor], Tensor]) -> Custom:
    """Return an intervention that calls (site, h) -> h."""

    def fn(h: Tensor, _: Step) -> Tensor:
        return use(site, h)

    return Custom(site, fn)


def _stopped(site: Site, rows: Tensor) -> Custom:
    def fn(h: Tensor, _: Step) -> Tensor:
        return torch.where(rows[:, None, None], h.detach(), h)

    return Custom(site, fn)
