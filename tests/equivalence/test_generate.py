"""HuggingFace's generate, steered, against a dense loop that knows neither steer nor caches.

Every row of one batch has a plan with another scope; the oracle (conftest.py) runs each prompt
alone, without padding or cache, and edits by position.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer import LM

N_NEW = 6
LAYERS = (1, 2)
CLOSE = 1e-4
"""Absolute, in logits of size 2 to 10: fp32 sums in another order (batch, padding, cache)."""

LONG = "one two three four five six seven eight nine ten red blue cat good bad great day March in"


@dataclass(frozen=True)
class Case:
    """One row: its prompt, its scope, and the positions of that scope spelled out."""

    prompt: str
    scope: steer.Scope | None
    positions: Callable[[int, int], Collection[int]]
    """(tokens of the prompt, tokens so far) -> positions; those not there yet are left out."""


# The long prompts exceed tiny-gemma3's window of 16 tokens.
CASES = (
    Case(LONG, steer.ALL, lambda _, t: range(t)),
    Case("the cat in March was red", steer.PROMPT, lambda n, _: range(n)),
    Case("the day after March is", steer.LAST, lambda n, _: [n - 1]),
    Case("two days of May and June", steer.GENERATED, lambda n, t: range(n, t)),
    Case("one month before the red cat", steer.OUTPUT, lambda n, t: range(n - 1, t)),
    Case("good and bad days with it", steer.at(-3), lambda n, _: [n - 3]),
    Case("was it on Monday or Friday", steer.span(2, 4), lambda _, __: [2, 3]),
    Case(" it is good in March for the cat", steer.text(" March"), lambda _, __: [4]),
    Case(" the cat of the month is blue", steer.at(8), lambda _, __: [8]),
    Case(" in and", ~steer.FIRST & (steer.LAST | steer.at(3)), lambda n, _: [n - 1, 3]),
    Case(LONG + " the blue", steer.OUTPUT, lambda n, t: range(n - 1, t)),
    Case("not she but he", None, lambda _, __: []),
)

MODES: dict[str, dict[str, Any]] = {
    "cache": {},
    "no-cache": {"use_cache": False},
    "static-cache": {"cache_implementation": "static"},
    "chunked": {"prefill_chunk_size": 5},
    "chunked-static": {"prefill_chunk_size": 7, "cache_implementation": "static"},
}


def directions(lm: LM) -> list[Tensor]:
    """Return one direction for each edited layer, of about the size of the stream."""
    gen = torch.Generator().manual_seed(3)
    return [torch.randn(lm.d_model, generator=gen) for _ in LAYERS]


def rows_of(lm: LM) -> steer.Rows:
    """Return the plan under test: in each row two adds, of its own size and in its own scope."""
    found: list[list[steer.Add]] = []
    for at, case in enumerate(CASES):
        pairs = [] if case.scope is None else zip(LAYERS, directions(lm), strict=True)
        found.append(
            [
                steer.Add(steer.Site(layer, "resid_post"), d, 1 + at / 10, case.scope or steer.ALL)
                for layer, d in pairs
            ]
        )
    return steer.Rows(found)


def edits_of(lm: LM, at: int) -> list[tuple[int, Any]]:
    """Return the same for the oracle."""

    def edit_of(direction: Tensor) -> Any:
        def edit(h: Tensor, n: int) -> Tensor:
            for position in CASES[at].positions(n, len(h)):
                if position < len(h):
                    h[position] = h[position] + (1 + at / 10) * direction
            return h

        return edit

    return [(layer, edit_of(d)) for layer, d in zip(LAYERS, directions(lm), strict=True)]


_ORACLE: dict[str, list[Any]] = {}


@pytest.fixture
def written(any_lm: LM, dense: Any) -> list[Any]:
    """Return what the oracle writes for each case, computed once per family."""
    name = str(any_lm.provenance.name)
    if name not in _ORACLE:
        rows = any_lm.rows([case.prompt for case in CASES])
        _ORACLE[name] = [
            dense.greedy(any_lm.model, row, edits_of(any_lm, at), N_NEW)
            for at, row in enumerate(rows)
        ]
    return _ORACLE[name]


def padded(lm: LM) -> dict[str, Tensor]:
    """Return the prompts as the tokenizer encodes a batch, padded on the left."""
    encoded = lm.tokenizer(
        [case.prompt for case in CASES], padding=True, padding_side="left", return_tensors="pt"
    )
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def raw(lm: LM, plan: steer.Plan, **options: Any) -> tuple[list[list[int]], Tensor, steer.Receipt]:
    """Return the new tokens, the logits [row, step, vocab] and the receipt of one generate call."""
    with lm.attached(plan) as run:
        out = lm.model.generate(  # type: ignore[operator]
            **options, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    logits = torch.stack(out.logits, dim=1)
    return out.sequences[:, -logits.shape[1] :].tolist(), logits, run.receipt


@pytest.mark.parametrize("mode", MODES)
def test_every_scope_in_every_mode_writes_what_the_dense_loop_writes(
    any_lm: LM, written: list[Any], mode: str
) -> None:
    tokens, logits, receipt = raw(
        any_lm, rows_of(any_lm), **padded(any_lm), max_new_tokens=N_NEW, **MODES[mode]
    )
    for at, expected in enumerate(written):
        assert tokens[at] == expected.tokens, CASES[at]
        worst = (logits[at] - expected.logits).abs().max()
        assert worst < CLOSE, (CASES[at], worst)
    counts_each_token_in_scope_once(any_lm, receipt)


def counts_each_token_in_scope_once(lm: LM, receipt: steer.Receipt) -> None:
    """Compare the receipt with the positions of each case, counted by hand."""
    lengths = [len(row) for row in lm.rows([case.prompt for case in CASES])]
    seen = [n + N_NEW - 1 for n in lengths]  # the last new token is never fed back
    lines = iter(receipt.lines)
    for at, case in enumerate(CASES[:-1]):
        want = [0] * len(CASES)
        want[at] = len({p for p in case.positions(lengths[at], seen[at]) if p < seen[at]})
        for line in (next(lines), next(lines)):
            assert line.eligible.tolist() == want
            assert line.edited.tolist() == want
            assert line.seen.tolist() == seen


def test_the_oracle_is_moved_by_every_case(any_lm: LM, written: list[Any], dense: Any) -> None:
    rows = any_lm.rows([case.prompt for case in CASES])
    for at, row in enumerate(rows[:-1]):
        n = len(row)
        plain = dense.greedy(any_lm.model, row, [], N_NEW)
        moved = (written[at].logits - plain.logits).abs().amax(1)
        first = min(CASES[at].positions(n, n + 1))
        # A token at position p is seen by the logits of p and later: step p - (n - 1) and later.
        reached = max(0, first - (n - 1))
        assert bool((moved[:reached] == 0).all()), CASES[at]
        assert moved[reached] > 0.1, CASES[at]
