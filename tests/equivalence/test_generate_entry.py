"""Every way into generate: the model's own, streamers, pipelines, embeddings, given caches.

The oracle is the dense loop of conftest.py; for prompts padded on the right, where HuggingFace
takes the first token's logits from a padding column, it is a loop over the padded rows with a mask.
"""

import contextvars
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    StaticCache,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)
from transformers.cache_utils import StaticLayer

import steer
from steer import LM
from steer.passes import cache_of_generate

N_NEW, LAYER = 5, 1
PROMPTS = [
    "the cat in March was red and blue",
    " two days of May",
    " she is not one of the red cat",
]
SITE = steer.Site(LAYER, "resid_post")
CLOSE = 1e-4
"""Absolute, in logits of size 2 to 10: fp32 sums in another order."""


def direction(lm: LM) -> Tensor:
    """Return a direction of about the size of the stream."""
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(3))


def plan_of(lm: LM, scope: steer.Scope = steer.OUTPUT) -> list[steer.Add]:
    """Return one add."""
    return [steer.Add(SITE, direction(lm), 1.5, scope)]


def written(lm: LM, dense: Any) -> list[list[int]]:
    """Return the tokens of the oracle for OUTPUT."""
    v = direction(lm)

    def edit(h: Tensor, n: int) -> Tensor:
        h[n - 1 :] += 1.5 * v
        return h

    edits = [(LAYER, edit)]
    return [dense.greedy(lm.model, row, edits, N_NEW).tokens for row in lm.rows(PROMPTS)]


def encoded(lm: LM, side: str = "left") -> Any:
    """Return the prompts as one batch."""
    return lm.tokenizer(PROMPTS, padding=True, padding_side=side, return_tensors="pt")


def generate(lm: LM, **options: Any) -> list[list[int]]:
    """Return all tokens of the model's own greedy generate."""
    out = lm.model.generate(do_sample=False, **{"max_new_tokens": N_NEW, **options})  # type: ignore[operator]
    return out.tolist()


# -- the model's own generate ----------------------------------------------------------------------


def test_an_encoding_of_the_tokenizer_goes_through_either_door(any_lm: LM, dense: Any) -> None:
    expected = written(any_lm, dense)
    assert (
        any_lm.generate(encoded(any_lm), plan_of(any_lm), max_new_tokens=N_NEW).tokens == expected
    )
    right = encoded(any_lm, "right")
    assert any_lm.generate(right, plan_of(any_lm), max_new_tokens=N_NEW).tokens == expected
    with any_lm.attached(plan_of(any_lm)):
        found = generate(any_lm, **encoded(any_lm))
    assert [row[-N_NEW:] for row in found] == expected


def test_a_batch_without_a_mask_is_masked_as_generate_masks_it(lm: LM, dense: Any) -> None:
    with lm.attached(plan_of(lm)) as run:
        found = generate(lm, inputs=encoded(lm)["input_ids"])
    assert [row[-N_NEW:] for row in found] == written(lm, dense)
    assert run.receipt[0].seen.tolist() == [len(row) + N_NEW - 1 for row in lm.rows(PROMPTS)]


def test_two_calls_inside_one_block_start_anew(lm: LM, dense: Any) -> None:
    one, other = lm.rows(PROMPTS)[:2]
    with lm.attached(plan_of(lm)) as run:
        first = generate(lm, input_ids=torch.tensor([one]))
        second = generate(lm, input_ids=torch.tensor([other]))
        batch = generate(lm, **encoded(lm))
    expected = written(lm, dense)
    assert [first[0][-N_NEW:], second[0][-N_NEW:]] == expected[:2]
    assert [row[-N_NEW:] for row in batch] == expected
    assert run.receipt[0].eligible.tolist() == [3 * N_NEW, N_NEW, N_NEW]


