"""Generation of many requests: those of equal settings and similar length share a batch."""

from collections.abc import Iterator, Sequence

from steer.errors import SteerError
from steer.evals.batching.asked import Answer, Asked
from steer.evals.batching.checking import checked
from steer.evals.batching.passing import run_batch
from steer.evals.batching.watching import Watched
from steer.evals.harness.settings import Settings
from steer.evals.refusals import Refused
from steer.generating import end_tokens
from steer.lm import LM
from steer.prompts import in_batches

MAX_ROWS = 32


def answers_in_batches(
    lm: LM, rows: Sequence[Asked], settings: Sequence[Settings], *, max_rows: int | None = None
) -> Iterator[dict[int, Answer]]:
    """Yield the answers of each batch, by the number of the row, as soon as it has run.

    Raises:
        Refused: the first row that must not be answered: never_fired, not_finite, too_long,
            plan_does_not_fit, wrong_plan.
    """
    groups: dict[Settings, list[int]] = {}
    for at, one in enumerate(settings):
        groups.setdefault(one, []).append(at)
    for own in groups.values():
        # The new tokens are the longer part of most passes, so rows bound a batch, not tokens.
        lengths = [rows[at].ids for at in own]
        (order,) = in_batches(lengths, max_tokens=sum(map(len, lengths)) * len(lengths))
        size = max_rows or MAX_ROWS
        for start in range(0, len(order), size):
            part = [own[at] for at in order[start : start + size]]
            yield dict(zip(part, _answered(lm, [rows[at] for at in part]), strict=True))


def _answered(lm: LM, rows: Sequence[Asked]) -> list[Answer]:
    for row in rows:
        checked(lm, row, None)
    ends = end_tokens(lm.model, {})
    if isinstance(lm.tokenizer.eos_token_id, int):
        ends |= {lm.tokenizer.eos_token_id}  # lm-eval always stops there

    def decode(ids: list[int]) -> str:
        return str(lm.tokenizer.decode(ids, skip_special_tokens=True))

    watched = [Watched(row, decode, frozenset(ends), None, _never) for row in rows]
    try:
        outcomes = run_batch(lm, watched)
    except Refused:
        raise
    except SteerError as error:
        raise Refused("plan_does_not_fit", str(error)) from None
    answers: list[Answer] = []
    for outcome in outcomes:
        if isinstance(outcome, Refused):
            raise outcome
        answers.append(outcome)
    return answers


def _never() -> bool:
    return False
