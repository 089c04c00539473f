"""A pretrained model, generating while steered, against the dense loop of conftest.py."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer import LM

pytestmark = pytest.mark.real

N_NEW, LAYER = 8, 12
SITE = steer.Site(LAYER, "resid_post")
PROMPTS = [
    "The months of the year are January, February, March, April,",
    "Once upon a time there was a",
    "The capital of France is",
    "Two plus two is",
]


@pytest.fixture(scope="module")
def real() -> Iterator[LM]:
    """Return smollm2-135m, and check that nothing is left on it."""
    lm = steer.load("smollm2-135m")
    yield lm
    assert lm.registry.live == 0


@pytest.fixture(scope="module")
def v(real: LM) -> Tensor:
    """Return a direction of half the size of the stream at the site."""
    unit = torch.nn.functional.normalize(
        torch.randn(real.d_model, generator=torch.Generator().manual_seed(0)), dim=0
    )
    return unit * 0.5 * real.norm(SITE, PROMPTS)


def plan_of(v: Tensor) -> steer.Rows:
    """Return a plan for each prompt."""
    return steer.Rows(
        [
            [steer.Add(SITE, v, 1.0, steer.OUTPUT)],
            [steer.Add(SITE, v, -1.0, steer.GENERATED)],
            [steer.Add(SITE, v, 2.0, steer.text(" France"))],
            [],
        ]
    )


@pytest.fixture(scope="module")
def written(real: LM, dense: Any, v: Tensor) -> list[Any]:
    """Return what the oracle writes for each prompt."""

    def output(h: Tensor, n: int) -> Tensor:
        h[n - 1 :] += v
        return h

    def generated(h: Tensor, n: int) -> Tensor:
        h[n:] -= v
        return h

    rows = real.rows(PROMPTS)
    (france,) = real.tokenizer(" France")["input_ids"]

    def named(h: Tensor, _: int) -> Tensor:
        h[rows[2].index(france)] += 2.0 * v
        return h

    edits = [[(LAYER, output)], [(LAYER, generated)], [(LAYER, named)], []]
    return [
        dense.greedy(real.model, row, edit, N_NEW) for row, edit in zip(rows, edits, strict=True)
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}],
    ids=["cache", "no-cache", "static-cache", "chunked"],
)
def test_a_plan_per_row_writes_what_the_dense_loop_writes(
    real: LM, written: list[Any], v: Tensor, options: dict[str, Any]
) -> None:
    made = real.generate(PROMPTS, plan_of(v), max_new_tokens=N_NEW, **options)
    assert made.log_probs is not None
    for at, expected in enumerate(written):
        assert made.tokens[at] == expected.tokens
        every = expected.logits.log_softmax(-1)
        best = every.gather(1, torch.tensor(expected.tokens)[:, None])[:, 0]
        # fp32 through 30 blocks, summed in another order.
        assert torch.allclose(made.log_probs[at], best, atol=1e-3)


def test_each_rows_beams_follow_its_own_plan(real: LM, dense: Any, v: Tensor) -> None:
    made = real.generate(PROMPTS, plan_of(v), max_new_tokens=N_NEW, num_beams=3)

    def output(h: Tensor, n: int) -> Tensor:
        h[n - 1 :] += v
        return h

    for row, edits in ((0, [(LAYER, output)]), (3, [])):
        ids = torch.tensor(real.rows(PROMPTS)[row : row + 1])
        with dense.editing(real.model, edits, ids.shape[1]):
            out = real.model.generate(  # type: ignore[operator]
                ids, num_beams=3, max_new_tokens=N_NEW, do_sample=False, use_cache=False
            )
        assert made.tokens[row] == out[0, ids.shape[1] :].tolist()


def test_a_stream_writes_what_generate_writes(real: LM, v: Tensor) -> None:
    pieces = list(real.stream(PROMPTS, plan_of(v), max_new_tokens=N_NEW))
    made = real.generate(PROMPTS, plan_of(v), max_new_tokens=N_NEW)
    assert ["".join(row) for row in zip(*pieces, strict=True)] == list(made)