def test_a_gate_is_decided_anew_in_each_call(lm: LM, dense: Any) -> None:
    rows = lm.rows(PROMPTS)[:2]
    low, high = sorted(
        (float(dense.state(lm.model, row, LAYER)[-1] @ direction(lm)), at)
        for at, row in enumerate(rows)
    )
    read = steer.Read(SITE, Dot(lm))
    plan = [steer.When(read, plan_of(lm)[0], above=(low[0] + high[0]) / 2)]
    with lm.attached(plan):
        found = [
            generate(lm, input_ids=torch.tensor([rows[at]]))[0][-N_NEW:]
            for at in (high[1], low[1], high[1])
        ]
    steered = written(lm, dense)[high[1]]
    plain = dense.greedy(lm.model, rows[low[1]], [], N_NEW).tokens
    assert found == [steered, plain, steered]


def test_nested_plans_compose_around_generate_and_stream(lm: LM, dense: Any) -> None:
    v = direction(lm)

    def edit(h: Tensor, n: int) -> Tensor:
        h[n - 1 :] = 2.0 * (h[n - 1 :] + 1.5 * v)
        return h

    expected = [
        dense.greedy(lm.model, row, [(LAYER, edit)], N_NEW).tokens for row in lm.rows(PROMPTS)
    ]
    inner = [steer.Scale(SITE, 2.0, scope=steer.OUTPUT)]
    with lm.attached(plan_of(lm)):
        assert lm.generate(PROMPTS, inner, max_new_tokens=N_NEW).tokens == expected
    with lm.attached(plan_of(lm)):
        pieces = list(lm.stream(PROMPTS, inner, max_new_tokens=N_NEW))
    assert ["".join(row) for row in zip(*pieces, strict=True)] == [
        lm.tokenizer.decode(row) for row in expected
    ]


