"""The hook registry: the only place that registers hooks or shadows `generate`.

Hooks are reference-counted and read a ContextVar, so that threads and tasks are independent: a call
in a context without a plan passes through them untouched. They accept both calling conventions of
torch hooks, because torch looks up the convention after it has taken its snapshot of hooks: one
removed by another thread in between is called without keywords.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steer.bookkeeping import Pass, Sequences
from steer.context import (
    ATTACHED,
    PASS,
    SEQUENCES,
    Run,
    Taker,
    refuse_checkpointing,
)
from steer.errors import SiteNotFound, UnsupportedModel, did_you_mean
from steer.generating import refuse_generation, sequences_of_generate
from steer.interventions.plans import Plan
from steer.models.layout import Layout, Tap
from steer.module_io import first_tensor, tensor_of, with_tensor
from steer.passes import open_pass
from steer.sites import AnySite, Site
from steer.tokens import Decode
from steer.wiring import Key, Wiring, wire

SHADOWS = threading.Lock()
"""Guards what registries of one model share: its shadowed `generate`."""


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
        self._handles: dict[Key, tuple[RemovableHandle, int]] = {}
        self._everywhere: tuple[Run, ...] = ()
        self._shadows = 0
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

    def wire(self, plan: Plan) -> Wiring:
        """Return the wiring of a plan; registers nothing.

        Raises:
            SteerError: anything about the plan that does not fit this model.
        """
        wiring = wire(plan, self.layout, self.device_of)
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
        found: dict[Key, list[tuple[AnySite, Tap, Taker]]] = {}
        for site, taker in takers:
            tap = self.layout.tap(site)
            self.module(tap.path)
            found.setdefault((tap.path, tap.side), []).append((site, tap, taker))
        return Run(self, self.wire(plan), {key: tuple(t) for key, t in found.items()})

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
                    handle, count = self._handles.get(key, (None, 0))
                    if handle is None:
                        handle = self._register(key)
                    self._handles[key] = (handle, count + 1)
                    done.append(key)
                with SHADOWS:
                    self._shadow()
            except BaseException:
                self._release(done)
                raise

    def release(self, keys: Sequence[Key]) -> None:
        """Drop one reference to each hook; remove those without any."""
        with self.lock:
            self._release(keys)
            with SHADOWS:
                self._unshadow()

    def _release(self, keys: Sequence[Key]) -> None:
        for key in keys:
            handle, count = self._handles[key]
            if count > 1:
                self._handles[key] = (handle, count - 1)
            else:
                handle.remove()
                del self._handles[key]

    def _register(self, key: Key) -> RemovableHandle:
        path, side = key
        module = self.module(path)
        if side == "open":
            return module.register_forward_pre_hook(self._open_hook, with_kwargs=True, prepend=True)
        if side == "input":
            return module.register_forward_pre_hook(self._input_hook(key), with_kwargs=True)
        return module.register_forward_hook(self._output_hook(key), with_kwargs=True)

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
            new = self._serve(key, value, now, runs)
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
            new = self._serve(key, value, now, runs)
            return None if new is value else with_tensor(output, new)

        return hook

    def _serve(self, key: Key, value: Tensor, now: Pass, runs: tuple[Run, ...]) -> Tensor:
        shape = now.tokens.positions.shape
        flat = value.ndim == 2 and value.shape[0] == shape[0] * shape[1]
        h = value.unflatten(0, shape) if flat else value
        new = h
        sites = {op.site for run in runs for op in run.work.wiring.ops.get(key, ())}
        taken = {s for run in runs for s, _, _ in run.takers.get(key, ())}
        for site in sorted(sites | taken, key=_place):
            new = self._serve_site(site, key, new, now, runs)
        if key[1] == "input":
            for run in runs:
                if key[0] in run.bases:
                    now.bases[key[0]] = new
        if new is h:
            return value
        return new.flatten(0, 1) if flat else new

    def _serve_site(
        self, site: AnySite, key: Key, whole: Tensor, now: Pass, runs: tuple[Run, ...]
    ) -> Tensor:
        tap = self.layout.tap(site)
        base = None if tap.base is None else now.bases[tap.base]
        part = tap.view.get(whole)
        before = part if base is None else base + part
        h = before
        for run in runs:
            for op in run.work.wiring.ops.get(key, ()):
                if op.site == site:
                    h = run.work.apply(op, h, now)
        if h is not before:
            # resid_mid is a sum that no module returns: write the difference into its last summand.
            new = h if base is None else torch.where(h == before, part, part + (h - before))
            whole = tap.view.put(whole, new)
        for run in runs:
            for wanted, _, taker in run.takers.get(key, ()):
                if wanted == site:
                    taker(site, h, now)
        return whole

    # -- generate ------------------------------------------------------------------------------

    def _shadow(self) -> None:
        self._shadows += 1
        if self._shadows > 1 or not callable(getattr(self.model, "generate", None)):
            return
        ours = getattr(self.model.__dict__.get("generate"), "registries", None)
        if ours is not None:
            ours.append(self)
            return
        if "generate" in self.model.__dict__:
            self._shadows -= 1
            raise UnsupportedModel(
                f"{self.layout.name} has a `generate` of its own in the instance, put there by "
                "other code. Replacing it would break that code when the plan leaves. Remove it "
                "(del model.generate) and attach again."
            )
        original = cast("Callable[..., Any]", self.model.generate)
        registries = [self]  # one model may be wrapped twice: they share the shadow

        def generate(*args: Any, **kwargs: Any) -> Any:
            working = [each for each in tuple(registries) if each.runs()]
            with ExitStack() as rows:
                for each in working:
                    kwargs = each._declare(rows, args, kwargs)
                return original(*args, **kwargs)

        generate.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        generate.__doc__ = original.__doc__
        generate.registries = registries  # type: ignore[attr-defined]
        self.model.__dict__["generate"] = generate

    def _declare(
        self, rows: ExitStack, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        sequences, asked = sequences_of_generate(self.model, args, kwargs)
        declared = SEQUENCES.get().get(id(self))
        if declared is not None and declared.generating:
            sequences = replace(sequences, row_ids=declared.row_ids, n_rows=declared.n_rows)
        for run in self.runs():
            refuse_generation(run.work.wiring, sequences, asked, self.decode)
        rows.enter_context(self.sequences(sequences))
        return asked.without_compilation(kwargs)

    def _unshadow(self) -> None:
        self._shadows -= 1
        ours = getattr(self.model.__dict__.get("generate"), "registries", None)
        if self._shadows or ours is None:
            return
        ours.remove(self)
        if not ours:
            del self.model.__dict__["generate"]


def last_columns(now: Pass, keep: int | Tensor, value: Tensor) -> Pass:
    """Return the pass restricted to the columns for which logits are computed."""
    if isinstance(keep, int) and keep == 0:
        return now
    which = slice(-keep, None) if isinstance(keep, int) else keep.cpu()
    tokens = now.tokens.columns(which)
    assert tokens.positions.shape[1] == value.shape[1]
    return Pass(tokens, now.sequences, reads={})


def _place(site: AnySite) -> tuple[float, int, str]:
    return (*site.order, str(site)) if isinstance(site, Site) else (-2.0, 0, str(site))
