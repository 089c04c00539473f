"""The batcher: a queue with bounds, one worker thread, and a future for each row."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from steer.errors import SteerError
from steer.evals.batching.asked import Answer, Asked, Shape
from steer.evals.batching.checking import checked
from steer.evals.batching.passing import run_batch
from steer.evals.batching.watching import Watched
from steer.evals.refusals import Refused
from steer.generating import end_tokens
from steer.lm import LM

GATHER_S = 0.005
GATHER_AT_MOST = 20
"""A batch that is not full waits so many times `gather_s` in all."""


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A row that was handed in."""

    asked: Asked
    future: "Future[Answer]" = field(default_factory=Future)
    on_text: Callable[[str], None] | None = None
    _gone: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Say that nobody waits for it: it leaves the queue, or its batch at the next token."""
        self._gone.set()
        self.future.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it."""
        return self._gone.is_set()


class Batcher:
    """Runs rows of many clients together, each under a plan of its own.

    A row succeeds or fails by itself: a plan that does not fit its row, logits that overflow, or an
    intervention that never fired refuse that row, never its batch-mates. No answer is unsteered.

    Batch-mates move a row's logits by rounding (4e-7 in fp32); `shape` fixes the shape of every
    batch, in which they do not.
    """

    def __init__(
        self,
        lm: LM,
        *,
        max_rows: int = 32,
        max_waiting: int = 256,
        gather_s: float = GATHER_S,
        shape: Shape | None = None,
    ) -> None:
        """Start the worker.

        Args:
            lm: the model.
            max_rows: of a batch.
            max_waiting: rows in the queue; more are refused with queue_full.
            gather_s: how long a batch that is not full waits for the next row. A client that hands
                in many rows at its own pace wants more; one that waits for each answer, less.
            shape: see the class; its rows take the place of max_rows.
        """
        if max_rows < 1 or max_waiting < 1:
            raise Refused(
                "bad_request",
                f"max_rows is {max_rows} and max_waiting {max_waiting}: a batch needs a row, and "
                "the queue a place. Give 1 or more.",
            )
        self.lm = lm
        self.shape = shape
        self.max_rows = max_rows if shape is None else shape.rows
        self.max_waiting = max_waiting
        self.gather_s = gather_s
        self.n_batches = 0
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._ends = frozenset(end_tokens(lm.model, {}))
        self._worker = threading.Thread(target=self._work, name="steer-batcher", daemon=True)
        self._worker.start()

    def submit(self, asked: Asked, on_text: Callable[[str], None] | None = None) -> Ticket:
        """Hand in a row; returns at once.

        Args:
            asked: the row.
            on_text: told, in the worker's thread, each piece of text as soon as it may leave.

        Raises:
            Refused: bad_request, plan_does_not_fit, too_long, queue_full or shutting_down.
        """
        return self.submit_all([asked], on_text)[0]

    def submit_all(
        self, rows: Sequence[Asked], on_text: Callable[[str], None] | None = None
    ) -> list[Ticket]:
        """Hand in rows together: all of them are taken, or none.

        Raises:
            Refused: as `submit`.
        """
        for asked in rows:
            checked(self.lm, asked, self.shape)
        tickets = [Ticket(asked, on_text=on_text) for asked in rows]
        with self._changed:
            if self._closing:
                raise Refused("shutting_down", "The batcher is closing. Ask another one.")
            if len(self._waiting) + len(tickets) > self.max_waiting:
                raise Refused(
                    "queue_full",
                    f"{len(self._waiting)} rows wait already, of {self.max_waiting} at most. They "
                    "would wait longer than anybody does. Try again later.",
                )
            self._waiting.extend(tickets)
            self._changed.notify_all()
        return tickets

    def close(self, *, drain: bool = True) -> None:
        """Take no more rows, and wait for the worker; without drain, what waits is refused."""
        with self._changed:
            self._closing = True
            dropped = [] if drain else list(self._waiting)
            if not drain:
                self._waiting.clear()
            self._changed.notify_all()
        for ticket in dropped:
            _settle(ticket, Refused("shutting_down", "The batcher closed before this row's turn."))
        self._worker.join()

    def __enter__(self) -> "Batcher":
        """Return the batcher."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it, and wait for what was handed in."""
        self.close()

    def __repr__(self) -> str:
        """Say how busy it is."""
        return f"Batcher({self.lm!r}, {len(self._waiting)} waiting, {self.n_batches} batches ran)"

    def _work(self) -> None:
        while (tickets := self._gathered()) is not None:
            if tickets:
                self._run(tickets)

    def _gathered(self) -> list[Ticket] | None:
        """Wait for rows; return a batch of them, or None once it is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            until = time.monotonic() + GATHER_AT_MOST * self.gather_s
            n_seen = -1
            while len(self._waiting) < self.max_rows and len(self._waiting) != n_seen:
                if self._closing or time.monotonic() > until:
                    break
                n_seen = len(self._waiting)
                self._changed.wait(self.gather_s)
            if not self._waiting:
                return None if self._closing else []
            n = min(self.max_rows, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(n)]
        return [ticket for ticket in taken if not ticket.cancelled]

    def _run(self, tickets: Sequence[Ticket]) -> None:
        """Run a batch; where it fails as a whole, its halves, so that one row fails alone."""
        watched = [self._watched(ticket) for ticket in tickets]
        try:
            self.n_batches += 1
            outcomes = run_batch(self.lm, watched, self.shape)
        except Exception as error:  # the worker has to live on for the others
            if len(tickets) == 1:
                _settle(tickets[0], _refusal(error))
                return
            # Text that has left cannot be taken back, and a second run might say it otherwise.
            begun = [bool(one.left) for one in watched]
            for ticket, has in zip(tickets, begun, strict=True):
                if has:
                    _settle(ticket, _refusal(error))
            rest = [ticket for ticket, has in zip(tickets, begun, strict=True) if not has]
            for half in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
                if half:
                    self._run(half)
            return
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            _settle(ticket, outcome)

    def _watched(self, ticket: Ticket) -> Watched:
        return Watched(
            ticket.asked, self._decode, self._ends, ticket.on_text, lambda: ticket.cancelled
        )

    def _decode(self, ids: list[int]) -> str:
        return str(self.lm.tokenizer.decode(ids, skip_special_tokens=True))


def _settle(ticket: Ticket, outcome: Answer | Refused) -> None:
    if not ticket.future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Refused):
        ticket.future.set_exception(outcome)
    else:
        ticket.future.set_result(outcome)


def _refusal(error: Exception) -> Refused:
    """Return the refusal of a row whose pass failed."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, SteerError):
        return Refused("plan_does_not_fit", str(error))
    return Refused(
        "pass_failed",
        f"The pass of this row failed: {type(error).__name__}: {error}. There is no answer.",
    )
