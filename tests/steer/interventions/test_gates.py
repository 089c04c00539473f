"""Gates and reads: the running reductions against a plain loop, whatever the chunks."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

import steer
from steer.interventions.gates import Monitor, Read, Running, When, running
from steer.sites import Site
from steer.step import Step

SITE = Site(1, "resid_post")


class Sum:
    """A probe without any import: the sum of the entries."""

    def scores(self, x: Tensor) -> Tensor:
        """Return the sum over the last axis."""
        return x.sum(-1)


def by_hand(scores: list[float], chosen: list[bool], reduce: str, window: int) -> list[float]:
    """Return the reading at each token of one row, by the definition."""
    found, seen = [], []
    for score, keep in zip(scores, chosen, strict=True):
        if keep:
            seen.append(score)
        if not seen:
            found.append(math.nan)
        elif reduce == "last":
            found.append(seen[-1])
        elif reduce == "mean":
            found.append(sum(seen) / len(seen))
        elif reduce == "max":
            found.append(max(seen))
        else:
            recent = seen[-window:]
            found.append(sum(recent) / len(recent))
    return found


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("reduce", ["last", "mean", "max", "rolling"])
def test_running_reductions_equal_a_plain_loop_in_any_chunks(reduce, window):
    chooser = random.Random(f"{reduce}{window}")
    read = Read(SITE, Sum(), reduce=reduce, window=window)
    for _ in range(25):
        n_rows, n = chooser.randint(1, 4), chooser.randint(1, 20)
        scores = torch.tensor([[chooser.uniform(-3, 3) for _ in range(n)] for _ in range(n_rows)])
        share = chooser.choice([0.0, 0.3, 0.8, 1.0])
        chosen = torch.tensor([[chooser.random() < share for _ in range(n)] for _ in range(n_rows)])
        expected = [
            by_hand(s.tolist(), c.tolist(), reduce, window)
            for s, c in zip(scores, chosen, strict=True)
        ]
        cuts = sorted(chooser.sample(range(1, n), chooser.randint(0, min(6, n - 1))))
        state = Running.fresh(n_rows, window, torch.device("cpu"))
        pieces = []
        for start, stop in itertools.pairwise([0, *cuts, n]):
            part = slice(start, stop)
            # What is out of scope may hold anything, also what no arithmetic survives.
            noisy = torch.where(chosen[:, part], scores[:, part], float("nan"))
            values, state = running(read, noisy, chosen[:, part], state)
            pieces.append(values)
        # Sums in fp32 in another order than Python's fp64.
        torch.testing.assert_close(
            torch.cat(pieces, 1), torch.tensor(expected), rtol=1e-4, atol=1e-5, equal_nan=True
        )


def test_a_rolling_mean_forgets_large_values_exactly():
    read = Read(SITE, Sum(), reduce="rolling", window=2)
    scores = torch.tensor([[1e6, 1.0, 2.0, 3.0]])
    values, _ = running(
        read, scores, torch.ones(1, 4, dtype=torch.bool), Running.fresh(1, 2, torch.device("cpu"))
    )
    assert values[0, 2:].tolist() == [1.5, 2.5]


def a_step(read: Read, latch: str, values: Tensor) -> Step:
    n = values.shape[0]
    return Step(torch.arange(3).expand(n, 3), torch.arange(n), reads={(read, latch): values})


def test_a_gate_opens_row_by_row_and_strictly_above():
    read = Read(SITE, Sum())
    add = steer.Add(SITE, torch.ones(2))
    gate = When(read, add, above=0.5)
    values = torch.tensor([[0.4], [0.5], [0.6], [float("nan")]])
    h = torch.zeros(4, 3, 2)
    found = gate.edit(h, a_step(read, "prompt", values))
    assert found[:, 0, 0].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_a_token_gate_opens_token_by_token():
    read = Read(SITE, Sum())
    gate = When(read, steer.Add(SITE, torch.ones(2)), above=0.0, latch="token")
    values = torch.tensor([[float("nan"), 1.0, -1.0]])
    found = gate.edit(torch.zeros(1, 3, 2), a_step(read, "token", values))
    assert found[0, :, 0].tolist() == [0.0, 1.0, 0.0]


def test_a_closed_gate_keeps_the_bits_and_hides_what_the_inner_edit_would_spoil():
    read = Read(SITE, Sum())
    gate = When(read, steer.Custom(SITE, lambda h, _: h / 0.0), above=0.0)
    h = torch.tensor([[[-0.0, 1.0]]] * 2)
    found = gate.edit(h, a_step(read, "prompt", torch.tensor([[-1.0], [1.0]])))
    assert torch.equal(found[0].view(torch.int32), h[0].view(torch.int32))
    assert not bool(torch.isfinite(found[1]).any())


def test_a_gate_acts_where_and_when_its_inner_intervention_does():
    inner = steer.Add(SITE, torch.ones(2), scope=steer.OUTPUT)
    read = Read(Site(0), Sum())
    gate = When(read, inner)
    assert gate.site == SITE
    assert gate.scope == steer.OUTPUT
    assert gate.reads() == ((read, "prompt"),)
    assert Monitor(read).site == Site(0)
    assert "When(Read(blocks.0.resid_post" in repr(gate)


# -- in a model --------------------------------------------------------------------------------

PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]


def scores_of(lm: "steer.LM", row: list[int], layer: int = 1) -> list[float]:
    """Return what a Sum reads at each token of one row, from transformers' hidden states."""
    with torch.no_grad():
        out = lm.model(input_ids=torch.tensor([row]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0].sum(-1).tolist()


@pytest.mark.parametrize("reduce", ["last", "mean", "max", "rolling"])
def test_a_gate_is_decided_for_each_row_on_its_own(lm, reduce):
    at = {
        row: by_hand(scores_of(lm, p), [True] * len(p), reduce, 2)[-1]
        for row, p in enumerate(PROMPTS)
    }
    above = sorted(at.values())[1] - 1e-3  # opens two of the three rows
    read = Read(SITE, Sum(), reduce=reduce, window=2)
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    inner = steer.Add(SITE, v, 3.0, scope=steer.OUTPUT)
    gated = lm.generate(PROMPTS, [When(read, inner, above=above)], max_new_tokens=6)
    bare = lm.generate(PROMPTS, max_new_tokens=6)
    moved = lm.generate(PROMPTS, [inner], max_new_tokens=6)
    is_open = [at[row] > above for row in range(3)]
    assert sum(is_open) == 2
    for row in range(3):
        assert gated.tokens[row] == (moved if is_open[row] else bare).tokens[row]
    assert gated.receipt[0].gate_open is not None
    assert gated.receipt[0].gate_open.tolist() == [1.0 if o else 0.0 for o in is_open]


def test_a_latch_holds_for_all_beams_of_its_prompt(lm):
    lasts = [scores_of(lm, p)[-1] for p in PROMPTS]
    above = sorted(lasts)[1] - 1e-3
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    inner = steer.Add(SITE, v, 3.0, scope=steer.OUTPUT)
    gate = When(Read(SITE, Sum()), inner, above=above)
    found = lm.generate(PROMPTS, [gate], max_new_tokens=4, num_beams=2)
    bare = lm.generate(PROMPTS, max_new_tokens=4, num_beams=2)
    moved = lm.generate(PROMPTS, [inner], max_new_tokens=4, num_beams=2)
    for row in range(3):
        assert found.tokens[row] == (moved if lasts[row] > above else bare).tokens[row]


def test_a_monitor_records_every_token_in_scope_and_changes_nothing(lm):
    bare = lm.generate(PROMPTS, max_new_tokens=4)
    found = lm.generate(PROMPTS, [Monitor(Read(SITE, Sum(), scope=steer.ALL))], max_new_tokens=4)
    assert found.tokens == bare.tokens
    line = found.receipt[0]
    assert line.edited.tolist() == [0, 0, 0]
    assert line.fired
    assert line.scores is not None
    row_of, position_of, score_of = line.scores
    for row, prompt in enumerate(PROMPTS):
        mine = row_of == row
        whole = scores_of(lm, prompt + bare.tokens[row][:-1])
        assert position_of[mine].tolist() == list(range(len(whole)))
        # Cached, one token at a time, against one pass over the whole row.
        assert score_of[mine].tolist() == pytest.approx(whole, rel=1e-3, abs=1e-3)


def test_a_read_sees_the_stream_as_its_gate_does_in_the_order_of_the_plan(lm):
    v = torch.full((lm.d_model,), 10.0)
    before = Monitor(Read(SITE, Sum(), scope=steer.LAST))
    after = Monitor(Read(SITE, Sum(), scope=steer.LAST))
    with lm.attached([before, steer.Add(SITE, v), after]) as run:
        lm.model(input_ids=torch.tensor([PROMPTS[0]]))
    first, second = (run.receipt[line].reads for line in (0, 2))
    assert first is not None
    assert second is not None
    torch.testing.assert_close(second - first, torch.tensor([10.0 * lm.d_model]), rtol=1e-5, atol=0)


def test_one_read_in_two_gates_is_one_reading(lm):
    calls: list[int] = []

    class Counting:
        def scores(self, x: Tensor) -> Tensor:
            """Count and sum."""
            calls.append(1)
            return x.sum(-1)

    read = Read(SITE, Counting())
    gates = [When(read, steer.Add(SITE, torch.ones(lm.d_model)), above=-9e9) for _ in range(2)]
    with lm.attached(gates):
        lm.model(input_ids=torch.tensor([PROMPTS[0]]))
    assert calls == [1]


def test_nested_gates_must_both_be_open(lm):
    low, high = Read(SITE, Sum()), Read(Site(0), Sum())
    add = steer.Add(SITE, torch.ones(lm.d_model))
    for a, b, expected in ((-9e9, -9e9, 5), (-9e9, 9e9, 0), (9e9, -9e9, 0)):
        gate = When(low, When(high, add, above=a), above=b)
        with lm.attached([gate]) as run:
            lm.model(input_ids=torch.tensor([PROMPTS[0]]))
        assert run.receipt[0].edited.tolist() == [expected]


def test_a_probe_that_gives_no_single_score_is_refused(lm):
    class Wide:
        def scores(self, x: Tensor) -> Tensor:
            """Return two classes."""
            return x[..., :2]

    def block() -> None:
        with lm.attached([Monitor(Read(SITE, Wide()))]):
            lm.model(input_ids=torch.tensor([PROMPTS[0]]))

    with pytest.raises(steer.PlanError, match=r"scores of shape \(1, 5, 2\).*one score per token"):
        block()
    assert lm.registry.live == 0
