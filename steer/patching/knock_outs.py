"""Attention knock-outs: some tokens may not attend to some others, in some blocks.

Geva et al. 2023 (arXiv:2304.14767). The weights that remain are made to add up to 1 again. No mask
and no kernel of the model is touched: z is computed anew from q, k and v for the queries that a cut
concerns, and all other bits stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.engine import Batch, Measure
from steer.engine.batch import checked
from steer.errors import PlanError, SiteNotFound
from steer.interventions import Custom
from steer.lm import LM
from steer.models.attention import AttentionFacts, rotated, scores_of
from steer.patching.ablated import Ablated
from steer.patching.pairs import one_per_row
from steer.prompts import Prompts
from steer.scopes import Scope, require_scope
from steer.sites import Site
from steer.step import Step


@dataclass(frozen=True, slots=True)
class Cut:
    """In these blocks (and heads) no query token may attend to a key token."""

    layers: Sequence[int]
    queries: Scope
    keys: Scope
    heads: Sequence[int] | None = None
    """Query heads; None for all."""


def knock_out(lm: LM, prompts: Prompts, cuts: Mapping[str, Cut], metric: Measure) -> Ablated:
    """Return what each cut does to the metric; cuts and prompts are rows of the same passes.

    A token that is left with nothing to attend to gets zeros from that head.

    Args:
        lm: the model.
        prompts: what is run.
        cuts: by name, each by itself.
        metric: (logits, batch) -> [row], of the logits at the last token.

    Raises:
        PlanError: no cut, a block or head that there is not, a family whose attention cannot be
            computed anew, a metric that is not finite.

    Example:
        >>> import steer
        >>> lm = steer.load("tiny-llama")
        >>> last = steer.patching.Cut(range(4), queries=steer.LAST, keys=steer.FIRST)
        >>> metric = steer.patching.log_probability([7])
        >>> steer.patching.knock_out(lm, [[5, 6, 7]], {"to the first": last}, metric).names
        ('to the first',)
    """
    rows = lm.rows(prompts)
    plan = knock_out_plan(lm, rows, cuts)
    names = list(cuts)
    n = len(rows)
    logits = lm.logits([row for _ in names for row in rows], plan)
    numbers = torch.arange(n)
    arms = torch.arange(len(names)).repeat_interleave(n)
    batch = Batch(arms, numbers.repeat(len(names)))
    values = one_per_row(checked(metric(logits, batch), batch), "a pass with attention cut")
    plain = Batch(torch.full((n,), -1), numbers)
    natural = one_per_row(checked(metric(lm.logits(rows), plain), plain), "the prompts")
    return Ablated(tuple(names), values.reshape(len(names), n).cpu(), natural.cpu())


def knock_out_plan(lm: LM, prompts: Prompts, cuts: Mapping[str, Cut]) -> list[Custom]:
    """Return the plan for a batch of all prompts under the first cut, then the second, ....

    For single passes without a cache: keys of earlier passes are not seen.

    Raises:
        PlanError: as in `knock_out`.
    """
    facts = _facts(lm, cuts)
    blocked = _blocked(lm, lm.rows(prompts), cuts)
    layers = sorted({layer for cut in cuts.values() for layer in cut.layers})
    return [
        edit
        for layer in layers
        for edit in _cut(lm, facts, layer, _of_layer(lm, layer, list(cuts.values()), blocked))
    ]


def windows(lm: LM, queries: Scope, keys: Scope, *, width: int = 1) -> dict[str, Cut]:
    """Return a cut for each window of blocks: where information goes from keys to queries.

    Raises:
        PlanError: a width that does not fit.
    """
    if not 0 < width <= lm.n_layers:
        raise PlanError(f"A window of {width} blocks does not fit a model of {lm.n_layers}.")
    starts = range(lm.n_layers - width + 1)
    names = (f"blocks {k}-{k + width - 1}" if width > 1 else f"block {k}" for k in starts)
    return {name: Cut(range(k, k + width), queries, keys) for k, name in enumerate(names)}


def _facts(lm: LM, cuts: Mapping[str, Cut]) -> AttentionFacts:
    layout = lm.registry.layout
    facts = layout.attention
    if not cuts:
        raise PlanError("No cut was given. Name at least one: {'name': patching.Cut(...)}.")
    if facts is None:
        raise SiteNotFound(
            f"How {layout.name} turns queries and keys into weights is not known, so they cannot "
            "be computed anew without some keys. Patch z or v instead."
        )
    for name, cut in cuts.items():
        require_scope(cut.queries, f"the queries of {name}")
        require_scope(cut.keys, f"the keys of {name}")
        wrong = [k for k in cut.layers if not 0 <= k < lm.n_layers]
        strange = [k for k in cut.heads or () if not 0 <= k < layout.n_heads]
        if wrong or strange or not list(cut.layers):
            raise PlanError(
                f"The cut {name!r} is in blocks {list(cut.layers)} and heads "
                f"{'all' if cut.heads is None else list(cut.heads)}; the model has blocks 0 to "
                f"{lm.n_layers - 1} and heads 0 to {layout.n_heads - 1}. Name some of those."
            )
    return facts


def _blocked(lm: LM, rows: Sequence[Sequence[int]], cuts: Mapping[str, Cut]) -> Tensor:
    """Return [cut * row, query, key] bool."""
    width = max(len(row) for row in rows)
    found = [
        _chosen(lm, rows, cut.queries, width)[:, :, None]
        & _chosen(lm, rows, cut.keys, width)[:, None, :]
        for cut in cuts.values()
    ]
    return torch.cat(found)


def _chosen(lm: LM, rows: Sequence[Sequence[int]], scope: Scope, width: int) -> Tensor:
    """Return [row, position] bool: tokens in a scope."""
    # Reading before the first block costs no block.
    acts = lm.capture(rows, [Site(0, "resid_pre")], scope=scope)
    at = acts.positions if acts.mask is not None else acts.positions[:, None]
    numbers = torch.arange(len(rows))[:, None].expand_as(at)
    real = at >= 0
    blank = torch.zeros(len(rows), width, dtype=torch.bool)
    return blank.index_put((numbers[real], at[real]), torch.tensor(True))


def _of_layer(lm: LM, layer: int, cuts: Sequence[Cut], blocked: Tensor) -> Tensor:
    """Return [cut * row, head, query, key] bool: what is cut in one block."""
    n_heads = lm.registry.layout.n_heads
    chosen = torch.tensor(
        [
            [layer in cut.layers and (cut.heads is None or head in cut.heads)
             for head in range(n_heads)]
            for cut in cuts
        ]
    )  # fmt: skip
    per_row = chosen.repeat_interleave(len(blocked) // len(cuts), 0)
    return (per_row[:, :, None, None] & blocked[:, None]).to(lm.device)


@dataclass(slots=True)
class _Seen:
    """What one block's attention made in the pass that runs."""

    parts: dict[str, Tensor] = field(default_factory=dict)


