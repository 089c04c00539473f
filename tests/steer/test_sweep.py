"""Sweeps as a user calls them: values, costs, receipts, budgets and mistakes."""

import pytest
import torch
from torch import Tensor

import steer
from steer import LM, Site

PROMPTS = [[5, 17, 30, 44, 8], [60, 11, 33, 9, 21, 70, 4, 5], [12, 13]]


def top(logits: Tensor, _: steer.Batch) -> Tensor:
    return logits[..., 7]


def whole(logits: Tensor, _: steer.Batch) -> Tensor:
    return logits


def adds(lm: LM, *strengths: float, scope: steer.Scope = steer.LAST) -> list[list[steer.Add]]:
    return [[steer.Add(Site(1), torch.ones(lm.d_model), s, scope=scope)] for s in strengths]


def test_a_measure_knows_which_arm_and_prompt_each_row_is(lm: LM):
    seen: list[tuple[int, int]] = []

    def measure(logits: Tensor, batch: steer.Batch) -> Tensor:
        assert logits.shape == (len(batch.rows), lm.registry.layout.d_vocab)
        assert batch.positions is not None
        lengths = torch.tensor([len(row) for row in PROMPTS])
        assert (batch.positions == lengths[batch.rows] - 1).all()
        seen.extend(zip(batch.arms.tolist(), batch.rows.tolist(), strict=True))
        return batch.arms * 10.0 + batch.rows

    sweep = steer.sweep(lm, PROMPTS, adds(lm, 1.0, 0.0, 2.0), measure)
    assert sweep.values.tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    assert sweep.natural.tolist() == [-10, -9, -8]
    assert sorted(seen) == sorted((arm, row) for arm in (-1, 0, 1, 2) for row in range(3))


def test_arms_may_have_names(lm: LM):
    one, two = adds(lm, 1.0, 2.0)
    sweep = steer.sweep(lm, PROMPTS, {"weak": one, "strong": two}, top)
    assert sweep.names == ("weak", "strong")
    assert torch.equal(sweep["strong"], sweep.values[1])
    with pytest.raises(steer.PlanError, match=r"no arm 'week'.* weak, strong"):
        sweep["week"]


def test_several_tokens_are_measured_with_their_mask(any_lm: LM):
    scope = steer.span(-3, None, missing="skip")
    arms = adds(any_lm, 1.0, -2.0, scope=steer.at(-2))
    sweep = steer.sweep(any_lm, PROMPTS, arms, whole, scope=scope)
    for at, arm in enumerate(arms):
        wanted = any_lm.logits(PROMPTS, arm, scope=scope)
        kept = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
        torch.testing.assert_close(sweep.values[at][kept], wanted[kept], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "scope", [steer.PROMPT, steer.LAST, steer.GENERATED, steer.OUTPUT, steer.ALL], ids=repr
)
def test_what_follows_the_prompt_counts_as_generated(any_lm: LM, scope: steer.Scope):
    tails = ([8], [21, 70, 4], [13, 14])
    rows = [row + tail for row, tail in zip(PROMPTS, tails, strict=True)]
    lengths = [len(row) for row in PROMPTS]

    def likelihood(logits: Tensor, batch: steer.Batch) -> Tensor:
        assert batch.positions is not None
        known = logits.float().log_softmax(-1)
        targets = torch.zeros(batch.positions.shape, dtype=torch.long)
        real = batch.positions >= 0
        for at, row in enumerate(batch.rows.tolist()):
            for column, position in enumerate(batch.positions[at].tolist()):
                real[at, column] &= position + 1 < len(rows[row])
                targets[at, column] = rows[row][min(position + 1, len(rows[row]) - 1)]
        found = known.gather(2, targets[..., None])[..., 0]
        return torch.where(real, found, 0.0).sum(1)

    arms = adds(any_lm, 1.0, -2.0, 0.5, scope=scope)
    swept = steer.sweep(any_lm, rows, arms, likelihood, scope=steer.OUTPUT, prompt_lengths=lengths)
    for at, arm in enumerate(arms):
        # One pass over each row alone, as a user would loop.
        for row, (tokens, length) in enumerate(zip(rows, lengths, strict=True)):
            ids = torch.tensor([tokens])
            with any_lm.attached(arm) as run, torch.no_grad():
                run.prompt([length])
                logits = any_lm.model(input_ids=ids, use_cache=False).logits[0].float()
            known = logits.log_softmax(-1)[length - 1 : -1]
            wanted = known.gather(1, ids[0, length:, None]).sum()
            assert swept.values[at, row] == pytest.approx(float(wanted), abs=5e-4)
    assert swept.executed == swept.cost().token_blocks


