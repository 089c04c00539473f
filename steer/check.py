"""The guarantees, run on the user's own model, plan and prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from steer.errors import SteerError
from steer.generation import Generations
from steer.interventions.plans import Plan, Rows, items_of
from steer.interventions.recipe import Recipe
from steer.lm import LM
from steer.prompts import Prompts
from steer.protocols import Intervention
from steer.receipt import Receipt

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 0.1, torch.float16: 0.02}
"""On log-probabilities. Batched and single logits differ by 4e-7 in fp32 and 4e-3 in bf16."""


@dataclass(frozen=True, slots=True)
class Check:
    """One guarantee: what was compared, the largest difference, and the same without the plan."""

    name: str
    passed: bool
    difference: float
    control: float
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CheckReport:
    """What held and what did not; `passed` is all of it. Truth value: passed."""

    checks: tuple[Check, ...]
    receipt: Receipt

    @property
    def passed(self) -> bool:
        """Whether every guarantee held."""
        return all(check.passed for check in self.checks)

    def __bool__(self) -> bool:
        """Return `passed`."""
        return self.passed

    def __getitem__(self, name: str) -> Check:
        """Return one check by name."""
        return {check.name: check for check in self.checks}[name]

    def __repr__(self) -> str:
        """Print a line for each guarantee, then the receipt."""
        lines = [
            f"{'ok  ' if c.passed else 'FAIL'} {c.name}: largest difference {c.difference:.2g}, "
            f"without the plan {c.control:.2g}{'. ' + c.note if c.note else ''}"
            for c in self.checks
        ]
        return "\n".join([*lines, repr(self.receipt)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'ok' if c.passed else '<b>FAIL</b>'}</td><td>{escape(c.name)}</td>"
            f"<td>{c.difference:.2g}</td><td>{c.control:.2g}</td><td>{escape(c.note)}</td></tr>"
            for c in self.checks
        )
        head = "<tr><th></th><th>guarantee</th><th>difference</th><th>without</th><th></th></tr>"
        return f"<table>{head}{rows}</table>"


def check(lm: LM, plan: Plan, prompts: Prompts, *, max_new_tokens: int = 6) -> CheckReport:
    """Check on this model that a plan does what the guarantees say.

    Five comparisons over a short greedy generation: cached = uncached, padded batch = single rows,
    one batch = its rows (each row's own part of the plan, alone), strength 0 = the baseline to the
    bit, and after detaching = before, to the bit. Beside each stands the same comparison without
    the plan: what the model's own kernels do.

    Raises:
        SteerError: the plan does not fit the model or the prompts.
    """
    rows = lm.rows(prompts)
    n = max_new_tokens
    before, hooks = lm.logits(rows), hook_counts(lm.model)
    steered = lm.generate(rows, plan, max_new_tokens=n)
    plain = lm.generate(rows, max_new_tokens=n)
    checks = [
        _compare(
            "cached = uncached",
            lm,
            (steered, lm.generate(rows, plan, max_new_tokens=n, use_cache=False)),
            (plain, lm.generate(rows, max_new_tokens=n, use_cache=False)),
        ),
        _alone("padded = single", lm, rows, (steered, plan), plain, together=True),
        _alone("batch = rows", lm, rows, (steered, plan), plain, together=False),
        _strength_zero(lm, rows, plan, plain),
    ]
    after, left = lm.logits(rows), hook_counts(lm.model)
    same = same_bits(before, after) and hooks == left and lm.registry.live == 0
    note = "" if hooks == left else "hooks were left on the model"
    checks.append(Check("detached = before", same, _gap(before, after), 0.0, note))
    return CheckReport(tuple(checks), steered.receipt)


def _compare(
    name: str,
    lm: LM,
    steered: tuple[Generations, Generations],
    plain: tuple[Generations, Generations],
) -> Check:
    difference, note = _difference(*steered)
    control, _ = _difference(*plain)
    limit = max(TOLERANCE.get(lm.dtype, 1e-4), 3 * control)
    return Check(name, difference <= limit, difference, control, note)


def _difference(one: Generations, other: Generations) -> tuple[float, str]:
    # Log-probabilities up to the first token on which the two differ: after it, texts are others.
    assert one.log_probs is not None
    assert other.log_probs is not None
    worst, note = 0.0, ""
    for row, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)):
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
        left, right = one.log_probs[row], other.log_probs[row]
        if shared < len(a):
            note = f"row {row} differs from new token {shared} on"
            gap = float((left[shared] - right[shared]).abs())
            # Two tokens of equal probability may swap; any larger gap is a real difference.
            worst = max(worst, gap)
        if shared:
            worst = max(worst, float((left[:shared] - right[:shared]).abs().max()))
    return worst, note


def _alone(
    name: str,
    lm: LM,
    rows: Sequence[Sequence[int]],
    steered: tuple[Generations, Plan],
    plain: Generations,
    *,
    together: bool,
) -> Check:
    made, plan = steered
    n = max((len(tokens) for tokens in made.tokens), default=1)
    singles, plains = [], []
    for at, row in enumerate(rows):
        # together: the whole plan over copies of one prompt, so that nothing is padded.
        same_rows = [row] * len(rows) if together else [row]
        own = plan if together else for_row(plan, at)
        pick = at if together else 0
        singles.append(_picked(lm.generate(same_rows, own, max_new_tokens=n), pick))
        plains.append(_picked(lm.generate(same_rows, max_new_tokens=n), pick))
    return _compare(name, lm, (made, _joined(singles)), (plain, _joined(plains)))


def _picked(made: Generations, row: int) -> Generations:
    assert made.log_probs is not None
    return Generations([made[row]], [made.tokens[row]], [made.log_probs[row]], made.receipt)


def _joined(parts: Sequence[Generations]) -> Generations:
    log_probs = [part.log_probs[0] for part in parts if part.log_probs is not None]
    tokens = [part.tokens[0] for part in parts]
    return Generations([part[0] for part in parts], tokens, log_probs, parts[0].receipt)


def _strength_zero(lm: LM, rows: Sequence[Sequence[int]], plan: Plan, plain: Generations) -> Check:
    # By generation, as for the others: an edit of GENERATED tokens has nothing to do in a prompt.
    name = "strength 0 = baseline"
    zeroed = _each(plan, at_zero)
    left_out = sum(1 for _ in items_of(plan)) - sum(1 for _ in items_of(zeroed))
    note = f"{left_out} without a strength left out" if left_out else ""
    try:
        found = lm.generate(rows, zeroed, max_new_tokens=max(map(len, plain.tokens)))
    except SteerError as error:
        return Check(name, False, float("nan"), 0.0, str(error))
    difference, differs = _difference(found, plain)
    assert found.log_probs is not None
    assert plain.log_probs is not None
    same = found.tokens == plain.tokens and all(map(same_bits, found.log_probs, plain.log_probs))
    return Check(name, same, difference, 0.0, note or differs)


def _each(plan: Plan, change: Callable[[Intervention], Intervention | None]) -> Plan:
    def kept(items: Sequence[Intervention]) -> list[Intervention]:
        return [new for new in map(change, items) if new is not None]

    if isinstance(plan, Rows):
        return Rows([kept(items) for items in plan.plans])
    return kept(plan)


def at_zero(item: Intervention) -> Intervention | None:
    """Return an intervention at strength 0, or None where it has no strength."""
    names = {f.name for f in fields(item)} if is_dataclass(item) else set()
    value: Any = item
    if "strength" in names:
        return replace(value, strength=0.0)
    if "inner" in names:
        inner = at_zero(value.inner)
        return None if inner is None else replace(value, inner=inner)
    return None


def for_row(plan: Plan, row: int) -> Plan:
    """Return one row's part of a plan, as the plan of a batch of one."""
    if isinstance(plan, Rows):
        return list(plan.plans[row])
    return [_row_of(item, row) for item in plan]


def _row_of(item: Intervention, row: int) -> Any:
    # A field is per row exactly if its length is what the recipe says must match the batch.
    if not isinstance(item, Recipe) or not is_dataclass(item):
        return item
    value: Any = item
    counts = set(item.row_counts().values())
    changed: dict[str, object] = {}
    for f in fields(item):
        held = getattr(item, f.name)
        if f.name == "inner":
            changed["inner"] = _row_of(held, row)
        elif (
            isinstance(held, Tensor) and held.ndim and held.shape[0] in counts and f.name in PER_ROW
        ):
            changed[f.name] = held[row : row + 1]
    return replace(value, **changed) if changed else item


PER_ROW = frozenset({"strength", "to", "factor", "angle", "u", "by", "source", "counts"})


def hook_counts(model: nn.Module) -> list[tuple[int, int]]:
    """Return how many forward and pre-forward hooks each module has."""
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are equal as integers (so -0.0 is not 0.0, NaN is itself)."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())
