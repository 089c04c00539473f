"""Sites: where in a model something is read or written. Values only; no module, no hook.

`Site` names a standard component; `ModuleSite` is the raw escape for any other module. What
module and which part of its tensors a site stands for is said by the layout (`steer.models`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering
from typing import Literal, get_args

from steer.errors import SiteNotFound, did_you_mean

Component = Literal[
    "embed",
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "router",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "resid_post",
    "ln_final",
    "logits",
]
"""Every standard component, in the order in which one pass computes them."""

COMPONENTS: tuple[str, ...] = get_args(Component)
HEADED = frozenset({"q", "k", "v", "z", "pattern"})
"""Components with heads: [batch, pos, head, d_head]; pattern is [batch, head, query, key]."""

OUTSIDE_BLOCKS = frozenset({"embed", "ln_final", "logits"})
_NAME = re.compile(
    r"^(?:(?P<stack>\w+):)?(?:blocks\.(?P<layer>\d+)\.)?(?P<component>\w+)(?:\[(?P<head>\d+)\])?$"
)


@total_ordering
@dataclass(frozen=True, slots=True)
class Site:
    """A standard place in a model: `Site(12, "resid_post")` prints as `blocks.12.resid_post`.

    Layers count from zero; `resid_post` of layer l is HuggingFace's `hidden_states[l + 1]`,
    except for the last block, where HuggingFace returns the state after the final norm. q, k and
    v are the projections' outputs, before rotary embedding and before any q or k norm; k and v
    have the kv heads. attn_out and mlp_out are what is added to the stream, so after the post
    norms of sandwich-norm families. Sites sort in the order in which a pass computes them.

    Raises:
        SiteNotFound: an unknown component, a layer where there is none, a head on a headless one.

    >>> Site.parse("blocks.12.z[3]")
    blocks.12.z[3]
    """

    layer: int | None
    component: str = "resid_post"
    head: int | None = None
    """One head of q, k, v, z or pattern; None is all of them."""
    stack: str = "decoder"

    def __post_init__(self) -> None:
        """Refuse at construction what no model could have."""
        if self.component not in COMPONENTS:
            raise SiteNotFound(
                f"There is no component {self.component!r}: the components are "
                f"{', '.join(COMPONENTS)}.{did_you_mean(str(self.component), COMPONENTS)} For any "
                "other module use ModuleSite('path.of.module', 'output')."
            )
        outside = self.component in OUTSIDE_BLOCKS
        if outside and self.layer is not None:
            raise SiteNotFound(
                f"{self.component} is not inside a block, but layer {self.layer} was given. "
                f"Write Site.{self.component}()."
            )
        if not outside and (not isinstance(self.layer, int) or self.layer < 0):
            raise SiteNotFound(
                f"{self.component} needs a layer from 0 up, not {self.layer!r}: layers count from "
                f"zero, and negative ones would mean different blocks in different models. Write "
                f'Site(12, "{self.component}").'
            )
        if self.head is not None and (self.component not in HEADED or self.head < 0):
            raise SiteNotFound(
                f"{self.component} cannot take head {self.head}: only {', '.join(sorted(HEADED))} "
                "have a head axis, and heads count from zero. Leave head out."
            )

    @classmethod
    def embed(cls, stack: str = "decoder") -> "Site":
        """Return the token embeddings as they enter the first block."""
        return cls(None, "embed", stack=stack)

    @classmethod
    def ln_final(cls, stack: str = "decoder") -> "Site":
        """Return the output of the final norm, which the unembedding reads."""
        return cls(None, "ln_final", stack=stack)

    @classmethod
    def logits(cls, stack: str = "decoder") -> "Site":
        """Return the model's output logits, after any soft cap."""
        return cls(None, "logits", stack=stack)

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Return the site whose `str` is `text`.

        Raises:
            SiteNotFound: the text is not of the printed form.
        """
        found = _NAME.match(text)
        if found is None:
            raise SiteNotFound(
                f"{text!r} is not the name of a site. Names look like blocks.12.resid_post, "
                "blocks.3.z[5], embed, ln_final or logits."
            )
        layer, head = found["layer"], found["head"]
        return cls(
            None if layer is None else int(layer),
            found["component"],
            None if head is None else int(head),
            found["stack"] or "decoder",
        )

    @property
    def order(self) -> tuple[float, int]:
        """Where in a pass this site is computed: (block, rank within the block)."""
        rank = COMPONENTS.index(self.component)
        if self.layer is not None:
            return float(self.layer), rank
        return (-1.0 if self.component == "embed" else float("inf")), rank

    def __lt__(self, other: object) -> bool:
        """Order by when a pass computes the site, then by head."""
        if not isinstance(other, Site):
            return NotImplemented
        mine = (self.stack, *self.order, -1 if self.head is None else self.head)
        theirs = (other.stack, *other.order, -1 if other.head is None else other.head)
        return mine < theirs

    def __str__(self) -> str:
        """Print the parsable name."""
        stack = "" if self.stack == "decoder" else f"{self.stack}:"
        block = "" if self.layer is None else f"blocks.{self.layer}."
        head = "" if self.head is None else f"[{self.head}]"
        return f"{stack}{block}{self.component}{head}"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class ModuleSite:
    """Any module by its path: the raw escape where no standard component fits.

    The tensor is the module's output (or its first tensor argument for "input"); when a module
    returns several, the first tensor of the tuple. No meaning is checked: width and positions are
    the caller's affair, only the existence of the module is.
    """

    path: str
    side: Literal["input", "output"] = "output"

    def __post_init__(self) -> None:
        """Refuse sides that no module has."""
        if self.side not in ("input", "output"):
            raise SiteNotFound(f"ModuleSite side is 'input' or 'output', not {self.side!r}.")

    def __str__(self) -> str:
        """Print `module:path:side`."""
        return f"module:{self.path}:{self.side}"

    __repr__ = __str__


AnySite = Site | ModuleSite


def parse_site(text: str) -> AnySite:
    """Return the Site or ModuleSite whose `str` is `text`."""
    if text.startswith("module:"):
        path, side = text.removeprefix("module:").rsplit(":", 1)
        return ModuleSite(path, "input" if side == "input" else "output")
    return Site.parse(text)


def require_sites(sites: object) -> None:
    """Refuse what is no sequence of sites, before anything is run.

    Raises:
        TypeError: a lone site, or an entry that is none.
    """
    if isinstance(sites, Site | ModuleSite | str) or not isinstance(sites, Iterable):
        raise TypeError(
            f"The sites are {sites!r}, which is no list. Several can be read in one pass, so write "
            "a list of them: [steer.Site(12, 'resid_post')]."
        )
    for site in sites:
        if not isinstance(site, Site | ModuleSite):
            raise TypeError(
                f"{site!r} is a {type(site).__name__}, not a site. Write steer.Site(12, "
                "'resid_post'), or steer.Site.parse('blocks.12.resid_post') for a printed name."
            )