def test_prompt_lengths_must_fit(lm: LM):
    for lengths in ([5, 8], [0, 8, 2], [5, 9, 2]):
        with pytest.raises(steer.PlanError, match=r"prompt lengths are .* one for each row"):
            steer.sweep(lm, PROMPTS, adds(lm, 1.0), top, prompt_lengths=lengths)


@pytest.mark.parametrize("read", [Site(2), Site(2, "mlp_out"), Site(3, "resid_pre"), Site.embed()])
def test_any_site_can_be_measured_and_nothing_above_it_runs(lm: LM, read: Site):
    arms = adds(lm, 1.0, 3.0, scope=steer.at(-2))
    sweep = steer.sweep(lm, PROMPTS, arms, whole, read=read)
    for at, arm in enumerate(arms):
        wanted = lm.capture(PROMPTS, [read], plan=arm)[read]
        torch.testing.assert_close(sweep.values[at], wanted, rtol=0, atol=1e-5)
    assert sweep.executed == sweep.cost().token_blocks < 3 * 2 * 2 * 3


def test_a_small_budget_means_more_passes_and_the_same_numbers(any_lm: LM):
    arms = adds(any_lm, *[0.1 * k for k in range(1, 30)], scope=steer.ALL)
    large = steer.sweep(any_lm, PROMPTS, arms, whole)
    small = steer.sweep(any_lm, PROMPTS, arms, whole, budget=600_000)
    assert small.cost().passes > large.cost().passes
    assert small.cost().bytes <= 600_000
    torch.testing.assert_close(small.values, large.values, rtol=0, atol=2e-5)
    for a, b in zip(small.receipts, large.receipts, strict=True):
        assert torch.equal(a[0].edited, b[0].edited)
        assert torch.equal(a[0].seen, b[0].seen)


def test_prompts_in_parts_run_once_each(lm: LM):
    arms = adds(lm, 1.0, 2.0, scope=steer.at(1))
    prompts = [[5 + k, 6, 7, 8] for k in range(12)]
    large = steer.sweep(lm, prompts, arms, whole)
    small = steer.sweep(lm, prompts, arms, whole, budget=100_000)
    rows: list[int] = []
    handle = lm.model.model.layers[0].register_forward_pre_hook(
        lambda _m, a: rows.append(len(a[0]))
    )
    found = small.values
    n_parts = len(rows) - small.cost().passes
    handle.remove()
    assert n_parts > 1
    assert len(rows) == n_parts + small.cost().passes, "the cost of a sweep that ran is known"
    torch.testing.assert_close(found, large.values, rtol=0, atol=2e-5)
    assert small.base_executed == small.cost().base_token_blocks == 12 * 4 * lm.n_layers


def test_a_budget_that_holds_no_row_says_what_would_do(lm: LM):
    with pytest.raises(steer.PlanError, match=r"not one row.*budget=(\d+)") as said:
        steer.sweep(lm, PROMPTS, adds(lm, 1.0), top, budget=10_000)
    enough = int(str(said.value).split("budget=")[1].split()[0])
    steer.sweep(lm, PROMPTS, adds(lm, 1.0), top, budget=enough).run()


def test_the_cost_is_known_before_and_is_what_ran(lm: LM):
    arms = [[steer.Add(Site(layer), torch.ones(lm.d_model))] for layer in range(lm.n_layers)]
    sweep = steer.sweep(lm, PROMPTS, arms, top)
    cost = sweep.cost()
    assert "not run yet" in repr(sweep)
    tokens, n = sum(len(row) for row in PROMPTS), lm.n_layers
    # From the block after each edit to the last, on every token.
    assert cost.minimum == sum((n - layer - 1) * tokens for layer in range(n))
    assert cost.loop_token_blocks == n * n * tokens
    assert cost.base_token_blocks == n * 3 * 8  # padded to the longest
    assert sweep.executed == cost.token_blocks
    assert sweep.base_executed == cost.base_token_blocks
    assert cost.over_minimum == cost.token_blocks / cost.minimum
    assert "3 live cells" not in repr(cost)
    assert f"{cost.token_blocks:,} token-blocks" in repr(cost)


