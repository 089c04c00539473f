"""One batch: rows with plans of their own, generated together; each row succeeds or fails alone."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from steer.capture import Taken, run_rows
from steer.context import Run
from steer.errors import NeverFired
from steer.evals.batching.asked import Answer, Asked, Shape
from steer.evals.batching.choosing import Chooser
from steer.evals.batching.sharing import beginning_of, count
from steer.evals.batching.watching import Watched
from steer.evals.evidence import evidence_of, require_fired
from steer.evals.refusals import Refused
from steer.generation import generate_declared, pad_token
from steer.interventions.plans import Rows
from steer.lm import LM
from steer.prompts import in_batches, padded, sequences_of
from steer.receipt import Receipt
from steer.scopes import ALL
from steer.sites import Site

Outcome = Answer | Refused
LOGIT_TOKENS = 2048
"""Tokens of one pass that scores prompts: their logits are kept whole."""


@dataclass(slots=True, eq=False)
class _Deciding(StoppingCriteria):
    """Lets every row see its token, and ends the rows that are done."""

    watched: Sequence[Watched]
    guards: Tensor
    """[guard, 3]: row, line of the receipt, threshold."""
    run: Run
    stopped: Tensor
    """[row]: what the passes know of rows that have ended."""

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> torch.BoolTensor:  # noqa: ARG002
        flagged: set[int] = set()
        if len(self.guards):
            row, line = self.guards[:, 0].long(), self.guards[:, 1].long()
            readings, begun = self.run.work.readings()
            reading = readings[line, row]
            # What is not a number was not judged harmless.
            above = (reading > self.guards[:, 2]) | (reading.isnan() & begun[line, row])
            flagged = set(row[above].tolist())
        tokens = input_ids[:, -1].tolist()
        for at, one in enumerate(self.watched):
            one.see(tokens[at], flagged=at in flagged)
        done = torch.tensor([one.done for one in self.watched])
        self.stopped.copy_(done)  # generate's own declaration holds the same tensor
        return cast("torch.BoolTensor", done.to(input_ids.device))


def run_batch(lm: LM, watched: Sequence[Watched], shape: Shape | None = None) -> list[Outcome]:
    """Return what became of each row.

    Raises:
        Refused: wrong_plan, where one is attached to the whole model.
        SteerError: a plan does not fit its row, which kept the whole batch from running; nothing
            has left. Run the rows apart to learn which it is.
    """
    if lm.registry.runs():
        raise Refused(
            "wrong_plan",
            f"Another plan is attached to the whole model: {lm!r}. Answers would be steered by it "
            "under the name of their own plan. Call lm.detach() first.",
        )
    filled = [*watched, *_fillers(watched, shape)]
    rows = [one.asked for one in filled]
    # Without a plan there is nothing to tell apart, and no hook to pay for.
    plan = Rows([row.plan for row in rows]) if any(row.plan for row in rows) else []
    chooser = Chooser(rows, lambda fine: _give_up(filled, fine))
    run = lm.registry.taking(plan, [(Site.logits(), chooser.take)])
    lines = {id(item): at for at, item in enumerate(run.work.wiring.items)}
    _generate(lm, filled, chooser, run, (lines, shape))
    receipt, columns = run.receipt, _Columns.of(chooser)
    scored = _prompts_scored(lm, rows[: len(watched)], shape)
    outcomes: list[Outcome] = []
    for at, one in enumerate(watched):
        own = [receipt.lines[lines[id(item)]] for item in one.asked.plan]
        try:
            did = _evidence(one, Receipt(own, receipt.n_passes), at)
        except Refused as refusal:
            outcomes.append(refusal)
            continue
        outcomes.append(_answer(one, at, columns, (did, chooser.seeds[at], scored.get(at))))
    return outcomes


def _generate(
    lm: LM,
    watched: Sequence[Watched],
    chooser: Chooser,
    run: Run,
    how: tuple[dict[int, int], Shape | None],
) -> None:
    """Run the passes of a batch; the rows watch."""
    lines, shape = how
    rows = [one.asked for one in watched]
    prompts = [row.ids for row in rows]
    shared = beginning_of(lm, run.work.wiring, prompts) if shape is None else None
    if shared is None:
        ids, mask = padded(prompts, pad_token(lm.tokenizer), left=True)
    else:
        ids, mask = shared.ids, shared.mask
    if shape is not None:
        missing = shape.width - ids.shape[1]
        ids = torch.nn.functional.pad(ids, (missing, 0), value=pad_token(lm.tokenizer))
        mask = torch.nn.functional.pad(mask, (missing, 0))
    declared = sequences_of(ids, mask, range(len(rows)), len(rows))
    if shared is not None:
        declared.column = declared.seen = shared.n
    declared.stopped = torch.zeros(len(rows), dtype=torch.bool)
    guards = [
        (at, lines[id(row.plan[guard.line])], guard.above)
        for at, row in enumerate(rows)
        for guard in row.guards
    ]
    deciding = _Deciding(watched, torch.tensor(guards).reshape(-1, 3), run, declared.stopped)
    options = {
        # A guarded row runs one token on, so that its last token is read before it leaves.
        "max_new_tokens": max(row.max_new_tokens + bool(row.guards) for row in rows),
        "do_sample": False,
        "logits_processor": LogitsProcessorList([chooser]),
        "stopping_criteria": StoppingCriteriaList([deciding]),
        **({} if shared is None else shared.options),
    }
    # Whether each row was steered is asked of the row; the run only sees the whole batch.
    with suppress(NeverFired), run:
        if shared is not None:
            count(run, declared, shared.n)
        generate_declared(lm.registry, lm.tokenizer, declared, options, None, None)


def _fillers(watched: Sequence[Watched], shape: Shape | None) -> list[Watched]:
    """Return rows that nobody asked for, to fill a batch of fixed shape."""
    if shape is None:
        return []
    first = watched[0].asked
    idle = Asked(first.ids[:1], max_new_tokens=1)
    return [
        Watched(idle, _silent, frozenset(), None, lambda: False)
        for _ in range(shape.rows - len(watched))
    ]


def _silent(ids: list[int]) -> str:  # noqa: ARG001 - of the form of a decoder
    return ""


def _give_up(watched: Sequence[Watched], fine: Tensor) -> None:
    """Mark the rows whose logits are not numbers."""
    for at in (~fine).nonzero().flatten().tolist():
        watched[at].broken = True


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """What was chosen, [row][place], moved from the device once."""

    log_probs: list[list[float]]
    ids: list[list[list[int]]]
    values: list[list[list[float]]]

    @classmethod
    def of(cls, chooser: Chooser) -> "_Columns":
        ids = torch.stack([one for one, _ in chooser.top], 1).tolist() if chooser.top else []
        values = torch.stack([one for _, one in chooser.top], 1).tolist() if chooser.top else []
        return cls(torch.stack(chooser.log_probs, 1).tolist(), ids, values)

    def top(self, row: int, n_places: int, n_top: int) -> list[list[tuple[int, float]]]:
        """Return the likeliest tokens at the places of a row."""
        if not n_top:
            return []
        places = zip(self.ids[row][:n_places], self.values[row][:n_places], strict=True)
        return [list(zip(i[:n_top], v[:n_top], strict=True)) for i, v in places]


def _evidence(one: Watched, receipt: Receipt, row: int) -> list[dict[str, object]]:
    if one.broken:
        raise Refused(
            "not_finite",
            f"After {len(one.tokens)} new tokens the logits of this row were not numbers. The "
            "strength of its plan is too large for this model's dtype, or the model overflows by "
            "itself. Lower the strength; steer.suggest_strength finds one.",
        )
    require_fired(receipt, [row])
    return evidence_of(receipt, row)


def _answer(
    one: Watched,
    row: int,
    columns: _Columns,
    rest: tuple[list[dict[str, object]], int | None, list[float] | None],
) -> Answer:
    did, seed, scored = rest
    n = len(one.tokens)
    assert one.finish is not None
    return Answer(
        one.text(),
        tuple(one.tokens),
        columns.log_probs[row][:n],
        columns.top(row, n, one.asked.top),
        one.finish,
        did,
        len(one.asked.ids),
        seed,
        scored,
    )


def _prompts_scored(lm: LM, rows: Sequence[Asked], shape: Shape | None) -> dict[int, list[float]]:
    """Return the log-probabilities of the prompts of the rows that ask for them."""
    asking = [at for at, row in enumerate(rows) if row.prompt_log_probs]
    found: dict[int, list[float]] = {}
    batches = in_batches([rows[at].ids for at in asking], LOGIT_TOKENS)
    if shape is not None:  # alone, so that no batch-mate changes the shape of its pass
        batches = [[at] for at in range(len(asking))]
    for batch in batches:
        chosen = [asking[at] for at in batch]
        ids = [list(rows[at].ids) for at in chosen]
        taken, logits = Taken(ALL, None), Site.logits()
        run = lm.registry.taking(Rows([rows[at].plan for at in chosen]), [(logits, taken.take)])
        wanted = ([logits], ALL, pad_token(lm.tokenizer), None)
        # A plan for generated tokens alone leaves prompts as they are: no failure here.
        with torch.no_grad(), suppress(NeverFired), run:
            run_rows(lm.registry, run.work.wiring.taps, ids, range(len(ids)), wanted)
        log_probs = taken.assembled([logits], len(ids))[logits].float().log_softmax(-1)
        if log_probs.ndim == 2:  # one token a row comes without its axis
            log_probs = log_probs[:, None]
        for place, at in enumerate(chosen):
            targets = torch.tensor(rows[at].ids[1:], device=log_probs.device)
            own = log_probs[place, : len(targets)]
            found[at] = own.gather(1, targets[:, None])[:, 0].tolist()
    return found
