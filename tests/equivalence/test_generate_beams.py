"""Beams and return sequences: rows are expanded and reordered, and positions and gates still hold.

The oracle is HuggingFace's beam search of each prompt alone: unpadded, without a cache, with the
plain hooks of conftest.py, so that every beam runs whole and a column is a position.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer import LM

N_NEW, BEAMS, LAYER = 5, 3, 1
PROMPTS = [
    "the cat in March was red and blue and good and bad and great and terrible",
    " two days of May and June",
    " one month before the red cat",
    "not she but he",
]
SITE = steer.Site(LAYER, "resid_post")
CLOSE = 1e-4
"""Scores are mean log-probabilities of about -5; fp32 in another order of sums."""

MODES: dict[str, dict[str, Any]] = {
    "cache": {},
    "no-cache": {"use_cache": False},
    "static-cache": {"cache_implementation": "static"},
    "chunked": {"prefill_chunk_size": 5},
    "all-beams-returned": {"num_return_sequences": BEAMS},
    "early-stopping": {"early_stopping": True, "length_penalty": 0.5},
}


@dataclass(frozen=True)
class Dot:
    """The plainest probe: a dot product."""

    direction: Tensor

    def scores(self, x: Tensor) -> Tensor:
        return x @ self.direction


def direction(lm: LM, seed: int = 3) -> Tensor:
    """Return a direction of about the size of the stream."""
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


def encoded(lm: LM) -> dict[str, Tensor]:
    """Return the prompts as one batch, padded on the left."""
    batch = lm.tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="pt")
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def search(model: Any, inputs: dict[str, Tensor], **options: Any) -> tuple[list[list[int]], Tensor]:
    """Return the new tokens of each beam returned, and its score."""
    out = model.generate(
        **inputs,
        **{"num_beams": BEAMS, "max_new_tokens": N_NEW, "do_sample": False, **options},
        return_dict_in_generate=True,
        output_scores=True,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), out.sequences_scores


def alone(
    lm: LM, dense: Any, edits: list[list[tuple[int, Any]]], options: dict[str, Any]
) -> tuple[list[list[int]], Tensor]:
    """Return the same for each prompt on its own, edited by plain hooks."""
    keep = {k: v for k, v in options.items() if k in ("num_return_sequences", "early_stopping")}
    keep |= {k: v for k, v in options.items() if k == "length_penalty"}
    tokens: list[list[int]] = []
    scores: list[Tensor] = []
    for row, edit in zip(lm.rows(PROMPTS), edits, strict=True):
        ids = torch.tensor([row])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with dense.editing(lm.model, edit, len(row)):
            found, score = search(lm.model, inputs, use_cache=False, **keep)
        tokens += found
        scores.append(score)
    return tokens, torch.cat(scores)


def adding(v: Tensor, first: int | None, stop: int | None) -> Any:
    """Return the oracle's edit: add v from first to stop, counted from the end of the prompt."""

    def edit(h: Tensor, n: int) -> Tensor:
        h[0 if first is None else n + first : None if stop is None else n + stop] += v
        return h

    return edit


@pytest.mark.parametrize("mode", MODES)
def test_each_rows_beams_follow_its_own_plan(any_lm: LM, dense: Any, mode: str) -> None:
    v = direction(any_lm)
    plan = steer.Rows(
        [
            [steer.Add(SITE, v, 1.0, steer.OUTPUT)],
            [steer.Add(SITE, v, -1.5, steer.LAST)],
            [],
            [steer.Add(SITE, v, 2.0, steer.GENERATED)],
        ]
    )
    edits = [
        [(LAYER, adding(v, -1, None))],
        [(LAYER, adding(-1.5 * v, -1, 0))],
        [],
        [(LAYER, adding(2.0 * v, 0, None))],
    ]
    with any_lm.attached(plan):
        tokens, scores = search(any_lm.model, encoded(any_lm), **MODES[mode])
    expected, expected_scores = alone(any_lm, dense, edits, MODES[mode])
    assert tokens == expected
    assert (scores - expected_scores).abs().max() < CLOSE


def test_the_plan_changes_what_the_beams_find(any_lm: LM) -> None:
    plain, _ = search(any_lm.model, encoded(any_lm))
    plan = [steer.Add(SITE, direction(any_lm), 2.0, steer.OUTPUT)]
    with any_lm.attached(plan):
        steered, _ = search(any_lm.model, encoded(any_lm))
    assert all(a != b for a, b in zip(plain, steered, strict=True))


