"""One attached plan at work: per-pass selections, edits, readings, and the counts of the receipt.

No hook here: `steer.registry` calls `begin` before block 0 and `apply` at each tap. Nothing in
`apply` waits for the device; what needs the host (scopes, counts in scope) was settled in `begin`.
"""

import threading
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steer.bookkeeping import Pass, Selection
from steer.errors import NeverFired, PlanError
from steer.interventions.gates import Read, Running, running
from steer.receipt import Line, Receipt
from steer.step import Step
from steer.tokens import Tokens
from steer.wiring import Edit, Key, Op, Reading, Wiring


@dataclass(slots=True, eq=False)
class Counts:
    """Accumulators of one receipt line; on the device where there is arithmetic."""

    eligible: Tensor
    gate_total: int = 0
    edited: Tensor | None = None
    size: Tensor | None = None
    gate: Tensor | None = None
    reads: Tensor | None = None
    scores: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)


class Work:
    """A wired plan and what it did so far."""

    def __init__(self, wiring: Wiring) -> None:
        """Start with empty counts."""
        self.wiring = wiring
        self.n_passes = 0
        self.seen = torch.zeros(0, dtype=torch.long)
        self.counts: list[Counts] = []
        self.lock = threading.Lock()

    def begin(self, now: Pass, key: Key | None = None) -> None:
        """Settle before block 0 all that needs the rows; with a key, of one hook alone.

        Raises:
            ScopeError: a row lacks a scope, or the prompt's end is needed and unknown.
            PlanError: row-wise values that do not fit the batch, a source of the wrong length, a
                gate that would have to act before its reading is complete.
        """
        self._check_rows(now)
        every = (op for ops in self.wiring.ops.values() for op in ops)
        concerned = tuple(every if key is None else self.wiring.ops.get(key, ()))
        for op in concerned:
            if isinstance(op, Edit):
                chosen = now.select(op.item.scope, op.rows)
                for patch in op.patches:
                    check_source(patch.tokens_per_row, op, chosen, now)
                for gate in op.gates:
                    if gate.latch == "prompt":
                        self._check_latch(gate.read, chosen, op, now)
            else:
                now.select(op.read.scope, op.rows)
        with self.lock:
            self._count_tokens(now, concerned)

    def _check_rows(self, now: Pass) -> None:
        n = now.sequences.n_rows
        if self.wiring.n_rows not in (None, n):
            raise PlanError(
                f"Rows holds {self.wiring.n_rows} plans but the batch has {n} rows. Each row of "
                "the batch needs its own plan ([] for none), before beams expand it."
            )
        for what, length in self.wiring.row_counts:
            if length != n:
                raise PlanError(
                    f"{what} has one entry for each of {length} rows, but the batch has {n}. "
                    "Which row gets which cannot be guessed. Give one entry per prompt."
                )

    def _check_latch(self, read: Read, chosen: Selection, op: Edit, now: Pass) -> None:
        tokens = now.tokens
        if chosen.count == 0 or read in now.sequences.latched:
            return
        ends = tokens.positions == tokens.lengths(f"of the gate {read!r}") - 1
        waiting = chosen.mask.any(1) & ~ends.any(1)
        if bool(waiting.any()):
            raise PlanError(
                f"{op.item!r} must act on tokens of this pass, but its gate reads the whole prompt "
                "and the prompt ends in a later chunk (or ended before the plan was attached). The "
                "gate would decide too late. Turn chunked prefill off, let the inner scope begin "
                "at LAST, or declare the prompt with run.prompt(lengths)."
            )

    def _count_tokens(self, now: Pass, ops: tuple[Op, ...]) -> None:
        tokens, n_rows = now.tokens, now.sequences.n_rows
        self.n_passes += 1
        if len(self.seen) < n_rows:
            self.seen = torch.nn.functional.pad(self.seen, (0, n_rows - len(self.seen)))
            for line in self.counts:
                line.eligible = torch.nn.functional.pad(
                    line.eligible, (0, n_rows - len(line.eligible))
                )
        while len(self.counts) < len(self.wiring.items):
            self.counts.append(Counts(torch.zeros(len(self.seen), dtype=torch.long)))
        fresh = tokens.mask if tokens.fresh is None else tokens.mask & tokens.fresh
        self.seen.index_add_(0, tokens.rows, fresh.sum(1))
        for op in (op for op in ops if isinstance(op, Edit)):
            chosen = now.select(op.item.scope, op.rows).mask
            if tokens.fresh is not None:
                chosen = chosen & tokens.fresh
            self.counts[op.line].eligible.index_add_(0, tokens.rows, chosen.sum(1))

    def apply(self, op: Op, h: Tensor, now: Pass) -> Tensor:
        """Return h after one operation."""
        if isinstance(op, Reading):
            self._read(op, h, now)
            return h
        chosen = now.select(op.item.scope, op.rows)
        if chosen.count == 0:
            return h
        step = now.step(h.device)
        if now.reads:
            step = replace(step, reads={key: v.to(h.device) for key, v in now.reads.items()})
        if op.patches and any(p.tokens_per_row is not None for p in op.patches):
            step = replace(step, rank=ranks(op, now).to(h.device))
        if op.monitor is not None:
            self._record(op, op.monitor, chosen, step, now.tokens)
        if op.gates:
            self._note(op, op.gates[0].read, op.gates[0].latch, step)
        mask, row, column = chosen.on(h.device)
        if chosen.full:
            before, step_there = h, step
            after = new = op.item.edit(h, step)
        elif op.whole:
            before, step_there = h, step
            shaped = mask.reshape(*mask.shape, *[1] * (h.ndim - 2))
            after = new = torch.where(shaped, op.item.edit(h, step), h)
        else:
            before, step_there = h[row, column][:, None], step.gather(row, column)
            after = op.item.edit(before, step_there)
            new = h if after is before else h.index_put((row, column), after[:, 0])
        self._measure(op, before, after, step_there, now)
        return new

    @torch.no_grad()
    def _measure(self, op: Edit, before: Tensor, after: Tensor, step: Step, now: Pass) -> None:
        with self.lock:
            line = self.counts[op.line]
            n = len(self.seen)
            if line.edited is None or line.size is None or len(line.edited) < n:
                line.edited = grown(line.edited, n, before.device)
                line.size = grown(line.size, n, before.device)
            gates = [gate.gate(step) for gate in op.gates]
            if gates:
                line.gate = grown(line.gate, n, before.device)
                is_open = torch.stack([g.expand_as(step.positions) for g in gates]).all(0)
                in_scope = is_open
                if step.positions.shape == now.tokens.positions.shape:
                    in_scope = is_open & now.select(op.item.scope, op.rows).on(before.device)[0]
                if now.tokens.fresh is not None:
                    in_scope = in_scope & self._fresh(step, now)
                line.gate.index_add_(0, step.rows, in_scope.float().sum(1))
            if after is before:
                return
            old = before.float().flatten(2).norm(dim=-1)
            change = (after.float() - before.float()).flatten(2).norm(dim=-1)
            edited = change > 0
            if now.tokens.fresh is not None:
                edited = edited & self._fresh(step, now)
            ratio = torch.where(edited, change / old.clamp(min=1e-30), 0.0)
            line.edited.index_add_(0, step.rows, edited.float().sum(1))
            line.size.index_add_(0, step.rows, ratio.sum(1))

    @staticmethod
    def _fresh(step: Step, now: Pass) -> Tensor:
        # With the cache off every pass sees the row from its start: count only the new positions.
        assert now.tokens.fresh is not None
        counted = now.tokens.fresh & now.tokens.mask
        first = torch.where(counted, now.tokens.positions, 1 << 30).min(1).values
        by_row = torch.full((now.sequences.n_rows,), 1 << 30)
        by_row[now.tokens.rows] = first
        return step.positions >= by_row.to(step.positions.device)[step.rows][:, None]

    def _read(self, op: Reading, h: Tensor, now: Pass) -> None:
        read, tokens, sequences = op.read, now.tokens, now.sequences
        mask = now.select(read.scope, op.rows).on(h.device)[0]
        with torch.no_grad():
            scores = read.probe.scores(h.detach().float())
        if scores.shape != mask.shape:
            raise PlanError(
                f"The probe of {read!r} gave scores of shape {tuple(scores.shape)} for tokens "
                f"{tuple(mask.shape)}. A Read needs one score per token. Use a binary probe, or "
                "one class of it."
            )
        n = len(tokens.rows)
        state = sequences.state.get(read)
        if state is None or tokens.from_start:
            state = Running.fresh(n, read.window, h.device)
        values, after = running(read, scores, mask, state)
        sequences.state[read] = after
        now.reads[read, "token"] = values
        now.reads[read, "raw"] = scores
        if op.latched:
            now.reads[read, "prompt"] = self._latch(read, values, now)

    @staticmethod
    def _latch(read: Read, values: Tensor, now: Pass) -> Tensor:
        tokens, sequences = now.tokens, now.sequences
        ends = tokens.positions == tokens.lengths(f"of {read!r}") - 1
        has = ends.any(1)
        column = ends.float().argmax(1)
        here = values.gather(1, column[:, None].to(values.device))
        before = sequences.latched.get(read)
        if before is None:
            before = torch.full_like(here, float("nan"))
        latch = torch.where(has[:, None].to(values.device), here, before)
        if bool(has.any()):
            sequences.latched[read] = latch
        return latch

    def _record(self, op: Edit, read: Read, chosen: Selection, step: Step, tokens: Tokens) -> None:
        _, row, column = chosen.on(step.positions.device)
        if tokens.fresh is not None:
            new = (chosen.mask & tokens.fresh).nonzero(as_tuple=True)
            row, column = (index.to(row.device) for index in new)
        values = step.reads[read, "raw"][row, column]
        with self.lock:
            line = self.counts[op.line]
            line.scores.append((step.rows[row], step.positions[row, column], values))
        self._note(op, read, "token", step)

    def _note(self, op: Edit, read: Read, latch: str, step: Step) -> None:
        """Keep the latest reading of each row of this pass."""
        values = step.reads[read, latch][:, -1].float()
        with self.lock:
            line = self.counts[op.line]
            latest = grown(line.reads, len(self.seen), values.device, float("nan"))
            latest[step.rows] = values
            line.reads = latest

    def receipt(self) -> Receipt:
        """Return what was done so far; the only place that waits for the device."""
        with self.lock:
            return Receipt([self._line(i) for i in range(len(self.wiring.items))], self.n_passes)

    def _line(self, index: int) -> Line:
        item = self.wiring.items[index]
        n = len(self.seen)
        nothing = torch.zeros(n)
        if index >= len(self.counts):
            zero = nothing.long()
            return Line(repr(item), str(item.site), zero, zero, zero, nothing)
        line = self.counts[index]
        edited = nothing if line.edited is None else line.edited.cpu()
        size = nothing if line.size is None else line.size.cpu()
        gate = None if line.gate is None else line.gate.cpu() / line.eligible.clamp(min=1)
        scores = None
        if line.scores:
            row, position, score = (
                torch.cat(part).cpu() for part in zip(*line.scores, strict=True)
            )
            scores = (row, position, score)
        return Line(
            repr(item),
            str(item.site),
            self.seen.clone(),
            line.eligible.clone(),
            edited.long(),
            size / edited.clamp(min=1),
            gate,
            None if line.reads is None else line.reads.cpu(),
            scores,
        )

    def require_fired(self) -> None:
        """Refuse a plan of which some intervention saw no token in scope.

        Raises:
            NeverFired: says which, where and why.
        """
        silent = [line for line in self.receipt().lines if not line.fired]
        if not silent:
            return
        line = silent[0]
        if self.n_passes == 0:
            why = (
                "no forward pass of this model ran inside the block. A pass in another thread is "
                "not steered unless it runs run.bind(fn)"
            )
        else:
            why = f"none of the {int(line.seen.sum())} tokens seen was in its scope"
        raise NeverFired(
            f"{line.intervention} at {line.site} never fired: {why}. Its effect would be reported "
            "without having happened. Check the scope (GENERATED needs more than one new token), "
            "or leave the intervention out."
        )


