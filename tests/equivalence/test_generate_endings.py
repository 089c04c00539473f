"""How rows end: end tokens in the middle of a batch, one new token, log-probabilities.

A token fed after a row's end token is padding: a run of that row alone would not have made it. So
it is in no scope, in no count and in no capture.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer import LM

N_NEW, LAYER = 8, 1
PROMPTS = [
    "the cat in March was red and blue",
    " two days of May",
    " she is not one of the red cat",
]
SITE = steer.Site(LAYER, "resid_post")


def direction(lm: LM) -> Tensor:
    """Return a direction of about the size of the stream."""
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(3))


def add(h: Tensor, v: Tensor, first: int) -> Tensor:
    """Return h with v added from a position on."""
    h[first:] += v
    return h


def free(lm: LM, dense: Any, n_new: int = N_NEW) -> list[Any]:
    """Return what the oracle writes for each prompt when nothing ends it."""
    v = direction(lm)
    edit = [(LAYER, lambda h, n: add(h, v, n - 1))]
    return [dense.greedy(lm.model, row, edit, n_new) for row in lm.rows(PROMPTS)]


def end_of(texts: list[list[int]]) -> int:
    """Return a token that one row writes early and another row later or never."""
    for token in texts[1][1:4]:
        if texts[1].index(token) > 0 and all(
            token not in text[:5] for text in (texts[0], texts[2])
        ):
            return token
    raise AssertionError("choose other prompts: no token ends row 1 early and the others later")


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])
def test_rows_that_end_early_are_counted_to_their_end_only(
    any_lm: LM, dense: Any, cached: bool
) -> None:
    v = direction(any_lm)
    texts = [written.tokens for written in free(any_lm, dense)]
    end = end_of(texts)
    made = any_lm.generate(
        PROMPTS,
        [steer.Add(SITE, v, 1.0, steer.OUTPUT)],
        max_new_tokens=N_NEW,
        eos_token_id=end,
        use_cache=cached,
    )
    expected = [text[: text.index(end) + 1] if end in text else text for text in texts]
    assert len(expected[1]) < len(expected[0])
    assert made.tokens == expected
    # Each output token was chosen at one position in scope, and no other position was edited.
    line = made.receipt[0]
    assert line.eligible.tolist() == [len(text) for text in expected]
    assert line.edited.tolist() == [len(text) for text in expected]
    prompts = any_lm.rows(PROMPTS)
    assert line.seen.tolist() == [
        len(p) + len(t) - 1 for p, t in zip(prompts, expected, strict=True)
    ]


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])
def test_the_receipt_of_a_batch_is_that_of_its_rows(lm: LM, dense: Any, cached: bool) -> None:
    v = direction(lm)
    plan = [steer.Add(SITE, v, 1.0, steer.OUTPUT)]
    end = end_of([written.tokens for written in free(lm, dense)])
    options = {"max_new_tokens": N_NEW, "eos_token_id": end, "use_cache": cached}
    batch = lm.generate(PROMPTS, plan, **options).receipt[0]
    rows = [lm.generate([prompt], plan, **options).receipt[0] for prompt in PROMPTS]
    for name in ("seen", "eligible", "edited"):
        assert getattr(batch, name).tolist() == [int(getattr(row, name)[0]) for row in rows]
    sizes = torch.cat([row.relative_size for row in rows])
    # Norms of fp32 states that differ in their last bits.
    assert torch.allclose(batch.relative_size, sizes, rtol=1e-5)


def test_an_end_token_in_the_prompt_ends_nothing(lm: LM, dense: Any) -> None:
    v = direction(lm)
    row = lm.rows(PROMPTS[:1])[0]
    written = dense.greedy(lm.model, row, [(LAYER, lambda h, n: add(h, v, n - 1))], 4)
    assert row[2] not in written.tokens
    plan = [steer.Add(SITE, v, 1.0, steer.OUTPUT)]
    made = lm.generate(PROMPTS[:1], plan, max_new_tokens=4, eos_token_id=row[2])
    assert made.tokens == [written.tokens]
    assert made.receipt[0].eligible.tolist() == [4]


def test_a_capture_of_generated_tokens_stops_at_the_end_token(lm: LM, dense: Any) -> None:
    prompts = lm.rows(PROMPTS)
    texts = [dense.greedy(lm.model, row, [], N_NEW).tokens for row in prompts]
    end = end_of(texts)
    config = lm.model.generation_config
    assert config is not None
    config.eos_token_id = end
    try:
        acts = lm.capture(PROMPTS, [SITE], scope=steer.GENERATED, max_new_tokens=N_NEW)
    finally:
        config.eos_token_id = None
    ended = [text[: text.index(end) + 1] if end in text else text for text in texts]
    assert acts.mask is not None
    assert acts.mask.sum(1).tolist() == [len(text) - 1 for text in ended]
    for at, (row, text) in enumerate(zip(prompts, ended, strict=True)):
        # Everything generated but the last token, which is never fed.
        known = dense.state(lm.model, row + text[:-1], LAYER)[len(row) :]
        assert (acts[SITE][at, : len(known)] - known).abs().max() < 1e-4  # fp32, another order


def test_log_probs_are_those_of_the_dense_loop(any_lm: LM, dense: Any) -> None:
    v = direction(any_lm)
    known = free(any_lm, dense, 4)
    made = any_lm.generate(PROMPTS, [steer.Add(SITE, v, 1.0, steer.OUTPUT)], max_new_tokens=4)
    assert made.log_probs is not None
    for found, written in zip(made.log_probs, known, strict=True):
        every = written.logits.log_softmax(-1)
        best = every.gather(1, torch.tensor(written.tokens)[:, None])[:, 0]
        assert torch.allclose(found, best, atol=1e-4)  # fp32 sums in another order


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}],
    ids=["cache", "no-cache", "chunked", "static-cache"],
)
def test_log_probs_are_one_per_token_in_every_mode(lm: LM, dense: Any, options: Any) -> None:
    end = end_of([written.tokens for written in free(lm, dense)])
    plan = [steer.Add(SITE, direction(lm), 1.0, steer.OUTPUT)]
    made = lm.generate(PROMPTS, plan, max_new_tokens=N_NEW, eos_token_id=end, **options)
    assert made.log_probs is not None
    for row, (tokens, found) in enumerate(zip(made.tokens, made.log_probs, strict=True)):
        written = free(lm, dense)[row]
        every = written.logits[: len(tokens)].log_softmax(-1)
        best = every.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert torch.allclose(found, best, atol=1e-4)  # fp32 sums in another order


def test_log_probs_sum_to_the_score_of_the_text(lm: LM) -> None:
    # A text of whole known words, so that its tokens are found again in its string.
    plan = [steer.Add(SITE, direction(lm), 1.0, steer.OUTPUT)]
    allowed = lm.rows([" March May June cat day red blue"])[0]
    made = lm.generate(
        PROMPTS, plan, max_new_tokens=4, prefix_allowed_tokens_fn=lambda _row, _ids: allowed
    )
    assert made.log_probs is not None
    scores = lm.score(PROMPTS, list(made), plan)
    assert torch.allclose(torch.stack([row.sum() for row in made.log_probs]), scores, atol=4e-4)


def test_one_new_token_never_reaches_generated_but_output_does(lm: LM) -> None:
    v = direction(lm)
    with pytest.raises(steer.NeverFired, match="GENERATED needs more than one new token"):
        lm.generate(PROMPTS, [steer.Add(SITE, v, 1.0, steer.GENERATED)], max_new_tokens=1)
    made = lm.generate(PROMPTS, [steer.Add(SITE, v, 1.0, steer.OUTPUT)], max_new_tokens=1)
    assert made.receipt[0].edited.tolist() == [1, 1, 1]
    assert made.tokens != lm.generate(PROMPTS, max_new_tokens=1).tokens


def test_generated_fires_when_one_row_ends_at_once_and_another_goes_on(lm: LM, dense: Any) -> None:
    texts = [dense.greedy(lm.model, row, [], 2).tokens for row in lm.rows(PROMPTS)]
    assert texts[0][0] != texts[1][0]
    v = direction(lm)
    options = {"max_new_tokens": 3, "eos_token_id": texts[0][0]}
    made = lm.generate(PROMPTS[:2], [steer.Add(SITE, v, 0.0, steer.GENERATED)], **options)
    assert made.receipt[0].eligible[0] == 0
    assert made.receipt[0].eligible[1] > 0
    plan = steer.Rows([[steer.Add(SITE, v, 1.0, steer.GENERATED)], []])
    with pytest.raises(steer.NeverFired, match="GENERATED"):
        lm.generate(PROMPTS[:2], plan, **options)