def padded_right(lm: LM, dense: Any, n_new: int) -> Tensor:
    """Return logits [step, row, vocab] of a loop over right-padded rows, all columns every time."""
    batch, v = encoded(lm, "right"), direction(lm)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    lengths, width = mask.sum(1), ids.shape[1]
    # What generate tells the model: positions follow the mask, padding is 0, and each new token is
    # one more than the last column, padding or not. Its rotary angles are then not ours to mend.
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    found = []
    for _ in range(n_new):

        def hook(_module: Any, _args: Any, out: Any) -> Any:
            h = (out if isinstance(out, Tensor) else out[0]).clone()
            for row, n in enumerate(lengths.tolist()):
                h[row, n - 1] += 1.5 * v
                h[row, width:] += 1.5 * v
            return h if isinstance(out, Tensor) else (h, *out[1:])

        handle = dense.blocks(lm.model)[LAYER].register_forward_hook(hook)
        with torch.no_grad():
            logits = lm.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits[:, -1]
        handle.remove()
        found.append(logits)
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
    return torch.stack(found)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}],
    ids=["cache", "no-cache", "static-cache", "chunked"],
)
def test_prompts_padded_on_the_right_keep_their_positions(
    any_lm: LM, dense: Any, options: dict[str, Any]
) -> None:
    with any_lm.attached(plan_of(any_lm)) as run:
        out = any_lm.model.generate(  # type: ignore[operator]
            **encoded(any_lm, "right"),
            **options,
            max_new_tokens=N_NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    expected = padded_right(any_lm, dense, N_NEW)
    assert (torch.stack(out.logits) - expected).abs().max() < CLOSE
    # The last prompt token and the generated tokens that were fed; padding is never edited.
    assert run.receipt[0].edited.tolist() == [N_NEW] * 3


# -- streaming -------------------------------------------------------------------------------------


def test_the_pieces_of_a_stream_are_the_text_of_generate(any_lm: LM, dense: Any) -> None:
    expected = written(any_lm, dense)
    stream = any_lm.stream(PROMPTS, plan_of(any_lm), max_new_tokens=N_NEW)
    pieces = list(stream)
    texts = ["".join(row) for row in zip(*pieces, strict=True)]
    assert texts == [any_lm.tokenizer.decode(row) for row in expected]
    assert stream.receipt is not None
    assert stream.receipt[0].eligible.tolist() == [N_NEW] * 3


def test_a_text_streamer_prints_the_steered_text(
    lm: LM, dense: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with lm.attached(plan_of(lm)):
        ids = torch.tensor(lm.rows(PROMPTS[:1]))
        generate(lm, input_ids=ids, streamer=TextStreamer(lm.tokenizer, skip_prompt=True))  # type: ignore[arg-type]
    expected = str(lm.tokenizer.decode(written(lm, dense)[0]))
    assert capsys.readouterr().out.strip() == expected.strip()


@pytest.mark.parametrize("how", ["bind", "bind-a-function", "context"])
def test_an_iterator_streamer_in_a_bound_thread_is_steered(lm: LM, dense: Any, how: str) -> None:
    streamer = TextIteratorStreamer(lm.tokenizer, skip_prompt=True, timeout=30)  # type: ignore[arg-type]
    options = {"input_ids": torch.tensor(lm.rows(PROMPTS[:1])), "streamer": streamer}
    with lm.attached(plan_of(lm)) as run:
        model: Any = lm.model
        context = contextvars.copy_context()
        target = {
            "bind": run.bind(model.generate),
            "bind-a-function": run.bind(lambda **kw: model.generate(**kw)),
            "context": lambda **kw: context.run(model.generate, **kw),
        }[how]
        thread = threading.Thread(
            target=target, kwargs={**options, "max_new_tokens": N_NEW, "do_sample": False}
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text == lm.tokenizer.decode(written(lm, dense)[0])


def test_a_bare_thread_is_not_steered_and_says_so(lm: LM) -> None:
    options = {"input_ids": torch.tensor(lm.rows(PROMPTS[:1])), "max_new_tokens": N_NEW}
    found: list[list[int]] = []

    def in_a_bare_thread() -> None:
        with lm.attached(plan_of(lm)):
            thread = threading.Thread(target=lambda: found.extend(generate(lm, **options)))
            thread.start()
            thread.join()

    with pytest.raises(steer.NeverFired, match=r"run\.bind"):
        in_a_bare_thread()
    assert found == generate(lm, **options)


# -- pipelines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_text_generation_pipeline_is_steered(any_lm: LM, dense: Any, batch_size: int) -> None:
    with any_lm.attached(plan_of(any_lm)) as run:
        tokenizer: Any = any_lm.tokenizer
        generator = pipeline("text-generation", model=any_lm.model, tokenizer=tokenizer)
        made = generator(
            PROMPTS,
            batch_size=batch_size,
            max_new_tokens=N_NEW,
            do_sample=False,
            return_full_text=False,
        )
    texts = [answers[0]["generated_text"] for answers in made]
    assert texts == [any_lm.tokenizer.decode(row) for row in written(any_lm, dense)]
    assert int(run.receipt[0].eligible.sum()) == 3 * N_NEW


# -- embeddings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 1}])
def test_prompts_given_as_embeddings_are_steered(
    any_lm: LM, dense: Any, options: dict[str, Any]
) -> None:
    batch = encoded(any_lm)
    embeds = any_lm.model.get_input_embeddings()(batch["input_ids"]).detach()
    inputs = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    with any_lm.attached(plan_of(any_lm)) as run:
        found = generate(any_lm, **inputs, **options)
    assert found == written(any_lm, dense)
    assert run.receipt[0].eligible.tolist() == [N_NEW] * 3


def test_a_text_scope_needs_token_ids_and_says_so(lm: LM) -> None:
    embeds = lm.model.get_input_embeddings()(encoded(lm)["input_ids"]).detach()
    plan = plan_of(lm, steer.text("the"))
    with pytest.raises(steer.ScopeError, match="only embeddings"), lm.attached(plan):
        generate(lm, inputs_embeds=embeds)


# -- caches that were filled before ----------------------------------------------------------------


def continued(lm: LM, kind: str, keep: int) -> Any:
    """Return a cache that holds the first columns of the first prompt, unsteered."""
    ids = torch.tensor(lm.rows(PROMPTS[:1]))
    if kind == "static":
        cache: Any = StaticCache(lm.model.config, max_cache_len=64)
    else:
        cache = DynamicCache(config=lm.model.config)
    with torch.no_grad():
        lm.model(input_ids=ids[:, :keep], use_cache=True, **{cache_of_generate(lm.model): cache})
    return cache


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("given", ["everything", "the rest"])
def test_a_continuation_counts_from_the_start_of_the_text(
    any_lm: LM, dense: Any, kind: str, given: str
) -> None:
    ids, keep = torch.tensor(any_lm.rows(PROMPTS[:1])), 4
    inputs = {
        "input_ids": ids if given == "everything" else ids[:, keep:],
        "attention_mask": torch.ones_like(ids),
        cache_of_generate(any_lm.model): continued(any_lm, kind, keep),
    }
    with any_lm.attached(plan_of(any_lm)) as run:
        found = generate(any_lm, **inputs)
    assert found[0][-N_NEW:] == written(any_lm, dense)[0]
    assert run.receipt[0].eligible.tolist() == [N_NEW]
    assert run.receipt[0].seen.tolist() == [ids.shape[1] - keep + N_NEW - 1]


def test_a_scope_that_the_given_cache_holds_never_fires(lm: LM) -> None:
    ids = torch.tensor(lm.rows(PROMPTS[:1]))
    cache = continued(lm, "dynamic", 4)
    with (
        pytest.raises(steer.NeverFired, match=r"none of the \d+ tokens seen was in its scope"),
        lm.attached(plan_of(lm, steer.at(2))),
    ):
        generate(lm, input_ids=ids, **{cache_of_generate(lm.model): cache})


@pytest.mark.parametrize(
    ("scope", "reduce", "refused"),
    [
        (steer.PROMPT, "mean", True),
        (steer.PROMPT, "max", True),
        (steer.at(1), "last", True),
        (steer.PROMPT, "last", False),
        (steer.GENERATED, "mean", False),
    ],
)
def test_a_reading_of_tokens_that_a_given_cache_holds_is_refused(
    lm: LM, scope: steer.Scope, reduce: Any, refused: bool
) -> None:
    ids = torch.tensor(lm.rows(PROMPTS[:1]))
    read = steer.Read(SITE, Dot(lm), scope=scope, reduce=reduce)
    inputs = {"input_ids": ids, cache_of_generate(lm.model): continued(lm, "dynamic", 4)}
    if not refused:
        with lm.attached([steer.Monitor(read)]):
            generate(lm, **inputs)
        return
    with (
        pytest.raises(steer.PlanError, match="the first 4 columns, which the cache given"),
        lm.attached([steer.Monitor(read)]),
    ):
        generate(lm, **inputs)


class DeviceCount(Tensor):
    """A count that steer must not turn into a number: on a GPU, that waits for the device."""

    # What is computed from it is a plain tensor again.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def _refuse(self) -> None:
        frame = sys._getframe(2)
        assert not frame.f_globals["__name__"].startswith("steer."), frame.f_code.co_qualname

    def __int__(self) -> int:
        self._refuse()
        return super().__int__()

    def __bool__(self) -> bool:
        self._refuse()
        return super().__bool__()

    def __index__(self) -> int:
        self._refuse()
        return super().__index__()

    def item(self) -> Any:
        self._refuse()
        return super().item()

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        self._refuse()
        return super().cpu(*args, **kwargs)


def test_the_count_of_a_static_cache_is_never_waited_for(
    lm: LM, dense: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = StaticLayer.get_seq_length, []

    def guarded(self: StaticLayer) -> Any:
        count = original(self)
        if isinstance(count, Tensor):
            asked.append(count)
            return count.as_subclass(DeviceCount)
        return count

    monkeypatch.setattr(StaticLayer, "get_seq_length", guarded)
    with lm.attached(plan_of(lm)):
        found = generate(lm, **encoded(lm), cache_implementation="static", prefill_chunk_size=4)
    assert [row[-N_NEW:] for row in found] == written(lm, dense)
    assert asked


# -- scopes of single rows -------------------------------------------------------------------------


class Dot:
    """A probe that is a dot product."""

    def __init__(self, lm: LM) -> None:
        self.direction = direction(lm)

    def scores(self, x: Tensor) -> Tensor:
        return x @ self.direction


def test_a_rows_scope_is_asked_of_that_row_alone(lm: LM, dense: Any) -> None:
    v = direction(lm)
    far, words = steer.at(-9), steer.text(" March")
    read = steer.Read(SITE, Dot(lm), scope=words)
    assert len(lm.rows(PROMPTS)[1]) < 9
    plan = steer.Rows(
        [
            [steer.Add(SITE, v, 1.5, far), steer.Monitor(read)],
            [steer.When(steer.Read(SITE, Dot(lm)), steer.Add(SITE, v, 1.5), above=1e9)],
            [],
        ]
    )
    made = lm.generate(PROMPTS, plan, max_new_tokens=N_NEW)
    row = lm.rows(PROMPTS)[0]

    def edit(h: Tensor, n: int) -> Tensor:
        h[n - 9] += 1.5 * v
        return h

    assert made.tokens[0] == dense.greedy(lm.model, row, [(LAYER, edit)], N_NEW).tokens
    for line in made.receipt.lines[:2]:
        assert line.eligible.tolist() == [1, 0, 0]
    scores = made.receipt[1].scores
    assert scores is not None
    march = row.index(lm.tokenizer(" March")["input_ids"][0])
    assert (scores[0].tolist(), scores[1].tolist()) == ([0], [march])


@pytest.mark.parametrize("scope", [steer.at(-9), steer.text(" March")])
def test_a_row_that_lacks_its_own_scope_is_named(lm: LM, scope: steer.Scope) -> None:
    add = steer.Add(SITE, direction(lm), 1.0, scope)
    with pytest.raises(steer.ScopeError, match="Row 1 has"):
        lm.generate(PROMPTS, steer.Rows([[], [add], []]), max_new_tokens=2)
    with pytest.raises(steer.ScopeError, match="Row 1 has"):
        lm.generate(PROMPTS, steer.Rows([[add], [add], []]), max_new_tokens=2)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"assistant_early_exit": 2}, "assistant_early_exit"),
        ({"custom_generate": lambda *_, **__: None}, "custom_generate"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "penalty_alpha"),
        ({"generation_config": GenerationConfig(prompt_lookup_num_tokens=2)}, "prompt_lookup"),
        ({"cache_implementation": "paged"}, "Continuous batching"),
    ],
)
def test_modes_that_try_tokens_or_pack_rows_are_refused_by_name(
    lm: LM, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(steer.PlanError, match=named), lm.attached(plan_of(lm)) as run:
        generate(lm, **encoded(lm), **options)
    assert run.receipt.n_passes == 0


def test_an_assistant_model_is_refused(lm: LM) -> None:
    with (
        pytest.raises(steer.PlanError, match="assistant_model"),
        lm.attached(plan_of(lm)) as run,
    ):
        generate(lm, **encoded(lm), assistant_model=lm.model)
    assert run.receipt.n_passes == 0


def test_what_is_refused_while_steered_still_works_outside(lm: LM) -> None:
    plain = generate(lm, **encoded(lm))
    row = torch.tensor(lm.rows(PROMPTS[:1]))
    with lm.attached(plan_of(lm)):
        generate(lm, **encoded(lm))
    assert generate(lm, **encoded(lm)) == plain
    assert generate(lm, input_ids=row, prompt_lookup_num_tokens=2) == generate(lm, input_ids=row)


def test_generate_without_a_prompt_is_refused(lm: LM) -> None:
    with (
        pytest.raises(steer.PlanError, match="Pass at least a BOS token"),
        lm.attached(plan_of(lm)),
    ):
        generate(lm)


def test_packed_rows_are_refused_even_when_their_positions_rise(lm: LM) -> None:
    ids = torch.tensor(lm.rows(PROMPTS[:1]))
    with (
        pytest.raises(steer.ScopeError, match="packed rows"),
        lm.attached(plan_of(lm, steer.ALL)),
    ):
        lm.model(input_ids=ids, cu_seq_lens_q=torch.tensor([0, 3, ids.shape[1]]))