@pytest.mark.parametrize("mode", ["cache", "no-cache", "static-cache", "all-beams-returned"])
def test_a_gate_latched_on_the_prompt_holds_for_all_beams(
    any_lm: LM, dense: Any, mode: str
) -> None:
    probe, v = Dot(direction(any_lm, 7)), direction(any_lm)
    rows = any_lm.rows(PROMPTS)
    scores = [float(dense.state(any_lm.model, r, LAYER)[-1] @ probe.direction) for r in rows]
    middle = sum(sorted(scores)[1:3]) / 2
    assert min(abs(score - middle) for score in scores) > 0.01  # two rows open, two closed
    read = steer.Read(SITE, probe, scope=steer.PROMPT, reduce="last")
    plan = [steer.When(read, steer.Add(SITE, v, 2.0, steer.OUTPUT), above=middle)]
    with any_lm.attached(plan) as run:
        tokens, _ = search(any_lm.model, encoded(any_lm), **MODES[mode])
    edits = [[(LAYER, adding(2.0 * v, -1, None))] if s > middle else [] for s in scores]
    assert tokens == alone(any_lm, dense, edits, MODES[mode])[0]
    open_share = run.receipt[0].gate_open
    assert open_share is not None
    assert open_share.tolist() == [float(score > middle) for score in scores]


def test_a_gate_on_the_prompt_so_far_holds_for_all_beams(lm: LM, dense: Any) -> None:
    probe, v = Dot(direction(lm, 7)), direction(lm)
    read = steer.Read(SITE, probe, scope=steer.PROMPT, reduce="mean")
    states = [dense.state(lm.model, row, LAYER) for row in lm.rows(PROMPTS)]
    means = [float((state @ probe.direction).mean()) for state in states]
    middle = sum(sorted(means)[1:3]) / 2
    inner = steer.Add(SITE, v, 2.0, steer.OUTPUT)
    with lm.attached([steer.When(read, inner, above=middle, latch="token")]):
        tokens, _ = search(lm.model, encoded(lm))
    edits = [[(LAYER, adding(2.0 * v, -1, None))] if m > middle else [] for m in means]
    assert tokens == alone(lm, dense, edits, {})[0]


@pytest.mark.parametrize("scope", [steer.GENERATED, steer.OUTPUT, steer.ALL, steer.at(30)])
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"num_beams": 3}, "generate runs with 3 beams"),
        ({"do_sample": True, "use_cache": False}, "generate runs with sampling with the cache off"),
    ],
)
def test_a_gate_on_generated_tokens_is_refused_before_any_pass(
    lm: LM, scope: steer.Scope, options: dict[str, Any], why: str
) -> None:
    read = steer.Read(SITE, Dot(direction(lm)), scope=scope)
    gate = steer.When(read, steer.Add(SITE, direction(lm)), latch="token")
    with lm.attached([]) as outer:
        with pytest.raises(steer.PlanError, match=why), lm.attached([gate]) as run:
            lm.model.generate(**encoded(lm), max_new_tokens=20, **options)  # type: ignore[operator]
        with pytest.raises(steer.PlanError, match=why):
            lm.generate(PROMPTS, [steer.Monitor(read)], max_new_tokens=20, **options)
    assert run.receipt.n_passes == outer.receipt.n_passes == 0


def test_beams_asked_for_in_a_generation_config_are_seen(lm: LM) -> None:
    read = steer.Read(SITE, Dot(direction(lm)), scope=steer.GENERATED)
    config = lm.model.generation_config.__class__(num_beams=2, max_new_tokens=2)  # type: ignore[union-attr]
    with pytest.raises(steer.PlanError, match="2 beams"), lm.attached([steer.Monitor(read)]):
        lm.model.generate(**encoded(lm), generation_config=config)  # type: ignore[operator]


def test_lm_generate_returns_the_best_beam_of_each_prompt_and_no_log_probs(
    lm: LM, dense: Any
) -> None:
    v = direction(lm)
    made = lm.generate(
        PROMPTS,
        [steer.Add(SITE, v, 1.0, steer.OUTPUT)],
        max_new_tokens=N_NEW,
        num_beams=BEAMS,
    )
    edits = [[(LAYER, adding(v, -1, None))]] * len(PROMPTS)
    assert made.tokens == alone(lm, dense, edits, {})[0]
    assert made.log_probs is None
