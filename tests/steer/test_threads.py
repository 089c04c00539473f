"""Threads and tasks at one model: many short calls, each compared with what it gives alone."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, TextIteratorStreamer

import steer
from steer.models.tiny import fill
from steer.models.tiny_tokenizer import tiny_tokenizer
from steer.sites import Site

IDS = [[5, 6, 7], [9, 8, 4]]
X = torch.tensor(IDS)
Call = Callable[[], Tensor]


def smallest(name: str) -> "steer.LM":
    """Return an LM of two blocks, width 16: a pass of it is mostly Python, where races live."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    fill(model, name)
    return steer.wrap(model.eval(), tokenizer)


@pytest.fixture
def own() -> "steer.LM":
    """Return an LM that no other test shares."""
    return smallest("threads")


def direction(lm: "steer.LM", seed: int) -> Tensor:
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


def logits(lm: "steer.LM") -> Tensor:
    return lm.model(input_ids=X).logits


def steered(lm: "steer.LM", plan: "steer.Plan") -> Tensor:
    with lm.attached(plan):
        return logits(lm)


def calls_at_one_module(lm: "steer.LM", layer: int) -> list[Call]:
    """Return calls of every kind that meet at one block: each is independent of all the others."""
    site = Site(layer, "resid_post")
    v, w = direction(lm, 1), direction(lm, 2)
    rows = steer.Rows([[steer.Add(site, v)], []])

    def nested() -> Tensor:
        with lm.attached([steer.Add(site, v)]), lm.attached([steer.Scale(site, 0.5)]):
            return logits(lm)

    def attach_only() -> Tensor:
        with lm.attached([]):
            pass
        return logits(lm)

    def hidden_states() -> Tensor:
        return torch.cat(lm.model(input_ids=X, output_hidden_states=True).hidden_states)

    def bound() -> Tensor:
        found: list[Tensor] = []
        with lm.attached([steer.Add(site, w)]) as run:
            work = run.bind(lambda: found.append(logits(lm)))
            other = threading.Thread(target=work)
            other.start()
            other.join()
        return found[0]

    return [
        lambda: logits(lm),
        lambda: steered(lm, [steer.Add(site, v)]),
        lambda: steered(lm, [steer.Add(site, w, strength=-2.0)]),
        lambda: steered(lm, rows),
        lambda: lm.capture(IDS, [site])[site],
        lambda: lm.capture(IDS, [site], plan=[steer.Add(site, v)], scope=steer.ALL)[site],
        lambda: lm.logits(IDS, [steer.Ablate(site, w)]),
        nested,
        attach_only,
        hidden_states,
        lambda: logits(lm),
        bound,
        lambda: torch.tensor(lm.generate(IDS, rows, max_new_tokens=2).tokens),
    ]


def run_at_once(calls: list[Call], *, per_thread: int, per_task: int, n: int = 4) -> list[str]:
    """Run calls from n threads and n tasks at the same time; return what went wrong."""
    with torch.no_grad():
        expected = [call() for call in calls]
    wrong: list[str] = []

    def one(who: str, turn: int) -> None:
        which = turn % len(calls)
        try:
            with torch.no_grad():
                found = calls[which]()
        except BaseException as error:  # a race may raise anything, also BaseException
            wrong.append(f"{who} call {which}: {error!r}")
            return
        if not torch.equal(found, expected[which]):
            wrong.append(f"{who} call {which}: wrong result")

    def thread(at: int) -> None:
        # Different strides: every pair of kinds meets.
        for turn in range(per_thread):
            one(f"thread {at}", turn * (2 * at + 1) + at)

    async def task(at: int) -> None:
        for turn in range(per_task):
            one(f"task {at}", turn * (at + 1) + at)
            await asyncio.sleep(0)

    async def tasks() -> None:
        await asyncio.gather(*(task(at) for at in range(n)))

    threads = [threading.Thread(target=thread, args=(at,)) for at in range(n)]
    for each in threads:
        each.start()
    asyncio.run(tasks())
    for each in threads:
        each.join()
    return wrong


def left(lm: "steer.LM") -> list[str]:
    """Return what is left on a model of hooks and shadowed methods that are not transformers'."""
    found = [name for name in ("generate", "forward") if name in vars(lm.model)]
    for path, module in lm.model.named_modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            found += [path for hook in hooks.values() if "output_capturing" not in repr(hook)]
        assert not module._forward_pre_hooks_with_kwargs
        assert not module._forward_hooks_with_kwargs
    return found


