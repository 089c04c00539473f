"""A sweep at work: base pass, starts, chunks, measures, part of the prompts by part."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from steer.bookkeeping import Pass
from steer.capture import takes_columns
from steer.context import Run
from steer.engine.base import (
    Asked,
    Base,
    Part,
    call,
    in_scope,
    names_of,
    run_base,
    stop_after,
)
from steer.engine.batch import Batch, Measure, assembled, checked
from steer.engine.climb import Climber
from steer.engine.cost import Cost, Tally
from steer.engine.inputs import inputs_of, whole_cells
from steer.engine.memory import Memory
from steer.engine.packed import packable
from steer.engine.plan import Chunk, Starts, chunks_of, even, parts_of
from steer.engine.starts import Cells, block_of, cells_of, starts_of, within_block
from steer.errors import PlanError
from steer.interventions.patch import Patch
from steer.receipt import Receipt
from steer.registry import HookRegistry
from steer.running import Work
from steer.scopes import GENERATED, LAST, OUTPUT, Scope
from steer.sites import AnySite, Site
from steer.wiring import Wiring


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a sweep is: the arms wired, the prompts, what is measured where."""

    registry: HookRegistry
    wiring: Wiring
    n_arms: int
    rows: Sequence[Sequence[int]]
    scope: Scope
    read: AnySite
    pad: int
    memory: Memory
    whole: str = ""
    """Why every arm runs as whole passes; empty where it begins at its own start."""
    narrowed: frozenset[str] | None = None
    """Which arguments of a block hold one entry per row; None where that is to be found out."""
    one_token: bool = True
    """Below the first start one token runs, not one row."""
    packs: bool = False
    """Rows may be single tokens (see `packed`)."""
    lengths: Sequence[int] | None = None
    """[prompt]: tokens that count as prompt, what follows as generated; None for all."""

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return self.registry.layout.n_layers

    @property
    def top(self) -> int:
        """Blocks that a pass runs: all, or up to where it is measured."""
        return block_of(self.read, self.n_layers) + int(within_block(self.read))

    @property
    def patches(self) -> list[AnySite]:
        """Sites whose unsteered values tell which patches change nothing.

        Not the logits: they are made at a few columns only, and a patch there runs no block.
        """
        edits = [
            op
            for op in self.wiring.edits
            if isinstance(op.item, Patch) and op.site != Site.logits()
        ]
        return list(dict.fromkeys(op.site for op in edits if isinstance(op.site, Site)))


@dataclass(slots=True, eq=False)
class Stage:
    """One part of the prompts: its cells, where they begin, what the base pass left of it."""

    part: Part
    cells: Cells
    starts: Starts
    chunks: list[Chunk]
    base: Base | None


