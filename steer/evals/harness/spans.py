"""Log-likelihoods of token spans under a plan: the context is the prompt, the rest is generated.

lm-eval encodes context and continuation together and then cuts, so positions are rebuilt from the
spans and not from the text. As in a generation, the last token of a continuation is predicted and
never read: it does not pass the model, and a plan for it alone does not fire.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from steer.bookkeeping import Pass
from steer.capture import run_rows
from steer.errors import NeverFired, SteerError
from steer.evals.evidence import evidence_of, require_fired
from steer.evals.refusals import Refused
from steer.generation import pad_token
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.prompts import in_batches
from steer.receipt import Receipt
from steer.scopes import OUTPUT
from steer.sites import AnySite, Site

MAX_TOKENS = 2048
"""Padded tokens of one pass: the logits of the scored ones are held at once."""

Spans = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Score:
    """What one continuation scored."""

    log_prob: float
    """Natural log of the probability of the whole continuation."""
    greedy: bool
    """Whether each of its tokens is the likeliest one."""
    did: tuple[dict[str, object], ...]
    """What each intervention did to its row (`steer.evals.evidence_of`)."""


def score_spans(
    lm: LM,
    contexts: Spans,
    continuations: Spans,
    plan: Plan,
    *,
    max_tokens: int = MAX_TOKENS,
    max_rows: int | None = None,
) -> list[tuple[float, bool]]:
    """Return (log-probability, whether greedy) of each continuation after its context.

    Args:
        lm: the model.
        contexts: token ids, which count as the prompt.
        continuations: token ids, which count as generated.
        plan: interventions, for every row; an empty list for the model as it is.
        max_tokens: padded tokens of one pass.
        max_rows: rows of one pass at most.

    Raises:
        Refused: bad_request (an empty span), wrong_plan (another plan is attached),
            plan_does_not_fit, never_fired, or not_finite.
    """
    found: dict[int, Score] = {}
    for batch in scored_in_batches(
        lm, contexts, continuations, plan, max_tokens=max_tokens, max_rows=max_rows
    ):
        found |= batch
    return [(found[at].log_prob, found[at].greedy) for at in range(len(contexts))]


def scored_in_batches(
    lm: LM,
    contexts: Spans,
    continuations: Spans,
    plan: Plan,
    *,
    max_tokens: int = MAX_TOKENS,
    max_rows: int | None = None,
) -> Iterator[dict[int, Score]]:
    """Yield the scores of each pass, by the number of the span, as soon as it has run.

    Spans that differ in their last token only, as the letters of a multiple choice do, share a row.

    Raises:
        Refused: as `score_spans`.
    """
    _check(lm, contexts, continuations)
    sharing: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for at, (context, tail) in enumerate(zip(contexts, continuations, strict=True)):
        sharing.setdefault((tuple(context), tuple(tail[:-1])), []).append(at)
    groups = list(sharing.items())
    rows = [[*context, *tail] for (context, tail), _ in groups]
    for batch in in_batches(rows, max_tokens):
        size = max_rows or len(batch)
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            members = [groups[r][1] for r in part]
            read = _Reading.of(members, [continuations[own[0]] for own in members], continuations)
            lengths = torch.tensor([len(groups[r][0][0]) for r in part])
            receipt = _pass(lm, [rows[r] for r in part], lengths, plan, read)
            yield read.scores(receipt)


def fitted(context: Sequence[int], continuation: Sequence[int], max_length: int) -> list[int]:
    """Return the end of a context that fits before a continuation, cut on the left as lm-eval does.

    Raises:
        Refused: too_long, where not one token of context would be left.
    """
    room = max_length + 1 - len(continuation)  # the last token of the continuation is not read
    if room < 1:
        raise Refused(
            "too_long",
            f"A continuation has {len(continuation)} tokens, but the model reads {max_length} in "
            "all, and one of context has to be among them. Leave this task out, or give a larger "
            "max_length if the model has it.",
        )
    return list(context[-room:])


def _check(lm: LM, contexts: Spans, continuations: Spans) -> None:
    if len(contexts) != len(continuations):
        raise Refused(
            "bad_request",
            f"{len(contexts)} contexts need as many continuations, not {len(continuations)}.",
        )
    for name, spans in (("context", contexts), ("continuation", continuations)):
        empty = [at for at, span in enumerate(spans) if not span]
        if empty:
            raise Refused(
                "bad_request",
                f"The {name} of request {empty[0]} has no tokens, so nothing can be scored. "
                "Its text is empty, or the tokenizer merges all of it into the other part. Change "
                "the task's text or its delimiter.",
            )
    if lm.registry.runs():
        raise Refused(
            "wrong_plan",
            f"Another plan is attached to the whole model: {lm!r}. Scores would be steered by it "
            "under the name of their own plan. Call lm.detach() first.",
        )


@dataclass(slots=True, eq=False)
class _Reading:
    """What one pass is asked: for each scored token its place among the output positions."""

    counts: list[int]
    """[row]: output positions, one for each token of the continuation."""
    members: list[tuple[int, int]]
    """(request, its row)."""
    request: Tensor
    """[token]: place in `members`."""
    place: Tensor
    """[token]: among all output positions of the pass, row after row."""
    token: Tensor
    log_probs: list[Tensor] = field(default_factory=list)
    likeliest: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, members: Sequence[Sequence[int]], tails: Spans, all_tails: Spans) -> "_Reading":
        """Lay the tokens of the requests out; `tails` has one continuation of each row."""
        counts = [len(tail) for tail in tails]
        starts = [0, *accumulate(counts)]
        flat = [(request, row) for row, own in enumerate(members) for request in own]
        request, place, token = [], [], []
        for at, (number, row) in enumerate(flat):
            request += [at] * counts[row]
            place += range(starts[row], starts[row + 1])
            token += all_tails[number]
        return cls(counts, flat, torch.tensor(request), torch.tensor(place), torch.tensor(token))

    def take(self, _site: AnySite, logits: Tensor, now: Pass) -> None:
        """Keep of the logits what was asked, and drop the rest: a vocabulary is wide."""
        mask = now.select(OUTPUT, None).mask
        assert mask.sum(1).tolist() == self.counts, (mask.sum(1), self.counts)
        row, column = (one.to(logits.device) for one in mask.nonzero(as_tuple=True))
        place, token = self.place.to(logits.device), self.token.to(logits.device)
        h = logits[row, column].float()
        self.likeliest.append((h.argmax(-1)[place] == token).cpu())
        self.log_probs.append((h[place, token] - h.logsumexp(-1)[place]).double().cpu())

    def scores(self, receipt: Receipt) -> dict[int, Score]:
        """Return the score of each request.

        Raises:
            Refused: not_finite.
        """
        log_probs = torch.cat(self.log_probs)
        # Minus infinity is a token that the model rules out; the rest is an overflow.
        if bool(log_probs.isnan().any() | (log_probs == float("inf")).any()):
            raise Refused(
                "not_finite",
                "The logits of a scored row are not numbers. The strength of the plan is too large "
                "for this model's dtype, or the model overflows by itself. Lower the strength; "
                "steer.suggest_strength finds one.",
            )
        n = len(self.members)
        sums = torch.zeros(n, dtype=torch.double).index_add(0, self.request, log_probs)
        missed = torch.zeros(n).index_add(0, self.request, (~torch.cat(self.likeliest)).float())
        did = {row: tuple(evidence_of(receipt, row)) for row in range(len(self.counts))}
        return {
            request: Score(total, lost == 0, did[row])
            for (request, row), total, lost in zip(
                self.members, sums.tolist(), missed.tolist(), strict=True
            )
        }


def _pass(lm: LM, rows: list[list[int]], lengths: Tensor, plan: Plan, read: _Reading) -> Receipt:
    """Run one batch; return its receipt, in which every intervention fired in every row."""
    logits = Site.logits()
    try:
        run = lm.registry.taking(plan, [(logits, read.take)])
        wanted = ([logits], OUTPUT, pad_token(lm.tokenizer), lengths)
        # Whether it fired is asked of each row below; the run only sees the whole batch.
        with torch.no_grad(), suppress(NeverFired), run:
            run_rows(lm.registry, run.work.wiring.taps, rows, range(len(rows)), wanted)
    except SteerError as error:
        raise Refused("plan_does_not_fit", str(error)) from None
    try:
        require_fired(run.receipt)
    except Refused as refusal:
        said = str(refusal).removeprefix(f"[{refusal.reason}] ")
        shortest = min(read.counts)
        raise Refused(
            refusal.reason,
            f"{said} (Scoring: the context is the prompt, and the last token of a continuation is "
            f"never read; the shortest one here has {shortest}. GENERATED alone cannot move a "
            "continuation of one token: OUTPUT does.)",
        ) from None
    return run.receipt
