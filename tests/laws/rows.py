"""Laws of rows: a batch is its rows one by one, and what one row gets is nobody else's affair."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import steer
from steer import Scope
from steer.interventions.gates import Reduce
from tests.laws.interventions import FACTORIES, N_NEW, Setting, Wanted, make, one_each
from tests.laws.running import (
    block,
    forward,
    gap,
    generate_of,
    generated,
    padded,
    same_bits,
    watching,
)

RELATIVE = 1e-5
"""Of the largest logit: a batch adds up in another order than a row alone."""


def law_a_batch_equals_its_rows(setting: Setting) -> None:
    """One cached generation with another intervention in every row equals one run per row."""
    names, items = one_each(setting)
    rows = setting.prompts[: len(names)]
    together = generated(setting.lm, rows, steer.Rows([[i] for i in items]), new=N_NEW)
    for at, name in enumerate(names):
        plan = [make(name, Wanted(setting, (at,)))]
        alone = generated(setting.lm, [rows[at]], plan, new=N_NEW)
        _require_equal(name, alone.logits[0], together.logits[at])
        assert bool((alone.tokens[0] == together.tokens[at]).all()), f"{name} gives another text"


def law_beams_follow_their_rows(setting: Setting) -> None:
    """Beams reorder and expand rows; each prompt keeps its own plan."""
    names = ["add-rows", "patch-tokens", "move-along", "clamp-rows", "when", "rotate-rows"]
    rows = setting.prompts[: len(names)]
    wanted = Wanted(setting, range(len(names)))
    plan = steer.Rows([[make(name, wanted)] for name in names])
    asked = {"num_beams": 3, "num_return_sequences": 2}
    together = generated(setting.lm, rows, plan, new=N_NEW, **asked).tokens
    for at, name in enumerate(names):
        one = [make(name, wanted.alone(at))]
        alone = generated(setting.lm, [rows[at]], one, new=N_NEW, **asked).tokens
        mine = together[2 * at : 2 * at + 2]
        assert bool((alone == mine).all()), f"{name}: beams {mine.tolist()}, not {alone.tolist()}"


def law_rows_are_isolated(setting: Setting) -> None:
    """Steering some rows leaves the bits of the others, and the others leave theirs."""
    names, items = one_each(setting)
    rows = setting.prompts[: len(names)]
    every = steer.Rows([[item] for item in items])
    some = steer.Rows([[item] if at % 2 == 0 else [] for at, item in enumerate(items)])
    plain, full, half = (
        generated(setting.lm, rows, p, new=N_NEW).logits for p in ([], every, some)
    )
    # A mixture of experts gathers the tokens of all rows for each expert, so that a neighbour's
    # choice changes the shape of a matrix product, and with it the rounding.
    mixed = setting.lm.model.config.model_type == "mixtral"
    for at, name in enumerate(names):
        wanted = (full if at % 2 == 0 else plain)[at]
        alike = same_bits(half[at], wanted) or (mixed and _relative(half[at], wanted) <= RELATIVE)
        assert alike, f"row {at} ({name}) depends on what other rows get"


def law_a_list_means_every_row(setting: Setting) -> None:
    """A plan given as a list is that plan in every row, and one object may be in many rows."""
    lm, count = setting.lm, 6
    batch = padded(lm, setting.prompts[:count], left=True)
    for name in FACTORIES:
        item = make(name, Wanted(setting, range(count)))
        listed = forward(lm, batch, [item])
        spread = forward(lm, batch, steer.Rows([[item]] * count))
        assert same_bits(listed, spread), f"{name} in a list is not {name} in every row"


def law_a_gate_decides_row_by_row(setting: Setting) -> None:
    """Each row's gate follows its own reading; decided by the prompt, it holds to the end."""
    for name, scope in (("PROMPT", steer.PROMPT), ("ALL", steer.ALL)):
        read = steer.Read(setting.reads, setting.probe, scope)
        marked, scores, sizes = _gated(setting, read, "prompt", steer.ALL)
        wanted = [bool(row[n - 1] > 0) for row, n in zip(scores, sizes, strict=True)]
        assert len(set(wanted)) == 2, "the prompts do not tell an open gate from a closed one"
        for at, (row, is_open) in enumerate(zip(marked, wanted, strict=True)):
            found = row.tolist()
            assert found == [is_open] * len(found), f"Read {name}: row {at} open at {found}"


def law_a_token_gate_decides_token_by_token(setting: Setting) -> None:
    """A gate latched on the token follows the running reduction of its reading."""
    reductions: Mapping[Reduce, Callable[[Tensor], Tensor]] = {
        "last": lambda s: s,
        "max": lambda s: s.cummax(0).values,
        "mean": lambda s: s.cumsum(0) / torch.arange(1, len(s) + 1, device=s.device),
        "rolling": _rolling_mean_of_3,
    }
    for reduce, of in reductions.items():
        read = steer.Read(setting.reads, setting.probe, steer.ALL, reduce=reduce, window=3)
        marked, scores, _ = _gated(setting, read, "token", steer.ALL)
        for at, (row, score) in enumerate(zip(marked, scores, strict=True)):
            wanted = (of(score) > 0).tolist()
            assert row.tolist() == wanted, f"{reduce}: row {at} is open at {row.tolist()}"


ROW_LAWS = (
    law_a_batch_equals_its_rows,
    law_beams_follow_their_rows,
    law_rows_are_isolated,
    law_a_list_means_every_row,
    law_a_gate_decides_row_by_row,
    law_a_token_gate_decides_token_by_token,
)
"""Each takes a setting."""


def _relative(a: Tensor, b: Tensor) -> float:
    return gap(a, b) / float(b.abs().max())


def _require_equal(name: str, alone: Tensor, together: Tensor) -> None:
    apart, relative = gap(alone, together), _relative(together, alone)
    assert apart <= 1e-4, f"{name}: a row alone and in a batch differ by {apart:.1e}"
    assert relative <= RELATIVE, f"{name}: a row alone and in a batch: {relative:.1e} of it apart"


def _rolling_mean_of_3(scores: Tensor) -> Tensor:
    return torch.stack([scores[max(0, i - 2) : i + 1].mean() for i in range(len(scores))])


def _gated(
    setting: Setting, read: steer.Read, latch: str, scope: Scope
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Return, for each row of one cached generation, where a gate was open and what it read.

    The gate marks tokens by a whole replacement at the site; scores are made here, of the states
    that plain hooks see at the site that it reads.
    """
    lm, probe = setting.lm, setting.probe
    prompts = setting.prompts[:12]
    marker = setting.direction("marker").to(lm.dtype)
    mark = steer.Patch(setting.site, marker, scope=scope)
    plan = [steer.When(read, mark, above=0.0, latch="prompt" if latch == "prompt" else "token")]
    batch = padded(lm, prompts, left=True, extra=1)
    first, second = setting.reads.layer, setting.site.layer
    assert first is not None
    assert second is not None
    asked = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    low_block, high_block = block(lm, first), block(lm, second)
    with lm.attached(plan), watching(low_block) as low, watching(high_block) as high:
        generate_of(lm)(input_ids=batch.ids, attention_mask=batch.mask, **asked)
    states, edited = torch.cat(low, 1).float(), torch.cat(high, 1)
    scores = states @ probe.weight.to(states.device) + probe.bias.to(states.device)
    hit = (edited == marker).all(-1)
    return (
        [row[start:] for row, start in zip(hit, batch.starts, strict=True)],
        [row[start:] for row, start in zip(scores, batch.starts, strict=True)],
        [len(row) for row in prompts],
    )
