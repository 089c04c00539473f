"""Bugs planted into the product, each by replacing one function while a block runs."""

import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import steer
import steer.attention
import steer.engine.work
import steer.registry
from steer import Site, Step, scopes, serving, spec, tokens, wiring
from steer import running as at_work
from steer.bookkeeping import Pass
from steer.context import Run
from steer.engine import inputs, starts
from steer.engine.climb import Climber
from steer.engine.prefix import Prefix
from steer.interventions import arithmetic, curved, gates, linear, patch, stacked
from steer.interventions.arithmetic import coordinates, within
from steer.models.layout import Layout, OneHead, Tap
from steer.registry import HookRegistry

edges_module, paths_module, sources_module, knock_outs_module = (
    sys.modules[f"steer.{name}"]
    for name in ("attribution.edges", "patching.paths", "patching.sources", "patching.knock_outs")
)

MUTANTS: dict[str, Callable[[], Any]] = {}
"""Name -> a function that returns a context manager in which the bug is there."""


def planted(name: str) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Any]]:
    """Register a generator function that plants a bug, yields, and takes it out again."""

    def register(plant: Callable[[], Iterator[None]]) -> Callable[[], Any]:
        MUTANTS[name] = contextmanager(plant)
        return MUTANTS[name]

    return register


@contextmanager
def _swapped(owner: Any, name: str, value: object) -> Iterator[None]:
    before = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _rule(name: str, rule: Callable[[tokens.Tokens], Tensor]) -> Iterator[None]:
    rules = scopes._RULES
    assert isinstance(rules, MutableMapping)
    before = rules[name]
    rules[name] = rule
    try:
        yield
    finally:
        rules[name] = before


