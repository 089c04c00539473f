"""The same frozen plan inside nnsight traces (nnsight 0.8 or later).

The edits are ours, the tensors are handed over by nnsight's own tracing: one stored edit for each
module that the plan touches, so no order between them has to be kept. nnsight is imported when a
function here is called: it is heavy, and importing it mounts a method on every Python object.
"""

import sys
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from steer.bookkeeping import Pass
from steer.context import Run
from steer.errors import PlanError, UnsupportedModel
from steer.interop.hosted import current_pass, kept_columns, require_served
from steer.interventions.plans import Plan
from steer.models.layouts import resolve
from steer.module_io import tensor_of, with_tensor
from steer.registry import HookRegistry
from steer.serving import serve
from steer.wiring import Key

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from nnsight.intervention.envoy import Envoy
    from nnsight.intervention.interleaver import Interleaver
    from nnsight.intervention.tracer import InterleavingTracer

_REGISTRIES: "WeakKeyDictionary[Interleaver, HookRegistry]" = WeakKeyDictionary()


class InNNsight:
    """A plan inside nnsight: a context manager that gives the Run. Made by `in_nnsight`."""

    def __init__(self, model: "TransformersModel", plan: Plan) -> None:
        """Wire the plan to the model's modules; nothing is attached until it is entered."""
        registry = _registry(model)
        wiring = registry.wire(plan)
        self.model = model
        self.run = Run(registry, wiring, {}, hosted=True)
        keys = dict.fromkeys((*((base, "input") for base in wiring.bases), *wiring.ops))
        self.served: dict[Key, int] = dict.fromkeys(keys, 0)
        """How many times nnsight handed over each module's tensor."""
        self._ours: list[object] = []
        self._stack = ExitStack()

    def __enter__(self) -> Run:
        """Attach: all or nothing."""
        with ExitStack() as stack:
            self.run.enter(sys._getframe(1))
            stack.push(self.run.__exit__)
            stack.callback(self._remove)
            for key in self.served:
                envoy = self.model.get(key[0]) if key[0] else self.model
                # Not run here: nnsight stores the block and runs it in every later trace.
                with self.model.edit(inplace=True) as tracer:
                    self._follow(tracer, envoy, key)
                self._ours.append(self.model._edits[-1])
            self._stack = stack.pop_all()
        return self.run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Detach; on a normal exit, refuse interventions that never fired or were not reached."""
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            require_served(self.run, self.served, "nnsight")

    def _remove(self) -> None:
        # By identity: clear_edits would take the user's own edits along.
        kept = [edit for edit in self.model._edits if not any(edit is own for own in self._ours)]
        self.model._edits = kept
        self._ours.clear()

    def _follow(self, tracer: "InterleavingTracer", envoy: "Envoy", key: Key) -> None:
        """Edit one module's tensor in every pass of a run; the body of a stored edit."""
        # Heavy and optional; see the module docstring. greenlet comes with nnsight.
        from greenlet import getcurrent
        from nnsight.intervention.interleaver import OutOfOrderError

        side = "input" if key[1] == "input" else "output"
        for _ in tracer.iter[:]:
            try:
                value = getattr(envoy, side)  # waits here until the model reaches the module
            except OutOfOrderError:
                return  # the run is over, and this module is not reached again
            # A worker has a context of its own; the pass was opened in the model's.
            model_side = getcurrent().parent
            assert model_side is not None
            now = current_pass(self.run, model_side.gr_context)
            if now is None:
                continue
            self.served[key] += 1
            new = self._edited(value, key, now)
            if new is not value:
                setattr(envoy, side, new)

    def _edited(self, value: Any, key: Key, now: Pass) -> Any:
        tensor = value if key[1] == "input" else tensor_of(value)
        if not isinstance(tensor, Tensor):
            raise PlanError(
                f"nnsight handed over {type(tensor).__name__} as the first input of {key[0]}, "
                "not a tensor, so nothing can be edited there. Use a site at a module's output."
            )
        if key[0] == "":
            now = kept_columns(now, tensor.shape[1])
        new = serve(key, tensor, now, (self.run,))
        return value if new is tensor else new if key[1] == "input" else with_tensor(value, new)


def in_nnsight(model: "TransformersModel", plan: Plan) -> InNNsight:
    """Return a context manager in which the traces of an nnsight model follow the plan.

        model = nnsight.TransformersModel(hf_model, tokenizer=tokenizer, task="text-generation")
        with interop.in_nnsight(model, plan) as run:
            with model.generate(ids, max_new_tokens=8) as tracer:
                tokens = tracer.result.save()

    Every trace of `model` itself is steered, `generate` with cache, beams and return sequences
    included; positions, gates and receipts are those of `lm.attached`. What the user reads in a
    trace is read after the edits. Rows are the rows of the whole batch, invokes in their order.
    The user's own stored edits stay, and run before ours. Not for `remote=True`: no pass runs here,
    and the block ends with NeverFired. nnsight wraps the modules of the model that it is given for
    good; give it a model of its own if `lm` shall stay untouched.

    Raises:
        UnsupportedModel: weights not loaded, or blocks that could not be explained.
        SteerError: anything about the plan that does not fit; on normal exit, something never
            fired, or passes ran outside of the model's traces.
    """
    return InNNsight(model, plan)


def _registry(model: "TransformersModel") -> HookRegistry:
    # One for each tree of envoys, so that nested plans share the passes, as in lm.attached.
    module = getattr(model, "_module", None)
    if not isinstance(module, nn.Module):
        raise TypeError(f"in_nnsight takes an nnsight model, not {type(model).__name__}.")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise UnsupportedModel(
            "The nnsight model has no weights yet: it would load them at its first trace, into "
            "modules that the plan has not seen. Make it with dispatch=True."
        )
    found = _REGISTRIES.get(model.interleaver)
    if found is None or found.model is not module:
        tokenizer = getattr(model, "tokenizer", None)
        decode = None if tokenizer is None else lambda ids: str(tokenizer.decode(ids))
        found = HookRegistry(module, resolve(module), decode)
        _REGISTRIES[model.interleaver] = found
    return found
