"""The errors a user can cause, and the one helper that suggests near names.

Each message says what happened with the values, why that cannot work, and what to do. Our own
invariants are plain asserts; wrong kinds of argument are TypeError.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SteerError(ValueError):
    """Root of every error that a user of this toolkit can cause."""


class ModelNotFound(SteerError):
    """A model name, revision or wheel that cannot be had, or a licence not yet accepted."""


class UnsupportedModel(SteerError):
    """A model whose blocks could not be explained, or whose state a hook cannot reach."""


class SiteNotFound(SteerError):
    """A site that this model does not have."""


class WidthMismatch(SteerError):
    """A tensor whose width is not the width of the site it is meant for."""


class ScopeError(SteerError):
    """A scope that a row lacks, or that cannot be told from what is known of this pass."""


class PlanError(SteerError):
    """A plan that is malformed: a lone value where rows are due, a gate that reads too late."""


class BeliefError(SteerError):
    """A belief that cannot be fitted on such data, or asked beyond what it knows."""


class NeverFired(SteerError):
    """An intervention that saw no token in scope: steering silently not applied."""


class SpecError(SteerError):
    """An artefact that is unknown, corrupted, truncated, tampered with, or made elsewhere."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the nearest known name, or an empty string.

    >>> did_you_mean("resid_pots", ["resid_post", "resid_pre"])
    ' Did you mean resid_post?'
    """
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""