class Job:
    """Runs a task; what it ran and found is kept for receipts and costs."""

    def __init__(self, task: Task) -> None:
        """Check all that can be checked without a pass.

        Raises:
            SteerError: a scope that a prompt lacks, a source of the wrong length, an intervention
                without any token in scope, a budget that holds not one row.
        """
        refuse_attached(task.registry)
        self.task = task
        self.climber = Climber(task.top, task.narrowed, one_token=task.one_token)
        self._base_executed: dict[int, int] = {}
        self.book = Work(task.wiring)
        """Counts what is in scope of whole prompts, run or not."""
        self._parts = [Part.of(part, task.rows, task.pad, task.lengths) for part in self._split()]
        self._cells = [self._booked(part) for part in self._parts]
        self.book.require_fired()
        self._stages: dict[int, Stage] = {}
        self._tallies: dict[int, Tally] = {}
        self._run: Run | None = None

    def _split(self) -> list[list[int]]:
        lengths = [len(row) for row in self.task.rows]
        longest = max(lengths)
        n_kept = len(self._blocks()) + len(self.task.patches)
        memory, wide = self.task.memory, self._wide(longest)
        one = memory.kept(longest, n_kept, wide) + memory.row(longest, longest, wide)
        fit = memory.budget // (2 * one)  # half for the prompts, half for the arms
        if fit < 1 and memory.budget < 2 * one:
            memory.refuse(2 * one)
        return parts_of(lengths, max(1, fit) * longest)

    def _wide(self, tokens: int) -> int:
        # Logits of a row: one column for one token in scope; at most all of them.
        if self.task.read != Site.logits():
            return 0
        if self.task.scope == LAST:
            return 1
        if self.task.scope in (OUTPUT, GENERATED) and self.task.lengths is not None:
            pairs = zip(self.task.rows, self.task.lengths, strict=True)
            return min(tokens, max(len(row) - own for row, own in pairs) + 1)
        return tokens

    def _booked(self, part: Part) -> Cells:
        rows = [self.task.rows[at] for at in part.rows.tolist()]
        n = len(self.task.rows)
        cells = cells_of(self.task.registry, part.rows, rows, self.task.n_arms, n, part.declared)
        self.book.begin(cells.now)
        return cells

    def _blocks(self) -> list[int]:
        ops = [op for found in self.task.wiring.ops.values() for op in found]
        found = {block_of(op.site, self.task.n_layers) for op in ops}
        return sorted(found - {0}) if not self.task.whole else []

    # -- planning ------------------------------------------------------------------------------

    def stage(self, at: int, *, keep: bool) -> Stage:
        """Return one part ready to run; `keep` remembers it, base pass included."""
        if at in self._stages:
            return self._stages[at]
        task, part, cells = self.task, self._parts[at], self._cells[at]
        refuse_attached(task.registry)  # a sweep runs when looked at, perhaps inside a plan
        base = self._based(at, part)
        starts = starts_of(task.wiring, cells, base, task.read, task.scope, task.n_layers)
        minimum = starts.minimum(task.top)
        if task.whole:
            live = starts.tokens > 0
            starts = Starts(torch.zeros_like(starts.block), torch.where(live, cells.lengths, 0))
        kept = len(part.rows) * task.memory.kept(
            part.columns, len(self._blocks()) + len(task.patches), self._wide(part.columns)
        )

        def most_rows(tokens: int) -> int:
            return task.memory.most_rows(tokens, part.columns, self._wide(tokens), kept)

        pack = task.packs and not task.whole and packable(task.wiring, task.read, part.columns)
        chunks = chunks_of(starts, task.n_layers, most_rows, pack=pack)
        stage = Stage(part, cells, starts, chunks, base)
        self._tallies[at] = self._tally(stage, minimum, kept)
        if keep:
            self._stages[at] = stage
        return stage

    def _tally(self, stage: Stage, minimum: int, kept: int) -> Tally:
        task, part = self.task, stage.part
        rows = (
            len(chunk.cells) * task.memory.row(chunk.tokens, part.columns, self._wide(chunk.tokens))
            for chunk in stage.chunks
        )
        idle = {chunk: 1 if task.one_token else chunk.tokens for chunk in stage.chunks}
        return Tally(
            int((stage.starts.tokens == 0).sum()),
            len(stage.chunks),
            sum(chunk.token_blocks(task.top, idle[chunk]) for chunk in stage.chunks),
            minimum,
            part.ids.numel() * task.top,
            kept + max(rows, default=0),
        )

    @property
    def base_token_blocks(self) -> int:
        """Token-blocks that the base passes really ran."""
        return sum(self._base_executed.values())

    def _based(self, at: int, part: Part) -> Base:
        task = self.task
        asked = Asked(task.scope, task.read, self._blocks(), task.patches, cached=not task.whole)
        counter = Climber(task.top)
        with torch.no_grad():
            base = run_base(task.registry, part, asked, counter, len(task.rows))
        self._base_executed[at] = counter.executed
        return base

    def cost(self) -> Cost:
        """Return what the sweep will run (the base pass of a sweep in one part is kept for it)."""
        task, n_parts = self.task, len(self._parts)
        for at in range(n_parts):
            if at not in self._tallies:
                self.stage(at, keep=n_parts == 1)
        tallies = [self._tallies[at] for at in range(n_parts)]
        tokens = sum(len(row) for row in task.rows)
        return Cost(
            arms=task.n_arms,
            prompts=len(task.rows),
            dead=sum(tally.dead for tally in tallies),
            passes=sum(tally.passes for tally in tallies),
            token_blocks=sum(tally.token_blocks for tally in tallies),
            minimum=sum(tally.minimum for tally in tallies),
            base_token_blocks=sum(tally.base_token_blocks for tally in tallies),
            loop_token_blocks=task.n_arms * tokens * task.top,
            bytes=max(tally.bytes for tally in tallies),
            budget=task.memory.budget,
            note=task.whole,
        )

    # -- running -------------------------------------------------------------------------------

    def run(self, measure: Measure) -> tuple[Tensor, Tensor]:
        """Return the measure of every cell [arm, prompt, ...] and of the prompts [prompt, ...].

        Raises:
            PlanError: the measure does not give one value per row.
        """
        task = self.task
        refuse_attached(task.registry)
        self.climber.executed = 0
        found: list[tuple[Tensor, Tensor]] = []
        natural: list[tuple[Tensor, Tensor]] = []
        self._taken: Tensor | None = None
        takers = [(task.read, self._take)]
        self._run = task.registry.climbing(task.wiring, takers, self.climber)
        with torch.no_grad():
            for at in range(len(self._parts)):
                stage = self.stage(at, keep=len(self._parts) == 1)
                natural.append((stage.part.rows, self._natural(stage, measure)))
                found += self._steered(stage, measure)
                self._stages.pop(at, None)
        every = assembled(found, task.n_arms * len(task.rows))
        return every.unflatten(0, (task.n_arms, len(task.rows))), assembled(natural, len(task.rows))

    def _take(self, _: AnySite, h: Tensor, now: Pass) -> None:
        self._taken, self._taken_at = h, now.select(self.task.scope, None).mask
        stop_after(self.task.read, self.task.registry)

    def _steered(self, stage: Stage, measure: Measure) -> list[tuple[Tensor, Tensor]]:
        n_prompts = len(stage.part.rows)
        found = []
        assert self._run is not None
        self._run.start()
        try:
            for chunk in tqdm(stage.chunks, desc="sweep", delay=2, leave=False):
                logits = self._climbed(stage, chunk)
                batch = self._batch(stage, chunk.distinct)
                found.append((chunk.distinct, checked(measure(logits, batch), batch)))
        finally:
            self._run.stop()
        dead = (stage.starts.tokens == 0).nonzero()[:, 0]
        found += [(c, self._of_base(stage, c, measure)) for c in self._small(stage, dead)]
        n = len(self.task.rows)
        number = (torch.arange(self.task.n_arms)[:, None] * n + stage.part.rows).flatten()
        assert len(number) == self.task.n_arms * n_prompts
        return [(number[cells], values) for cells, values in found]

    def _small(self, stage: Stage, cells: Tensor) -> Sequence[Tensor]:
        if not len(cells):
            return ()
        task, part = self.task, stage.part
        most = task.memory.most_rows(1, part.columns, self._wide(part.columns), 0)
        return cells.split(even(len(cells), most))

    def _natural(self, stage: Stage, measure: Measure) -> Tensor:
        cells = torch.arange(len(stage.part.rows))
        batch = replace(self._batch(stage, cells), arms=torch.full_like(cells, -1))
        assert stage.base is not None
        assert stage.base.read is not None
        return checked(measure(self._single(stage, stage.base.read), batch), batch)

    def _of_base(self, stage: Stage, cells: Tensor, measure: Measure) -> Tensor:
        batch = self._batch(stage, cells)
        assert stage.base is not None
        assert stage.base.read is not None
        read = stage.base.read
        if len(read) == 1:  # a view: logits of many dead cells are a lot to copy
            values = read.expand(len(cells), *read.shape[1:])
        else:
            values = read[stage.cells.prompts[cells].to(read.device)]
        return checked(measure(self._single(stage, values), batch), batch)

    def _batch(self, stage: Stage, cells: Tensor) -> Batch:
        tokens = stage.cells.now.tokens
        mask = stage.cells.now.select(self.task.scope, None).mask[cells]
        positions = in_scope(tokens.positions[cells], mask)
        real = in_scope(mask, mask)
        single = self._one_each(stage)
        assert tokens.arms is not None
        return Batch(
            tokens.arms[cells],
            tokens.rows[cells],
            None if single else real,
            positions[:, 0] if single else torch.where(real, positions, -1),
        )

    def _one_each(self, stage: Stage) -> bool:
        assert stage.base is not None
        assert stage.base.scope is not None
        return bool((stage.base.scope.sum(1) == 1).all())

    def _single(self, stage: Stage, values: Tensor) -> Tensor:
        return values[:, 0] if self._one_each(stage) else values

    def _climbed(self, stage: Stage, chunk: Chunk) -> Tensor:
        """Run one chunk and return what is measured, [cell, ...] or [cell, n, ...]."""
        task, base = self.task, stage.base
        assert base is not None
        names = names_of(task.registry)
        given = inputs_of(chunk, stage.cells, base, len(task.rows), names)
        self.climber.load(chunk, given.prompts, base.states, given.prefix)
        if takes_columns(task.registry.model):
            logits = task.read == Site.logits()
            given.arguments["logits_to_keep"] = given.wanted.nonzero()[:, 0] if logits else 1
        with task.registry.sequences(given.sequences):
            call(task.registry, given.arguments)
        assert self._taken is not None
        taken, self._taken = self._taken, None
        return self._single(stage, whole_cells(chunk, stage.cells, base, taken, self._taken_at))

    def receipts(self) -> list[Receipt]:
        """Return what was done, arm by arm, counted over whole prompts."""
        arms = range(self.task.n_arms)
        booked = self.book.receipts(arms)
        if self._run is None:
            return booked
        done = self._run.work.receipts(arms)
        return [
            Receipt(
                [
                    replace(line, seen=known.seen, eligible=known.eligible)
                    for line, known in zip(did.lines, was.lines, strict=True)
                ],
                did.n_passes,
                self.task.whole,
            )
            for did, was in zip(done, booked, strict=True)
        ]


def refuse_attached(registry: HookRegistry) -> None:
    """Refuse a sweep while a plan is attached around it.

    Raises:
        PlanError: says what to do instead.
    """
    if registry.runs():
        raise PlanError(
            f"A plan is attached to {registry.layout.name} here, so the sweep's prompts would be "
            "steered before any arm begins, unseen. Leave it (lm.detach(), or the with block), or "
            "put it into every arm: [*outer, *arm]."
        )
