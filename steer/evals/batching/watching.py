"""One row's text as it grows: where it ends, and how much of it may leave."""

from collections.abc import Callable

from steer.evals.batching.asked import Asked, Finish

BROKEN = "\N{REPLACEMENT CHARACTER}"


class Watched:
    """The state of one row while its batch runs. Owned by the batch's thread."""

    def __init__(
        self,
        asked: Asked,
        decode: Callable[[list[int]], str],
        ends: frozenset[int],
        on_text: Callable[[str], None] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        """Start before the first token."""
        self.asked = asked
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self.broken = False
        """The logits of this row were not numbers."""
        self.left = ""
        """What has left already."""
        self._decode = decode
        self._ends = ends
        self._on_text = on_text
        self._cancelled = cancelled
        self._deaf = False
        self._decided: Finish | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more is wanted of it."""
        return self.finish is not None or self.broken

    @property
    def cancelled(self) -> bool:
        """Whether the client has gone."""
        return self._deaf or self._cancelled()

    def see(self, token: int, *, flagged: bool) -> None:
        """Take the next token, which was chosen by a pass in which a guard said `flagged`."""
        if self.done:
            return
        if flagged:
            # What a guard saw in this pass is the token before: it is not even named. Those before
            # it have been read and passed.
            self.tokens = self.tokens[:-1]
            self._end("guarded")
            return
        if self._decided is not None or self.cancelled:
            # The last token of a guarded row has been read by now; this one was never wanted.
            self._end(self._decided or "stop")
            return
        self.tokens.append(token)
        decided = self._decision(token)
        if decided is not None and (not self.asked.guards or token in self._ends):
            self._end(decided)
            return
        self._decided = decided
        self._leave(self._safe(self.tokens[:-1] if self.asked.guards else self.tokens))

    def text(self) -> str:
        """Return the text of the tokens that may leave, up to a stop string."""
        return self._until_stop(self._decode(self.tokens))

    def _decision(self, token: int) -> Finish | None:
        if token in self._ends:
            return "stop"
        if self.asked.stop:
            text = self._decode(self.tokens)
            if any(stop in text for stop in self.asked.stop):
                return "stop"
        return "length" if len(self.tokens) >= self.asked.max_new_tokens else None

    def _end(self, finish: Finish) -> None:
        self.finish = finish
        self._leave(self.text())

    def _safe(self, tokens: list[int]) -> str:
        """Return the text that no later token can take back."""
        if self._on_text is None and not self.asked.guards:
            return self.left
        text = self._until_stop(self._decode(tokens)).rstrip(BROKEN)
        # The end may be the beginning of a stop string.
        held = max((_overlap(text, stop) for stop in self.asked.stop), default=0)
        return text[: len(text) - held]

    def _until_stop(self, text: str) -> str:
        found = [at for at in (text.find(stop) for stop in self.asked.stop) if at >= 0]
        return text[: min(found)] if found else text

    def _leave(self, text: str) -> None:
        piece = text[len(self.left) :]
        if not piece:
            return
        self.left = text
        if self._on_text is None:
            return
        try:
            self._on_text(piece)
        except Exception:  # whoever listened is gone; the batch-mates go on
            self._on_text, self._deaf = None, True


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of a text begin a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
