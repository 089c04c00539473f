"""Steering by a belief: Control sets the strength that the context calls for, Forecast reports.

In-context evidence and steering add up in log-odds (Bigelow et al. 2025, arXiv:2511.00617), so a
fitted belief says how much steering brings a row to a target, given the evidence that the row
holds already. The paper predicts; the controller is what follows from it. Any value with log_odds,
attainable and strength_for will do (`steer.protocols.Law`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from steer.errors import BeliefError, PlanError
from steer.interventions.arithmetic import Number, add_delta, as_vector, precise, require_finite
from steer.interventions.gates import Read
from steer.interventions.linear import Add
from steer.interventions.recipe import Recipe, Shared, batch_length
from steer.protocols import Law
from steer.scopes import ALL, GENERATED, LAST, Scope
from steer.sites import AnySite, Site
from steer.step import Step
from steer.tokens import Prompt


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Count(Shared):
    """Evidence counted in each row's prompt: how many of its tokens are among some token ids.

    Generated tokens do not count: the dose is settled when the prompt is complete.

    Raises:
        PlanError: no token ids, or negative ones.
    """

    kind: ClassVar[str] = "steer.Count"
    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the ids."""
        ids = tuple(int(token) for token in self.token_ids)
        if not ids or min(ids) < 0:
            raise PlanError(
                f"Count was given the token ids {ids}. It counts tokens by their ids, so it needs "
                "at least one, and none is negative. Look them up with lm.tokens(text)."
            )
        object.__setattr__(self, "token_ids", ids)

    def __repr__(self) -> str:
        """Say which tokens, or how many."""
        few = ", ".join(str(token) for token in self.token_ids[:4])
        more = f", ... ({len(self.token_ids)})" if len(self.token_ids) > 4 else ""
        return f"Count({few}{more})"

    def of(self, prompt: Prompt) -> Tensor:
        """Return [row]: how often the tokens stand in each row's prompt."""
        assert prompt.ids is not None
        wanted = torch.isin(prompt.ids, torch.tensor(self.token_ids))
        inside = prompt.mask & (prompt.starts < prompt.lengths[:, None])
        return (wanted & inside).sum(1).double()


@dataclass(frozen=True, slots=True, eq=False)
class TokenOdds(Shared):
    """The log-odds of some next tokens over others, as a probe of logits, in nats.

    The probabilities of the words of a side are summed before the logarithm is taken.

    Raises:
        PlanError: an empty side, or a token on both.
    """

    kind: ClassVar[str] = "steer.TokenOdds"
    positive: tuple[int, ...]
    negative: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the sides."""
        sides = tuple(tuple(int(t) for t in side) for side in (self.positive, self.negative))
        object.__setattr__(self, "positive", sides[0])
        object.__setattr__(self, "negative", sides[1])
        if not all(sides) or set(sides[0]) & set(sides[1]):
            raise PlanError(
                f"TokenOdds was given {sides[0]} against {sides[1]}. The odds of one side over the "
                "other need at least one token on each, and none on both."
            )

    def scores(self, x: Tensor) -> Tensor:
        """Return log P(positive) - log P(negative) of logits [..., vocab]: [...]."""
        logits = precise(x)
        for_it, against = logits[..., list(self.positive)], logits[..., list(self.negative)]
        return for_it.logsumexp(-1) - against.logsumexp(-1)


Evidence = Number | Tensor | Count | Read
"""A number, one for each row [batch], a count over the row's prompt, or a reading of it."""


def outcome_of(positive: Sequence[int], negative: Sequence[int], *, scope: Scope = LAST) -> Read:
    """Return the Read of log-odds of some next tokens over others, where an output begins."""
    return Read(Site.logits(), TokenOdds(tuple(positive), tuple(negative)), scope)


