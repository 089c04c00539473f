"""The interventions that follow from a belief, made by name."""

from collections.abc import Sequence

from torch import Tensor

from steer.interventions.arithmetic import Number
from steer.interventions.believed import Control, Evidence, identity_of, outcome_of
from steer.interventions.gates import Read
from steer.protocols import Law
from steer.scopes import ALL, LAST, Scope
from steer.sites import AnySite


def controller(
    belief: Law,
    site: AnySite,
    direction: Tensor,
    target: Number | Tensor,
    evidence: Evidence,
    *,
    outcome: Read | None = None,
    scope: Scope = ALL,
    extrapolate: bool = False,
) -> Control:
    """Return the intervention whose strength, per row, brings the log-odds to a target.

    Args:
        belief: fitted on this direction at this site and scope.
        site: where to steer.
        direction: [d_model], in the unit in which the belief was fitted.
        target: log-odds in nats, a number or one for each row [batch].
        evidence: how much each row's context holds: a number, [batch], a `Count` over the tokens of
            its prompt, or a `Read` of it.
        outcome: the log-odds to record as realised (see `outcome`).
        scope: which tokens are steered.
        extrapolate: allow strengths beyond those for which the belief is valid.

    Raises:
        BeliefError: a target out of reach; another direction, site, scope or unit than fitted on.

    >>> import torch, steer
    >>> belief = steer.belief.Belief(a=2.0, b=-1.0, gamma=0.5, alpha=0.5)
    >>> steer.belief.controller(belief, steer.Site(1), torch.ones(4), 0.0, 4.0).doses
    tensor(0., dtype=torch.float64)
    """
    return Control(
        belief, site, direction, target, evidence, outcome, scope, extrapolate=extrapolate
    )


def identity(site: AnySite, direction: Tensor, *, scope: Scope = ALL) -> str:
    """Return the digest of a steering, for `fit(..., intervention=...)`."""
    return identity_of(site, direction, scope)


def outcome(positive: Sequence[int], negative: Sequence[int], *, scope: Scope = LAST) -> Read:
    """Return the Read of log-odds of some next tokens over others, in nats.

    Args:
        positive: token ids of the words for the concept; their probabilities are summed.
        negative: token ids of the words against it.
        scope: at which tokens; the last of the prompt, which makes the first output token.
    """
    return outcome_of(positive, negative, scope=scope)
