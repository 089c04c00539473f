"""Sampling, seeds and return sequences, against a dense loop that draws from the same stream.

torch.multinomial draws for all rows of a batch at once, so the oracle computes each row's logits
alone and draws from the stacked rows with a generator of the same seed.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer import LM

N_NEW, LAYER, SEED = 6, 1, 11
PROMPTS = [
    "the cat in March was red and blue",
    " two days of May",
    " she is not one of the red cat",
]
SITE = steer.Site(LAYER, "resid_post")


def direction(lm: LM) -> Tensor:
    """Return a direction of about the size of the stream."""
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(3))


def plan_of(lm: LM) -> steer.Rows:
    """Return a plan per row: OUTPUT, none, GENERATED."""
    v = direction(lm)
    return steer.Rows(
        [
            [steer.Add(SITE, v, 1.5, steer.OUTPUT)],
            [],
            [steer.Add(SITE, v, -2.0, steer.GENERATED)],
        ]
    )


def edits_of(lm: LM) -> list[list[tuple[int, Any]]]:
    """Return the same for the oracle."""
    v = direction(lm)

    def output(h: Tensor, n: int) -> Tensor:
        h[n - 1 :] += 1.5 * v
        return h

    def generated(h: Tensor, n: int) -> Tensor:
        h[n:] -= 2.0 * v
        return h

    return [[(LAYER, output)], [], [(LAYER, generated)]]


def drawn(
    lm: LM, dense: Any, warp: Callable[[Tensor], Tensor], times: int = 1
) -> tuple[list[list[int]], list[list[float]]]:
    """Return new tokens and their log-probabilities (before warping), row by row."""
    generator = torch.Generator().manual_seed(SEED)
    prompts = [row for row in lm.rows(PROMPTS) for _ in range(times)]
    edits = [edit for edit in edits_of(lm) for _ in range(times)]
    ids = [list(row) for row in prompts]
    log_probs: list[list[float]] = [[] for _ in prompts]
    for _ in range(N_NEW):
        logits = torch.stack(
            [
                dense.forward(lm.model, row, edit, len(prompt))[-1]
                for row, edit, prompt in zip(ids, edits, prompts, strict=True)
            ]
        )
        chosen = torch.multinomial(warp(logits).softmax(-1), 1, generator=generator)[:, 0]
        for at, token in enumerate(chosen.tolist()):
            ids[at].append(token)
            log_probs[at].append(float(logits[at].log_softmax(-1)[token]))
    tokens = [row[len(prompt) :] for row, prompt in zip(ids, prompts, strict=True)]
    return tokens, log_probs


def top_fifty_of_half_the_temperature(logits: Tensor) -> Tensor:
    """Warp as generate does for temperature=0.5, top_k=50."""
    scaled = logits / 0.5
    least = scaled.topk(50).values[:, -1:]
    return scaled.masked_fill(scaled < least, float("-inf"))


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])
def test_sampled_rows_follow_their_own_plans(any_lm: LM, dense: Any, cached: bool) -> None:
    expected, log_probs = drawn(any_lm, dense, top_fifty_of_half_the_temperature)
    made = any_lm.generate(
        PROMPTS,
        plan_of(any_lm),
        max_new_tokens=N_NEW,
        do_sample=True,
        seed=SEED,
        temperature=0.5,
        top_k=50,
        use_cache=cached,
    )
    assert made.tokens == expected
    assert made.log_probs is not None
    # Of the model's own logits, not of the warped ones; fp32 sums in another order.
    for found, known in zip(made.log_probs, log_probs, strict=True):
        assert torch.allclose(found, torch.tensor(known), atol=1e-4)


def test_return_sequences_keep_the_plan_of_their_prompt(any_lm: LM, dense: Any) -> None:
    expected, _ = drawn(any_lm, dense, lambda logits: logits, times=2)
    made = any_lm.generate(
        PROMPTS,
        plan_of(any_lm),
        max_new_tokens=N_NEW,
        do_sample=True,
        seed=SEED,
        top_k=0,
        num_return_sequences=2,
    )
    assert made.tokens == expected
    assert made[0] != made[1]
    assert made.receipt[0].eligible.tolist() == [2 * N_NEW, 0, 0]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(lm: LM) -> None:
    texts = [
        lm.generate(PROMPTS, plan_of(lm), max_new_tokens=N_NEW, do_sample=True, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("beams", [1, 2])
def test_a_seed_draws_as_torch_manual_seed_would(lm: LM, beams: int) -> None:
    ids = torch.tensor(lm.rows(PROMPTS[:1]))
    options = {"max_new_tokens": N_NEW, "do_sample": True, "num_beams": beams}
    made = lm.generate(PROMPTS[:1], seed=SEED, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        out = lm.model.generate(ids, **options)  # type: ignore[operator]
    assert made.tokens == out[:, ids.shape[1] :].tolist()


def test_the_logits_processors_of_the_user_still_work_under_a_seed(lm: LM) -> None:
    from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

    free = lm.generate(PROMPTS, max_new_tokens=N_NEW, do_sample=True, seed=SEED)
    banned = sorted({token for row in free.tokens for token in row})
    processors = LogitsProcessorList([SuppressTokensLogitsProcessor(banned, device="cpu")])
    made = lm.generate(
        PROMPTS, max_new_tokens=N_NEW, do_sample=True, seed=SEED, logits_processor=processors
    )
    assert not {token for row in made.tokens for token in row} & set(banned)


def test_the_global_generator_is_left_as_it_was(lm: LM) -> None:
    before = torch.get_rng_state()
    lm.generate(PROMPTS, plan_of(lm), max_new_tokens=N_NEW, do_sample=True, seed=SEED)
    list(lm.stream(PROMPTS, plan_of(lm), max_new_tokens=N_NEW, do_sample=True, seed=SEED))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_holds_while_other_threads_draw_and_seed(lm: LM) -> None:
    options = {"max_new_tokens": 12, "do_sample": True}
    expected = [list(lm.generate(PROMPTS, seed=seed, **options)) for seed in range(3)]
    found: dict[int, list[list[str]]] = {seed: [] for seed in range(3)}

    def work(seed: int) -> None:
        for _ in range(4):
            found[seed].append(list(lm.generate(PROMPTS, seed=seed, **options)))
            torch.rand(3)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: [expected[seed]] * 4 for seed in range(3)}