@contextmanager
def _add_delta(value: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in (arithmetic, linear, patch):
            stack.enter_context(_swapped(module, "add_delta", value))
        yield


# -- the twelve of the plan ------------------------------------------------------------------------


@planted("row-0 gate")
def _row_0_gate() -> Iterator[None]:
    original = gates.When.gate

    def gate(self: gates.When, step: Step) -> Tensor:
        decided = original(self, step)
        return decided[:1].expand_as(decided)

    with _swapped(gates.When, "gate", gate):
        yield


@planted("position shifted by padding")
def _shifted() -> Iterator[None]:
    def positions(self: tokens.Prompt, start: int, n_columns: int) -> Tensor:
        columns = torch.arange(start, start + n_columns).expand(len(self.mask), n_columns)
        here = self.mask[:, start : start + n_columns]
        inside, beyond = columns[:, : here.shape[1]], columns[:, here.shape[1] :]
        return torch.cat([torch.where(here, inside, -1), beyond], 1)

    original = steer.registry.open_pass

    def open_pass(*given: Any) -> Any:
        now, sequences = original(*given)
        here = now.tokens.positions
        columns = torch.arange(here.shape[1]).expand_as(here)
        if sequences.prompt is None:
            now = Pass(
                replace(now.tokens, positions=torch.where(here >= 0, columns, -1)), sequences
            )
        return now, sequences

    plain = _swapped(steer.registry, "open_pass", open_pass)
    with _swapped(tokens.Prompt, "positions", positions), plain:
        yield


@planted("decode off by one")
def _decode_off_by_one() -> Iterator[None]:
    original = tokens.Prompt.positions

    def positions(self: tokens.Prompt, start: int, n_columns: int) -> Tensor:
        found = original(self, start, n_columns)
        return found + 1 if start >= self.mask.shape[1] else found

    with _swapped(tokens.Prompt, "positions", positions):
        yield


@planted("moving LAST")
def _moving_last() -> Iterator[None]:
    with _rule("LAST", lambda t: t.positions == t.positions.max(1, keepdim=True).values):
        yield


@planted("in-place write")
def _in_place() -> Iterator[None]:
    with _add_delta(lambda h, delta: h.add_(delta.to(h.dtype))):
        yield


@planted("hook left")
def _hook_left() -> Iterator[None]:
    def release(self: HookRegistry, keys: Sequence[Any]) -> None:
        for key in keys:
            self._handles.pop(key, None)

    with _swapped(HookRegistry, "_release", release):
        yield


@planted("delta upcast")
def _upcast() -> Iterator[None]:
    with _add_delta(lambda h, delta: torch.where(delta == 0, h, h + delta.expand_as(h).float())):
        yield


@planted("rows reversed")
def _rows_reversed() -> Iterator[None]:
    original = wiring._grouped

    def grouped(arms: Any, places: Any) -> Any:
        n_rows = max((len(plan) for plan in arms if isinstance(plan, steer.Rows)), default=1)

        def flipped(at: Any) -> Any:
            return [(arm, None if row is None else n_rows - 1 - row) for arm, row in at]

        return [[(item, flipped(at)) for item, at in group] for group in original(arms, places)]

    with _swapped(wiring, "_grouped", grouped):
        yield


@planted("gate not latched")
def _not_latched() -> Iterator[None]:
    def gate(self: gates.When, step: Step) -> Tensor:
        return step.reads[self.read, "token"] > self.above

    with _swapped(gates.When, "gate", gate):
        yield


@planted("resid_mid for resid_pre")
def _mid_for_pre() -> Iterator[None]:
    original = Layout.tap

    def tap(self: Layout, site: Any) -> Tap:
        if isinstance(site, Site) and site.component == "resid_pre":
            site = replace(site, component="resid_mid")
        return original(self, site)

    with _swapped(Layout, "tap", tap):
        yield


@planted("wrong head repeat")
def _tiled_heads() -> Iterator[None]:
    original = steer.attention.pattern

    def pattern(facts: Any, layer: int, q: Tensor, k: Tensor, **rest: Any) -> Tensor:
        return original(facts, layer, q, k.repeat(1, q.shape[1] // k.shape[1], 1, 1), **rest)

    with _swapped(steer.attention, "pattern", pattern):
        yield


@planted("first output token missed")
def _first_output_missed() -> Iterator[None]:
    with _rule("OUTPUT", lambda t: t.positions >= t.lengths("OUTPUT")):
        yield


# -- more ------------------------------------------------------------------------------------------


@planted("strength 0 by arithmetic")
def _multiplied() -> Iterator[None]:
    def scaled(h: Tensor, delta: Tensor, strength: Any, step: Step) -> Tensor:
        amount = strength.multiple if isinstance(strength, steer.Relative) else strength
        if isinstance(amount, Tensor):
            amount = step.of_row(amount, h)
        return h + (amount * delta).to(h.dtype)

    with _swapped(linear, "scaled", scaled), _swapped(curved, "scaled", scaled):
        yield


@planted("whole patch as a difference")
def _patched_by_difference() -> Iterator[None]:
    original = patch.Patch.edit

    def edit(self: patch.Patch, h: Tensor, step: Step) -> Tensor:
        return h + (original(self, h, step) - h)

    with _swapped(patch.Patch, "edit", edit):
        yield


@planted("subspace patch rebuilds the rest")
def _rebuilt() -> Iterator[None]:
    original = patch.Patch.edit

    def edit(self: patch.Patch, h: Tensor, step: Step) -> Tensor:
        if self.subspace is None:
            return original(self, h, step)
        new = self._for_tokens(step)
        rest = h - within(coordinates(h, self.subspace), self.subspace)
        return (rest + within(coordinates(new, self.subspace), self.subspace)).to(h.dtype)

    with _swapped(patch.Patch, "edit", edit):
        yield


@planted("inner plan first")
def _inner_first() -> Iterator[None]:
    original = HookRegistry.runs

    def runs(self: HookRegistry) -> tuple[Run, ...]:
        return original(self)[::-1]

    with _swapped(HookRegistry, "runs", runs):
        yield


@planted("list applied backwards")
def _backwards() -> Iterator[None]:
    original = wiring._grouped

    def grouped(arms: Any, places: Any) -> Any:
        return original(arms, places)[::-1]

    with _swapped(wiring, "_grouped", grouped):
        yield


@planted("one column means decoding")
def _one_column() -> Iterator[None]:
    original = steer.registry.open_pass

    def open_pass(*given: Any) -> Any:
        now, sequences = original(*given)
        if now.tokens.positions.shape[1] == 1 and now.tokens.prompt_lengths is not None:
            here = now.tokens.positions[:, 0].clamp(max=now.tokens.prompt_lengths.min())
            now = Pass(replace(now.tokens, prompt_lengths=here), sequences)
        return now, sequences

    with _swapped(steer.registry, "open_pass", open_pass):
        yield


@planted("repeated passes counted twice")
def _counted_twice() -> Iterator[None]:
    original = at_work.Work._count_tokens

    def count(self: at_work.Work, now: Pass, ops: tuple[wiring.Op, ...]) -> None:
        every = Pass(replace(now.tokens, fresh=None), now.sequences)
        original(self, every, ops)

    with _swapped(at_work.Work, "_count_tokens", count):
        yield


@planted("beams tiled")
def _tiled_beams() -> Iterator[None]:
    def repeat(self: tokens.Prompt, times: int) -> tokens.Prompt:
        return tokens.Prompt(self.mask.repeat(times, 1), None)

    with _swapped(tokens.Prompt, "repeat", repeat):
        yield


@planted("padding in ~scope")
def _padding_in_scope() -> Iterator[None]:
    def select(self: scopes.Inverted, here: tokens.Tokens) -> Tensor:
        return ~self.inner.select(here)

    with _swapped(scopes.Inverted, "select", select):
        yield


@planted("padding in a running mean")
def _padding_in_mean() -> Iterator[None]:
    original = at_work.running

    def running(read: Any, scores: Tensor, chosen: Tensor, state: Any) -> Any:
        return original(read, scores, torch.ones_like(chosen), state)

    with _swapped(at_work, "running", running):
        yield


@planted("failed attach keeps its hooks")
def _no_rollback() -> Iterator[None]:
    original = HookRegistry.acquire

    def acquire(self: HookRegistry, keys: Sequence[Any]) -> None:
        with _swapped(HookRegistry, "_release", lambda _self, _keys: None):
            original(self, keys)

    with _swapped(HookRegistry, "acquire", acquire):
        yield


@planted("an error keeps the plan")
def _kept_on_error() -> Iterator[None]:
    original = Run.__exit__

    def leave(self: Run, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            original(self, kind, *rest)

    with _swapped(Run, "__exit__", leave):
        yield


@planted("silence is golden")
def _silent() -> Iterator[None]:
    with _swapped(at_work.Work, "require_fired", lambda _: None):
        yield


@planted("scope not saved")
def _scope_not_saved() -> Iterator[None]:
    original = spec.encode

    def encode(value: object) -> Mapping[str, object]:
        written = original(value)
        return {key: held for key, held in written.items() if key != "scope"}

    with _swapped(spec, "encode", encode):
        yield


@planted("the next head is written")
def _next_head() -> Iterator[None]:
    original = OneHead.put

    def put(self: OneHead, whole: Tensor, part: Tensor) -> Tensor:
        every = self.heads.get(whole).shape[-2]
        return original(replace(self, head=(self.head + 1) % every), whole, part)

    with _swapped(OneHead, "put", put):
        yield


@planted("strengths looked up by place")
def _by_place() -> Iterator[None]:
    original = Step.of_row

    def of_row(self: Step, values: Tensor, like: Tensor) -> Tensor:
        return original(
            replace(self, rows=torch.arange(len(self.rows)) % len(values)), values, like
        )

    with _swapped(Step, "of_row", of_row):
        yield


@planted("captured before the edits")
def _captured_early() -> Iterator[None]:
    original = serving._serve_place

    def serve(place: Any, key: Any, whole: Tensor, now: Any, runs: Any) -> Any:
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(_swapped(run, "takers", {}))
            edited = original(place, key, whole, now, runs)
        for run in runs:
            with _swapped(run.work, "apply", lambda _op, h, _now: h):
                original(place, key, whole, now, (run,))
        return edited

    with _swapped(serving, "_serve_place", serve):
        yield


@planted("a stack gives each row its neighbour's values")
def _neighbours_values() -> Iterator[None]:
    original = stacked.Stack.rows

    def rows(self: stacked.Stack, member: Tensor, rows: Tensor) -> Tensor:
        return original(self, member.roll(1, 0), rows)

    with _swapped(stacked.Stack, "rows", rows):
        yield


@planted("rows join with the states of another prompt")
def _joins_another_prompt() -> Iterator[None]:
    original = Climber.load

    def load(self: Climber, chunk: Any, prompts: Tensor, states: Any, prefix: Any) -> None:
        swapped = {block: h.flip(0) for block, h in states.items()}
        original(self, chunk, prompts, swapped, prefix)

    with _swapped(Climber, "load", load):
        yield


@planted("the prefix of another prompt")
def _anothers_prefix() -> Iterator[None]:
    original = Prefix.begin

    def begin(self: Prefix, layer: int, prompts: Tensor) -> None:
        original(self, layer, prompts.flip(0))

    with _swapped(Prefix, "begin", begin):
        yield


@planted("arms begin one block late")
def _one_block_late() -> Iterator[None]:
    original = starts.block_of

    def block_of(site: Any, n_layers: int) -> int:
        return min(original(site, n_layers) + 1, n_layers)

    work = steer.engine.work
    with _swapped(starts, "block_of", block_of), _swapped(work, "block_of", block_of):
        yield


@planted("arms begin one token late")
def _one_token_late() -> Iterator[None]:
    original = steer.engine.work.starts_of

    def starts_of(*given: Any) -> Any:
        found = original(*given)
        return replace(found, tokens=torch.where(found.tokens > 1, found.tokens - 1, found.tokens))

    with _swapped(steer.engine.work, "starts_of", starts_of):
        yield


@planted("every patch is taken for dead")
def _all_dead() -> Iterator[None]:
    def same(after: Tensor, before: Tensor) -> Tensor:
        del before
        return torch.zeros(len(after), dtype=torch.bool)

    with _swapped(starts, "_beyond_rounding", same):
        yield


@planted("packed tokens do not see the token before them")
def _blind_to_the_one_before() -> Iterator[None]:
    original = inputs.sight_of

    def sight_of(*given: Any) -> Any:
        found = original(*given)
        before = torch.arange(found.real.shape[1]) == found.real.shape[1] - 2
        return replace(found, real=found.real & ~before)

    with _swapped(inputs, "sight_of", sight_of):
        yield


@planted("nothing is held still along a path")
def _nothing_held() -> Iterator[None]:
    def between(*_: Any) -> bool:
        return False

    with _swapped(paths_module, "_between", between):
        yield


@planted("a path is held at its own sender's output")
def _held_at_the_sender() -> Iterator[None]:
    original = paths_module._held

    def held(lm: Any, frozen: Any) -> list[Site]:
        return [*original(lm, frozen), *lm.sites("attn_out")]

    with _swapped(paths_module, "_held", held):
        yield


@planted("the gradient of a sum of outputs is cut")
def _cut_gradient() -> Iterator[None]:
    original = serving._apply

    def apply(run: Any, op: Any, whole: Tensor, now: Any) -> Tensor:
        tap = run.work.wiring.taps[op.site]
        if tap.base is None:
            return original(run, op, whole, now)
        before = serving._value(tap, whole, now)
        h = run.work.apply(op, before, now)
        if h is before:
            return whole
        part = tap.view.get(whole)
        return tap.view.put(whole, torch.where(h == before, part, part + (h - before)))

    with _swapped(serving, "_apply", apply):
        yield


@planted("heads send to the MLP of their own block in a parallel one only")
def _edge_missed() -> Iterator[None]:
    original = edges_module._later

    def later(sender: Any, receiver: Any, graph: Any) -> bool:
        return sender.layer != receiver.layer and original(sender, receiver, graph)

    with _swapped(edges_module, "_later", later):
        yield


@planted("values are written one token too far")
def _one_token_far() -> Iterator[None]:
    original = sources_module._elsewhere

    def elsewhere(runs: Any, values: Tensor) -> Tensor:
        far = torch.where(runs.places > 0, runs.places - 1, runs.places)
        return original(replace(runs, places=far), values)

    with _swapped(sources_module, "_elsewhere", elsewhere):
        yield


@planted("attention is cut in the next head")
def _next_head_cut() -> Iterator[None]:
    original = knock_outs_module._of_layer

    def of_layer(*given: Any) -> Tensor:
        return original(*given).roll(1, dims=1)

    with _swapped(knock_outs_module, "_of_layer", of_layer):
        yield
