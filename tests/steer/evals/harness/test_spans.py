"""Scores of token spans against `lm.score`, and against plain transformers."""

import pytest
import torch

import steer
from steer.evals import Refused
from steer.evals.harness.spans import fitted, score_spans

PROMPTS = ["a b c", "the cat sat on the", "one two", "x", "dogs and cats and"]
TAILS = [" d e f", " mat", "three four five", " yes and", " no"]
SITE = steer.Site(2)


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


def vector(lm, seed=0) -> torch.Tensor:
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


def spans(lm) -> tuple[list[list[int]], list[list[int]]]:
    tails = lm.tokenizer(TAILS, add_special_tokens=False)["input_ids"]
    return lm.rows(PROMPTS), [list(tail) for tail in tails]


@pytest.mark.parametrize("scope", [steer.ALL, steer.PROMPT, steer.LAST, steer.OUTPUT])
@pytest.mark.parametrize("max_tokens", [2048, 16])
def test_spans_score_as_lm_score_does_in_whatever_batches(lm, scope, max_tokens):
    plan = [steer.Add(SITE, vector(lm), 3.0, scope=scope)]
    contexts, tails = spans(lm)
    found = [one for one, _ in score_spans(lm, contexts, tails, plan, max_tokens=max_tokens)]
    assert found == pytest.approx(lm.score(PROMPTS, TAILS, plan).tolist(), abs=1e-4)
    plain = lm.score(PROMPTS, TAILS).tolist()
    # GENERATED aside, every scope moves every row: the control that something was steered.
    assert all(abs(a - b) > 1e-3 for a, b in zip(found, plain, strict=True))


def test_without_a_plan_spans_score_as_bare_transformers_does(lm):
    contexts, tails = spans(lm)
    found = score_spans(lm, contexts, tails, [])
    for context, tail, (total, greedy) in zip(contexts, tails, found, strict=True):
        with torch.no_grad():
            logits = lm.model(torch.tensor([context + tail])).logits[0, len(context) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(tail)[:, None]).sum()
        assert total == pytest.approx(float(wanted), abs=1e-4)
        assert greedy is bool((logits.argmax(-1) == torch.tensor(tail)).all())


def test_the_likeliest_continuation_is_called_greedy_and_another_is_not(lm):
    plan = [steer.Add(SITE, vector(lm), 3.0)]
    made = lm.generate(PROMPTS, plan, max_new_tokens=4).tokens
    contexts = lm.rows(PROMPTS)
    assert all(greedy for _, greedy in score_spans(lm, contexts, made, plan))
    other = [[*tail[:-1], (tail[-1] + 1) % 200 + 10] for tail in made]
    assert not any(greedy for _, greedy in score_spans(lm, contexts, other, plan))


def test_choices_that_differ_in_their_last_token_share_a_row_and_keep_their_scores(lm, monkeypatch):
    passes = []
    import steer.evals.harness.spans as module

    run_rows = module.run_rows
    monkeypatch.setattr(
        module, "run_rows", lambda *args: (passes.append(len(args[2])), run_rows(*args))[1]
    )
    context = lm.rows(["the cat sat on the"])[0]
    tails = [[40], [41], [42], [50, 40], [50, 41], [51, 41]]
    plan = [steer.Add(SITE, vector(lm), 3.0)]
    together = score_spans(lm, [context] * 6, tails, plan)
    assert sum(passes) == 3
    apart = [score_spans(lm, [context], [tail], plan)[0] for tail in tails]
    assert [one for one, _ in together] == pytest.approx([one for one, _ in apart], abs=1e-4)
    assert len({round(one, 3) for one, _ in together}) == 6


def test_generated_alone_cannot_move_one_token_so_that_is_refused(lm):
    plan = [steer.Add(SITE, vector(lm), 3.0, scope=steer.GENERATED)]
    context = lm.rows(["the cat"])[0]
    with pytest.raises(Refused, match=r"one token") as refusal:
        score_spans(lm, [context, context], [[40, 41], [42]], plan)
    assert refusal.value.reason == "never_fired"
    (steered,) = score_spans(lm, [context], [[40, 41]], plan)
    (plain,) = score_spans(lm, [context], [[40, 41]], [])
    assert abs(steered[0] - plain[0]) > 1e-3


def test_one_silent_row_is_refused_though_others_fired(lm):
    plan = [steer.Add(SITE, vector(lm), 3.0, scope=steer.text("cat", missing="skip"))]
    contexts, tails = spans(lm)
    with pytest.raises(Refused, match=r"never_fired.*saw no token in scope in the rows"):
        score_spans(lm, contexts, tails, plan)
    score_spans(lm, contexts[1:2], tails[1:2], plan)


def test_a_scope_that_a_row_lacks_and_an_overflow_are_refused_with_a_code(lm):
    contexts, tails = spans(lm)
    far = [steer.Add(SITE, vector(lm), 3.0, scope=steer.at(40))]
    with pytest.raises(Refused) as refusal:
        score_spans(lm, contexts, tails, far)
    assert refusal.value.reason == "plan_does_not_fit"
    huge = [steer.Add(steer.Site.logits(), torch.ones(lm.registry.layout.d_vocab), 3e38)] * 3
    with pytest.raises(Refused) as refusal:
        score_spans(lm, contexts, tails, huge)
    assert refusal.value.reason == "not_finite"


def test_an_empty_span_and_another_plan_in_force_are_refused(lm):
    with pytest.raises(Refused, match="The continuation of request 1 has no tokens"):
        score_spans(lm, [[5], [6]], [[7], []], [])
    with pytest.raises(Refused, match="1 contexts need as many"):
        score_spans(lm, [[5]], [], [])
    lm.attach([steer.Add(SITE, vector(lm))])
    try:
        with pytest.raises(Refused, match=r"lm\.detach") as refusal:
            score_spans(lm, [[5]], [[7]], [])
        assert refusal.value.reason == "wrong_plan"
        lm.logits(["a"])  # so that what was attached fires
    finally:
        lm.detach()


def test_a_context_keeps_its_end():
    assert fitted([1, 2, 3, 4], [5, 6], 8) == [1, 2, 3, 4]
    assert fitted([1, 2, 3, 4], [5, 6], 3) == [3, 4]  # 3, 4 and 5 are read
    with pytest.raises(Refused, match="one of context"):
        fitted([1], [5, 6, 7], 2)
