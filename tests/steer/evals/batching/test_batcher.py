"""The batcher against `lm.generate` on each row alone, and against HuggingFace's own logits."""

import threading
from concurrent.futures import CancelledError

import pytest
import torch

import steer
from steer.evals import Refused
from steer.evals.batching import Answer, Asked, Batcher, Guard, Sampling, Shape

PROMPTS = ["a b c", "the cat sat on the", "one two", "x"]
SITE = steer.Site(2)


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


@pytest.fixture
def batcher(lm):
    with Batcher(lm, max_rows=8) as made:
        yield made


def direction(lm, seed=0):
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


def plans_of(lm):
    v = direction(lm)
    return [
        [],
        [steer.Add(SITE, v, 2.0)],
        [steer.Add(SITE, -v, 2.0, scope=steer.GENERATED)],
        [steer.Ablate(steer.Site(1), v[None]), steer.Add(SITE, v, scope=steer.LAST)],
    ]


def answers(batcher, rows: list[Asked]) -> list[Answer]:
    return [ticket.future.result(60) for ticket in batcher.submit_all(rows)]


def flat(above: float, scope=steer.OUTPUT):
    """A Monitor whose reading is a constant 1, and a guard on it."""
    probe = Constant()
    monitor = steer.Monitor(steer.Read(SITE, probe, scope=scope, reduce="max"))
    return [monitor], (Guard(0, above),)


class Constant:
    kind = "test.Constant"

    def scores(self, x):
        return torch.ones(x.shape[:-1], device=x.device)


def test_rows_with_their_own_plans_in_one_batch_are_what_generate_gives_each_alone(lm, batcher):
    plans = plans_of(lm)
    rows = [
        Asked(ids, plan, max_new_tokens=5 + at)
        for at, (ids, plan) in enumerate(zip(lm.rows(PROMPTS), plans, strict=True))
    ]
    found = answers(batcher, rows)
    assert batcher.n_batches == 1
    for at, (answer, plan) in enumerate(zip(found, plans, strict=True)):
        alone = lm.generate([PROMPTS[at]], plan, max_new_tokens=5 + at)
        assert (answer.text, list(answer.tokens)) == (alone[0], alone.tokens[0])
        assert torch.allclose(torch.tensor(answer.log_probs), alone.log_probs[0], atol=1e-4)
        # The counts of a row that ended before its batch-mates are those of the row alone.
        for did, line in zip(answer.did, alone.receipt.lines, strict=True):
            counted = [int(getattr(line, name)[0]) for name in ("seen", "eligible", "edited")]
            assert [did[name] for name in ("seen", "eligible", "edited")] == counted


def test_counts_of_a_row_are_told_by_phase(lm, batcher):
    v = direction(lm)
    plan = [steer.Add(SITE, v), steer.Add(SITE, v, scope=steer.GENERATED)]
    (answer,) = answers(batcher, [Asked(lm.rows(["a b c"])[0], plan, max_new_tokens=4)])
    # Three tokens of prompt; the fourth new token is chosen and never read.
    assert [did["eligible_by_phase"] for did in answer.did] == [
        {"prompt": 3, "generated": 3},
        {"prompt": 0, "generated": 3},
    ]


