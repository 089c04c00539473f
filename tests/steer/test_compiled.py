"""The compiled path against the eager one: the oracle is `lm.generate`, `lm.logits`, `lm.attached`.

Sessions that stay open over several tests are on models of their own; the shared ones are read-only
and must carry no hook after a test.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import probes
import steer
from steer.check import same_bits
from steer.interventions.plans import items_of
from steer.models.layout import Scaled
from steer.models.tiny import tiny
from steer.sites import AnySite, ModuleSite, Site

FAMILIES = ("tiny-llama", "tiny-gpt2", "tiny-gemma3", "tiny-qwen2")
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17, 18, 19]]
EARLY, LATE = Site(1, "resid_post"), Site(2, "mlp_out")
SITES = [LATE, EARLY, Site(2, "resid_pre"), Site.embed(), Site(3, "attn_out"), Site.ln_final()]
TOLERANCE = 1e-4
"""On fp32 logits: another order of summation, and dead rows of a static cache."""


class Counting:
    """A backend that runs the captured graph as it is and counts how often it is asked to."""

    def __init__(self) -> None:
        self.n_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        self.n_graphs += 1
        return graph.forward


@dataclass(frozen=True, slots=True)
class Opened:
    """A model of its own with an open session."""

    lm: steer.LM
    fast: steer.Compiled
    backend: Counting
    n_new: int
    n_graphs: int
    """Once every shape has been seen."""


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    own, backend = steer.load(request.param), Counting()
    n_new = 14 if request.param == "tiny-gemma3" else 5  # its sliding cache of 16 must fill
    with steer.compiled(own, SITES, batch=4, tokens=32, slots=2, backend=backend) as fast:
        fast.generate(PROMPTS, max_new_tokens=n_new)
        fast.logits(PROMPTS)
        yield Opened(own, fast, backend, n_new, backend.n_graphs)


@pytest.fixture(scope="module")
def llama() -> Iterator[Opened]:
    own, backend = steer.load("tiny-llama"), Counting()
    with steer.compiled(own, [EARLY, LATE], batch=3, tokens=48, backend=backend) as fast:
        yield Opened(own, fast, backend, 6, 0)


def shallow() -> steer.LM:
    """Return a tiny Llama of two blocks: half as much to compile."""
    model, tokenizer = tiny("tiny-llama")
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    return steer.wrap(model, tokenizer)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plans(d: int) -> dict[str, steer.Plan]:
    """Return every kind that runs compiled, under every scope, in lists and in Rows."""
    v, plane = noise(d), noise(2, d)
    per_row = torch.tensor([1.5, 0.0, -2.0])
    return {
        "nothing": [],
        "add": [steer.Add(EARLY, v, 2.0)],
        "relative, in order": [
            steer.Add(EARLY, v, steer.Relative(0.5), scope=steer.OUTPUT),
            steer.Scale(EARLY, 0.5, scope=steer.PROMPT),
            steer.Ablate(LATE, plane),
        ],
        "one strength a row": [
            steer.Add(EARLY, v, per_row, scope=steer.at(-1) | steer.GENERATED),
            steer.Clamp(LATE, v, per_row * 3, scope=~steer.FIRST),
            steer.Rotate(Site(2, "resid_pre"), plane, per_row, 0.5, scope=steer.span(0, 2)),
            steer.Scale(Site(3, "attn_out"), per_row),
        ],
        "rows": steer.Rows(
            [
                [steer.Affine(EARLY, v * 0.1 + 1, v, 0.5), steer.Add(EARLY, v, -1.0)],
                [],
                [steer.Add(Site.embed(), v, 0.3, scope=steer.LAST), steer.Scale(LATE, 0.0)],
            ]
        ),
        "the last norm": [steer.Add(Site.ln_final(), v, 0.3, scope=steer.GENERATED)],
    }


def same_receipt(ours: steer.Receipt, eager: steer.Receipt) -> None:
    assert len(ours) == len(eager)
    for mine, theirs in zip(ours.lines, eager.lines, strict=True):
        assert (mine.intervention, mine.site) == (theirs.intervention, theirs.site)
        assert mine.seen.tolist() == theirs.seen.tolist()
        assert mine.eligible.tolist() == theirs.eligible.tolist()
        assert mine.edited.tolist() == theirs.edited.tolist()
        # Sums over 20 tokens whose states differ by 1e-6.
        assert torch.allclose(mine.relative_size, theirs.relative_size, rtol=1e-4, atol=1e-6)


def same_generations(ours: steer.Generations, eager: steer.Generations) -> None:
    assert ours.tokens == eager.tokens
    assert list(ours) == list(eager)
    assert ours.log_probs is not None
    assert eager.log_probs is not None
    for mine, theirs in zip(ours.log_probs, eager.log_probs, strict=True):
        assert torch.allclose(mine, theirs, atol=TOLERANCE)
    same_receipt(ours.receipt, eager.receipt)


@pytest.mark.parametrize("name", plans(4))
def test_a_plan_gives_what_the_eager_path_gives_without_compiling_again(
    opened: Opened, name: str
) -> None:
    lm, plan = opened.lm, plans(opened.lm.d_model)[name]
    ours = opened.fast.generate(PROMPTS, plan, max_new_tokens=opened.n_new)
    same_generations(ours, lm.generate(PROMPTS, plan, max_new_tokens=opened.n_new))
    if any(item.scope != steer.GENERATED for item, _ in items_of(plan)):
        found, eager = opened.fast.logits(PROMPTS, plan), lm.logits(PROMPTS, plan)
        assert torch.allclose(found, eager, atol=TOLERANCE)
        assert float((eager - lm.logits(PROMPTS)).abs().max()) > 100 * TOLERANCE
    assert opened.backend.n_graphs == opened.n_graphs


def test_nothing_is_compiled_again_when_strengths_vectors_or_scopes_change(opened: Opened) -> None:
    for strength in (0.0, -3.5):
        direction = strength * noise(opened.lm.d_model) + 1
        plan = [steer.Add(EARLY, direction, strength, scope=steer.at(1))]
        opened.fast.generate(PROMPTS[:2], plan, max_new_tokens=3)
        opened.fast.logits(PROMPTS, plan)
    assert opened.backend.n_graphs == opened.n_graphs


def test_logits_of_every_token_are_those_of_the_eager_path(llama: Opened) -> None:
    plan = [steer.Add(EARLY, noise(64), 2.0, scope=steer.OUTPUT), steer.Ablate(LATE, noise(64))]
    ours = llama.fast.logits(PROMPTS, plan, scope=steer.ALL)
    eager = llama.lm.logits(PROMPTS, plan, scope=steer.ALL)
    assert ours.shape == eager.shape
    assert torch.allclose(ours, eager, atol=TOLERANCE)


def test_decoding_is_one_graph_whatever_the_number_of_rows_and_the_length_of_prompts() -> None:
    own, backend = shallow(), Counting()
    with steer.compiled(own, [EARLY], batch=3, tokens=48, backend=backend) as fast:
        for prompts in ([[5]], PROMPTS, [[5, 6]] * 3, [[7] * 20]):
            plan = [steer.Add(EARLY, noise(64), 3.0)]
            ours = fast.generate(prompts, plan, max_new_tokens=6)
            same_generations(ours, own.generate(prompts, plan, max_new_tokens=6))
    assert backend.n_graphs == 1


def test_rows_that_end_early_are_counted_as_in_the_eager_path(llama: Opened) -> None:
    plan = [steer.Add(EARLY, noise(64), 2.0, scope=steer.OUTPUT)]
    free = llama.lm.generate(PROMPTS, plan, max_new_tokens=8)
    end = free.tokens[0][2]
    ours = llama.fast.generate(PROMPTS, plan, max_new_tokens=8, eos_token_id=end)
    eager = llama.lm.generate(PROMPTS, plan, max_new_tokens=8, eos_token_id=end)
    assert len(ours.tokens[0]) == 3
    assert ours.receipt.n_passes == eager.receipt.n_passes
    same_generations(ours, eager)


def test_a_generation_of_fewer_rows_than_the_batch_stops_with_its_own_rows(llama: Opened) -> None:
    # The rows that fill the batch repeat the first prompt unsteered, and would go on.
    plan = [steer.Add(EARLY, noise(64), 2.0)]
    plain = llama.lm.generate(PROMPTS[:1], max_new_tokens=8).tokens[0]
    end = llama.lm.generate(PROMPTS[:1], plan, max_new_tokens=2).tokens[0][1]
    assert end not in plain
    ours = llama.fast.generate(PROMPTS[:1], plan, max_new_tokens=8, eos_token_id=end)
    assert ours.receipt.n_passes == len(ours.tokens[0]) <= 2


def test_sampling_draws_as_the_eager_path_does_when_the_batch_is_full(llama: Opened) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "seed": 7, "temperature": 2.0}
    plan = [steer.Add(EARLY, noise(64), 2.0)]
    same_generations(
        llama.fast.generate(PROMPTS, plan, **asked), llama.lm.generate(PROMPTS, plan, **asked)
    )


def test_a_text_is_found_and_prompts_may_be_strings(llama: Opened) -> None:
    plan = [steer.Add(EARLY, noise(64), 5.0, scope=steer.text(" March"))]
    prompts = ["January February March", " March again"]
    same_generations(
        llama.fast.generate(prompts, plan, max_new_tokens=4),
        llama.lm.generate(prompts, plan, max_new_tokens=4),
    )


def test_strength_zero_and_rows_without_a_plan_keep_their_bits(llama: Opened) -> None:
    v = noise(64)
    plain = llama.fast.logits(PROMPTS, scope=steer.ALL)
    zero = [steer.Add(EARLY, v, 0.0), steer.Rotate(LATE, noise(2, 64), 1.0, 0.0)]
    assert same_bits(llama.fast.logits(PROMPTS, zero, scope=steer.ALL), plain)
    rows = steer.Rows([[], [steer.Add(EARLY, v)], []])
    steered = llama.fast.logits(PROMPTS, rows, scope=steer.ALL)
    assert same_bits(steered[[0, 2]], plain[[0, 2]])
    assert not torch.equal(steered[1], plain[1])


def test_passes_of_the_users_own_are_steered_by_what_is_attached(llama: Opened) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    plan = [steer.Add(EARLY, noise(64), 2.0, scope=steer.at(0)), steer.Ablate(LATE, noise(64))]
    with torch.no_grad():
        bare = llama.lm.model(input_ids=ids, attention_mask=mask).logits
        with llama.lm.attached(plan) as eager:
            wanted = llama.lm.model(input_ids=ids, attention_mask=mask).logits
    with llama.fast.attached(plan) as run:
        found = llama.fast.model(input_ids=ids, attention_mask=mask).logits
        same_receipt(run.receipt, eager.receipt)
        # The model itself is not steered: only the session's own passes are.
        assert same_bits(llama.lm.model(input_ids=ids, attention_mask=mask).logits, bare)
    same_receipt(run.receipt, eager.receipt)
    assert torch.allclose(found, wanted, atol=TOLERANCE)
    assert torch.allclose(
        llama.fast.model(input_ids=ids, attention_mask=mask).logits, bare, atol=TOLERANCE
    )


def test_a_declared_prompt_tells_what_is_generated(llama: Opened) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    plan = [steer.Add(EARLY, noise(64), 2.0, scope=steer.GENERATED)]
    with llama.fast.attached(plan) as run:
        with pytest.raises(steer.PlanError, match=r"positive number of tokens.*not \[3, 0\]"):
            run.prompt([3, 0])
        run.prompt([3, 2])
        llama.fast.model(input_ids=ids)
    assert run.receipt[0].edited.tolist() == [1, 2]


def test_eager_work_goes_on_beside_an_open_session(llama: Opened) -> None:
    plan = [steer.Add(EARLY, noise(64), 2.0), steer.Scale(Site(0, "q", 1), 0.0)]
    alone = steer.load("tiny-llama")
    beside = llama.lm.generate(PROMPTS, plan, max_new_tokens=6)
    assert beside.tokens == alone.generate(PROMPTS, plan, max_new_tokens=6).tokens


def test_a_second_session_has_graphs_of_its_own() -> None:
    own = shallow()
    plan = [steer.Add(EARLY, noise(64), 2.0)]
    eager = own.generate(PROMPTS, plan, max_new_tokens=4)
    for _ in range(2):
        with steer.compiled(own, [EARLY], batch=3, tokens=16, backend="eager") as fast:
            same_generations(fast.generate(PROMPTS, plan, max_new_tokens=4), eager)


def test_a_model_that_the_user_compiled_before_stays_as_it_is() -> None:
    own, ids = shallow(), torch.tensor([[5, 6, 7, 8]])
    plan = [steer.Add(EARLY, noise(64), 2.0)]
    theirs = torch.compile(own.model, backend="eager")
    with torch.no_grad():
        before = theirs(input_ids=ids, use_cache=False).logits
        with steer.compiled(own, [EARLY], batch=1, tokens=16, backend="eager") as fast:
            steered = fast.logits(ids.tolist(), plan, scope=steer.ALL)
            assert torch.equal(theirs(input_ids=ids, use_cache=False).logits, before)
        assert torch.equal(theirs(input_ids=ids, use_cache=False).logits, before)
        assert torch.allclose(
            steered, own.logits(ids.tolist(), plan, scope=steer.ALL), atol=TOLERANCE
        )


def test_a_configured_cache_gives_way_to_the_sessions_own() -> None:
    own = shallow()
    eager = own.generate(PROMPTS, max_new_tokens=4).tokens
    own.model.generation_config.cache_implementation = "static"
    with steer.compiled(own, [EARLY], batch=3, tokens=16, backend="eager") as fast:
        assert fast.generate(PROMPTS, max_new_tokens=4).tokens == eager
    assert own.model.generation_config.cache_implementation == "static"


# -- the untouched model ---------------------------------------------------------------------------


def traces(model: nn.Module) -> list[tuple[str, set[str], int, type]]:
    """Return what a session could leave: attributes and hooks of each module, and its class."""
    return [
        (path, set(vars(m)), len(m._forward_hooks) + len(m._forward_pre_hooks), type(m))
        for path, m in model.named_modules()
    ]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_untouched_after_the_block(error: type[BaseException] | None) -> None:
    own, ids = shallow(), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before, found = own.model(input_ids=ids).logits, traces(own.model)

        def work() -> None:
            with steer.compiled(own, [EARLY], batch=1, tokens=16, backend="eager") as fast:
                plan = [steer.Add(EARLY, noise(64), 3.0)]
                fast.generate(ids.tolist(), plan, max_new_tokens=2)
                with fast.attached(plan):
                    fast.model(input_ids=ids)
                    if error is not None:
                        raise error("stop")

        if error is None:
            work()
        else:
            with pytest.raises(error, match="stop"):
                work()
        assert same_bits(own.model(input_ids=ids).logits, before)
    assert traces(own.model) == found


def test_a_failed_entry_leaves_nothing_and_frees_the_model(
    lm: steer.LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = traces(lm.model)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", broken)
        with (
            pytest.raises(RuntimeError, match="no compiler"),
            steer.compiled(lm, [EARLY, LATE]),
        ):
            pass
    assert traces(lm.model) == before
    with steer.compiled(lm, [EARLY]):
        assert traces(lm.model) != before
    assert traces(lm.model) == before


# -- one session, one plan at a time ---------------------------------------------------------------


def in_thread(fn: Callable[[], object]) -> BaseException | None:
    """Run fn in another thread and return what it raised."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            fn()
        except BaseException as error:
            raised.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    return raised[0] if raised else None