def test_receipts_are_those_of_whole_passes(lm: LM):
    arms = [[*adds(lm, 2.0, scope=steer.at(1))[0], *adds(lm, 1.0)[0]], [], adds(lm, 0.0)[0]]
    sweep = steer.sweep(lm, PROMPTS, arms, top)
    for arm, receipt in zip(arms, sweep.receipts, strict=True):
        assert len(receipt) == len(arm)
        if not arm:
            continue
        with lm.attached(arm) as run:
            lm.logits(PROMPTS)
        for mine, wanted in zip(receipt.lines, run.receipt.lines, strict=True):
            assert torch.equal(mine.seen, wanted.seen)
            assert torch.equal(mine.eligible, wanted.eligible)
            assert torch.equal(mine.edited, wanted.edited)
            torch.testing.assert_close(mine.relative_size, wanted.relative_size)


def test_one_object_in_several_arms_is_counted_in_each(lm: LM):
    shared = adds(lm, 1.0)[0][0]
    other = steer.Ablate(Site(2), torch.ones(lm.d_model), scope=steer.LAST)
    sweep = steer.sweep(lm, PROMPTS, [[shared], [shared, other], [other]], whole)
    edited = [[int(line.edited.sum()) for line in receipt.lines] for receipt in sweep.receipts]
    assert edited == [[3], [3, 3], [3]]
    for at, arm in enumerate([[shared], [shared, other], [other]]):
        torch.testing.assert_close(sweep.values[at], lm.logits(PROMPTS, arm), rtol=0, atol=1e-5)


def test_a_sweep_runs_once_and_leaves_nothing(lm: LM):
    calls: list[int] = []

    def measure(logits: Tensor, _: steer.Batch) -> Tensor:
        calls.append(len(logits))
        return logits[:, 0]

    sweep = steer.sweep(lm, PROMPTS, adds(lm, 1.0), measure)
    assert lm.registry.live == 0
    first = sweep.values
    n = len(calls)
    assert sweep.run().values is first
    assert len(calls) == n
    assert lm.registry.live == 0


def test_an_error_in_the_measure_leaves_nothing_attached(lm: LM):
    def measure(logits: Tensor, batch: steer.Batch) -> Tensor:
        if int(batch.arms[0]) >= 0:
            raise RuntimeError("boom")
        return logits[:, 0]

    before = lm.logits(PROMPTS)
    with pytest.raises(RuntimeError, match="boom"):
        steer.sweep(lm, PROMPTS, adds(lm, 1.0), measure).run()
    assert lm.registry.live == 0
    assert torch.equal(lm.logits(PROMPTS), before)


def test_a_measure_over_rows_is_refused(lm: LM):
    with pytest.raises(steer.PlanError, match=r"returned \(\) for 3 rows"):
        steer.sweep(lm, PROMPTS, adds(lm, 1.0), lambda logits, _: logits.mean()).run()


def test_mistakes_are_refused_before_anything_runs(lm: LM):
    add = adds(lm, 1.0)[0]
    with pytest.raises(steer.PlanError, match="no arm to sweep over"):
        steer.sweep(lm, PROMPTS, [], top)
    with pytest.raises(steer.PlanError, match="Arm 0 is Rows of 2 plans, but there are 3 prompts"):
        steer.sweep(lm, PROMPTS, [steer.Rows([add, add])], top)
    per_row = steer.Add(Site(1), torch.ones(lm.d_model), torch.ones(2))
    with pytest.raises(steer.PlanError, match="strength has one entry for each of 2 rows"):
        steer.sweep(lm, PROMPTS, [[per_row]], top)
    with pytest.raises(steer.SiteNotFound, match="Intervention 0 of arm 1"):
        steer.sweep(lm, PROMPTS, [add, [steer.Add(Site(40), torch.ones(lm.d_model))]], top)
    with pytest.raises(steer.SiteNotFound, match="4 blocks"):
        steer.sweep(lm, PROMPTS, [add], top, read=Site(40))
    with pytest.raises(steer.NeverFired, match="GENERATED"):
        steer.sweep(lm, PROMPTS, adds(lm, 1.0, scope=steer.GENERATED), top)
    with pytest.raises(steer.ScopeError, match="Row 2 has 2 tokens"):
        steer.sweep(lm, PROMPTS, adds(lm, 1.0, scope=steer.at(4)), top)
    source = torch.zeros(3, 4, lm.d_model)
    with pytest.raises(steer.PlanError, match="tokens in scope"):
        steer.sweep(lm, PROMPTS, [[steer.Patch(Site(1), source, scope=steer.at(1))]], top)
    assert lm.registry.live == 0