@pytest.mark.parametrize("how", [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8)])
def test_a_sampled_row_draws_what_generate_draws_with_its_seed(lm, batcher, how):
    temperature, top_k, top_p = how
    plan = plans_of(lm)[1]
    mate = Asked(lm.rows([PROMPTS[0]])[0], (), 12, Sampling(2.0, seed=1))
    asked = Asked(lm.rows([PROMPTS[1]])[0], plan, 10, Sampling(temperature, top_k, top_p, 7))
    answer, _ = answers(batcher, [asked, mate])
    alone = lm.generate(
        [PROMPTS[1]],
        plan,
        max_new_tokens=10,
        do_sample=True,
        seed=7,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    assert list(answer.tokens) == alone.tokens[0]
    # The model's own log-probability of the drawn token, not that of the likeliest.
    assert torch.allclose(torch.tensor(answer.log_probs), alone.log_probs[0], atol=1e-4)


def test_a_seed_that_nobody_gave_is_named_and_draws_the_same_again(lm, batcher):
    ids = lm.rows([PROMPTS[1]])[0]
    (first,) = answers(batcher, [Asked(ids, (), 12, Sampling(1.5))])
    assert first.seed is not None
    (again,) = answers(batcher, [Asked(ids, (), 12, Sampling(1.5, seed=first.seed))])
    assert list(again.tokens) == list(first.tokens)


def test_log_probs_of_the_prompt_and_the_likeliest_tokens_are_huggingfaces(lm, batcher):
    ids = lm.rows([PROMPTS[1]])[0]
    mate = Asked(lm.rows([PROMPTS[0]])[0], plans_of(lm)[1], prompt_log_probs=True)
    asked = Asked(ids, max_new_tokens=1, top=4, prompt_log_probs=True)
    answer, steered = answers(batcher, [asked, mate])
    with torch.no_grad():
        log_probs = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = log_probs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert answer.prompt_log_probs == pytest.approx(wanted.tolist(), abs=1e-4)
    best = log_probs[-1].topk(4)
    assert [token for token, _ in answer.top[0]] == best.indices.tolist()
    assert [value for _, value in answer.top[0]] == pytest.approx(best.values.tolist(), abs=1e-4)
    with lm.attached(mate.plan), torch.no_grad():
        moved = lm.model(torch.tensor([list(mate.ids)])).logits[0].log_softmax(-1)
    wanted = moved[:-1].gather(1, torch.tensor(mate.ids[1:])[:, None])[:, 0]
    assert steered.prompt_log_probs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_a_prompt_of_one_token_has_nothing_to_score_before_it(lm, batcher):
    one = lm.rows(["a"])[0][:1]
    (answer,) = answers(batcher, [Asked(one, max_new_tokens=2, prompt_log_probs=True)])
    assert answer.prompt_log_probs == []


def test_a_bad_row_never_fails_its_batch_mates(lm, batcher):
    v = direction(lm)
    good = plans_of(lm)[1]
    ids = lm.rows(PROMPTS)
    tickets = batcher.submit_all(
        [
            Asked(ids[0], good, 6),
            Asked(ids[1], [steer.Add(SITE, v, scope=steer.text("absent"))], 6),
            Asked(ids[2], [steer.Add(SITE, v, 1e38)], 6),
            Asked(ids[3], [steer.Add(SITE, v, scope=steer.GENERATED)], 1),
            Asked(ids[1], (), 6),
        ]
    )
    reasons = []
    for ticket in tickets[1:4]:
        with pytest.raises(Refused) as refused:
            ticket.future.result(60)
        reasons.append(refused.value.reason)
    assert reasons == ["plan_does_not_fit", "not_finite", "never_fired"]
    assert tickets[0].future.result(60).text == lm.generate([PROMPTS[0]], good, max_new_tokens=6)[0]
    assert tickets[4].future.result(60).text == lm.generate([PROMPTS[1]], max_new_tokens=6)[0]


def test_pieces_of_a_stream_make_up_the_text(lm, batcher):
    pieces: list[str] = []
    asked = Asked(lm.rows([PROMPTS[1]])[0], plans_of(lm)[1], 12)
    mate = batcher.submit(Asked(lm.rows([PROMPTS[0]])[0], (), 4))
    answer = batcher.submit(asked, pieces.append).future.result(60)
    mate.future.result(60)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1


def test_a_stop_string_ends_the_text_before_it_and_none_of_it_leaves(lm, batcher):
    ids = lm.rows([PROMPTS[1]])[0]
    whole = lm.generate([PROMPTS[1]], max_new_tokens=12)[0]
    stop = whole[5:9]
    pieces: list[str] = []
    answer = batcher.submit(Asked(ids, (), 12, stop=[stop]), pieces.append).future.result(60)
    assert answer.text == whole[: whole.index(stop)] == "".join(pieces)
    assert answer.finish == "stop"
    assert len(answer.tokens) < 12


@pytest.mark.parametrize("scope", [steer.PROMPT, steer.OUTPUT])
def test_a_guard_above_its_threshold_lets_nothing_leave(lm, batcher, scope):
    plan, guards = flat(0.5, scope)
    pieces: list[str] = []
    ids = lm.rows([PROMPTS[1]])[0]
    answer = batcher.submit(Asked(ids, plan, 6, guards=guards), pieces.append).future.result(60)
    assert (answer.finish, answer.text, pieces) == ("guarded", "", [])


def test_a_guard_that_is_not_passed_changes_nothing(lm, batcher):
    plan, guards = flat(1.5)
    pieces: list[str] = []
    ids = lm.rows([PROMPTS[1]])[0]
    answer = batcher.submit(Asked(ids, plan, 6, guards=guards), pieces.append).future.result(60)
    alone = lm.generate([PROMPTS[1]], max_new_tokens=6)
    assert answer.text == alone[0] == "".join(pieces)
    assert (answer.finish, list(answer.tokens)) == ("length", alone.tokens[0])


def test_a_guard_holds_back_the_very_token_that_it_flags(lm, batcher):
    """The reading is the position, so the token at which it passes the threshold is known."""

    class AfterThree:
        kind = "test.AfterThree"

        def __init__(self):
            self.n = 0

        def scores(self, x):
            self.n += 1
            return torch.full(x.shape[:-1], float(self.n))

    ids = lm.rows([PROMPTS[1]])[0]
    monitor = steer.Monitor(steer.Read(SITE, AfterThree(), scope=steer.OUTPUT))
    # Passes: the prompt reads 1, the first new token 2, the second 3, the third 4.
    asked = Asked(ids, [monitor], 8, guards=(Guard(0, 3.5),))
    answer = batcher.submit(asked).future.result(60)
    alone = lm.generate([PROMPTS[1]], max_new_tokens=8)
    assert answer.finish == "guarded"
    assert answer.text == lm.tokenizer.decode(alone.tokens[0][:2])


def test_what_a_guard_flags_is_not_named_among_tokens_or_log_probs_either(lm, batcher):
    class Third:
        kind = "test.Third"
        n = 0

        def scores(self, x):
            self.n += 1
            return torch.full(x.shape[:-1], float(self.n))

    ids = lm.rows([PROMPTS[1]])[0]
    monitor = steer.Monitor(steer.Read(SITE, Third(), scope=steer.OUTPUT))
    asked = Asked(ids, [monitor], 8, guards=(Guard(0, 2.5),), top=2)
    answer = batcher.submit(asked).future.result(60)
    alone = lm.generate([PROMPTS[1]], max_new_tokens=8).tokens[0]
    # The third pass reads the second new token: the first one alone may be known.
    assert list(answer.tokens) == alone[:1]
    assert len(answer.log_probs) == len(answer.top) == 1


@pytest.mark.parametrize("scope", [steer.PROMPT, steer.OUTPUT])
def test_a_reading_that_is_no_number_ends_the_row(lm, batcher, scope):
    class Broken:
        kind = "test.Broken"

        def scores(self, x):
            return torch.full(x.shape[:-1], float("nan"))

    monitor = steer.Monitor(steer.Read(SITE, Broken(), scope=scope))
    asked = Asked(lm.rows(["a b"])[0], [monitor], 4, guards=(Guard(0, 0.5),))
    answer = batcher.submit(asked).future.result(60)
    assert (answer.finish, answer.text, list(answer.tokens)) == ("guarded", "", [])


def test_a_guard_on_generated_tokens_does_not_end_a_row_before_there_are_any(lm, batcher):
    plan, guards = flat(1.5, steer.GENERATED)
    asked = Asked(lm.rows(["a b"])[0], plan, 4, guards=guards)
    assert batcher.submit(asked).future.result(60).finish == "length"


def test_a_listener_that_fails_loses_its_own_row_only(lm, batcher):
    def gone(_piece):
        raise RuntimeError("the loop is closed")

    ids = lm.rows(PROMPTS)
    with batcher._changed:  # so that both are in one batch
        first = batcher.submit(Asked(ids[0], (), 200), gone)
        mate = batcher.submit(Asked(ids[1], (), 8))
    assert mate.future.result(60).text == lm.generate([PROMPTS[1]], max_new_tokens=8)[0]
    assert len(first.future.result(60).tokens) < 200
    assert batcher.n_batches == 1


def test_more_rows_than_may_wait_are_refused_and_none_is_lost(lm):
    hold = threading.Event()
    started = threading.Event()

    def wait(_piece):
        started.set()
        hold.wait(60)

    ids = lm.rows(["a b"])[0]
    with Batcher(lm, max_rows=1, max_waiting=3) as batcher:
        first = batcher.submit(Asked(ids, (), 3), wait)
        assert started.wait(60)
        waiting = [batcher.submit(Asked(ids, (), 2)) for _ in range(3)]
        with pytest.raises(Refused, match="3 rows wait already, of 3"):
            batcher.submit(Asked(ids, (), 2))
        hold.set()
        texts = {ticket.future.result(60).text for ticket in (first, *waiting)}
    assert len(texts) == 2


def test_closing_without_drain_refuses_what_waits_and_later_rows(lm):
    ids = lm.rows(["a b"])[0]
    hold, started = threading.Event(), threading.Event()

    def wait(_piece):
        started.set()
        hold.wait(60)

    batcher = Batcher(lm, max_rows=1)
    first = batcher.submit(Asked(ids, (), 2), wait)
    assert started.wait(60)
    second = batcher.submit(Asked(ids, (), 2))
    closer = threading.Thread(target=lambda: batcher.close(drain=False))
    closer.start()
    with pytest.raises(Refused, match="shutting_down"):
        second.future.result(60)
    hold.set()
    closer.join(60)
    assert first.future.result(60).finish == "length"
    with pytest.raises(Refused, match="shutting_down"):
        batcher.submit(Asked(ids))


def test_a_cancelled_row_leaves_its_batch_and_its_mates_go_on(lm, batcher):
    ids = lm.rows(PROMPTS)
    tickets = []

    def gone(_piece):
        tickets[0].cancel()

    with batcher._changed:  # so that both are in one batch
        tickets.append(batcher.submit(Asked(ids[0], (), 200), gone))
        mate = batcher.submit(Asked(ids[1], (), 8))
    assert mate.future.result(60).text == lm.generate([PROMPTS[1]], max_new_tokens=8)[0]
    with pytest.raises(CancelledError):
        tickets[0].future.result(60)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_batch_of_fixed_shape_gives_the_same_bits_whoever_shares_it(lm, at):
    plan = plans_of(lm)[at]
    ids = lm.rows(PROMPTS)
    with Batcher(lm, shape=Shape(4, 16)) as batcher:
        asked = Asked(ids[1], plan, 8, prompt_log_probs=True)
        (alone,) = answers(batcher, [asked])
        others = [Asked(ids[at], plans_of(lm)[at], 9, prompt_log_probs=True) for at in (0, 2, 3)]
        *_, shared = answers(batcher, [*others, asked])
    assert list(alone.log_probs) == list(shared.log_probs)
    assert alone.prompt_log_probs == shared.prompt_log_probs
    assert alone.tokens == shared.tokens


def test_a_prompt_wider_than_the_fixed_shape_is_refused(lm):
    told = pytest.raises(Refused, match=r"\[too_long\] The prompt has \d+ tokens")
    with Batcher(lm, shape=Shape(2, 3)) as batcher, told:
        batcher.submit(Asked(lm.rows([PROMPTS[1]])[0]))


def test_a_plan_attached_to_the_whole_model_refuses_every_row(lm, batcher):
    lm.attach([steer.Add(SITE, direction(lm))])
    try:
        ticket = batcher.submit(Asked(lm.rows(["a b"])[0], (), 2))
        with pytest.raises(Refused, match="Another plan is attached to the whole model"):
            ticket.future.result(60)
    finally:
        with pytest.raises(steer.NeverFired):
            lm.detach()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": []}, "no tokens"),
        ({"ids": [10**6]}, "token id 1000000"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 10**6}, "the model reads"),
        ({"top": 65}, "top is 65"),
        ({"stop": [""]}, "stop string is empty"),
        ({"guards": (Guard(0, 0.5),)}, "is no Monitor"),
        ({"plan": [steer.Add(SITE, torch.ones(7))]}, "7 entries"),
        ({"plan": [steer.Add(steer.Site(99), torch.ones(64))]}, "no site"),
        ({"plan": [steer.Add(SITE, torch.ones(64), torch.ones(3))]}, "one entry for each of 3"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_waits(lm, batcher, change, said):
    given = {"ids": lm.rows(["a b"])[0], "max_new_tokens": 2, **change}
    with pytest.raises(Refused, match=said):
        batcher.submit(Asked(**given))


@pytest.mark.parametrize(
    "given",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}],
)
def test_sampling_out_of_range_is_refused(given):
    with pytest.raises(Refused, match="bad_request"):
        Sampling(**given)
