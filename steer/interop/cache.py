"""A TransformerLens ActivationCache as our Activations: sites named, padding cut, scope applied."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steer.activations import Activations
from steer.bookkeeping import Pass, Sequences
from steer.capture import Taken
from steer.errors import PlanError, SiteNotFound, did_you_mean
from steer.interop.hook_names import site_of_hook
from steer.scopes import ALL, Scope
from steer.sites import HEADED, AnySite, Site
from steer.tokens import Prompt, Tokens


@runtime_checkable  # the test run checks types with beartype, which needs isinstance
class ActivationCache(Protocol):
    """What is used of TransformerLens' cache."""

    cache_dict: Mapping[str, Tensor]
    has_batch_dim: bool


def from_cache(
    cache: ActivationCache | Mapping[str, Tensor],
    sites: Sequence[Site] | None = None,
    *,
    mask: Tensor | None = None,
    scope: Scope = ALL,
    model: Mapping[str, str] | None = None,
) -> Activations:
    """Return what a TransformerLens run cached, as `lm.capture` would have returned it.

    Values are the cache's own tensors at the tokens in scope. A cache does not know which of its
    columns are padding, and its tensors are as wide as the longest row: give the attention mask, or
    every column counts as a token. Every row counts as a prompt. The numbers are those of the
    model that was run: after enable_compatibility_mode() they are of folded and centred weights.

    Args:
        cache: from run_with_cache, with or without batch dimension, or its dict.
        sites: which ones; None for all whose hook means one site in every family.
        mask: [batch, pos], 1 at real tokens.
        scope: which tokens; one a row gives [batch, d_model].
        model: what identifies the model, carried as origin (`lm.capture` fills it in itself).

    Raises:
        SiteNotFound: a site that was not cached, or no known one at all.
        PlanError: a mask of another shape, or tensors that lack positions (pos_slice, one column).
    """
    entries = cache.cache_dict if isinstance(cache, ActivationCache) else cache
    batched = cache.has_batch_dim if isinstance(cache, ActivationCache) else True
    found: dict[Site, Tensor] = {}
    for name, value in entries.items():
        site = site_of_hook(name)
        if site is not None and site not in found:
            found[site] = value if batched else value[None]
    wanted = sorted(found) if sites is None else list(sites)
    _refuse_missing(wanted, found, entries)
    tokens = _tokens(found[wanted[0]], mask)
    now = Pass(tokens, Sequences(tokens.prompt, tokens.rows, len(tokens.rows)))
    taken = Taken(scope, None)
    for site in wanted:
        _refuse_shape(site, found[site], tokens)
        taken.take(site, found[site], now)
    asked: list[AnySite] = list(wanted)
    acts = taken.assembled(asked, len(tokens.rows))
    return Activations(acts.values, acts.mask, acts.positions, dict(model or {}), acts.scope)


def _refuse_missing(
    wanted: Sequence[Site], found: Mapping[Site, Tensor], entries: Mapping[str, Tensor]
) -> None:
    names = [str(site) for site in sorted(found)]
    if not wanted:
        raise SiteNotFound(
            f"The cache holds {len(entries)} entries ({', '.join(list(entries)[:4])}, ...), and "
            "none is the hook of a site. Cache hook_resid_post or another of the standard hooks."
        )
    for site in wanted:
        if site not in found:
            raise SiteNotFound(
                f"{site} was not cached: the cache holds {', '.join(names[:6]) or 'no known site'}."
                f"{did_you_mean(str(site), names)} Widen names_filter in run_with_cache."
            )


def _tokens(first: Tensor, mask: Tensor | None) -> Tokens:
    shape = first.shape[:2]
    if mask is None:
        mask = torch.ones(shape)
    if mask.shape != shape:
        raise PlanError(
            f"The mask has shape {tuple(mask.shape)} but the cache holds {tuple(shape)} tokens "
            "[batch, pos]. Which of them are padding could not be told. Give the attention mask of "
            "the run, prepended BOS included, and cache without pos_slice."
        )
    prompt = Prompt(mask)
    return Tokens(prompt.starts, torch.arange(shape[0]), prompt.lengths, None, prompt)


def _refuse_shape(site: Site, value: Tensor, tokens: Tokens) -> None:
    n_axes = 4 if site.component in HEADED else 3
    if value.ndim != n_axes or value.shape[:2] != tokens.positions.shape:
        raise PlanError(
            f"The cache's {site} has shape {tuple(value.shape)}, not [batch, pos, ...] with "
            f"{tuple(tokens.positions.shape)} tokens. Its positions could not be told. Cache all "
            "sites in one run, without pos_slice and without remove_batch_dim."
        )