def test_an_attached_plan_around_a_sweep_is_refused(lm: LM):
    arms = adds(lm, 1.0)
    with lm.attached(arms[0]):
        with pytest.raises(steer.PlanError, match=r"attached.*every arm: \[\*outer, \*arm\]"):
            steer.sweep(lm, PROMPTS, arms, top)
        lm.logits(PROMPTS)


def test_a_sweep_looked_at_inside_a_plan_is_refused_and_stays_right(lm: LM):
    arms = adds(lm, 1.0)
    clean = steer.sweep(lm, PROMPTS, arms, top).values
    for look in (lambda s: s.values, lambda s: s.cost()):
        sweep = steer.sweep(lm, PROMPTS, arms, top)
        with lm.attached(adds(lm, 5.0, scope=steer.ALL)[0]):
            with pytest.raises(steer.PlanError, match="would be steered before any arm begins"):
                look(sweep)
            lm.logits(PROMPTS)
        assert torch.equal(sweep.values, clean)
    known = steer.sweep(lm, PROMPTS, arms, top)
    known.cost()
    with lm.attached(adds(lm, 5.0, scope=steer.ALL)[0]):
        with pytest.raises(steer.PlanError, match="would be steered before any arm begins"):
            known.run()
        lm.logits(PROMPTS)


def test_a_second_run_after_an_error_counts_itself_alone(lm: LM):
    broken = [True]

    def measure(logits: Tensor, batch: steer.Batch) -> Tensor:
        if broken[0] and int(batch.arms[0]) >= 0:
            raise RuntimeError("boom")
        return logits[:, 0]

    sweep = steer.sweep(lm, PROMPTS, adds(lm, 1.0, 2.0), measure)
    with pytest.raises(RuntimeError, match="boom"):
        sweep.run()
    broken[0] = False
    assert sweep.executed == sweep.cost().token_blocks
    assert sweep.base_executed == sweep.cost().base_token_blocks
    assert int(sweep.receipts[0][0].edited.sum()) == 3


def test_generated_arms_share_the_prefill_of_their_prompts(lm: LM):
    prompt = [list(range(5, 45))]
    one, two = adds(lm, 1.0, 2.0, scope=steer.OUTPUT)
    arms = {"1": one, "2": two}
    seen: list[tuple[int, int]] = []
    block = lm.model.model.layers[0]
    handle = block.register_forward_pre_hook(lambda _m, a: seen.append(tuple(a[0].shape[:2])))
    made = steer.generate_sweep(lm, prompt, arms, max_new_tokens=3)
    handle.remove()
    # The prompt once, then both arms from its last token on, and two decode steps.
    assert seen[-4:] == [(1, 40), (2, 1), (2, 1), (2, 1)]
    for name, plan in arms.items():
        assert made[name].tokens == lm.generate(prompt, plan, max_new_tokens=3).tokens


def test_generated_arms_that_never_act_are_an_error(lm: LM):
    gen = steer.Add(Site(1), torch.ones(lm.d_model), scope=steer.GENERATED)
    steer.generate_sweep(lm, PROMPTS, [[gen]], max_new_tokens=2)
    with pytest.raises(steer.NeverFired, match="GENERATED"):
        steer.generate_sweep(lm, PROMPTS, [[gen]], max_new_tokens=1)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_intervention_that_never_fires_is_an_error_in_whichever_arm_it_is(lm: LM, at: int):
    arms = [*adds(lm, 1.0, 2.0, scope=steer.LAST)]
    arms.insert(at, adds(lm, 3.0, scope=steer.GENERATED)[0])
    with pytest.raises(steer.NeverFired, match=rf"strength=3.*in arm {at} never fired"):
        steer.sweep(lm, PROMPTS, arms, top)
    with pytest.raises(steer.NeverFired, match=rf"in arm {at} never fired"):
        steer.generate_sweep(lm, PROMPTS, arms, max_new_tokens=1)