def test_short_calls_of_every_kind_at_one_module_do_not_disturb_one_another(own):
    calls = calls_at_one_module(own, layer=0)
    wrong = run_at_once(calls, per_thread=120, per_task=30)
    assert wrong == []
    assert own.registry.live == 0
    assert left(own) == []


@pytest.mark.slow
def test_ten_thousand_short_calls_at_one_module_from_threads_and_tasks(own):
    calls = calls_at_one_module(own, layer=0)
    wrong = run_at_once(calls, per_thread=2000, per_task=500)
    assert wrong == []
    assert own.registry.live == 0
    assert left(own) == []


@pytest.mark.real
def test_five_hundred_short_calls_on_a_pretrained_model_from_threads_and_tasks():
    lm = steer.load("smollm2-135m")
    calls = calls_at_one_module(lm, layer=14)
    wrong = run_at_once(calls, per_thread=100, per_task=25)
    assert wrong == []
    assert lm.registry.live == 0
    assert left(lm) == []


def test_tasks_that_wait_inside_their_blocks_keep_their_own_plans(own):
    site = Site(0, "resid_post")
    plans = [[steer.Add(site, direction(own, seed))] for seed in range(6)]
    with torch.no_grad():
        expected = [steered(own, plan) for plan in plans]

    async def task(at: int) -> None:
        for _ in range(5):
            with own.attached(plans[at]):
                await asyncio.sleep(0)
                first = logits(own)
                await asyncio.sleep(0)
                second = logits(own)
            assert torch.equal(first, expected[at])
            assert torch.equal(second, expected[at])
            await asyncio.sleep(0)

    async def tasks() -> None:
        await asyncio.gather(*(task(at) for at in range(len(plans))))

    with torch.no_grad():
        asyncio.run(tasks())
    assert own.registry.live == 0


def test_a_task_started_inside_a_block_is_steered_until_the_block_ends(own):
    plan = [steer.Add(Site(0, "resid_post"), direction(own, 0))]
    with torch.no_grad():
        bare, moved = logits(own), steered(own, plan)
    found: list[Tensor] = []

    async def child(gate: asyncio.Event) -> None:
        found.append(logits(own))
        await gate.wait()
        found.append(logits(own))

    async def parent() -> None:
        gate = asyncio.Event()
        with own.attached(plan):
            started = asyncio.create_task(child(gate))
            await asyncio.sleep(0)
        gate.set()
        await started

    with torch.no_grad():
        asyncio.run(parent())
    assert torch.equal(found[0], moved)
    assert torch.equal(found[1], bare)


def test_a_bare_thread_is_not_steered_and_the_plan_that_waited_for_it_says_so(own):
    found: list[Tensor] = []
    with torch.no_grad():
        bare = logits(own)

    def work() -> None:
        with torch.no_grad():
            found.append(logits(own))

    other = threading.Thread(target=work)

    def block() -> None:
        with own.attached([steer.Add(Site(0, "resid_post"), direction(own, 0))]):
            other.start()
            other.join()

    with pytest.raises(steer.NeverFired, match=r"another thread is not steered unless.*run\.bind"):
        block()
    assert torch.equal(found[0], bare)


