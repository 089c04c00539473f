"""The hook registry: the only place that registers hooks or shadows `generate`.

Hooks are reference-counted and read a ContextVar, so that threads and tasks are independent: a call
in a context without a plan passes through them untouched. They accept both calling conventions of
torch hooks, because torch looks up the convention after it has taken its snapshot of hooks: one
removed by another thread in between is called without keywords.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steer.admission import check_origins
from steer.bookkeeping import Pass, Sequences
from steer.context import (
    ATTACHED,
    PASS,
    SEQUENCES,
    Climb,
    Run,
    Taker,
    refuse_checkpointing,
)
from steer.errors import PlanError, SiteNotFound, did_you_mean
from steer.generating import refuse_generation, refuse_scopes, sequences_of_generate
from steer.interventions.plans import Plan
from steer.models.fingerprint import fingerprint
from steer.models.layout import Layout, Tap
from steer.models.layouts import LayoutTable, resolve
from steer.models.raw import RAW
from steer.models.verify import verify_layout
from steer.module_io import first_tensor, tensor_of, with_tensor
from steer.passes import last_columns, open_pass, raw_pass
from steer.serving import serve
from steer.shadow import cover, uncover
from steer.sites import AnySite, Site
from steer.tokens import Decode
from steer.wiring import Key, Wiring, wire_arms


class HookRegistry:
    """Attaches plans to one model, in this context or for the whole model, and leaves no trace.

    `live` counts what is attached; `verify()` runs the check of the layout again.
    """

    def __init__(self, model: nn.Module, layout: Layout, decode: Decode | None = None) -> None:
        """Take a model and its layout; nothing is registered."""
        self.model = model
        self.layout = layout
        self.decode = decode
        self.lock = threading.RLock()
        self._handles: dict[Key, tuple[tuple[RemovableHandle, ...], int]] = {}
        self._everywhere: tuple[Run, ...] = ()
        self._modules: dict[str, nn.Module] = {}

    @property
    def live(self) -> int:
        """How many hooks are registered on the model."""
        return len(self._handles)

    def __repr__(self) -> str:
        """Say what is attached."""
        runs = len(self._everywhere)
        return f"HookRegistry({self.layout.name}, {self.live} hooks, {runs} attached everywhere)"

    def module(self, path: str) -> nn.Module:
        """Return a module by its path.

        Raises:
            SiteNotFound: there is none, with the nearest path.
        """
        if path not in self._modules:
            try:
                self._modules[path] = self.model.get_submodule(path)
            except AttributeError:
                known = [name for name, _ in self.model.named_modules()]
                raise SiteNotFound(
                    f"{self.layout.name} has no module {path!r}.{did_you_mean(path, known)} "
                    "Paths are those of model.named_modules()."
                ) from None
        return self._modules[path]

    def device_of(self, tap: Tap) -> torch.device:
        """Return the device on which a tap's tensor lives."""
        path = tap.path
        while True:
            first = next(self.module(path).parameters(), None)
            if first is not None and first.device.type != "meta":
                return first.device
            if not path:
                return torch.device("cpu")
            path = path.rpartition(".")[0]

    def verify(self) -> None:
        """Check on one short pass that every site means what it says (see `verify_layout`).

        Raises:
            UnsupportedModel: which identity failed, with the numbers.
        """
        verify_layout(self.model, self.layout, self.read)

    def add_layout(self, model_type: str, table: LayoutTable) -> None:
        """Describe this model by a table of your own, which is checked before it counts.

        Raises:
            UnsupportedModel: the table does not explain the model; the old layout stays.
            PlanError: something is attached.
        """
        with self.lock:
            if self.live or self._everywhere:
                raise PlanError("A plan is attached. Detach it before changing the layout.")
            before = self.layout
            self.layout = resolve(self.model, {model_type: table})
            try:
                self.verify()
            except BaseException:
                self.layout = before
                raise

    def read(self, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Return what passes at some sites in one short pass, [2, 8, ...], for the check."""
        found: dict[Site, Tensor] = {}

        def take(site: AnySite, h: Tensor, _: Pass) -> None:
            assert isinstance(site, Site)
            found[site] = h

        # Any ids do: the check is of identities that hold for every input.
        steps = torch.tensor([[7], [11]]) * torch.arange(8) + torch.tensor([[3], [5]])
        ids = (steps % self.layout.d_vocab).to(self.device_of(Tap("", "output")))
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()  # dropout would break the identities; put back below
        try:
            with torch.no_grad(), self.taking([], [(site, take) for site in sites]):
                self.model(input_ids=ids, use_cache=False)
        finally:
            for module in training:
                module.training = True
        return found

    def wire(self, plan: Plan) -> Wiring:
        """Return the wiring of a plan; registers nothing.

        Raises:
            SteerError: anything about the plan that does not fit this model.
        """
        return self.wire_arms([plan])

    def wire_arms(self, arms: Sequence[Plan]) -> Wiring:
        """Return the wiring of the arms of a sweep, of which each row of a pass follows one.

        Raises:
            SteerError: anything about the plans that does not fit this model.
        """
        wiring = wire_arms(arms, self.layout, self.device_of)
        check_origins(wiring.items, lambda: fingerprint(self.model), self.layout.name)
        for tap in wiring.taps.values():
            self.module(tap.path)
        return wiring

    def attach(self, plan: Plan) -> Run:
        """Attach a plan for the whole model, all threads included, until `run.detach()`.

        Raises:
            SteerError: the plan does not fit; nothing is left attached.
        """
        run = Run(self, self.wire(plan), {}, everywhere=True)
        run.start()
        return run

    def attached(self, plan: Plan) -> Run:
        """Return a context manager that attaches a plan in this context only."""
        return Run(self, self.wire(plan), {})

    def taking(self, plan: Plan, takers: Sequence[tuple[AnySite, Taker]]) -> Run:
        """Return a context manager that also hands out some sites' tensors, after all edits."""
        return self.climbing(self.wire(plan), takers, None)

    def climbing(
        self, wiring: Wiring, takers: Sequence[tuple[AnySite, Taker]], climb: Climb | None
    ) -> Run:
        """Return a context manager in which rows may begin at blocks of their own (the engine)."""
        found: dict[Key, list[tuple[AnySite, Tap, Taker]]] = {}
        for site, taker in takers:
            tap = self.layout.tap(site)
            self.module(tap.path)
            found.setdefault((tap.path, tap.side), []).append((site, tap, taker))
        given = {key: tuple(t) for key, t in found.items()}
        return Run(self, wiring, given, climb=climb)

    @contextmanager
    def sequences(self, sequences: Sequences) -> Iterator[None]:
        """Declare the rows of the passes inside (used by generate and by this package's passes)."""
        before = SEQUENCES.get()
        SEQUENCES.set({**before, id(self): sequences})
        try:
            yield
        finally:
            SEQUENCES.set(before)

    def join_everywhere(self, run: Run) -> None:
        """Make a plan known to every thread."""
        with self.lock:
            self._everywhere += (run,)

    def leave_everywhere(self, run: Run) -> None:
        """Forget a plan that was known to every thread."""
        with self.lock:
            self._everywhere = tuple(other for other in self._everywhere if other is not run)

    # -- hooks ---------------------------------------------------------------------------------

    def acquire(self, keys: Sequence[Key]) -> None:
        """Register the hooks that are missing, all or none."""
        with self.lock:
            done: list[Key] = []
            try:
                for key in keys:
                    handles, count = self._handles.get(key, ((), 0))
                    self._handles[key] = (handles or self._register(key), count + 1)
                    done.append(key)
                cover(self.model, self, self.layout.name)
            except BaseException:
                self._release(done)
                raise

    def release(self, keys: Sequence[Key]) -> None:
        """Drop one reference to each hook; remove those without any."""
        with self.lock:
            self._release(keys)
            uncover(self.model, self)

    def _release(self, keys: Sequence[Key]) -> None:
        for key in keys:
            handles, count = self._handles[key]
            if count > 1:
                self._handles[key] = (handles, count - 1)
                continue
            for handle in handles:
                handle.remove()
            del self._handles[key]

    def _register(self, key: Key) -> tuple[RemovableHandle, ...]:
        path, side = key
        modules = [self.module(path)]
        if path == "" and type(self.model).__module__.startswith("peft"):
            # PeftModel.forward goes around its inner model's hooks, .generate around its own.
            modules.append(self.module("base_model.model"))
        if side == "open":
            return tuple(hooked(m, "input", self._open_hook, first=True) for m in modules)
        if side in ("enter", "leave"):
            # First, so that every other hook of the block sees the rows that have begun.
            where = "input" if side == "enter" else "output"
            return tuple(hooked(m, where, self._climb_hook(key), first=True) for m in modules)
        hook = self._input_hook(key) if side == "input" else self._output_hook(key)
        return tuple(hooked(m, side, hook) for m in modules)

    def runs(self) -> tuple[Run, ...]:
        """Return what is attached here: for the whole model, then in this context, outer first."""
        here = tuple(r for r in ATTACHED.get() if r.registry is self and r.open)
        return self._everywhere + here

    def _open_hook(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        runs = self.runs()
        if not runs:
            self._forget()
            return
        kwargs = rest[0] if rest else {}
        refuse_checkpointing(self.model, module)
        for run in runs:
            run.refuse_leak()
        if self.layout.family == RAW:
            # Its tokens are unknown: each raw site opens a pass of its own tensor.
            PASS.set({**PASS.get(), id(self): (raw_pass(torch.empty(0, 0, 0)), runs)})
            return
        sequences = SEQUENCES.get().get(id(self))
        if sequences is None:
            declared = [r.declared for r in runs if r.declared is not None]
            sequences = declared[-1] if declared else None
        now, _ = open_pass(args, kwargs, sequences, self.decode)
        for run in runs:
            run.work.begin(now)
        PASS.set({**PASS.get(), id(self): (now, runs)})

    def _forget(self) -> None:
        # A plan for the whole model may arrive in the middle of this pass: it waits for the next.
        if id(self) in PASS.get():
            PASS.set({key: v for key, v in PASS.get().items() if key != id(self)})

    def _now(self) -> tuple[Pass | None, tuple[Run, ...]]:
        now, runs = PASS.get().get(id(self), (None, ()))
        return now, tuple(run for run in runs if run.open)

    def _input_hook(self, key: Key) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
            now, runs = self._now()
            if not runs or now is None:
                return None
            kwargs = rest[0] if rest else {}
            place, value = first_tensor(args, kwargs)
            new = self._served(key, value, now, runs)
            if new is value:
                return None
            if isinstance(place, int):
                return (*args[:place], new, *args[place + 1 :]), kwargs
            return args, {**kwargs, place: new}

        return hook

    def _output_hook(self, key: Key) -> Callable[..., Any]:
        def hook(_: nn.Module, _args: tuple[Any, ...], *rest: Any) -> Any:
            now, runs = self._now()
            if not runs or now is None:
                return None
            output = rest[-1]
            kwargs = rest[0] if len(rest) > 1 else {}
            value = tensor_of(output)
            if key[0] == "" and kwargs.get("logits_to_keep") is not None:
                now = last_columns(now, kwargs["logits_to_keep"], value)
            new = self._served(key, value, now, runs)
            return None if new is value else with_tensor(output, new)

        return hook

    def _served(self, key: Key, value: Tensor, now: Pass, runs: tuple[Run, ...]) -> Tensor:
        if self.layout.family == RAW:
            now = raw_pass(value)
            for run in runs:
                run.work.begin(now, key)
        return serve(key, value, now, runs)

    def _climb_hook(self, key: Key) -> Callable[..., Any]:
        path, side = key
        layer = int(path.rpartition(".")[2])

        def climbing() -> tuple[Climb | None, Pass | None, tuple[Run, ...]]:
            now, runs = self._now()
            return next((run.climb for run in runs if run.climb is not None), None), now, runs

        def enter(_: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
            climb, now, runs = climbing()
            if climb is None or now is None:
                return None
            args, kwargs, now = climb.enter(layer, args, rest[0] if rest else {}, now)
            PASS.set({**PASS.get(), id(self): (now, runs)})
            return args, kwargs

        def leave(_: nn.Module, _args: tuple[Any, ...], *rest: Any) -> Any:
            climb, now, runs = climbing()
            if climb is None or now is None:
                return None
            new, now = climb.leave(layer, tensor_of(rest[-1]), now)
            PASS.set({**PASS.get(), id(self): (now, runs)})
            return with_tensor(rest[-1], new)

        return enter if side == "enter" else leave

    # -- generate ------------------------------------------------------------------------------

    def declare(
        self, rows: ExitStack, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Declare the prompts of a generate call while `rows` is open; return its arguments."""
        if self.layout.family == RAW:
            refuse_scopes(run.work.wiring for run in self.runs())
            return kwargs
        sequences, asked = sequences_of_generate(self.model, args, kwargs)
        declared = SEQUENCES.get().get(id(self))
        if declared is not None and declared.generating:
            sequences = replace(
                sequences,
                row_ids=declared.row_ids,
                n_rows=declared.n_rows,
                arms=declared.arms,
                stopped=declared.stopped,
            )
        for run in self.runs():
            refuse_generation(run.work.wiring, sequences, asked, self.decode)
        rows.enter_context(self.sequences(sequences))
        return asked.without_compilation(kwargs)


def hooked(
    module: nn.Module, side: str, hook: Callable[..., Any], *, first: bool = False
) -> RemovableHandle:
    """Register a hook on one side of a module; the only place of the package that does.

    "input": hook(module, args, kwargs) -> None or (args, kwargs); "output": hook(module, args,
    kwargs, output) -> None or another output. `first`: before the hooks that are there already.
    """
    if side == "input":
        return module.register_forward_pre_hook(hook, with_kwargs=True, prepend=first)
    return module.register_forward_hook(hook, with_kwargs=True, prepend=first)
