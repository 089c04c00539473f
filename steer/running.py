"""One attached plan at work: per-pass selections, edits, readings, and the counts of the receipt.

No hook here: `steer.registry` calls `begin` before block 0 and `apply` at each tap. Nothing in
`apply` waits for the device; what needs the host (scopes, counts in scope) was settled in `begin`.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steer.bookkeeping import Pass, Selection
from steer.counts import Counts, Scores
from steer.errors import NeverFired, PlanError
from steer.interventions.believed import Believed, Control, Count
from steer.interventions.gates import Read, Running, running
from steer.interventions.stacked import Stack
from steer.receipt import Receipt
from steer.step import Step
from steer.tokens import Tokens
from steer.wiring import Edit, Key, Op, Reading, Wiring


class Work:
    """A wired plan and what it did so far."""

    def __init__(self, wiring: Wiring) -> None:
        """Start with empty counts."""
        self.wiring = wiring
        self.n_passes = 0
        self.counts = Counts(wiring)
        self.scores: dict[int, Scores] = {}
        self.lock = threading.Lock()

    def begin(self, now: Pass, key: Key | None = None) -> None:
        """Settle before block 0 all that needs the rows; with a key, of one hook alone.

        Raises:
            ScopeError: a row lacks a scope, or the prompt's end is needed and unknown.
            PlanError: row-wise values that do not fit the batch, a source of the wrong length, a
                gate that would have to act before its reading is complete.
        """
        self.check_rows(now.sequences.n_rows)
        every = (op for ops in self.wiring.ops.values() for op in ops)
        concerned = tuple(every if key is None else self.wiring.ops.get(key, ()))
        for op in concerned:
            if isinstance(op, Edit):
                chosen = now.chosen(op)
                for patch in op.patches:
                    check_source(patch.tokens_per_row, op, chosen, now)
                for gate in op.gates:
                    if gate.latch == "prompt":
                        self._check_latch(gate.read, chosen, op, now)
                if op.believed is not None:
                    self._check_evidence(op.believed, chosen, op, now)
            else:
                now.select(op.read.scope, op.rows)
        with self.lock:
            self._count_tokens(now, concerned)

    def check_rows(self, n: int) -> None:
        """Refuse a batch of another length than the plan has rows or row-wise values.

        Raises:
            PlanError: says what has how many.
        """
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

    def _check_evidence(self, item: Believed, chosen: Selection, op: Edit, now: Pass) -> None:
        if isinstance(item.evidence, Read) and isinstance(item, Control):
            self._check_latch(item.evidence, chosen, op, now)
        prompt = now.tokens.prompt
        if isinstance(item.evidence, Count) and (prompt is None or prompt.ids is None):
            raise PlanError(
                f"{item!r} counts evidence among the tokens of each row's prompt, and this pass "
                "does not say them (it was given embeddings, or a cache filled elsewhere). Give "
                "the counts as numbers: evidence=torch.tensor([...]), one for each row."
            )

    def _count_tokens(self, now: Pass, ops: tuple[Op, ...]) -> None:
        tokens, n_rows = now.tokens, now.sequences.n_rows
        self.n_passes += 1
        fresh = tokens.mask if tokens.fresh is None else tokens.mask & tokens.fresh
        arms = torch.zeros_like(tokens.rows) if tokens.arms is None else tokens.arms
        self.counts.see(arms, tokens.rows, fresh.sum(1), n_rows)
        for op in (op for op in ops if isinstance(op, Edit)):
            chosen = now.chosen(op).mask
            if tokens.fresh is not None:
                chosen = chosen & tokens.fresh
            place = (_line_of(op, tokens), tokens.rows)
            self.counts.add("eligible", place, chosen.sum(1).float())
            if tokens.prompt_lengths is not None:
                after = tokens.positions >= tokens.prompt_lengths[:, None]
                self.counts.add("generated", place, (chosen & after).sum(1).float())

    def count(self, now: Pass) -> None:
        """Count tokens that need not run, as nothing changes there, as if they had passed."""
        with self.lock:
            ops = tuple(op for found in self.wiring.ops.values() for op in found)
            self._count_tokens(now, ops)
            self.n_passes -= 1

    def apply(self, op: Op, h: Tensor, now: Pass) -> Tensor:
        """Return h after one operation."""
        if isinstance(op, Reading):
            self._read(op, h, now)
            return h
        chosen = now.chosen(op)
        if chosen.count == 0:
            return h
        step = now.step(h.device)
        if now.reads:
            step = replace(step, reads={key: v.to(h.device) for key, v in now.reads.items()})
        if op.patches and any(p.tokens_per_row is not None for p in op.patches):
            step = replace(step, rank=now.ranks(op).to(h.device))
        if op.monitor is not None:
            self._record(op, op.monitor, chosen, step, now.tokens)
        if op.gates:
            self._note(op, op.gates[0].read, op.gates[0].latch, step, now.tokens)
        if op.believed is not None:
            step = self._foretell(op, op.believed, step, now.tokens)
        line = _line_of(op, now.tokens).to(h.device)
        rows = step.rows
        if op.stack is not None:
            step = replace(step, rows=_rows_in(op, op.stack, now.tokens).to(h.device))
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
            line, rows = line[row], rows[row]
            after = op.item.edit(before, step_there)
            new = h if after is before else h.index_put((row, column), after[:, 0])
        self._measure(op, (before, after), step_there, (line, rows), now)
        return new

    @torch.no_grad()
    def _measure(
        self,
        op: Edit,
        change: tuple[Tensor, Tensor],
        step: Step,
        place: tuple[Tensor, Tensor],
        now: Pass,
    ) -> None:
        before, after = change
        with self.lock:
            gates = [gate.gate(step) for gate in op.gates]
            if gates:
                is_open = torch.stack([g.expand_as(step.positions) for g in gates]).all(0)
                in_scope = is_open
                if step.positions.shape == now.tokens.positions.shape:
                    in_scope = is_open & now.chosen(op).on(before.device)[0]
                if now.tokens.fresh is not None:
                    in_scope = in_scope & self._fresh(step, place[1], now)
                self.counts.add("gate", place, in_scope.float().sum(1))
            if after is before:
                return
            old = before.float().flatten(2).norm(dim=-1)
            moved = (after.float() - before.float()).flatten(2).norm(dim=-1)
            edited = moved > 0
            if now.tokens.fresh is not None:
                edited = edited & self._fresh(step, place[1], now)
            ratio = torch.where(edited, moved / old.clamp(min=1e-30), 0.0)
            self.counts.add("edited", place, edited.float().sum(1))
            self.counts.add("size", place, ratio.sum(1))

    @staticmethod
    def _fresh(step: Step, rows: Tensor, now: Pass) -> Tensor:
        # With the cache off every pass sees the row from its start: count only the new positions.
        assert now.tokens.fresh is not None
        counted = now.tokens.fresh & now.tokens.mask
        first = torch.where(counted, now.tokens.positions, 1 << 30).min(1).values
        by_row = torch.full((now.sequences.n_rows,), 1 << 30)
        by_row[now.tokens.rows] = first
        return step.positions >= by_row.to(step.positions.device)[rows][:, None]

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
        for line, rows in op.notes:
            here = now.select(read.scope, op.rows).mask.any(1)
            here = here if rows is None else here & tokens.of(rows)
            latest = values[here.to(values.device), -1]
            with self.lock:
                place = (torch.full((len(latest),), line), tokens.rows[here])
                self.counts.note("realised", place, latest)

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

    def _foretell(self, op: Edit, item: Believed, step: Step, tokens: Tokens) -> Step:
        """Keep what is predicted for each row; return the step with the evidence counted."""
        n = len(tokens.rows)
        count = item.evidence
        if isinstance(count, Count):
            assert tokens.prompt is not None
            prompt = tokens.prompt
            counts = prompt.memo(count, lambda: count.of(prompt))
            # A pass of the first rows keeps the prompts of all.
            reads = {**step.reads, (count, "prompt"): counts[:n, None]}
            step = replace(step, reads=reads)
        predicted, dose = (values.expand(n, 1)[:, 0] for values in item.forecast(step))
        mine = torch.ones(n, dtype=torch.bool)
        if op.member is not None:
            mine = tokens.of(op.member) >= 0
        place = (_line_of(op, tokens)[mine], tokens.rows[mine])
        with self.lock:
            for name, values in (("predicted", predicted), ("dose", dose)):
                self.counts.note(name, place, values[mine])
        return step

    def _record(self, op: Edit, read: Read, chosen: Selection, step: Step, tokens: Tokens) -> None:
        _, row, column = chosen.on(step.positions.device)
        if tokens.fresh is not None:
            new = (chosen.mask & tokens.fresh).nonzero(as_tuple=True)
            row, column = (index.to(row.device) for index in new)
        values = step.reads[read, "raw"][row, column]
        line = _line_of(op, tokens).to(row.device)[row]
        with self.lock:
            for at in op.lines:
                mine = slice(None) if len(op.lines) == 1 else line == at
                found = (step.rows[row][mine], step.positions[row, column][mine], values[mine])
                self.scores.setdefault(at, []).append(found)
        self._note(op, read, "token", step, tokens)

    def _note(self, op: Edit, read: Read, latch: str, step: Step, tokens: Tokens) -> None:
        """Keep the latest reading of each row of this pass that the operation is about."""
        values = step.reads[read, latch][:, -1].float()
        line, rows = _line_of(op, tokens).to(values.device), step.rows
        if op.member is not None:
            mine = (tokens.of(op.member) >= 0).to(values.device)
            line, rows, values = line[mine], rows[mine], values[mine]
        with self.lock:
            self.counts.note("reads", (line, rows), values)

    def receipt(self, arm: int = 0) -> Receipt:
        """Return what was done so far (in one arm); the only place that waits for the device."""
        return self.receipts([arm])[0]

    def receipts(self, arms: Sequence[int]) -> list[Receipt]:
        """Return what was done so far in each of some arms."""
        with self.lock:
            lines = self.counts.lines(arms, self.scores)
            return [Receipt(lines[arm], self.n_passes) for arm in arms]

    def readings(self) -> tuple[Tensor, Tensor]:
        """Return [line, row] the latest reading of each gate and Monitor, and whether it has one.

        A reading that is NaN although there is one is no number: the probe or the state overflows.
        For who decides between passes, where a whole receipt would be too much.
        """
        with self.lock:
            return self.counts.readings()

    def require_fired(self) -> None:
        """Refuse plans, in any arm, of which some intervention saw no token in scope.

        Raises:
            NeverFired: says which, where and why.
        """
        with self.lock:
            silent = self.counts.silent()
        if not silent:
            return
        arm, which = silent[0]
        line = self.receipt(arm).lines[which]
        if self.n_passes == 0:
            why = (
                "no forward pass of this model ran inside the block. A pass in another thread is "
                "not steered unless it runs run.bind(fn)"
            )
        else:
            why = f"none of the {int(line.seen.sum())} tokens seen was in its scope"
        place = f"{line.site} in arm {arm}" if max(self.wiring.arms) > 0 else line.site
        raise NeverFired(
            f"{line.intervention} at {place} never fired: {why}. Its effect would be reported "
            "without having happened. Check the scope (GENERATED needs more than one new token), "
            "or leave the intervention out."
        )


def _line_of(op: Edit, tokens: Tokens) -> Tensor:
    """Return [row]: the line of the receipt to which each row's tokens count; any for no member."""
    if op.member is None or len(op.lines) == 1:
        return torch.full((len(tokens.rows),), op.lines[0])
    return torch.tensor(op.lines)[tokens.of(op.member).clamp(min=0)]


def _rows_in(op: Edit, stack: Stack, tokens: Tokens) -> Tensor:
    """Return [row]: where in a stack's values each row's own are."""
    assert op.member is not None
    return stack.rows(tokens.of(op.member).clamp(min=0), tokens.rows)


def check_source(expected: Tensor | int | None, op: Edit, chosen: Selection, now: Pass) -> None:
    """Refuse a source whose tokens per row do not fit the tokens in scope.

    Raises:
        PlanError: says which row has how many.
    """
    if expected is None or chosen.count == 0:
        return
    tokens = now.tokens
    top = torch.where(chosen.mask, now.ranks(op) + 1, 0).max(1).values
    if isinstance(expected, int):
        wanted = torch.full_like(top, expected)
    else:
        wanted = expected.cpu()[_rows_in(op, op.stack, tokens) if op.stack else tokens.rows]
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
