"""Patch: write values from another run, whole or within a subspace; and where values come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from steer.activations import Activations
from steer.errors import PlanError, WidthMismatch
from steer.interventions.arithmetic import (
    add_delta,
    as_basis,
    coordinates,
    precise,
    require_finite,
    within,
)
from steer.interventions.recipe import Recipe
from steer.scopes import ALL, Scope
from steer.sites import AnySite, Site
from steer.step import Step


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Patch(Recipe):
    """Replace what is at a site by a source: activation patching.

    Vig et al. 2020 (arXiv:2004.12265), Meng et al. 2022 (arXiv:2202.05262).

    A whole replacement selects the source's bits (cast to the model's dtype). With `subspace`, only
    the part within those directions is exchanged, h + V^T V (source - h), and the rest of h is kept
    (interchange intervention, Geiger et al. 2021, arXiv:2106.02997); the truncated remainder is not
    lost as it is in pyvene's PCA intervention.

    Args:
        source: Activations (their entry for this site), or a tensor [d_model], [batch, d_model] or
            [batch, n, d_model], where n is the number of tokens in scope of each row.
        subspace: [k, d_model] or [d_model], orthonormalised.

    Raises:
        WidthMismatch: a source of another rank.
        PlanError: a source that is not finite; before block 0, one whose rows or tokens do not fit.
    """

    kind: ClassVar[str] = "steer.Patch"
    site: AnySite
    source: Tensor | Activations
    subspace: Tensor | None = None
    scope: Scope = ALL
    counts: Tensor | None = None
    """[batch] tokens of each row, where the source's rows are of unequal length."""

    def __post_init__(self) -> None:
        """Take this site's values out of Activations and check the shape."""
        source: Tensor | Activations = self.source
        if isinstance(source, Activations):
            object.__setattr__(self, "counts", source.counts())
            source = source[self.site]
        source = torch.as_tensor(source).detach()
        most = 4 if isinstance(self.site, Site) and self._has_heads(self.site) else 3
        if not 1 <= source.ndim <= most:
            raise WidthMismatch(
                f"The source of a Patch at {self.site} has shape {tuple(source.shape)}. It is "
                "[d_model], [batch, d_model] or [batch, n, d_model] with n tokens in scope. "
                "Select the site and the tokens that you mean."
            )
        object.__setattr__(self, "source", require_finite(source, "The source of Patch"))
        if self.subspace is not None:
            basis = as_basis(self.subspace, "The subspace of Patch")
            object.__setattr__(self, "subspace", basis)

    @staticmethod
    def _has_heads(site: Site) -> bool:
        return site.component in ("q", "k", "v", "z") and site.head is None

    def _trailing(self) -> int:
        # Axes of one token: [d], or [head, d_head] where all heads are patched at once.
        return 2 if isinstance(self.site, Site) and self._has_heads(self.site) else 1

    @property
    def values(self) -> Tensor:
        """The source as a tensor."""
        assert isinstance(self.source, Tensor)
        return self.source

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return the source, token by token."""
        new = self._for_tokens(step)
        if self.subspace is None:
            # A copy: Falcon adds in place into what its MLP returned, which must not be the source.
            return new.to(h.dtype).expand_as(h).clone()
        basis = step.basis(self.subspace, h)
        change = coordinates(new, basis) - coordinates(h, basis)
        return add_delta(h, within(change.to(precise(h).dtype), basis))

    def _for_tokens(self, step: Step) -> Tensor:
        lead = self.values.ndim - self._trailing()
        if lead == 0:
            return self.values
        if lead == 1:
            return self.values[step.rows][:, None]
        if step.rank is None:
            return self.values[step.rows]
        rank = step.rank.clamp(min=0, max=self.values.shape[1] - 1)
        return self.values[step.rows[:, None], rank]

    @property
    def tokens_per_row(self) -> Tensor | int | None:
        """How many tokens in scope each row must have; None for one value for all of them."""
        if self.values.ndim - self._trailing() < 2:
            return None
        return self.values.shape[1] if self.counts is None else self.counts

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        found = {"the source": self.values.shape[-1]}
        return found if self.subspace is None else found | {"the subspace": self.subspace.shape[1]}

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        per_row = self.values.ndim > self._trailing()
        return {"the source": self.values.shape[0]} if per_row else {}

    def __repr__(self) -> str:
        """Say where, from what shape, and how much of it."""
        part = "" if self.subspace is None else f", subspace k={self.subspace.shape[0]}"
        return f"Patch({self.site}, source={list(self.values.shape)}, scope={self.scope!r}{part})"


def zero(acts: Activations) -> Activations:
    """Return a source of zeros for each site: what zero ablation writes."""
    return _for_every_token(acts, lambda tokens: torch.zeros_like(tokens[0]))


def mean(acts: Activations) -> Activations:
    """Return the mean over all real tokens for each site, [d_model]: what mean ablation writes."""
    return _for_every_token(acts, lambda tokens: precise(tokens).mean(0).to(tokens.dtype))


def resample(acts: Activations, *, seed: int = 0) -> Activations:
    """Return activations in which each token has another one's values, drawn with replacement.

    The draw is the same for every site, over the real tokens of all rows: what resample ablation
    writes. Shapes, mask and positions are those of `acts`.

    Raises:
        PlanError: there is nothing to draw from.
    """
    n_tokens = acts.positions.numel() if acts.mask is None else int(acts.mask.sum())
    _require_tokens(n_tokens)
    chooser = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_tokens, (n_tokens,), generator=chooser)
    values = {}
    for site in acts:
        tokens = acts.tokens(site)
        mixed = tokens[drawn.to(tokens.device)]
        if acts.mask is not None:
            mixed = acts[site].index_put((acts.mask.to(tokens.device),), mixed)
        values[site] = mixed
    return replace(acts, values=values)


def _for_every_token(acts: Activations, reduce: Callable[[Tensor], Tensor]) -> Activations:
    tokens = {site: acts.tokens(site) for site in acts}
    _require_tokens(min(len(t) for t in tokens.values()))
    values = {site: reduce(t) for site, t in tokens.items()}
    return replace(acts, values=values, mask=None, positions=torch.zeros(0, dtype=torch.long))


def _require_tokens(n_tokens: int) -> None:
    if n_tokens == 0:
        raise PlanError("There are no tokens to make a source from. Capture some first.")