def test_a_second_session_is_told_who_holds_the_model(lm: steer.LM) -> None:
    def second() -> None:
        with steer.compiled(steer.wrap(lm.model, lm.tokenizer), [LATE]):
            pass

    with steer.compiled(lm, [EARLY]):
        with pytest.raises(steer.PlanError, match=r"held by thread 'MainThread' for blocks\.1\."):
            second()
        error = in_thread(second)
        assert isinstance(error, steer.PlanError)
        assert "Leave that session first" in str(error)
    second()
    assert in_thread(second) is None


def test_a_session_serves_one_plan_at_a_time(llama: Opened) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with llama.fast.attached([]):
        with pytest.raises(steer.PlanError, match="is serving another call"):
            llama.fast.generate(PROMPTS, max_new_tokens=2)
        error = in_thread(lambda: llama.fast.model(input_ids=ids))
        assert isinstance(error, steer.PlanError)
        assert "is serving another call" in str(error)
    assert in_thread(lambda: llama.fast.generate(PROMPTS, max_new_tokens=2)) is None


def test_eager_plans_and_a_session_do_not_mix(lm: steer.LM) -> None:
    plan = [steer.Add(EARLY, noise(64))]
    with lm.attached(plan):
        lm.model(input_ids=torch.tensor([[5, 6]]))
        with (
            pytest.raises(steer.PlanError, match="A plan is attached to this model"),
            steer.compiled(lm, [EARLY]),
        ):
            pass
    with steer.compiled(lm, [EARLY]) as fast, lm.attached(plan):
        with pytest.raises(steer.PlanError, match="Detach it first"):
            fast.generate(PROMPTS, plan)
        lm.model(input_ids=torch.tensor([[5, 6]]))
    other = steer.wrap(lm.model, lm.tokenizer)
    with steer.compiled(lm, [EARLY]) as fast, other.attached(plan):
        with pytest.raises(steer.PlanError, match="Detach it first"):
            fast.logits(PROMPTS, plan)
        other.model(input_ids=torch.tensor([[5, 6]]))


