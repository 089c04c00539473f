"""Activations: what was read, site by site, at which tokens, and where it came from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.errors import SiteNotFound, did_you_mean
from steer.sites import AnySite


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Activations:
    """A frozen mapping Site -> tensor.

    With one token a row in scope each tensor is [batch, d_model] and `mask` is None; otherwise it
    is [batch, n, d_model], the tokens in scope in order, padded on the right, and `mask`
    [batch, n] is True at real ones. Head sites have [head, d_head] in place of d_model.
    """

    values: Mapping[AnySite, Tensor]
    mask: Tensor | None
    """[batch, n] bool, or None when each row has exactly one token."""
    positions: Tensor
    """[batch] or [batch, n]: positions in the row's own tokens, -1 where there is none."""
    model: Mapping[str, str] = field(default_factory=dict)
    """What identifies the model: name, revision and, once asked for, its weight hash."""
    scope: str = ""

    def __getitem__(self, site: AnySite) -> Tensor:
        """Return the tensor of a site.

        Raises:
            SiteNotFound: it was not captured.
        """
        if site not in self.values:
            names = [str(s) for s in self.values]
            raise SiteNotFound(
                f"{site} was not captured: these activations hold {', '.join(names)}."
                f"{did_you_mean(str(site), names)} Add the site to lm.capture."
            )
        return self.values[site]

    def __iter__(self) -> Iterator[AnySite]:
        """Iterate over the sites."""
        return iter(self.values)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self.values)

    def __contains__(self, site: object) -> bool:
        """Say whether a site was captured."""
        return site in self.values

    @property
    def sites(self) -> tuple[AnySite, ...]:
        """The sites in the order asked for."""
        return tuple(self.values)

    def stack(self) -> Tensor:
        """Return [site, batch, ...]: all sites in one tensor, for stacked fits."""
        return torch.stack(list(self.values.values()))

    def counts(self) -> Tensor | None:
        """Return [batch]: tokens in scope of each row, or None where each has one."""
        return None if self.mask is None else self.mask.sum(1)

    def tokens(self, site: AnySite) -> Tensor:
        """Return [n_tokens, d_model]: the real tokens of all rows, flat."""
        values = self[site]
        return values if self.mask is None else values[self.mask]

    def origin(self, site: AnySite) -> dict[str, str]:
        """Return where a site's values come from, to be carried by what is fitted on them."""
        return {**self.model, "site": str(site), "scope": self.scope}

    def __repr__(self) -> str:
        """Say what is held, in shapes."""
        first = next(iter(self.values.values()))
        size = sum(v.numel() * v.element_size() for v in self.values.values())
        shown = ", ".join(str(site) for site in list(self.values)[:3])
        more = f" and {len(self) - 3} more" if len(self) > 3 else ""
        return (
            f"Activations({shown}{more}; each {list(first.shape)} {str(first.dtype)[6:]}, "
            f"scope={self.scope}, {size / 2**20:.1f} MiB)"
        )
