"""lm-eval's requests as token spans and rows: windows, what is cut off, seeds."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from steer.evals.batching.asked import Asked
from steer.evals.harness.cutting import refuse_cut
from steer.evals.harness.settings import Settings, row_of, seed_of, settings_of
from steer.evals.harness.spans import fitted
from steer.evals.refusals import Refused
from steer.protocols import Intervention

Plan = Sequence[Intervention]


@dataclass(frozen=True, slots=True)
class Room:
    """What bounds a request, and what it gets where it does not say."""

    max_length: int
    """Tokens that the model reads."""
    max_gen_toks: int
    seed: int
    prefix: int
    """The token before an empty context."""


def cut_context(context: Sequence[int], tail: Sequence[int], plan: Plan, room: Room) -> list[int]:
    """Return what of a context is read before a continuation.

    Raises:
        Refused: too_long.
    """
    kept = fitted(context, tail, room.max_length)
    if len(kept) < len(context):
        refuse_cut(plan, len(context) + len(tail), room.max_length)
    return kept


def windows_of(ids: Sequence[int], plan: Plan, room: Room) -> list[tuple[list[int], list[int]]]:
    """Return (context, scored tokens) of each window of a text; every token is scored once.

    Each window is a row of its own, in which positions begin again.

    Raises:
        Refused: too_long, for several windows under a plan that counts tokens from the front.
    """
    rolled = get_rolling_token_windows(list(ids), room.prefix, room.max_length, context_len=1)
    windows = [make_disjoint_window(window) for window in rolled]
    if len(windows) > 1:
        refuse_cut(plan, len(ids), room.max_length)
    return windows


def rows_of(
    asked: Sequence[tuple[str, object]],
    encode: Callable[[str], list[int]],
    plan: Plan,
    room: Room,
    *,
    model: nn.Module,
) -> tuple[list[Asked], list[Settings]]:
    """Return the row and the settings of each generation request (context, arguments).

    Raises:
        Refused: unsupported_option, bad_request, or too_long.
    """
    seen: Counter[str] = Counter()
    rows, settings = [], []
    for context, given in asked:
        one = settings_of(given, model=model, max_gen_toks=room.max_gen_toks)
        seed = seed_of(room.seed, context, seen[context])
        seen[context] += 1
        ids = encode(context) or [room.prefix]
        left = room.max_length - one.max_new_tokens
        if left < 1:
            raise Refused(
                "too_long",
                f"A request asks for {one.max_new_tokens} new tokens, but the model reads "
                f"{room.max_length} in all. Ask for fewer (max_gen_toks).",
            )
        if len(ids) > left:
            refuse_cut(plan, len(ids) + one.max_new_tokens, room.max_length)
        rows.append(row_of(ids[-left:], plan, one, seed))
        settings.append(one)
    return rows, settings


def named(kind: str, texts: Sequence[object]) -> str:
    """Return what a request is called in an audit log: its kind and a hash of its texts."""
    text = "\0".join(map(str, texts))
    return f"{kind} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
