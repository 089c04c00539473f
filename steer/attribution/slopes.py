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


@dataclass(frozen=True, slots=True)
class Way:
    """How the gradient was made: at which input, and through what."""

    mix: float = 0.0
    """How far the input is on the straight way to the other prompt's."""
    stopped: int | None = None
    """The block through whose outputs no gradient goes."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some pairs' states and gradients."""

    rows: Tensor
    """[row]: which prompts."""
    states: Mapping[AnySite, Tensor]
    """[row, position, ...]"""
    slopes: Mapping[AnySite, Tensor]
    """[way, row, position, ...]: the gradient of each row's metric, in each way."""
    ways: tuple[Way, ...]
    """The first is that of the prompts themselves, with nothing stopped."""
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
    mixes: Sequence[float] = (),
    inputs: Tensor | None = None,
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
        mixes: also at these points of the straight way between the prompts' embeddings and other
            inputs, in further rows.
        inputs: [row, position, d_model], those other inputs; wanted where there are mixes.
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
    assert not mixes or inputs is not None
    dropped: list[int | None] = [None, *(range(lm.n_layers) if drop_blocks else ())]
    ways = tuple(Way(mix, stopped) for mix in (0.0, *mixes) for stopped in dropped)
    longest = max(len(row) for row in rows)
    at_once = max(1, max_tokens // (longest * len(ways)))
    for numbers in torch.arange(len(rows)).split(at_once):
        mixed = None if inputs is None else inputs[numbers]
        yield _part(lm, rows, numbers, sites, metric, ways, mixed, edits(numbers))


def _part(
    lm: LM,
    rows: Sequence[Sequence[int]],
    numbers: Tensor,
    sites: Sequence[AnySite],
    metric: Measure,
    ways: tuple[Way, ...],
    inputs: Tensor | None,
    edits: Sequence[Intervention],
) -> Part:
    n_ways = len(ways)
    ids = [torch.tensor(list(rows[k])) for k in numbers.tolist()]
    lengths = torch.tensor([len(row) for row in ids]).repeat(n_ways)
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).repeat(n_ways, 1)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
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
        *(_at(site, keep) for site in sites),
        *edits,
        *(_at(site, open_to) for site in sites),
    ]
    plan += _turned(lm, ways, inputs, n)
    with torch.enable_grad(), lm.attached(plan):
        told = {"input_ids": padded, "attention_mask": mask.long()}
        made = lm.model(**{k: v.to(lm.device) for k, v in told.items()}, use_cache=False)
        last = made.logits[torch.arange(len(lengths)), (lengths - 1).to(made.logits.device)]
        batch = Batch(torch.full((len(lengths),), -1), numbers.repeat(n_ways))
        values = metric(last, batch)
        found = _gradients(values, zeros)
    split = {site: slope.unflatten(0, (n_ways, n)) for site, slope in found.items()}
    whole = values[:n].detach().cpu()
    return Part(numbers, states, split, ways, whole, mask[:n].to(lm.device))


def _gradients(values: Tensor, zeros: Mapping[AnySite, Tensor]) -> dict[AnySite, Tensor]:
    if not values.requires_grad:
        raise PlanError(
            "The metric has no gradient: it is constant, or was made from detached logits. "
            "Attribution follows the gradient from the metric to each site. Use a differentiable "
            "metric, such as a difference of logits."
        )
    slopes = torch.autograd.grad(values.sum(), list(zeros.values()), allow_unused=True)
    missing = [str(site) for site, slope in zip(zeros, slopes, strict=True) if slope is None]
    if missing:
        raise PlanError(
            f"No gradient reaches {', '.join(missing)}: nothing after it that the metric reads "
            "depends on it differentiably (quantised weights do not let gradients through, and a "
            "site above the metric has none). Choose another site, or patch it."
        )
    return {site: slope for site, slope in zip(zeros, slopes, strict=True) if slope is not None}


def _at(site: AnySite, use: Callable[[AnySite, Tensor], Tensor]) -> Custom:
    def fn(h: Tensor, _: Step) -> Tensor:
        return use(site, h)

    return Custom(site, fn)


def _turned(lm: LM, ways: Sequence[Way], inputs: Tensor | None, n: int) -> list[Custom]:
    """Return what makes the rows of each way differ; n rows for each."""
    stopped = torch.tensor([-1 if way.stopped is None else way.stopped for way in ways])
    rows = stopped.repeat_interleave(n).to(lm.device)
    plan = []
    if bool((stopped >= 0).any()):
        plan += [
            _stopped(site, rows == site.layer)
            for component in ("attn_out", "mlp_out")
            for site in lm.sites(component)
        ]
    if inputs is not None and any(way.mix for way in ways):
        mix = torch.tensor([way.mix for way in ways]).repeat_interleave(n).to(lm.device)
        plan.append(_mixed(inputs.repeat(len(ways), 1, 1).to(lm.device), mix[:, None, None]))
    return plan


def _mixed(inputs: Tensor, mix: Tensor) -> Custom:
    def fn(h: Tensor, _: Step) -> Tensor:
        there = torch.nn.functional.pad(inputs, (0, 0, 0, max(h.shape[1] - inputs.shape[1], 0)))
        return torch.where(mix > 0, h + mix * (there[:, : h.shape[1]].to(h) - h), h)

    return Custom(Site.embed(), fn)


def _stopped(site: Site, rows: Tensor) -> Custom:
    def fn(h: Tensor, _: Step) -> Tensor:
        return torch.where(rows[:, None, None], h.detach(), h)

    return Custom(site, fn)
