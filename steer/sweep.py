"""`steer.sweep`: many plans at many prompts; runs only what each plan can change."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from steer.engine import Cost, Job, Measure
from steer.engine.generating import generate_cells
from steer.engine.memory import SHARE, Memory, free_bytes
from steer.engine.proof import proof_of
from steer.engine.work import Task, refuse_attached
from steer.errors import PlanError
from steer.generation import Generations, pad_token
from steer.interventions.plans import Plan, Rows, as_items
from steer.lm import LM
from steer.prompts import Prompts
from steer.receipt import Receipt
from steer.scopes import LAST, Scope, require_scope
from steer.sites import AnySite, Site, require_sites


class Sweep:
    """A planned sweep. `cost()` says what it will run; it runs once, when first looked at.

    `values` [arm, prompt, ...] is what was measured, `natural` [prompt, ...] the same without any
    plan, `receipts` what each arm did, `executed` the token-blocks that its passes really ran.
    """

    def __init__(self, task: Task, names: Sequence[str], measure: Measure) -> None:
        """Check all that can be checked without a pass."""
        self.names = tuple(names)
        self._task = task
        self._measure = measure
        self._job = Job(task)
        self._cost: Cost | None = None
        self._found: tuple[Tensor, Tensor] | None = None

    def cost(self) -> Cost:
        """Return what it will run, in token-blocks; exact.

        Patches that change nothing are found by comparing them with what is there: the first call
        runs the prompts once for that, and the sweep goes on from that pass.
        """
        if self._cost is None:
            self._cost = self._job.cost()
        return self._cost

    def run(self) -> "Sweep":
        """Run it, if it has not run yet, and return it."""
        if self._found is None:
            self._found = self._job.run(self._measure)
            self._cost = self._job.cost()
        return self

    @property
    def values(self) -> Tensor:
        """[arm, prompt, ...]: what the measure said, on the host."""
        return self._results()[0]

    @property
    def natural(self) -> Tensor:
        """[prompt, ...]: what the measure says of the prompts without any plan."""
        return self._results()[1]

    def _results(self) -> tuple[Tensor, Tensor]:
        self.run()
        assert self._found is not None
        return self._found

    @property
    def receipts(self) -> list[Receipt]:
        """What each arm did; cells that were not run, as they change nothing, count as unedited."""
        self.run()
        return self._job.receipts()

    @property
    def executed(self) -> int:
        """Token-blocks that the arms' passes really ran; the base pass is beside it."""
        self.run()
        return self._job.climber.executed

    @property
    def base_executed(self) -> int:
        """Token-blocks that the base passes really ran."""
        self.run()
        return self._job.base_token_blocks

    def __getitem__(self, arm: str | int) -> Tensor:
        """Return [prompt, ...] of one arm, by name or number.

        Raises:
            PlanError: no such arm.
        """
        if isinstance(arm, str):
            if arm not in self.names:
                raise PlanError(f"There is no arm {arm!r}. The arms are {', '.join(self.names)}.")
            return self.values[self.names.index(arm)]
        return self.values[arm]

    def __repr__(self) -> str:
        """Say what it is, and whether it has run."""
        state = "not run yet" if self._found is None else f"ran {self.executed:,} token-blocks"
        cost = "" if self._cost is None else f"; {self._cost!r}"
        return (
            f"Sweep({len(self.names)} arms x {len(self._task.rows)} prompts, measured at "
            f"{self._task.read} {self._task.scope!r}, {state}{cost})"
        )


def sweep(
    lm: LM,
    prompts: Prompts,
    arms: Sequence[Plan] | Mapping[str, Plan],
    measure: Measure,
    *,
    scope: Scope = LAST,
    read: AnySite = Site.logits(),  # noqa: B008 - a frozen value
    prompt_lengths: Sequence[int] | None = None,
    budget: int | None = None,
) -> Sweep:
    """Return a sweep: every arm (a plan) at every prompt, measured; it runs when looked at.

    Equal to a loop that attaches each arm and runs the prompts, to rounding. An edit changes only
    later blocks and positions, so the prompts run once and every arm from its own first edit on.

    Args:
        lm: the model.
        prompts: see `LM`.
        arms: plans, or names and plans; a plan may be Rows, one list per prompt.
        measure: (logits, batch) -> one value per row. The logits are [row, vocab], or [row, n,
            vocab] where the scope holds several tokens; `batch.arms` and `batch.rows` say which.
        scope: at which tokens it is measured.
        read: where; the logits, or any site, above which nothing is run.
        prompt_lengths: tokens of each row that count as prompt; what follows counts as generated,
            as in `lm.score`. None counts all as prompt.
        budget: bytes for everything but the weights; half of what is free by default.

    Raises:
        PlanError: no arm, an attached plan around it, a budget that holds not one row, lengths
            that are not those of the prompts.
        SteerError: an arm that does not fit; an intervention without a token in scope.

    >>> import torch, steer
    >>> lm = steer.load("tiny-llama")
    >>> arms = [[steer.Add(steer.Site(2), torch.ones(lm.d_model), s)] for s in (-1.0, 0.0, 1.0)]
    >>> steer.sweep(lm, ["a b c"], arms, lambda logits, _: logits[:, 7]).values.shape
    torch.Size([3, 1])
    """
    require_scope(scope, "sweep")
    require_sites([read])
    lm.registry.layout.tap(read)
    named = _named(arms)
    task = _task(lm, prompts, named, budget)
    lengths = None if prompt_lengths is None else _lengths(prompt_lengths, task.rows)
    return Sweep(replace(task, scope=scope, read=read, lengths=lengths), list(named), measure)