def _cut(lm: LM, facts: AttentionFacts, layer: int, blocked: Tensor) -> list[Custom]:
    """Return the interventions of one block: three that look, one that writes z."""
    seen = _Seen()

    def look(component: str) -> Custom:
        def fn(h: Tensor, _: Step) -> Tensor:
            seen.parts[component] = h
            return h

        return Custom(Site(layer, component), fn)

    def write(z: Tensor, step: Step) -> Tensor:
        q, k, v = (seen.parts[c] for c in "qkv")
        length = q.shape[1]
        if int(step.positions.max()) >= length:
            raise PlanError(
                f"A pass at position {int(step.positions.max())} was given {length} tokens: the "
                "keys before them are in a cache that a cut does not see. Cut attention in single "
                "passes without a cache: lm.logits, lm.capture."
            )
        here = blocked[step.rows][:, :, :length, :length]
        columns = torch.arange(length, device=q.device)[None]
        turned = rotated(lm.model, facts, layer, q, k, columns)
        scores = scores_of(
            facts, layer, *turned, query_positions=columns, key_positions=columns,
            key_mask=step.mask,
        )  # fmt: skip
        lowest = torch.finfo(scores.dtype).min
        left = scores.masked_fill(here, lowest)
        weights = left.softmax(-1).masked_fill(left <= lowest, 0.0)
        shared = v.repeat_interleave(q.shape[2] // v.shape[2], dim=2).float()
        new = torch.einsum("bhij,bjhd->bihd", weights, shared)
        changed = here.any(-1).transpose(1, 2)[..., None]
        return torch.where(changed, new.to(z.dtype), z)

    return [*(look(c) for c in "qkv"), Custom(Site(layer, "z"), write)]
