"""One model and one batcher for all the plans that an evaluation compares.

Eight arms of one evaluation are eight model objects of Inspect's. Each with a model of its own
would take eight times the memory, and their rows would never share a batch.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from steer.evals.batching import Batcher, Shape
from steer.lm import LM, load

WAITING = 1 << 20
"""Rows that may wait: Inspect bounds them itself, by its connections."""
GATHER_S = 0.25
"""Inspect hands its samples in one by one, with pauses while it writes its log; a batch takes far
longer. An agent that asks one thing after another wants less."""


@dataclass(slots=True, eq=False)
class Engine:
    """A model and its batcher, while somebody uses them."""

    lm: LM
    batcher: Batcher
    users: int = 0


@dataclass(slots=True, eq=False)
class _Shared:
    lock: threading.Lock = field(default_factory=threading.Lock)
    engines: dict[tuple[object, ...], Engine] = field(default_factory=dict)
    offered: dict[str, LM] = field(default_factory=dict)


_SHARED = _Shared()


def offer(name: str, lm: LM) -> None:
    """Let `steered/NAME@DIGEST` mean a model that this process holds already.

    For notebooks and for models that `steer.load` cannot name. The manifest says what it is.
    """
    with _SHARED.lock:
        _SHARED.offered[name] = lm


def withdraw(name: str) -> None:
    """Forget a model that was offered; who uses it already goes on."""
    with _SHARED.lock:
        _SHARED.offered.pop(name, None)


def acquired(
    name: str,
    *,
    revision: str | None,
    dtype: str | None,
    max_rows: int,
    gather_s: float,
    shape: Shape | None,
) -> tuple[Engine, Callable[[], None]]:
    """Return the engine of a model, loaded if nobody uses it yet, and what gives it back.

    Models are never downloaded from here.

    Raises:
        ModelNotFound: it is not on this machine.
    """
    with _SHARED.lock:
        own = _SHARED.offered.get(name)
        key = (name, id(own) if own else None, revision, dtype, max_rows, gather_s, shape)
        if key not in _SHARED.engines:
            lm = own or load(name, revision=revision, dtype=dtype, allow_download=False)
            batcher = Batcher(
                lm, max_rows=max_rows, max_waiting=WAITING, gather_s=gather_s, shape=shape
            )
            _SHARED.engines[key] = Engine(lm, batcher)
        engine = _SHARED.engines[key]
        engine.users += 1
    given_back = threading.Event()

    def give_back() -> None:
        if given_back.is_set():
            return
        given_back.set()
        with _SHARED.lock:
            engine.users -= 1
            last = engine.users == 0
            if last:
                del _SHARED.engines[key]
        if last:
            engine.batcher.close()

    return engine, give_back
