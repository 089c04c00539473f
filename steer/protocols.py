"""What `steer` needs of a probe, of a manifold and of an intervention; declared by the consumer.

A dictionary feature, a geomstats space or a user's own class fits without importing anything.
"""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from steer.scopes import Scope
    from steer.sites import AnySite
    from steer.step import Step


@runtime_checkable
class Probe(Protocol):
    """A fitted read-out."""

    def scores(self, x: Tensor) -> Tensor:
        """Return one score per token: [..., d_model] -> [...]."""
        ...


@runtime_checkable
class Eraser(Protocol):
    """A fitted map that takes a concept out of states."""

    def apply(self, x: Tensor) -> Tensor:
        """Return the states without it: [..., d_model] -> [..., d_model]."""
        ...


@runtime_checkable
class Manifold(Protocol):
    """A fitted shape in activation space, living on an affine subspace.

    One-dimensional charts take and give coordinates of shape [...]; charts of dim k > 1 take and
    give [..., k].
    """

    @property
    def dim(self) -> int:
        """How many coordinates a point has."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates of the nearest point of the manifold."""
        ...

    def decode(self, u: Tensor) -> Tensor:
        """Return the point with these coordinates: [..., d_model]."""
        ...

    def flatten(self, x: Tensor) -> Tensor:
        """Return the nearest point of the affine subspace in which the manifold lives."""
        ...


@runtime_checkable
class Intervention(Protocol):
    """A frozen recipe: where, on which tokens, and a pure edit of what is there."""

    @property
    def site(self) -> "AnySite":
        """Where."""
        ...

    @property
    def scope(self) -> "Scope":
        """On which tokens."""
        ...

    def edit(self, h: Tensor, step: "Step") -> Tensor:
        """Return the edited tensor of the same shape and dtype; never write into `h`."""
        ...


@runtime_checkable
class Law(Protocol):
    """A fitted belief: predicts log-odds (in nats) from evidence and the strength of steering."""

    @property
    def intervention(self) -> str | None:
        """Digest of the steering that it was fitted on; None where it does not say."""
        ...

    def log_odds(self, evidence: Any, strength: Any = 0.0) -> Tensor:
        """Return the log-odds, elementwise."""
        ...

    def attainable(self, evidence: Any) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest log-odds that valid strengths reach, elementwise."""
        ...

    def strength_for(self, target: Any, evidence: Any, *, extrapolate: bool = False) -> Tensor:
        """Return the strength that brings the log-odds to a target, elementwise."""
        ...


class Tokenizer(Protocol):
    """What is used of a HuggingFace tokenizer."""

    pad_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], *, padding: bool = False) -> Any:
        """Return the encoding of several strings."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of token ids."""
        ...
