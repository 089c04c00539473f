"""A plan at work inside another library's hooks.

The passes are opened by our registry, the tensors come from the other library, and the edits are
our own `edit(h, step)`, applied by `steer.running`.
"""

from collections.abc import Mapping
from contextvars import Context

from steer.bookkeeping import Pass
from steer.context import PASS, Run
from steer.errors import NeverFired
from steer.wiring import Key


def current_pass(run: Run, context: Context | None = None) -> Pass | None:
    """Return the pass that is open under a run in a context (this one by default), or None."""
    held = PASS.get() if context is None else context.get(PASS, {})
    now, runs = held.get(id(run.registry), (None, ()))
    return now if run.open and any(other is run for other in runs) else None


def require_served(run: Run, served: Mapping[Key, int], library: str) -> None:
    """Refuse a hook whose tensor was never handed over, and passes in which none was.

    The tokens of a pass are counted when it opens, so without this an edit that the other library
    never asked for would be reported as done.

    Raises:
        NeverFired: says which hook, or how many passes.
    """
    n_passes = run.work.n_passes
    if n_passes == 0 or not served:
        return
    n_served = max(served.values())
    if n_served < n_passes:
        raise NeverFired(
            f"{n_passes} forward passes ran while the plan was in {library}, but {library} handed "
            f"over the tensors of only {n_served}: the others ran outside of it, unsteered. Run "
            "the very object that was given to steer.interop, and the bare model elsewhere."
        )
    for (path, side), count in served.items():
        if count == 0:
            raise NeverFired(
                f"{library} never handed over the {side} of {path!r} in {n_passes} passes, so what "
                "the plan does there was not done: the run stopped before it, or this architecture "
                "does not call it. Use a stream site (resid_pre, resid_post), or attach to lm."
            )


def kept_columns(now: Pass, n_columns: int) -> Pass:
    """Return the pass restricted to its last columns, where logits exist only for those."""
    width = now.tokens.positions.shape[1]
    if n_columns == width:
        return now
    return Pass(now.tokens.columns(slice(width - n_columns, None)), now.sequences, reads={})
