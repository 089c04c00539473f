"""Reading attention patterns: recomputed from q and k as the pass leaves them, after all edits.

The kernel is never switched: fused kernels do not return weights, and an eager copy would be
another computation. Patterns are read in passes without a cache (lm.capture); writing is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steer.bookkeeping import Pass
from steer.context import Taker
from steer.errors import SiteNotFound
from steer.models.attention import AttentionFacts, pattern, rotated
from steer.registry import HookRegistry
from steer.sites import AnySite, Site


def is_pattern(site: AnySite) -> bool:
    """Say whether a site is an attention pattern."""
    return isinstance(site, Site) and site.component == "pattern"


@dataclass(slots=True, eq=False)
class PatternReader:
    """Waits for q and k of one block within a pass, then hands their pattern to a taker."""

    registry: HookRegistry
    site: Site
    facts: AttentionFacts
    longest: int
    """Key axis: the longest prompt, so that batches of unequal length fit together."""
    taker: Taker
    waiting: dict[int, Tensor] = field(default_factory=dict)

    def take(self, found: AnySite, h: Tensor, now: Pass) -> None:
        """Keep q; with k, recompute [row, query, head, key] and hand it on."""
        assert isinstance(found, Site)
        if found.component == "q":
            self.waiting = {id(now): h}
            return
        layer, tokens = self.site.layer, now.tokens
        assert layer is not None
        assert tokens.from_start
        device = h.device
        columns = torch.arange(h.shape[1], device=device)[None]
        q, k = rotated(self.registry.model, self.facts, layer, self.waiting[id(now)], h, columns)
        weights = pattern(
            self.facts,
            layer,
            q,
            k,
            query_positions=columns,
            key_positions=columns,
            key_mask=tokens.mask.to(device),
        )
        if self.site.head is not None:
            weights = weights[:, self.site.head : self.site.head + 1]
        wide = torch.nn.functional.pad(weights, (0, self.longest - weights.shape[-1]))
        self.waiting = {}
        self.taker(self.site, wide.transpose(1, 2), now)


def takers_for(
    registry: HookRegistry, sites: Sequence[AnySite], taker: Taker, longest: int
) -> list[tuple[AnySite, Taker]]:
    """Return what each hook is to hand out, with patterns replaced by the q and k they come from.

    Raises:
        SiteNotFound: a pattern of a family whose attention is not explained.
    """
    takers: list[tuple[AnySite, Taker]] = []
    for site in sites:
        if not isinstance(site, Site) or site.component != "pattern":
            takers.append((site, taker))
            continue
        registry.layout.tap(site)
        facts = registry.layout.attention
        if facts is None:
            raise SiteNotFound(
                f"{registry.layout.name} ({registry.layout.family}) has no {site}: how its q and k "
                "become weights is not known. Read q and k, or load the model with "
                "attn_implementation='eager' and use output_attentions."
            )
        reader = PatternReader(registry, site, facts, longest, taker)
        q = replace(site, component="q", head=None)
        takers += [(q, reader.take), (replace(q, component="k"), reader.take)]
    return takers


def queries_last(values: Tensor, site: AnySite, *, single: bool) -> Tensor:
    """Return an assembled pattern as [batch, head, query, key], one head or query squeezed."""
    if not is_pattern(site):
        return values
    shaped = values if single else values.transpose(1, 2)
    assert isinstance(site, Site)
    if site.head is None:
        return shaped
    return shaped[:, 0]
