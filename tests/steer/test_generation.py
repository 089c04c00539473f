"""lm.generate and lm.stream at the edge: what is refused, trimmed, said and cleaned up.

That they write the right text is in tests/equivalence/test_generate*.py.
"""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

import steer
from steer import LM
from steer.generation import Stream, pad_token, trimmed

PROMPTS = ["the cat in March", " two days"]
SITE = steer.Site(1, "resid_post")


def plan_of(lm: LM, scope: steer.Scope = steer.OUTPUT) -> list[steer.Add]:
    """Return one add that changes the text."""
    gen = torch.Generator().manual_seed(3)
    return [steer.Add(SITE, torch.randn(lm.d_model, generator=gen), 1.5, scope)]


@pytest.mark.parametrize(
    ("row", "ends", "kept"),
    [
        ([5, 6, 7], set(), [5, 6, 7]),
        ([5, 6, 7], {6}, [5, 6]),
        ([5, 6, 7], {7, 5}, [5]),
        ([5, 6, 7], {9}, [5, 6, 7]),
        ([], {9}, []),
    ],
)
def test_a_row_is_kept_up_to_and_with_its_first_end_token(
    row: list[int], ends: set[int], kept: list[int]
) -> None:
    assert trimmed(row, ends) == kept


def test_padding_is_the_pad_token_else_the_end_token(lm: LM) -> None:
    assert pad_token(lm.tokenizer) == lm.tokenizer.pad_token_id


def test_generations_are_the_texts_and_carry_what_made_them(lm: LM) -> None:
    made = lm.generate(PROMPTS, plan_of(lm), max_new_tokens=4)
    assert list(made) == [lm.tokenizer.decode(row) for row in made.tokens]
    assert made.log_probs is not None
    assert [len(row) for row in made.log_probs] == [4, 4]
    assert made.receipt[0].eligible.tolist() == [4, 4]
    assert made._repr_html_().count("<li>") == 2


def test_html_shows_the_text_and_never_runs_it(lm: LM) -> None:
    made = steer.Generations(["<b>&"], [[1]], None, lm.generate(PROMPTS).receipt)
    assert "&lt;b&gt;&amp;" in made._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 0.5}, "no argument 'temprature'.*temperature"),
        ({"max_tokens": 5}, "no argument 'max_tokens'"),
        ({"input_ids": torch.ones(1, 1)}, "given input_ids, which lm.generate makes"),
        ({"attention_mask": torch.ones(1, 1)}, "given attention_mask, which lm.generate makes"),
        ({"generation_config": GenerationConfig(do_sample=True)}, "overruled in silence"),
        ({"max_length": 9}, "Pass max_new_tokens as arguments"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(
    lm: LM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(steer.PlanError, match=message):
        lm.generate(PROMPTS, **options)
    assert lm.registry.live == 0


def test_beams_of_the_models_own_config_give_no_log_probs(lm: LM) -> None:
    config = lm.model.generation_config
    assert config is not None
    before, config.num_beams = config.num_beams, 2
    try:
        assert lm.generate(PROMPTS, max_new_tokens=2).log_probs is None
    finally:
        config.num_beams = before


def test_a_processor_that_fails_leaves_nothing_attached(lm: LM) -> None:
    class Broken(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        lm.generate(PROMPTS, plan_of(lm), logits_processor=[Broken()])
    assert lm.registry.live == 0
    assert "generate" not in vars(lm.model)


def test_a_stream_can_be_closed_early_and_leaves_nothing_attached(lm: LM) -> None:
    with lm.stream(PROMPTS, plan_of(lm), max_new_tokens=500) as stream:
        assert len(next(stream)) == 2
    assert lm.registry.live == 0
    assert "generate" not in vars(lm.model)


def test_an_error_of_the_worker_is_raised_once_and_the_stream_is_over(lm: LM) -> None:
    stream = lm.stream(PROMPTS, plan_of(lm, steer.GENERATED), max_new_tokens=1)
    assert len(next(stream)) == 2
    with pytest.raises(steer.NeverFired, match="GENERATED"):
        next(stream)
    assert list(stream) == []


def test_a_stream_with_a_wrong_argument_is_refused_at_the_call(lm: LM) -> None:
    with pytest.raises(steer.PlanError, match="no argument 'nope'"):
        Stream(lm.registry, lm.tokenizer, lm.rows(PROMPTS), [], {"nope": 1}, None)
    wide = [steer.Add(SITE, torch.ones(7))]
    with pytest.raises(steer.WidthMismatch, match="has 7 entries"):
        lm.stream(PROMPTS, wide)


def test_the_consumer_of_a_stream_is_not_steered(lm: LM) -> None:
    plain = lm.logits(PROMPTS)
    with lm.stream(PROMPTS, plan_of(lm), max_new_tokens=6) as stream:
        for _ in stream:
            assert torch.equal(lm.logits(PROMPTS), plain)


def test_a_stream_that_outlives_the_plan_around_it_is_an_error(lm: LM) -> None:
    def leave_too_early() -> None:
        nonlocal stream
        with lm.attached(plan_of(lm)):
            stream = lm.stream(PROMPTS, max_new_tokens=300)
            next(stream)

    stream: Stream | None = None
    with pytest.raises(steer.SteerError, match="bound calls are still running"):
        leave_too_early()
    assert stream is not None
    stream.close()
    assert lm.registry.live == 0
