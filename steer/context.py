"""Who is attached in this thread or task: the context variables, and a run as a context manager.

Hooks are registered by the registry alone; a run asks it for them and gives them back.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from steer.bookkeeping import Pass, Sequences
from steer.errors import PlanError, SteerError, UnsupportedModel
from steer.models.layout import Tap
from steer.receipt import Receipt
from steer.running import Work
from steer.sites import AnySite
from steer.wiring import Key, Wiring

if TYPE_CHECKING:
    from steer.registry import HookRegistry

P = ParamSpec("P")
R = TypeVar("R")
Taker = Callable[[AnySite, Tensor, Pass], None]
"""Is given a site's tensor after all edits; used by capture."""

ATTACHED: ContextVar[tuple["Run", ...]] = ContextVar("steer_attached", default=())
SEQUENCES: ContextVar[dict[int, Sequences]] = ContextVar("steer_sequences", default={})  # noqa: B039
InProgress = tuple[Pass, tuple["Run", ...]]
PASS: ContextVar[dict[int, InProgress]] = ContextVar("steer_pass", default={})  # noqa: B039
"""By registry: the pass in progress, and the runs that it began with: no other may act in it."""
BOUND: ContextVar[bool] = ContextVar("steer_bound", default=False)


@runtime_checkable  # the test run checks types with beartype, which needs isinstance
class Climb(Protocol):
    """What the engine does at each block: which rows have begun there, and what they begin with."""

    def enter(
        self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], now: Pass
    ) -> tuple[tuple[Any, ...], dict[str, Any], Pass]:
        """Return the arguments of a block, and the pass, narrowed to the rows that have begun."""
        ...

    def leave(self, layer: int, h: Tensor, now: Pass) -> tuple[Tensor, Pass]:
        """Return a block's output, and the pass, with the rows that begin after it."""
        ...