def generate_sweep(
    lm: LM,
    prompts: Prompts,
    arms: Sequence[Plan] | Mapping[str, Plan],
    *,
    max_new_tokens: int = 32,
    do_sample: bool = False,
    seed: int | None = None,
    budget: int | None = None,
) -> dict[str, Generations]:
    """Return what each arm generates, by name (or number, as text): one text per prompt.

    Equal to `lm.generate(prompts, arm)` for each arm where it does not sample. The prompts run
    once; a row's own prefill begins at its arm's first edit, and all arms decode as one batch.
    Steering the prompt is part of an arm's own prefill: only what no edit reaches is shared.

    Args:
        lm: the model.
        prompts: see `LM`.
        arms: plans, or names and plans; a plan may be Rows, one list per prompt.
        max_new_tokens: how many tokens at most.
        do_sample: sample instead of taking the likeliest token.
        seed: of the sampling.
        budget: bytes for everything but the weights; half of what is free by default.

    Raises:
        PlanError: no arm, an attached plan around it, a budget that holds not one row.
        SteerError: an arm that does not fit; an intervention without a token in scope.
    """
    named = _named(arms)
    task = _task(lm, prompts, named, budget)
    options = {"max_new_tokens": max_new_tokens, "do_sample": do_sample}
    made = generate_cells(task, lm.tokenizer, options, seed)
    return dict(zip(named, made, strict=True))


def _task(lm: LM, prompts: Prompts, named: Mapping[str, Plan], budget: int | None) -> Task:
    rows = lm.rows(prompts)
    for name, plan in named.items():
        if isinstance(plan, Rows) and len(plan) != len(rows):
            raise PlanError(
                f"Arm {name} is Rows of {len(plan)} plans, but there are {len(rows)} prompts. Give "
                "one plan for each prompt ([] for none)."
            )
    refuse_attached(lm.registry)
    given = int(free_bytes(lm.device) * SHARE) if budget is None else budget
    wiring = lm.registry.wire_arms(list(named.values()))
    proof = proof_of(lm.registry)
    return Task(
        lm.registry,
        wiring,
        len(named),
        rows,
        LAST,
        Site.logits(),
        pad_token(lm.tokenizer),
        Memory(lm.registry.layout, lm.dtype.itemsize, given),
        proof.why_not,
        proof.narrowed,
        proof.one_token,
        proof.packs,
    )


def _lengths(given: Sequence[int], rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    found = tuple(int(length) for length in given)
    most = [len(row) for row in rows]
    if len(found) != len(most) or not all(
        0 < own <= all_ for own, all_ in zip(found, most, strict=True)
    ):
        raise PlanError(
            f"The prompt lengths are {list(found)[:8]} for rows of {most[:8]} tokens. Give one for "
            "each row, from 1 to the row's own length: the tokens after it count as generated."
        )
    return found


def _named(arms: Sequence[Plan] | Mapping[str, Plan]) -> dict[str, Plan]:
    if isinstance(arms, Mapping):
        named = {str(name): plan for name, plan in arms.items()}
    elif isinstance(arms, Rows):
        raise PlanError(
            "The arms are a lone Rows, which is one plan. A sweep takes a list of plans: [rows]."
        )
    else:
        named = {str(at): plan for at, plan in enumerate(arms)}
    if not named:
        raise PlanError(
            "There is no arm to sweep over. Give at least one plan: [[steer.Add(...)]]."
        )
    for name, plan in named.items():
        if not isinstance(plan, Rows):
            as_items(plan, f"Arm {name}")
    return named
