"""Receipts: what was seen, eligible and edited, counted by hand."""

import pytest
import torch

import steer
from steer.receipt import Line, Receipt
from steer.scopes import parse_scope
from steer.sites import Site

SITE = Site(1, "resid_post")
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]
LENGTHS = [5, 3, 4]


def an_add(lm: "steer.LM", scope: "steer.Scope", strength: float = 1.0) -> "steer.Add":
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    return steer.Add(SITE, v, strength, scope)


# With n new tokens the last one is never fed back: n - 1 generated tokens pass a site.
NEW = 4
COUNTS = {
    "ALL": [n + NEW - 1 for n in LENGTHS],
    "FIRST": [1, 1, 1],
    "PROMPT": LENGTHS,
    "LAST": [1, 1, 1],
    "GENERATED": [NEW - 1] * 3,
    "OUTPUT": [NEW] * 3,
    "at(4)": [1, 1, 1],
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"prefill_chunk_size": 2}],
    ids=["cache", "none", "chunks"],
)
def test_counts_in_generation_are_the_same_with_and_without_a_cache(lm, name, options):
    scope = parse_scope(name)
    out = lm.generate(PROMPTS, [an_add(lm, scope)], max_new_tokens=NEW, **options)
    line = out.receipt[0]
    assert line.seen.tolist() == COUNTS["ALL"]
    assert line.eligible.tolist() == COUNTS[name]
    assert line.edited.tolist() == COUNTS[name]
    assert line.fired


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"num_beams": 3}, 3),
        ({"do_sample": True, "seed": 0, "num_return_sequences": 2}, 2),
        ({"num_beams": 4, "num_return_sequences": 2}, 4),
    ],
    ids=str,
)
def test_under_beams_and_return_sequences_a_row_counts_all_its_copies(lm, options, times):
    out = lm.generate(PROMPTS, [an_add(lm, steer.OUTPUT)], max_new_tokens=NEW, **options)
    assert out.receipt[0].eligible.tolist() == [NEW * times] * 3
    assert out.receipt[0].edited.tolist() == [NEW * times] * 3


def test_the_relative_size_is_the_mean_change_over_the_norm_before(lm):
    add = an_add(lm, ~steer.FIRST, 0.5)
    bare = lm.capture(PROMPTS, [SITE], scope=~steer.FIRST)
    with lm.attached([add]) as run:
        for row in PROMPTS:
            lm.model(input_ids=torch.tensor([row]))
    norms = bare.tokens(SITE).norm(dim=-1)
    expected = (0.5 * add.direction.norm() / norms).mean()
    assert run.receipt[0].edited.tolist() == [4 + 2 + 3]
    torch.testing.assert_close(run.receipt[0].relative_size[0], expected, rtol=1e-4, atol=0)


def test_strength_zero_a_closed_gate_and_a_monitor_fire_without_editing(lm):
    class Sum:
        def scores(self, x):
            """Return the sum."""
            return x.sum(-1)

    read = steer.Read(SITE, Sum())
    plan = [
        an_add(lm, steer.ALL, 0.0),
        steer.When(read, an_add(lm, steer.ALL), above=9e9),
        steer.Monitor(read),
        an_add(lm, steer.ALL, 1.0),
    ]
    with lm.attached(plan) as run:
        lm.model(input_ids=torch.tensor([PROMPTS[0]]))
    assert [line.fired for line in run.receipt.lines] == [True] * 4
    assert [line.edited.tolist() for line in run.receipt.lines] == [[0], [0], [0], [5]]
    assert [line.eligible.tolist() for line in run.receipt.lines] == [[5]] * 4
    gate = run.receipt[1].gate_open
    assert gate is not None
    assert gate.tolist() == [0.0]
    assert run.receipt.fired


def test_the_receipt_adds_up_over_passes_and_counts_them(lm):
    with lm.attached([an_add(lm, steer.LAST)]) as run:
        for row in PROMPTS:
            lm.model(input_ids=torch.tensor([row]))
        assert run.receipt.n_passes == 3
        assert run.receipt[0].edited.tolist() == [3]
    assert run.receipt[0].seen.tolist() == [12]
    assert len(run.receipt) == 1


def test_rows_of_several_batches_are_counted_where_they_belong(lm, monkeypatch):
    monkeypatch.setattr("steer.capture.MAX_TOKENS", 4)
    rows = steer.Rows([[an_add(lm, steer.ALL)], [an_add(lm, steer.LAST)], []])
    with_plan = lm.capture(PROMPTS, [SITE], plan=rows, scope=steer.ALL)
    bare = lm.capture(PROMPTS, [SITE], scope=steer.ALL)
    changed = (with_plan[SITE] != bare[SITE]).any(-1).sum(1)
    assert changed.tolist() == [5, 1, 0]


def line(edited: list[int], eligible: list[int]) -> Line:
    return Line(
        "Add(x)",
        "blocks.1.resid_post",
        torch.tensor([7, 7]),
        torch.tensor(eligible),
        torch.tensor(edited),
        torch.tensor([0.5, 0.25]),
    )


def test_a_line_prints_one_plain_sentence():
    assert repr(line([3, 1], [4, 4])) == (
        "Add(x): edited 4 of 8 tokens in scope (14 seen) in 2 of 2 rows, by 0.438 of their norm on "
        "average."
    )
    assert repr(line([0, 0], [0, 0])) == (
        "Add(x): edited 0 of 0 tokens in scope (14 seen) in 0 of 2 rows."
    )


def test_a_receipt_prints_a_sentence_for_each_line_and_escapes_them_for_notebooks():
    both = Receipt([line([3, 1], [4, 4]), line([0, 0], [0, 1])], 2)
    assert str(both).count("\n") == 1
    assert both.fired
    assert not Receipt([line([0, 0], [0, 0])]).fired
    assert both._repr_html_().startswith("<ul><li>Add(x): edited 4 of 8")