class Run:
    """A plan attached to a model: a context manager, and what it has done so far."""

    def __init__(
        self,
        registry: "HookRegistry",
        wiring: Wiring,
        takers: dict[Key, tuple[tuple[AnySite, Tap, Taker], ...]],
        *,
        everywhere: bool = False,
        hosted: bool = False,
        climb: Climb | None = None,
    ) -> None:
        """Hold a wired plan; nothing is registered until it is entered.

        `hosted`: another library's hooks serve the taps (`steer.interop`); only the passes are
        opened by a hook of ours. `climb`: rows begin at blocks of their own.
        """
        self.registry = registry
        self.work = Work(wiring)
        self.takers = takers
        self.everywhere = everywhere
        self.climb = climb
        self.open = False
        self.declared: Sequences | None = None
        self.bases = wiring.bases | {
            tap.base for t in takers.values() for _, tap, _ in t if tap.base is not None
        }
        self._generator: FrameType | None = None
        self._bound_calls = 0
        inputs = tuple((base, "input") for base in self.bases)
        wanted = () if hosted else dict.fromkeys((*wiring.ops, *takers, *inputs))
        layout = registry.layout
        blocks = [f"{layout.blocks}.{layer}" for layer in range(layout.n_layers)]
        steps = [] if climb is None else [(b, side) for b in blocks for side in ("enter", "leave")]
        self._keys = ((layout.stack, "open"), *steps, *wanted)

    @property
    def receipt(self) -> Receipt:
        """What each intervention did so far, per row."""
        return self.work.receipt()

    def __repr__(self) -> str:
        """Say how many interventions are attached and whether they still are."""
        state = "attached" if self.open else "not attached"
        return f"Run({len(self.work.wiring.items)} interventions, {state})"

    def start(self) -> None:
        """Register the hooks and make the plan known; all or nothing."""
        if self.open:
            raise PlanError("This run is attached already. Call lm.attached(plan) for another one.")
        refuse_checkpointing(self.registry.model, self.registry.module(self.registry.layout.stack))
        self.registry.acquire(self._keys)
        self.open = True
        if self.everywhere:
            self.registry.join_everywhere(self)
        else:
            ATTACHED.set((*ATTACHED.get(), self))

    def __enter__(self) -> "Run":
        """Attach."""
        return self.enter(sys._getframe(1))

    def enter(self, frame: FrameType | None) -> "Run":
        """Attach on behalf of the code of a frame."""
        self._generator = entering_generator(frame)
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Detach; on a normal exit, refuse interventions that never fired."""
        here = self in ATTACHED.get()
        self.stop()
        if kind is not None:
            return
        if not here:
            raise SteerError(
                "This plan was left in another context than it was entered in, so the first "
                "context would have gone on being steered; it has been detached there too. Enter "
                "and leave in the same task. For streaming use lm.stream, for threads run.bind."
            )
        if self._bound_calls:
            raise SteerError(
                f"{self._bound_calls} bound calls are still running in other threads while their "
                "plan is detached, so their remaining tokens would be unsteered. Join the threads "
                "before the block ends."
            )
        self.work.require_fired()

    def detach(self) -> Receipt:
        """Detach a plan that was attached for the whole model, and return its receipt.

        Raises:
            NeverFired: some intervention saw no token in scope.
        """
        self.stop()
        self.work.require_fired()
        return self.receipt

    def stop(self) -> None:
        """Detach without asking whether everything fired; nothing to do where it is detached."""
        if not self.open:
            return
        self.open = False
        # By identity, not by token: tokens cannot be reset in another context.
        ATTACHED.set(tuple(run for run in ATTACHED.get() if run is not self))
        PASS.set({k: v for k, v in PASS.get().items() if k != id(self.registry)})
        if self.everywhere:
            self.registry.leave_everywhere(self)
        self.registry.release(self._keys)

    def prompt(self, lengths: Sequence[int] | Tensor) -> None:
        """Declare how many tokens each row's prompt has, for forward passes outside generate.

        Holds until the next declaration; a pass without a cache begins anew.

        Raises:
            PlanError: not one positive number per row.
        """
        counts = torch.as_tensor(lengths, dtype=torch.long).cpu()
        if counts.ndim != 1 or len(counts) == 0 or bool((counts < 1).any()):
            raise PlanError(
                f"run.prompt takes one positive number of tokens for each row, not {lengths!r}."
            )
        self.declared = Sequences(None, torch.arange(len(counts)), len(counts), declared=counts)

    def bind(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Return fn for use in another thread, steered as here. A bare thread is not steered."""
        stack = ATTACHED.get()
        sequences = SEQUENCES.get()

        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            before, seq, was = ATTACHED.get(), SEQUENCES.get(), BOUND.get()
            with self.registry.lock:
                self._bound_calls += 1
            ATTACHED.set(stack if self in stack else (*stack, self))
            SEQUENCES.set(sequences)
            BOUND.set(True)
            try:
                result = fn(*args, **kwargs)
            finally:
                ATTACHED.set(before)
                SEQUENCES.set(seq)
                BOUND.set(was)
                with self.registry.lock:
                    self._bound_calls -= 1
            if not self.open:
                raise SteerError(
                    "The plan was detached while this bound call ran, so part of it was not "
                    "steered. Join the thread before leaving the block."
                )
            return result

        return bound

    def refuse_leak(self) -> None:
        """Refuse a pass that sees this plan through a generator that yielded inside its block.

        Raises:
            SteerError: says which function.
        """
        if self._generator is None or BOUND.get():
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is self._generator:
                return
            frame = frame.f_back
        name = self._generator.f_code.co_qualname
        raise SteerError(
            f"A plan attached inside the generator {name} is still attached while the generator "
            "waits at a yield, so this pass of its consumer would be steered too. Use lm.stream "
            "to stream steered text, or return lm.attached(plan) instead of yielding inside it."
        )


GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
PASSED_THROUGH = frozenset({"contextlib", "jaxtyping", "beartype"})
"""Packages that may stand between a block and the code that wrote it: stacks, shape checkers."""


def entering_generator(frame: FrameType | None) -> FrameType | None:
    """Return the frame that entered a plan, if it is a generator, which may yield inside."""
    while frame is not None and _package(frame) in PASSED_THROUGH:
        frame = frame.f_back
    if frame is not None and frame.f_code.co_flags & GENERATORS:
        return frame
    return None


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def refuse_checkpointing(model: nn.Module, stack: nn.Module) -> None:
    """Refuse gradient checkpointing while attached.

    Raises:
        UnsupportedModel: the recomputation would run after the plan has left.
    """
    if not stack.training:
        return
    parts = (model, *stack.modules())
    if any(getattr(part, "gradient_checkpointing", False) for part in parts):
        raise UnsupportedModel(
            "Gradient checkpointing is on. It recomputes blocks during backward, when the plan may "
            "have left, and the gradients would be silently wrong. Call "
            "model.activation_checkpointing_disable() first (gradient_checkpointing_disable in "
            "older releases of transformers)."
        )
