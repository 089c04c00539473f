"""Entering and leaving a plan: generators, tasks, stacks, interrupts, whole-model attachment."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator

import pytest
import torch
from torch import Tensor

import steer
from steer.sites import Site

SITE = Site(1, "resid_post")
X = torch.tensor([[5, 6, 7, 8]])


def an_add(lm: "steer.LM", seed: int = 0, scale: float = 1.0) -> "steer.Add":
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))
    return steer.Add(SITE, v, scale)


@torch.no_grad()
def logits(lm: "steer.LM") -> Tensor:
    return lm.model(input_ids=X).logits


def steered(lm: "steer.LM", plan: "steer.Plan") -> Tensor:
    with lm.attached(plan):
        return logits(lm)


def bare_and_steered(lm: "steer.LM") -> tuple[Tensor, Tensor]:
    bare, moved = logits(lm), steered(lm, [an_add(lm)])
    assert not torch.equal(bare, moved)
    return bare, moved


# -- generators --------------------------------------------------------------------------------


def test_a_generator_that_waits_inside_its_block_does_not_steer_its_consumer(lm):
    bare, _ = bare_and_steered(lm)

    def texts() -> Generator[int, None, None]:
        with lm.attached([an_add(lm)]):
            yield 1
            yield 2

    waiting = texts()
    next(waiting)
    with pytest.raises(steer.SteerError, match=r"generator .*texts is still attached.*lm\.stream"):
        logits(lm)
    waiting.close()
    assert lm.registry.live == 0
    assert torch.equal(logits(lm), bare)


def test_a_generator_may_run_passes_inside_its_own_block(lm):
    bare, moved = bare_and_steered(lm)

    def passes() -> Iterator[Tensor]:
        for _ in range(2):
            with lm.attached([an_add(lm)]):
                found = logits(lm)
            yield found

    for found in passes():
        assert torch.equal(found, moved)
        assert torch.equal(logits(lm), bare)


def test_a_generator_that_is_dropped_leaves_nothing_attached(lm):
    def texts() -> Generator[Tensor, None, None]:
        with lm.attached([an_add(lm)]):
            yield logits(lm)

    waiting = texts()
    next(waiting)
    del waiting
    assert lm.registry.live == 0


def test_a_context_manager_made_of_a_generator_is_told_to_return_the_block_instead(lm):
    @contextlib.contextmanager
    def steering() -> Iterator[None]:
        with lm.attached([an_add(lm)]):
            yield

    def block() -> None:
        with steering():
            logits(lm)

    with pytest.raises(steer.SteerError, match=r"return lm\.attached\(plan\) instead of yielding"):
        block()
    assert lm.registry.live == 0


def test_an_async_generator_that_waits_inside_its_block_does_not_steer_its_consumer(lm):
    async def texts() -> AsyncGenerator[int, None]:
        with lm.attached([an_add(lm)]):
            yield 1
            yield 2

    async def consume() -> None:
        async for _ in texts():
            logits(lm)

    with pytest.raises(steer.SteerError, match=r"generator .*texts is still attached"):
        asyncio.run(consume())
    assert lm.registry.live == 0


def test_an_async_generator_closed_from_another_task_is_detached(lm):
    bare, _ = bare_and_steered(lm)

    async def texts() -> AsyncGenerator[Tensor, None]:
        with lm.attached([an_add(lm)]):
            yield logits(lm)
            yield logits(lm)

    async def first(waiting: AsyncGenerator[Tensor, None]) -> None:
        await anext(waiting)

    async def consume() -> Tensor:
        waiting = texts()
        await asyncio.create_task(first(waiting))
        await asyncio.create_task(waiting.aclose())
        assert lm.registry.live == 0
        return logits(lm)

    assert torch.equal(asyncio.run(consume()), bare)


def test_an_async_generator_finished_by_another_task_is_an_error_and_not_a_leak(lm):
    bare, _ = bare_and_steered(lm)

    async def texts() -> AsyncGenerator[Tensor, None]:
        with lm.attached([an_add(lm)]):
            yield logits(lm)

    async def step(waiting: AsyncGenerator[Tensor, None]) -> Tensor | None:
        return await anext(waiting, None)

    async def consume() -> Tensor:
        waiting = texts()
        await asyncio.create_task(step(waiting))
        with pytest.raises(steer.SteerError, match=r"left in another context than it was entered"):
            await asyncio.create_task(step(waiting))
        assert lm.registry.live == 0
        return logits(lm)

    assert torch.equal(asyncio.run(consume()), bare)


# -- stacks, interrupts, errors ----------------------------------------------------------------


def test_an_exit_stack_attaches_and_detaches(lm):
    bare, moved = bare_and_steered(lm)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(lm.attached([an_add(lm)]))
        assert torch.equal(logits(lm), moved)
    assert run.receipt[0].edited.tolist() == [4]
    assert torch.equal(logits(lm), bare)


def test_plans_may_be_left_in_another_order_than_entered(lm):
    add, scale = an_add(lm), steer.Scale(SITE, 0.5)
    bare, only_scale = logits(lm), steered(lm, [scale])
    outer, inner = lm.attached([add]), lm.attached([scale])
    outer.__enter__()
    inner.__enter__()
    assert torch.equal(logits(lm), steered_in_order(lm, [add, scale]))
    outer.__exit__(None, None, None)
    assert torch.equal(logits(lm), only_scale)
    inner.__exit__(None, None, None)
    assert torch.equal(logits(lm), bare)


def steered_in_order(lm: "steer.LM", plan: "steer.Plan") -> Tensor:
    """Return what a plan gives in a context of its own, whatever is attached here."""
    import contextvars

    return contextvars.Context().run(steered, lm, plan)


def test_nested_plans_compose_outer_first(lm):
    add, scale = an_add(lm), steer.Scale(SITE, 0.5)
    expected = steered(lm, [add, scale])
    with lm.attached([add]), lm.attached([scale]):
        assert torch.equal(logits(lm), expected)
    assert not torch.equal(steered(lm, [scale, add]), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, GeneratorExit])
def test_whatever_is_raised_in_the_block_detaches_and_goes_on(lm, error):
    bare, _ = bare_and_steered(lm)

    def block() -> None:
        # No pass has run: an error of the user's own must not be replaced by NeverFired.
        with lm.attached([an_add(lm)]):
            raise error("stop")

    with pytest.raises(error, match="stop"):
        block()
    assert lm.registry.live == 0
    assert torch.equal(logits(lm), bare)


def test_an_interrupt_in_the_middle_of_a_pass_detaches(lm):
    bare, _ = bare_and_steered(lm)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    user = lm.model.get_submodule(lm.registry.layout.blocks + ".2").register_forward_hook(interrupt)

    def block() -> None:
        with lm.attached([an_add(lm)]):
            logits(lm)

    with pytest.raises(KeyboardInterrupt):
        block()
    user.remove()
    assert lm.registry.live == 0
    assert torch.equal(logits(lm), bare)


def test_the_same_run_cannot_be_entered_twice_at_once(lm):
    with lm.attached([an_add(lm)]) as run:
        logits(lm)
        with pytest.raises(steer.PlanError, match=r"attached already.*lm\.attached\(plan\)"):
            run.__enter__()
        assert torch.equal(logits(lm), steered_in_order(lm, [an_add(lm)]))
    assert lm.registry.live == 0


def test_a_run_says_whether_it_is_attached(lm):
    run = lm.attached([an_add(lm)])
    assert repr(run) == "Run(1 interventions, not attached)"
    with run:
        assert repr(run) == "Run(1 interventions, attached)"
        logits(lm)


# -- the whole model ---------------------------------------------------------------------------


def test_attach_holds_across_calls_until_detach_and_says_so(lm):
    bare, moved = bare_and_steered(lm)
    lm.attach([an_add(lm)])
    assert "ATTACHED everywhere" in repr(lm)
    assert "blocks.1.resid_post" in repr(lm)
    assert torch.equal(logits(lm), moved)
    assert torch.equal(logits(lm), moved)
    receipt = lm.detach()
    assert receipt[0].edited.tolist() == [8]
    assert "ATTACHED" not in repr(lm)
    assert torch.equal(logits(lm), bare)


def test_a_second_attach_and_a_detach_of_nothing_are_refused(lm):
    with pytest.raises(steer.PlanError, match=r"Nothing is attached.*lm\.attach"):
        lm.detach()
    lm.attach([an_add(lm)])
    with pytest.raises(steer.PlanError, match=r"attached already: .*Add.*lm\.detach\(\) first"):
        lm.attach([an_add(lm, 1)])
    logits(lm)
    lm.detach()
    assert lm.registry.live == 0


def test_an_attach_that_fails_attaches_nothing(lm):
    with pytest.raises(steer.SiteNotFound):
        lm.attach([an_add(lm), steer.Add(Site(99), torch.ones(lm.d_model))])
    assert "ATTACHED" not in repr(lm)
    assert lm.registry.live == 0
    lm.attach([an_add(lm)])
    logits(lm)
    lm.detach()


def test_detach_of_a_plan_that_never_fired_is_an_error_and_detaches(lm):
    lm.attach([an_add(lm)])
    with pytest.raises(steer.NeverFired, match=r"no forward pass of this model ran"):
        lm.detach()
    assert lm.registry.live == 0
    assert "ATTACHED" not in repr(lm)


def test_a_plan_for_the_whole_model_comes_before_those_of_this_context(lm):
    add, scale = an_add(lm), steer.Scale(SITE, 0.5)
    expected = steered(lm, [add, scale])
    lm.attach([add])
    assert torch.equal(steered(lm, [scale]), expected)
    lm.detach()


# -- streaming ---------------------------------------------------------------------------------


def test_a_stream_gives_the_text_of_generate_and_leaves_its_consumer_alone(lm):
    plan = [an_add(lm, scale=3.0)]
    bare = logits(lm)
    expected = lm.generate(["one two"], plan, max_new_tokens=6)
    pieces = []
    stream = lm.stream(["one two"], plan, max_new_tokens=6)
    for (piece,) in stream:
        assert torch.equal(logits(lm), bare)
        pieces.append(piece)
    assert "".join(pieces) == expected[0].rstrip("\N{REPLACEMENT CHARACTER}")
    assert stream.receipt is not None
    assert stream.receipt[0].edited.tolist() == expected.receipt[0].edited.tolist()
    assert lm.registry.live == 0


def test_a_stream_closed_early_stops_and_detaches(lm):
    with lm.stream(["one two"], [an_add(lm)], max_new_tokens=500) as stream:
        next(stream)
    assert lm.registry.live == 0
    # At most the pieces that were made before it stopped.
    assert len(list(stream)) < 499


def test_a_stream_that_nobody_reads_any_more_stops_by_itself(lm):
    stream = lm.stream(["one two"], [an_add(lm)], max_new_tokens=800)
    next(stream)
    worker, pieces = stream._worker, stream._queue
    del stream
    worker.join(60)
    assert not worker.is_alive()
    assert pieces.qsize() < 790  # it did not run to its end
    assert lm.registry.live == 0


def test_a_stream_hands_the_errors_of_its_passes_to_the_consumer(lm):
    stream = lm.stream(["one two"], [steer.Add(SITE, torch.ones(lm.d_model), scope=steer.at(40))])
    with pytest.raises(steer.SteerError, match=r"at\(40\)"):
        list(stream)
    assert lm.registry.live == 0


def test_a_stream_is_refused_before_it_starts_where_the_plan_does_not_fit(lm):
    with pytest.raises(steer.SiteNotFound, match="has 4 blocks"):
        lm.stream(["one"], [steer.Add(Site(9), torch.ones(lm.d_model))])
    assert lm.registry.live == 0


# -- gradient checkpointing --------------------------------------------------------------------


@pytest.fixture
def training(any_lm) -> "steer.LM":
    """Return a model of its own of each family, in training mode."""
    own = steer.load(any_lm.provenance.name)
    own.model.train()
    return own


def test_gradient_checkpointing_is_refused_at_attach(training):
    training.model.activation_checkpointing_enable()
    with pytest.raises(steer.UnsupportedModel, match=r"activation_checkpointing_disable\(\) first"):
        training.attached([an_add(training)]).__enter__()
    assert training.registry.live == 0


def test_gradient_checkpointing_turned_on_while_attached_is_refused_at_the_next_pass(training):
    def block(turn_on: Callable[[], None]) -> None:
        with training.attached([an_add(training)]):
            training.model(input_ids=X)
            turn_on()
            training.model(input_ids=X)

    with pytest.raises(steer.UnsupportedModel, match=r"recomputes blocks during backward"):
        block(training.model.activation_checkpointing_enable)
    assert training.registry.live == 0


def test_without_checkpointing_gradients_flow_through_an_edit(lm):
    # d/dx of f(x + v) is f'(x + v): the same edit as a hook of ten words, differentiated by torch.
    add = an_add(lm)
    block = lm.model.get_submodule(lm.registry.layout.blocks + ".1")
    embeds = lm.model.get_input_embeddings()(X).detach()

    def gradient() -> Tensor:
        x = embeds.clone().requires_grad_()
        lm.model(inputs_embeds=x).logits[0, -1].square().sum().backward()
        assert x.grad is not None
        return x.grad

    with lm.attached([add]):
        found = gradient()
    user = block.register_forward_hook(lambda _module, _args, output: output + add.direction)
    expected = gradient()
    user.remove()
    lm.model.zero_grad(set_to_none=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