def test_a_bound_thread_is_steered_and_counted_in_the_receipt(own):
    plan = [steer.Add(Site(0, "resid_post"), direction(own, 0))]
    with torch.no_grad():
        moved = steered(own, plan)
    found: list[Tensor] = []

    def work() -> None:
        with torch.no_grad():
            found.append(logits(own))

    with own.attached(plan) as run:
        threads = [threading.Thread(target=run.bind(work)) for _ in range(3)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert [torch.equal(each, moved) for each in found] == [True] * 3
    assert run.receipt[0].edited.tolist() == [9, 9]


def test_a_bound_thread_that_outlives_the_block_is_an_error_on_both_sides(own):
    inside, release = threading.Event(), threading.Event()
    errors: list[BaseException] = []
    others: list[threading.Thread] = []

    def work() -> None:
        with torch.no_grad():
            logits(own)
        inside.set()
        release.wait()

    def guarded(bound: Callable[[], None]) -> None:
        try:
            bound()
        except steer.SteerError as error:
            errors.append(error)

    def block() -> None:
        with own.attached([steer.Add(Site(0, "resid_post"), direction(own, 0))]) as run:
            others.append(threading.Thread(target=guarded, args=(run.bind(work),)))
            others[0].start()
            inside.wait()

    with pytest.raises(steer.SteerError, match=r"1 bound calls are still running.*Join the thr"):
        block()
    release.set()
    others[0].join()
    assert own.registry.live == 0
    (error,) = errors
    assert "was detached while this bound call ran" in str(error)


def test_an_error_in_the_block_is_not_hidden_by_a_bound_thread_that_still_runs(own):
    inside, release = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        release.wait()

    others: list[threading.Thread] = []

    def block() -> None:
        with own.attached([steer.Add(Site(0, "resid_post"), direction(own, 0))]) as run:
            others.append(threading.Thread(target=_quiet, args=(run.bind(work),)))
            others[0].start()
            inside.wait()
            raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        block()
    release.set()
    others[0].join()
    assert own.registry.live == 0


def _quiet(fn: Callable[[], None]) -> None:
    with contextlib.suppress(steer.SteerError):
        fn()


def test_a_streamer_thread_is_steered_when_it_is_bound(own):
    site = Site(0, "resid_post")
    plan = [steer.Add(site, 3 * direction(own, 0))]
    alone = own.generate([IDS[0]], plan, max_new_tokens=4)
    streamer = TextIteratorStreamer(own.tokenizer, skip_prompt=True)
    options = {"input_ids": X[:1], "max_new_tokens": 4, "do_sample": False, "streamer": streamer}
    options["attention_mask"] = torch.ones_like(X[:1])
    with own.attached(plan) as run:
        other = threading.Thread(target=run.bind(own.model.generate), kwargs=options)
        other.start()
        text = "".join(streamer)
        other.join()
    assert text == own.tokenizer.decode(alone.tokens[0])
    assert run.receipt[0].edited.tolist() == [3 + 4 - 1]


def test_a_plan_attached_for_the_whole_model_reaches_threads_that_exist_already(own):
    plan = [steer.Add(Site(0, "resid_post"), direction(own, 0))]
    with torch.no_grad():
        bare, moved = logits(own), steered(own, plan)
    found: list[Tensor] = []
    turn = threading.Barrier(2)

    def work() -> None:
        with torch.no_grad():
            for _ in range(3):
                turn.wait()
                found.append(logits(own))
                turn.wait()

    def step() -> None:
        turn.wait()
        turn.wait()

    other = threading.Thread(target=work)
    other.start()
    step()
    own.attach(plan)
    step()
    receipt = own.detach()
    step()
    other.join()
    assert torch.equal(found[0], bare)
    assert torch.equal(found[1], moved)
    assert torch.equal(found[2], bare)
    assert receipt[0].edited.tolist() == [3, 3]


def test_a_plan_that_comes_or_goes_in_the_middle_of_a_pass_of_another_thread(own):
    # What arrives waits for the next pass, since nothing of this pass was checked for it; also in
    # a thread whose earlier passes were steered.
    plan = [steer.Add(Site(1, "resid_post"), direction(own, 0))]
    with torch.no_grad():
        bare, moved = logits(own), steered(own, plan)
    found: list[Tensor] = []
    reached = [threading.Event() for _ in range(4)]
    go_on = [threading.Event() for _ in range(4)]

    def pause(*_: object) -> None:
        reached[len(found)].set()
        assert go_on[len(found)].wait(60)

    def work() -> None:
        with torch.no_grad():
            for _ in range(4):
                found.append(logits(own))

    user = own.model.model.layers[0].register_forward_hook(pause)
    other = threading.Thread(target=work)
    own.attach(plan)
    other.start()
    reached[0].wait(60)
    go_on[0].set()  # pass 0 is steered from end to end
    reached[1].wait(60)
    own.detach()  # in the middle of pass 1
    go_on[1].set()
    reached[2].wait(60)
    own.attach(plan)  # in the middle of pass 2
    go_on[2].set()
    go_on[3].set()
    other.join()
    user.remove()
    own.detach()
    assert torch.equal(found[0], moved)
    assert torch.equal(found[1], bare)  # the edit was to come in the next block
    assert torch.equal(found[2], bare)
    assert torch.equal(found[3], moved)


def test_a_steered_pass_does_not_leave_tokens_behind_for_a_later_plan_to_find(own):
    # Thread-local history: steered, then bare; then a plan arrives in the middle of a bare pass.
    plan = [steer.Add(Site(1, "resid_post"), direction(own, 0))]
    with torch.no_grad():
        bare = logits(own)
    longer = torch.tensor([[5, 6, 7, 8, 9]])
    arrived: list[object] = []

    def attach_now(*_: object) -> None:
        if not arrived:
            arrived.append(own.attach(plan))

    with torch.no_grad():
        own.attach(plan)
        own.model(input_ids=longer)
        own.detach()
        user = own.model.model.layers[0].register_forward_hook(attach_now)
        found = logits(own)
        user.remove()
        assert torch.equal(found, bare)
        assert not torch.equal(logits(own), bare)
    own.detach()


def test_two_models_in_one_process_do_not_steer_one_another():
    one, two = smallest("one"), smallest("two")
    site = Site(0, "resid_post")
    with torch.no_grad():
        bare = logits(two)
        moved = steered(one, [steer.Add(site, direction(one, 0))])
        with one.attached([steer.Add(site, direction(one, 0))]):
            assert torch.equal(logits(two), bare)
            assert torch.equal(logits(one), moved)
        both = run_at_once(
            calls_at_one_module(one, 0) + calls_at_one_module(two, 0), per_thread=52, per_task=13
        )
    assert both == []


def test_plans_on_two_models_nest_in_any_order():
    one, two = smallest("one"), smallest("two")
    site = Site(1, "resid_post")
    plan_one = [steer.Add(site, direction(one, 1))]
    plan_two = [steer.Add(site, direction(two, 2))]
    with torch.no_grad():
        want_one, want_two = steered(one, plan_one), steered(two, plan_two)
        bare_two = logits(two)
        with one.attached(plan_one):
            with two.attached(plan_two):
                assert torch.equal(logits(one), want_one)
                assert torch.equal(logits(two), want_two)
            assert torch.equal(logits(two), bare_two)
            assert torch.equal(logits(one), want_one)


def test_a_model_wrapped_twice_takes_a_plan_from_each_and_generates_under_both():
    one = smallest("twice")
    two = steer.wrap(one.model, one.tokenizer)
    first = [steer.Add(Site(0, "resid_post"), direction(one, 1))]
    second = [steer.Add(Site(1, "resid_post"), direction(one, 2))]
    both = [*first, *second]
    options = {"input_ids": X, "attention_mask": torch.ones_like(X), "do_sample": False}
    with torch.no_grad():
        expected, after_second = steered(one, both), steered(one, second)
        texts = torch.tensor(one.generate(IDS, both, max_new_tokens=4).tokens)
        with one.attached(first), two.attached(second):
            assert torch.equal(logits(one), expected)
            new = cast("Any", one.model).generate(**options, max_new_tokens=4)
            assert torch.equal(new[:, X.shape[1] :], texts)
        # Left in the other order than entered: what the first put there must go all the same.
        outer, inner = one.attached(first), two.attached(second)
        outer.__enter__()
        inner.__enter__()
        logits(one)
        outer.__exit__(None, None, None)
        assert torch.equal(logits(one), after_second)
        inner.__exit__(None, None, None)
    assert left(one) == []


def test_hooks_of_the_user_at_the_same_module_run_and_stay(own):
    site = Site(0, "resid_post")
    block = own.model.model.layers[0]
    plan = [steer.Add(site, direction(own, 0))]
    seen: dict[str, list[Tensor]] = {"before": [], "after": []}

    def recorder(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: seen[name].append(output)

    with torch.no_grad():
        bare, moved = logits(own), steered(own, plan)
        before = block.register_forward_hook(recorder("before"))
        with own.attached(plan):
            after = block.register_forward_hook(recorder("after"))
            assert torch.equal(logits(own), moved)
        assert [len(seen["before"]), len(seen["after"])] == [1, 1]
        # Registered earlier, a hook runs earlier: it sees the state before the edit.
        change = seen["after"][0] - seen["before"][0]
        assert torch.allclose(change, direction(own, 0).expand_as(change), atol=1e-5)
        assert list(block._forward_hooks) == [before.id, after.id]
        assert torch.equal(logits(own), bare)
        assert [len(seen["before"]), len(seen["after"])] == [2, 2]
    before.remove()
    after.remove()


def test_a_hook_of_the_user_that_edits_composes_with_a_plan(own):
    site = Site(0, "resid_post")
    block = own.model.model.layers[0]
    v = direction(own, 0)
    plan = [steer.Scale(site, 2.0)]
    with torch.no_grad():
        both = [steer.Add(site, v), *plan]
        expected = steered(own, both)
        user = block.register_forward_hook(lambda _module, _args, output: output + v)
        found = steered(own, plan)
        user.remove()
    # The user adds in the model's own arithmetic, Add as a delta: equal to one rounding.
    assert torch.allclose(found, expected, atol=1e-5)