def identity_of(site: AnySite, direction: Tensor, scope: Scope = ALL) -> str:
    """Return the digest by which a belief knows the steering that it was fitted on.

    It is that of one unit of the direction added at the site, so the unit of strength enters too.
    """
    return Add(site, direction, 1.0, scope).digest


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Control(Recipe):
    """Add a direction with the strength that brings each row's log-odds to a target.

    h <- h + m * direction, m = the belief's `strength_for(target, evidence of the row)`. Where the
    evidence is read in the pass, a row whose target cannot be reached within the strengths for
    which the belief is valid is left unsteered, and the receipt's dose of that row is 0.

    Args:
        target: log-odds in nats: a number, or one for each row [batch].
        evidence: see `Evidence`. A reading is settled once per row, when the prompt is complete.
        outcome: what to record as the realised log-odds (see `outcome_of`); None records none.
        extrapolate: allow strengths beyond those for which the belief is valid.

    Raises:
        BeliefError: a target out of reach (says what can be reached); another direction, site,
            scope or unit than the belief was fitted on.
        PlanError: values that are not finite; at attach, a reading that comes too late.
    """

    kind: ClassVar[str] = "steer.Control"
    belief: Law
    site: AnySite
    direction: Tensor
    target: Number | Tensor
    evidence: Evidence
    outcome: Read | None = None
    scope: Scope = ALL
    extrapolate: bool = field(default=False, kw_only=True)
    doses: Tensor | None = field(default=None, init=False)
    """[] or [batch]: the strengths, where the evidence is known beforehand."""

    def __post_init__(self) -> None:
        """Check the values; settle the strengths if they can be."""
        object.__setattr__(self, "direction", as_vector(self.direction, "The direction of Control"))
        object.__setattr__(self, "target", _numbers(self.target, "The target of Control"))
        check_identity(self.belief, self.site, self.direction, self.scope)
        evidence = _evidence(self.evidence, "Control")
        object.__setattr__(self, "evidence", evidence)
        if not isinstance(evidence, Count | Read):
            doses = self.belief.strength_for(
                self.target, evidence, extrapolate=self.extrapolate
            ).detach()
            object.__setattr__(self, "doses", doses.cpu().double())

    def dose(self, step: Step) -> Tensor:
        """Return [row, 1] (or [1, 1]) on the host: the strength of each row; 0 where refused."""
        if self.doses is not None:
            doses = self.doses if self.doses.ndim == 0 else self.doses[step.rows.cpu()]
            return doses.reshape(-1, 1)
        evidence = evidence_at(self.evidence, step)
        target = _at(self.target, step)
        if self.extrapolate:
            m = self.belief.strength_for(target, evidence, extrapolate=True)
            return torch.where(evidence.isnan(), 0.0, m)
        low, high = self.belief.attainable(evidence)
        near = torch.minimum(torch.maximum(target, low), high)
        m = self.belief.strength_for(near, evidence, extrapolate=True)
        return torch.where((near == target) & ~evidence.isnan(), m, 0.0)

    def edit(self, h: Tensor, step: Step) -> Tensor:
        """Return h + dose * direction."""
        direction = precise(self.direction)
        dose = self.dose(step).to(h.device, direction.dtype)
        amount = dose.reshape(-1, *[1] * (h.ndim - 1))
        return torch.where(amount == 0, h, add_delta(h, amount * direction))

    def forecast(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return ([row, 1], [row, 1]): the predicted log-odds and the strength of each row."""
        dose = self.dose(step)
        evidence = evidence_at(self.evidence, step)
        return torch.broadcast_tensors(self.belief.log_odds(evidence, dose), dose)

    def reads(self) -> Sequence[tuple[Read, str]]:
        """Return the reading that is its evidence."""
        return ((self.evidence, "prompt"),) if isinstance(self.evidence, Read) else ()

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(target=self.target, evidence=self.evidence)

    def widths(self) -> Mapping[str, int]:
        """Return what must be as wide as the site."""
        return {"the direction": self.direction.shape[0]}

    def __repr__(self) -> str:
        """Say where, to which log-odds and by what evidence."""
        return (
            f"Control({self.site}, target={_said(self.target)} nats, "
            f"evidence={_said(self.evidence)}, scope={self.scope!r})"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Forecast(Recipe):
    """Record what a belief predicts for each row, beside what comes; it edits nothing.

    Args:
        evidence: see `Evidence`.
        strength: of the steering that other interventions of the plan do.
        outcome: what to record as the realised log-odds (see `outcome_of`); None records none.

    Raises:
        PlanError: values that are not finite.
    """

    kind: ClassVar[str] = "steer.Forecast"
    belief: Law
    evidence: Evidence
    strength: Number | Tensor = 0.0
    outcome: Read | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "evidence", _evidence(self.evidence, "Forecast"))
        object.__setattr__(self, "strength", _numbers(self.strength, "The strength of Forecast"))

    @property
    def site(self) -> AnySite:
        """Where it looks: where the output is measured."""
        return Site.logits() if self.outcome is None else self.outcome.site

    @property
    def scope(self) -> Scope:
        """At which tokens."""
        return LAST if self.outcome is None else self.outcome.scope

    def edit(self, h: Tensor, step: Step) -> Tensor:  # noqa: ARG002 - every edit is given one
        """Return h itself."""
        return h

    def forecast(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return ([row, 1], [row, 1]): the predicted log-odds and the strength of each row."""
        strength = _at(self.strength, step)
        predicted = self.belief.log_odds(evidence_at(self.evidence, step), strength)
        return torch.broadcast_tensors(predicted, strength)

    def reads(self) -> Sequence[tuple[Read, str]]:
        """Return the reading that is its evidence."""
        return ((self.evidence, "prompt"),) if isinstance(self.evidence, Read) else ()

    def row_counts(self) -> Mapping[str, int]:
        """Return what must be as long as the batch."""
        return batch_length(strength=self.strength, evidence=self.evidence)

    def __repr__(self) -> str:
        """Say by what evidence and at which strength."""
        return f"Forecast(evidence={_said(self.evidence)}, strength={_said(self.strength)})"


Believed = Control | Forecast


def check_identity(belief: Law, site: AnySite, direction: Tensor, scope: Scope) -> None:
    """Refuse a direction that is not the one on which a belief was fitted.

    Raises:
        BeliefError: names both digests; a belief that names none is not checked.
    """
    if belief.intervention is None:
        return
    mine = identity_of(site, direction, scope)
    if mine != belief.intervention:
        raise BeliefError(
            f"The belief was fitted on the intervention {belief.intervention[:12]}, but this one "
            f"at {site}, scope {scope!r}, is {mine[:12]}. Another direction, site, scope or unit "
            "of strength has another effect, so the predicted strengths would be wrong. Fit the "
            "belief on this intervention, or, if you mean it, drop the claim with "
            "dataclasses.replace(belief, intervention=None)."
        )


def late_evidence(item: Believed) -> Read | None:
    """Return what is read later in a pass than it is needed as evidence; None if nothing is."""
    if not isinstance(item.evidence, Read) or item.scope == GENERATED:
        return None
    read, acts = item.evidence.site, item.site
    late = isinstance(read, Site) and isinstance(acts, Site) and read.order > acts.order
    return item.evidence if late else None


def evidence_at(evidence: Evidence, step: Step) -> Tensor:
    """Return [row, 1] (or [1, 1]) on the host: the evidence of each row, NaN where not yet read."""
    if isinstance(evidence, Count | Read):
        # A reading may fall below 0; an amount of evidence cannot.
        return step.reads[evidence, "prompt"][:, -1:].cpu().double().clamp(min=0)
    return _at(evidence, step)


def _at(values: Number | Tensor, step: Step) -> Tensor:
    if isinstance(values, Tensor) and values.ndim:
        values = values.cpu()[step.rows.cpu()]
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1)


def _numbers(values: Number | Tensor, what: str) -> Number | Tensor:
    found = torch.as_tensor(values, dtype=torch.float64).detach()
    require_finite(found, what)
    if found.ndim > 1:
        raise PlanError(
            f"{what} has shape {tuple(found.shape)}, but it is a number or one for each row "
            "[batch]. Flatten it to one entry per prompt."
        )
    return found if found.ndim else float(found)


def _evidence(evidence: Evidence, owner: str) -> Evidence:
    if isinstance(evidence, Count | Read):
        return evidence
    found = _numbers(evidence, f"The evidence of {owner}")
    if bool((torch.as_tensor(found) < 0).any()):
        raise BeliefError(
            f"The evidence of {owner} has negative entries: {found}. It is an amount, such as "
            "a number of examples. Evidence for the opposite belongs to a belief fitted on such "
            "contexts."
        )
    return found


def _said(values: object) -> str:
    if isinstance(values, Tensor):
        return f"[{len(values)} rows]"
    return f"{values:g}" if isinstance(values, int | float) else repr(values)