def test_a_session_works_inside_its_block_only(lm: steer.LM) -> None:
    fast = steer.compiled(lm, [EARLY], backend="eager")
    assert "not open" in repr(fast)
    with pytest.raises(steer.PlanError, match="is not open"):
        fast.generate(PROMPTS)
    with fast:
        assert "blocks.1.resid_post" in repr(fast)
    for call in (
        lambda: fast.logits(PROMPTS),
        lambda: fast.model(input_ids=torch.tensor([[5]])),
        lambda: fast.attached([]).__enter__(),
    ):
        with pytest.raises(steer.PlanError, match="Work inside `with steer"):
            call()


# -- what is refused -------------------------------------------------------------------------------


def test_a_plan_that_never_fired_raises(llama: Opened) -> None:
    silent = [steer.Add(EARLY, noise(64), scope=steer.GENERATED)]
    with pytest.raises(steer.NeverFired, match="none of the 15 tokens seen was in its scope"):
        llama.fast.generate(PROMPTS, silent, max_new_tokens=1)
    with (
        pytest.raises(steer.NeverFired, match="no pass ran through the compiled session"),
        llama.fast.attached(silent),
    ):
        pass
    with pytest.raises(RuntimeError, match="mine"), llama.fast.attached(silent):
        raise RuntimeError("mine")