def grown(values: Tensor | None, n: int, device: torch.device, fill: float = 0.0) -> Tensor:
    """Return an accumulator of at least n rows."""
    if values is None:
        return torch.full((n,), fill, device=device)
    if len(values) >= n:
        return values
    return torch.nn.functional.pad(values, (0, n - len(values)), value=fill)


def ranks(op: Edit, now: Pass) -> Tensor:
    """Return [row, pos]: how many tokens of the row's scope come before each token."""
    tokens = now.tokens
    if tokens.from_start:
        chosen = now.select(op.item.scope, op.rows).mask
        return chosen.cumsum(1) - 1
    end = int(tokens.positions.max()) + 1
    every = torch.arange(end).expand(len(tokens.rows), end)
    whole = replace(tokens, positions=every, ids=None, fresh=None).asked_of(op.rows)
    rank = op.item.scope.select(whole).cumsum(1) - 1
    return rank.gather(1, tokens.positions.clamp(min=0))


def check_source(expected: Tensor | int | None, op: Edit, chosen: Selection, now: Pass) -> None:
    """Refuse a source whose tokens per row do not fit the tokens in scope.

    Raises:
        PlanError: says which row has how many.
    """
    if expected is None or chosen.count == 0:
        return
    tokens = now.tokens
    top = torch.where(chosen.mask, ranks(op, now) + 1, 0).max(1).values
    if isinstance(expected, int):
        wanted = torch.full_like(top, expected)
    else:
        wanted = expected.cpu()[tokens.rows]
    busy = chosen.mask.any(1)
    complete = tokens.from_start and not now.sequences.generating
    bad = busy & ((top != wanted) if complete else (top > wanted))
    if bool(bad.any()):
        at_row = int(bad.nonzero()[0])
        raise PlanError(
            f"Row {int(tokens.rows[at_row])} has {int(top[at_row])} tokens in scope "
            f"{op.item.scope!r}, but the source of {op.item!r} holds {int(wanted[at_row])} for it. "
            "Values would land on the wrong tokens. Capture the source with the same scope on "
            "prompts that align, or patch by span or text."
        )
