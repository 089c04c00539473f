"""Laws of positions: a scope means the same tokens whatever the padding, cache, chunks or beams."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

import steer
from steer import Scope
from tests.laws.interventions import (
    KEEPING,
    N_NEW,
    WITHOUT_STRENGTH,
    Setting,
    one_each,
)
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

LIMIT = 1e-4
"""Largest difference of logits of size 5: passes of other shapes add up in another order, and four
blocks make about 1e-5 of it in fp32."""

Expected = Callable[[int, int], range | set[int]]
"""(tokens of the prompt, tokens in all) -> positions, written down by hand."""

SCOPES: Mapping[str, tuple[Scope, Expected]] = {
    "ALL": (steer.ALL, lambda _, total: range(total)),
    "FIRST": (steer.FIRST, lambda _, __: {0}),
    "~FIRST": (~steer.FIRST, lambda _, total: range(1, total)),
    "PROMPT": (steer.PROMPT, lambda n, _: range(n)),
    "LAST": (steer.LAST, lambda n, _: {n - 1}),
    "GENERATED": (steer.GENERATED, lambda n, total: range(n, total)),
    "OUTPUT": (steer.OUTPUT, lambda n, total: range(n - 1, total)),
    "at(2)": (steer.at(2), lambda _, __: {2}),
    "at(-1)": (steer.at(-1), lambda n, _: {n - 1}),
    "at(-3)": (steer.at(-3), lambda n, _: {n - 3}),
    "span(1, 3)": (steer.span(1, 3), lambda _, __: {1, 2}),
    "span(-3, None)": (steer.span(-3, None), lambda n, _: range(n - 3, n)),
    "at(0) | LAST": (steer.at(0) | steer.LAST, lambda n, _: {0, n - 1}),
    "PROMPT & ~LAST": (steer.PROMPT & ~steer.LAST, lambda n, _: range(n - 1)),
    "at(6), skipped": (
        steer.at(6, missing="skip"),
        lambda _, total: {6} & set(range(total)),
    ),
}
"""Scope -> the positions that it stands for."""

_Edited = list[tuple[list[int], list[int]]]
"""For each row of the passes: the positions seen, and those that were edited."""


def law_scopes_mean_positions(setting: Setting) -> None:
    """Every scope edits its own tokens in plain passes, padded on either side."""
    names = [name for name in SCOPES if name != "GENERATED"]
    rows, plan = _marked(setting, names)
    for left, extra in ((False, 0), (False, 3), (True, 0), (True, 2)):
        batch = padded(setting.lm, rows, left=left, extra=extra)
        with torch.no_grad(), setting.lm.attached(plan) as run, _seen(setting) as seen:
            setting.lm.model(**batch.inputs())
        how = f"padded on the {'left' if left else 'right'} by {extra} more"
        totals = [len(row) for row in rows]
        edited = _edited(setting, seen, batch.starts, totals, cached=True)
        _check_scopes(names, rows, edited, 0, how)
        _check_receipt(names, rows, run.receipt, 0, how)


GENERATING: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "cached": (1, {}),
    "cache off": (1, {"use_cache": False}),
    # Of 9 columns, the last prompt chunk of one column looks exactly like a decode step.
    "chunks of 4": (1, {"prefill_chunk_size": 4}),
    "static cache": (1, {"cache_implementation": "static"}),
    "beams": (2, {"num_beams": 2}),
    "return sequences": (3, {"do_sample": True, "num_return_sequences": 3}),
}
"""Ways to generate: copies of each row in the passes, and the arguments."""


def law_scopes_mean_positions_while_generating(setting: Setting) -> None:
    """The same in generate: cached or not, in chunks, static, with beams and return sequences."""
    names = list(SCOPES)
    rows, plan = _marked(setting, names)
    for how, (times, options) in GENERATING.items():
        batch = padded(setting.lm, rows, left=True, extra=1)
        asked = {"do_sample": False, "max_new_tokens": N_NEW, "pad_token_id": 0, **options}
        quiet = torch.random.fork_rng(devices=[])
        with quiet, setting.lm.attached(plan) as run, _seen(setting) as seen:
            generate_of(setting.lm)(input_ids=batch.ids, attention_mask=batch.mask, **asked)
        cached = asked.get("use_cache", True)
        # The last new token is never given back to the model: N_NEW - 1 positions are seen.
        totals = [len(row) + N_NEW - 1 for row in rows for _ in range(times)]
        starts = [start for start in batch.starts for _ in range(times)]
        edited = _edited(setting, seen, starts, totals, cached=bool(cached))
        _check_scopes(names, rows, edited, N_NEW - 1, how)
        _check_receipt(names, rows, run.receipt, N_NEW - 1, how, times)


def law_a_scope_leaves_other_tokens_alone(setting: Setting) -> None:
    """Out of scope the bits stay; in scope every intervention writes."""
    names, items = one_each(setting)
    lm = setting.lm
    batch = padded(lm, setting.prompts[: len(names)], left=True)
    with torch.no_grad(), watching(block(lm, 1)) as plain:
        lm.model(**batch.inputs())
    plan = steer.Rows([[item] for item in items])
    with torch.no_grad(), lm.attached(plan), watching(block(lm, 1)) as steered:
        lm.model(**batch.inputs())
    changed = (plain[0] != steered[0]).any(-1)
    for at, (name, row) in enumerate(zip(names, batch.rows, strict=True)):
        inside = {1, 2} if name == "patch-tokens" else {len(row) - 1}
        found = set((changed[at].nonzero()[:, 0] - batch.starts[at]).tolist())
        closed = name in KEEPING or name.startswith("when")
        assert found == inside or (closed and not found), f"{name} edits {found}, not {inside}"
        outside = ~changed[at]
        assert same_bits(plain[0][at][outside], steered[0][at][outside]), f"{name}: bits changed"


def law_every_edit_moves_the_logits(setting: Setting) -> None:
    """No intervention is a silent no-op: with its gate open it moves the logits."""
    names, items = one_each(setting)
    rows = setting.prompts[: len(names)]
    batch = padded(setting.lm, rows, left=True)
    plain = batch.real(forward(setting.lm, batch, []))
    steered = batch.real(forward(setting.lm, batch, steer.Rows([[item] for item in items])))
    gated = {"when", "when-token", *KEEPING}
    for name, before, after in zip(names, plain, steered, strict=True):
        moved = gap(before[-1], after[-1])
        assert moved > 0.01 or name in gated, f"{name} moves the logits by {moved:.1e} only"


def law_padding_changes_nothing(setting: Setting) -> None:
    """Neither the side nor the amount of padding changes what real tokens give."""
    names, items = one_each(setting)
    rows = setting.prompts[: len(names)]
    plan = steer.Rows([[item] for item in items])
    first = padded(setting.lm, rows, left=True)
    known = first.real(forward(setting.lm, first, plan))
    for left, extra in ((True, 5), (False, 0), (False, 3)):
        batch = padded(setting.lm, rows, left=left, extra=extra)
        found = batch.real(forward(setting.lm, batch, plan))
        gaps = {n: gap(a, b) for n, a, b in zip(names, known, found, strict=True)}
        worst = max(gaps, key=lambda n: gaps[n])
        side = "left" if left else "right"
        assert gaps[worst] <= LIMIT, f"{worst}: {gaps[worst]:.1e} by padding {extra} on the {side}"


def law_the_cache_changes_nothing(setting: Setting) -> None:
    """Generation gives the same logits with the cache on, off, and in chunks."""
    names, items = one_each(setting)
    rows = setting.prompts[: len(names)]
    plan = steer.Rows([[item] for item in items])
    whole = generated(setting.lm, rows, plan, new=N_NEW, extra=1)
    for how in ("cache off", "chunks of 4"):
        _, options = GENERATING[how]
        other = generated(setting.lm, rows, plan, new=N_NEW, extra=1, **options)
        for at, name in enumerate(names):
            apart = gap(whole.logits[at], other.logits[at])
            assert apart <= LIMIT, f"{name}: {apart:.1e} between cached and {how}"
            assert bool((whole.tokens[at] == other.tokens[at]).all()), f"{name}: text, {how}"


def law_strength_0_is_the_baseline(setting: Setting) -> None:
    """A generation at strength 0 has the bits of one without a plan, one by one and in a list."""
    names, items = one_each(setting, strength=0.0)
    every = list(zip(names, items, strict=True))
    kept = [(name, item) for name, item in every if name not in WITHOUT_STRENGTH]
    rows = setting.prompts[: len(names)]
    plain = generated(setting.lm, rows, [], new=N_NEW)
    by_row = steer.Rows(
        [[i] if n not in WITHOUT_STRENGTH else [] for n, i in zip(names, items, strict=True)]
    )
    for how, plan in (("Rows", by_row), ("one list", [item for _, item in kept])):
        found = generated(setting.lm, rows, plan, new=N_NEW)
        for at, name in enumerate(names):
            assert same_bits(found.logits[at], plain.logits[at]), f"{name} at strength 0 in {how}"


TOKEN_LAWS = (
    law_scopes_mean_positions,
    law_scopes_mean_positions_while_generating,
    law_a_scope_leaves_other_tokens_alone,
    law_every_edit_moves_the_logits,
    law_padding_changes_nothing,
    law_the_cache_changes_nothing,
    law_strength_0_is_the_baseline,
)
"""Each takes a setting; every factory is in a row of its own."""


def _marked(setting: Setting, names: Sequence[str]) -> tuple[list[list[int]], steer.Rows]:
    # A whole replacement by a known vector: which tokens carry it can be read without a baseline.
    plans = [[steer.Patch(setting.site, _marker(setting), scope=SCOPES[n][0])] for n in names]
    return setting.prompts[: len(names)], steer.Rows(plans)


def _marker(setting: Setting) -> Tensor:
    return setting.direction("marker").to(setting.lm.dtype)


def _seen(setting: Setting) -> AbstractContextManager[list[Tensor]]:
    assert setting.site.layer is not None
    return watching(block(setting.lm, setting.site.layer))


def _edited(
    setting: Setting,
    seen: Sequence[Tensor],
    starts: Sequence[int],
    totals: Sequence[int],
    *,
    cached: bool,
) -> _Edited:
    """Return which positions each row of the passes saw and which were marked."""
    marker = _marker(setting)
    found: _Edited = [([], []) for _ in starts]
    column = 0
    for h in seen:
        hit = (h == marker).all(-1)
        for at, (positions, edited) in enumerate(found):
            # The first pass of sampled return sequences may come before the rows are expanded.
            row = at * h.shape[0] // len(found)
            for c in range(h.shape[1]):
                place = column + c - starts[at]
                if not 0 <= place < totals[at]:
                    assert not hit[row, c], f"padding of row {row} was edited"
                    continue
                positions.append(place)
                edited += [place] * int(hit[row, c])
        column = column + h.shape[1] if cached else 0
    return found


def _check_scopes(
    names: Sequence[str], rows: Sequence[Sequence[int]], edited: _Edited, new: int, how: str
) -> None:
    times = len(edited) // len(names)
    for at, (positions, marked) in enumerate(edited):
        name, n = names[at // times], len(rows[at // times])
        assert set(positions) == set(range(n + new)), f"{how}: row {at} saw {sorted(positions)}"
        wanted = set(SCOPES[name][1](n, n + new))
        # With the cache off a position is seen again in every pass, and edited each time.
        again = {p for p in positions if (p in set(marked)) != (p in wanted)}
        missed = [p for p in wanted if marked.count(p) != positions.count(p)]
        assert not again, f"{how}: {name} of {n} tokens edits {sorted(set(marked))}"
        assert not missed, f"{how}: {name} of {n} tokens misses {missed} in some pass"


def _check_receipt(
    names: Sequence[str],
    rows: Sequence[Sequence[int]],
    receipt: steer.Receipt,
    new: int,
    how: str,
    times: int = 1,
) -> None:
    for at, (name, row, line) in enumerate(zip(names, rows, receipt.lines, strict=True)):
        n = len(set(SCOPES[name][1](len(row), len(row) + new)))
        counts = [int(x[at]) for x in (line.seen, line.eligible, line.edited)]
        wanted = [times * (len(row) + new), times * n, times * n]
        assert counts == wanted, f"{how}: the receipt of {name} says {counts}, not {wanted}"