V, W = noise(64), noise(2, 64)
READ = steer.Read(EARLY, probes.LinearProbe(V / V.norm(), torch.zeros(())))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (steer.Patch(EARLY, V), r"Patch\(.*cannot run compiled.*Add, Ablate, Clamp"),
        (steer.Custom(EARLY, lambda h, _: h), "cannot run compiled.*lm.generate"),
        (steer.Monitor(READ), "cannot run compiled"),
        (steer.When(READ, steer.Add(EARLY, V)), "cannot run compiled"),
        (steer.PreserveNorm(steer.Add(EARLY, V)), "PreserveNorm.*cannot run compiled"),
        (steer.Ablate(EARLY, noise(3, 64)), r"3 directions in Ablate.*rank=3"),
        (steer.Add(Site(0, "resid_post"), V), "opened for blocks.1.resid_post, blocks.2.mlp_out"),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, str) else "",
)
def test_what_does_not_fit_into_buffers_is_refused(
    llama: Opened, item: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(steer.PlanError, match=message):
        llama.fast.generate(PROMPTS, [item], max_new_tokens=2)
    # The session goes on.
    assert len(llama.fast.generate(PROMPTS[:1], max_new_tokens=2).tokens[0]) == 2


def test_what_does_not_fit_the_model_or_the_batch_is_refused(llama: Opened) -> None:
    fast = llama.fast
    with pytest.raises(
        steer.WidthMismatch, match=r"has 48 entries but blocks\.1\.resid_post is 64"
    ):
        fast.generate(PROMPTS, [steer.Add(EARLY, noise(48))])
    twice = [steer.Add(EARLY, V), steer.Scale(EARLY, 2.0)]
    with pytest.raises(steer.PlanError, match=r"2 edits at blocks.1.resid_post.*slots=2"):
        fast.logits(PROMPTS, twice)
    with pytest.raises(steer.PlanError, match=r"4 rows were asked for.*batch=4"):
        fast.logits([*PROMPTS, [5]])
    with pytest.raises(steer.PlanError, match=r"4 rows were asked for.*batch=4"):
        fast.generate([*PROMPTS, [5]])
    with pytest.raises(steer.PlanError, match=r"4 rows were asked for.*batch=4"):
        fast.generate(PROMPTS, steer.Rows([[], [], [], [steer.Add(EARLY, V)]]))
    with pytest.raises(steer.PlanError, match=r"57 tokens were asked for.*tokens=57"):
        fast.generate(PROMPTS, max_new_tokens=50)
    with pytest.raises(steer.PlanError, match=r"49 tokens were asked for.*tokens=49"):
        fast.logits([[5] * 49])
    with pytest.raises(steer.PlanError, match="for each of 2 rows, but the batch has 3"):
        fast.logits(PROMPTS, [steer.Add(EARLY, V, torch.ones(2))])
    with pytest.raises(steer.PlanError, match="Rows has one entry for each of 2 rows"):
        fast.generate(PROMPTS, steer.Rows([[], [steer.Add(EARLY, V)]]))
    with pytest.raises(steer.ScopeError, match="Row 1 has 3 tokens"):
        fast.logits(PROMPTS, [steer.Add(EARLY, V, scope=steer.at(3))])
    wide = torch.full((1, 49), 5)
    with pytest.raises(steer.PlanError, match=r"49 tokens.*tokens=49"):
        fast.model(input_ids=wide)
    with pytest.raises(steer.PlanError, match=r"4 rows.*batch=4"):
        fast.model(input_ids=wide[:, :4].repeat(4, 1))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_beams": 2}, "num_beams=2, which makes several rows"),
        ({"num_return_sequences": 3, "do_sample": True}, "num_return_sequences=3"),
        ({"cache_implementation": "dynamic"}, "given cache_implementation.*its own static cache"),
        ({"use_cache": False}, "given use_cache"),
        ({"max_new_token": 3}, "has no argument 'max_new_token'. Did you mean max_new_tokens"),
        ({"prompt_lookup_num_tokens": 3}, r"generate\(prompt_lookup_num_tokens=...\)"),
    ],
)
def test_options_that_need_other_rows_or_caches_are_refused(
    llama: Opened, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(steer.PlanError, match=message):
        llama.fast.generate(PROMPTS, **option)


@pytest.mark.parametrize(
    ("site", "error", "message"),
    [
        (Site(9, "resid_post"), steer.SiteNotFound, "it has 4 blocks"),
        (Site(1, "q"), steer.PlanError, r"blocks.1.q cannot be steered compiled.*lm.attached"),
        (Site(1, "z", 2), steer.PlanError, r"blocks.1.z\[2\] cannot be steered compiled"),
        (Site(1, "pattern"), steer.PlanError, "cannot be steered compiled"),
        (Site.logits(), steer.PlanError, "logits cannot be steered compiled"),
        (ModuleSite("model.norm"), steer.PlanError, "module:model.norm:output cannot be steered"),
        (Site(1, "resid_mid"), steer.PlanError, "blocks.1.resid_mid cannot be steered compiled"),
    ],
    ids=str,
)
def test_sites_without_a_dispatcher_are_refused_before_anything_is_registered(
    lm: steer.LM, site: AnySite, error: type[Exception], message: str
) -> None:
    before = traces(lm.model)
    with pytest.raises(error, match=message), steer.compiled(lm, [EARLY, site]):
        pass
    assert traces(lm.model) == before


def test_a_site_that_no_module_has_as_its_whole_tensor_is_refused(
    lm: steer.LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = lm.registry.layout
    taps = {**layout.taps, "mlp_out": replace(layout.taps["mlp_out"], view=Scaled(2.0))}
    monkeypatch.setattr(lm.registry, "layout", replace(layout, taps=taps))
    with pytest.raises(steer.PlanError, match="no module has it as its whole tensor"):
        steer.compiled(lm, [LATE])


@pytest.mark.parametrize("name", ["batch", "tokens", "slots", "rank"])
def test_a_size_below_one_is_refused(lm: steer.LM, name: str) -> None:
    sizes: dict[str, Any] = {name: 0}
    with pytest.raises(steer.PlanError, match=f"{name}=0 leaves no room"):
        steer.compiled(lm, [EARLY], **sizes)


def test_a_model_compiled_in_place_is_refused() -> None:
    own = steer.load("tiny-llama")
    own.model.compile(backend="eager")
    with pytest.raises(steer.UnsupportedModel, match="was compiled in place"):
        steer.compiled(own, [EARLY])


def test_a_model_that_breaks_the_graph_is_refused_by_name() -> None:
    own = steer.load("tiny-llama")
    forward = own.model.forward

    def broken(**inputs: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(**inputs)

    vars(own.model)["forward"] = broken
    with (
        steer.compiled(own, [EARLY], batch=1, backend="eager") as fast,
        pytest.raises(steer.UnsupportedModel, match="tiny-llama cannot be compiled as one graph"),
    ):
        fast.model(input_ids=torch.tensor([[5, 6]]))


# -- other compilers -------------------------------------------------------------------------------


def equal_on(own: steer.LM, tolerance: float, **how: Any) -> None:
    plan = [steer.Add(EARLY, noise(64), 2.0, scope=steer.OUTPUT)]
    own_plan: steer.Plan = steer.Rows([plan, [], [steer.Ablate(EARLY, noise(2, 64))]])
    with steer.compiled(own, [EARLY], batch=3, tokens=32, **how) as fast:
        for given in ([], plan, own_plan, plan):
            ours = fast.generate(PROMPTS, given, max_new_tokens=8)
            eager = own.generate(PROMPTS, given, max_new_tokens=8)
            assert ours.tokens == eager.tokens
            assert [line.edited.tolist() for line in ours.receipt.lines] == [
                line.edited.tolist() for line in eager.receipt.lines
            ]
            difference = fast.logits(PROMPTS, given) - own.logits(PROMPTS, given)
            assert float(difference.abs().max()) < tolerance


INDUCTOR = pytest.mark.filterwarnings(
    # Of torch's own modules, which are imported when something is compiled.
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore:.*TensorFloat32:UserWarning",
)


@pytest.mark.slow
@INDUCTOR
def test_inductor_gives_what_the_eager_path_gives() -> None:
    equal_on(steer.load("tiny-llama"), TOLERANCE)


@pytest.mark.gpu
@INDUCTOR
def test_cuda_graphs_give_what_the_eager_path_gives() -> None:
    # Other kernels than the eager ones, and sums in another order.
    equal_on(steer.load("tiny-llama", device="cuda"), 1e-3, mode="reduce-overhead")


@pytest.mark.gpu
@INDUCTOR
def test_cuda_graphs_are_recorded_and_not_skipped() -> None:
    own, counted = steer.load("tiny-llama", device="cuda"), torch._dynamo.utils.counters
    counted.clear()
    plan = [steer.Add(EARLY, noise(64), 2.0)]
    with steer.compiled(own, [EARLY], batch=3, tokens=64, mode="reduce-overhead") as fast:
        for _ in range(3):
            fast.generate(PROMPTS, plan, max_new_tokens=16)
    assert counted["inductor"]["cudagraph_skips"] == 0
    assert counted["inductor"]["cudagraph_recorded_non_static_inputs"] > 0
