"""LM: logits, scores, norms and generation against transformers called by hand."""

import pytest
import torch
from torch import Tensor

import steer
from steer.sites import Site

PROMPTS = ["one two three", "Monday and Tuesday and", "it was good"]


def rows(lm: "steer.LM") -> list[list[int]]:
    return [lm.tokenizer(p)["input_ids"] for p in PROMPTS]


@torch.no_grad()
def alone(lm: "steer.LM", row: list[int]) -> Tensor:
    """Return the logits [pos, vocab] of one unpadded row."""
    return lm.model(input_ids=torch.tensor([row])).logits[0]


def test_logits_are_those_of_each_prompt_alone(any_lm):
    found = any_lm.logits(PROMPTS)
    every = any_lm.logits(PROMPTS, scope=steer.ALL)
    for at, row in enumerate(rows(any_lm)):
        expected = alone(any_lm, row)
        # Batches of other shapes sum in another order: measured 4e-7 relative, in fp32.
        torch.testing.assert_close(found[at], expected[-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(every[at, : len(row)], expected, rtol=1e-4, atol=1e-5)


def test_logits_under_a_plan_are_those_of_the_users_own_pass(lm):
    plan = [steer.Add(Site(1), torch.ones(lm.d_model))]
    found = lm.logits(PROMPTS, plan)
    for at, row in enumerate(rows(lm)):
        with lm.attached(plan):
            expected = alone(lm, row)[-1]
        torch.testing.assert_close(found[at], expected, rtol=1e-4, atol=1e-5)


def test_scores_are_sums_of_log_softmax(any_lm):
    continuations = [" three four", " Wednesday", " for the cat and"]
    found = any_lm.score(PROMPTS, continuations)
    for at, row in enumerate(rows(any_lm)):
        tail = any_lm.tokenizer(continuations[at], add_special_tokens=False)["input_ids"]
        log_probs = alone(any_lm, row + tail).double().log_softmax(-1)
        expected = sum(float(log_probs[len(row) - 1 + i, token]) for i, token in enumerate(tail))
        assert float(found[at]) == pytest.approx(expected, rel=1e-4)


def test_a_scored_continuation_counts_as_generated(lm):
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    continuations = [" three four", " Wednesday", " for the cat and"]
    plan = [steer.Add(Site(1), v, scope=steer.GENERATED | steer.LAST)]
    found = lm.score(PROMPTS, continuations, plan)
    for at, row in enumerate(rows(lm)):
        tail = lm.tokenizer(continuations[at], add_special_tokens=False)["input_ids"]
        same = [steer.Add(Site(1), v, scope=steer.span(len(row) - 1, len(row) + len(tail)))]
        with lm.attached(same):
            log_probs = alone(lm, row + tail).double().log_softmax(-1)
        expected = sum(float(log_probs[len(row) - 1 + i, token]) for i, token in enumerate(tail))
        assert float(found[at]) == pytest.approx(expected, rel=1e-4)


def test_the_norm_of_a_site_is_the_median_without_first_tokens(lm):
    site = Site(2)
    norms = []
    for row in rows(lm):
        with torch.no_grad():
            out = lm.model(input_ids=torch.tensor([row]), output_hidden_states=True)
        norms += out.hidden_states[3][0, 1:].norm(dim=-1).tolist()
    expected = torch.tensor(norms).median()
    assert lm.norm(site, PROMPTS) == pytest.approx(float(expected), rel=1e-5)


def test_tokens_are_numbered_from_zero_and_rejoin_to_the_text(lm):
    tokens = lm.tokens("one two MondayMonday")
    assert "".join(tokens) == "one two MondayMonday"
    assert repr(tokens).startswith("0 'one'") or repr(tokens).startswith("0 'o'")
    assert f"{len(tokens) - 1} 'Monday'" in repr(tokens)
    assert lm.tokens([5, 6]) == [lm.tokenizer.decode([5]), lm.tokenizer.decode([6])]


def test_sites_are_one_for_each_block_that_has_the_component(any_lm):
    assert any_lm.sites() == [Site(layer, "resid_post") for layer in range(any_lm.n_layers)]
    assert any_lm.sites("ln_final") == [Site.ln_final()]
    with pytest.raises(steer.SiteNotFound, match="no component 'resid'"):
        any_lm.sites("resid")


def test_sites_of_a_component_that_the_family_lacks_are_an_error(tiny):
    with pytest.raises(steer.SiteNotFound, match="resid_mid"):
        tiny("tiny-neox").sites("resid_mid")


def test_what_an_lm_is_is_said_by_its_repr(any_lm):
    said = repr(any_lm)
    for part in (any_lm.provenance.name, f"{any_lm.n_layers} blocks", f"d_model {any_lm.d_model}"):
        assert part in said
    assert any_lm.device == torch.device("cpu")
    assert any_lm.dtype == torch.float32


# -- generate ----------------------------------------------------------------------------------


def test_generate_without_a_plan_is_generate_of_transformers(any_lm):
    found = any_lm.generate(PROMPTS, max_new_tokens=6)
    for at, row in enumerate(rows(any_lm)):
        with torch.no_grad():
            out = any_lm.model.generate(
                input_ids=torch.tensor([row]), max_new_tokens=6, do_sample=False
            )
        assert found.tokens[at] == out[0, len(row) :].tolist()
        assert found[at] == any_lm.tokenizer.decode(found.tokens[at], skip_special_tokens=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "seed": 3, "temperature": 0.7, "top_k": 20},
        {"repetition_penalty": 1.3},
        {"use_cache": False},
        {"prefill_chunk_size": 2},
    ],
    ids=str,
)
def test_log_probs_are_those_of_the_tokens_teacher_forced(any_lm, options):
    plan = [steer.Add(Site(1), torch.ones(any_lm.d_model), 0.5)]
    found = any_lm.generate(PROMPTS, plan, max_new_tokens=5, **options)
    assert found.log_probs is not None
    for at, row in enumerate(rows(any_lm)):
        new = found.tokens[at]
        with any_lm.attached(plan):
            expected = alone(any_lm, row + new).log_softmax(-1)
        want = [float(expected[len(row) - 1 + i, token]) for i, token in enumerate(new)]
        assert found.log_probs[at].tolist() == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_rows_end_with_their_end_token_and_their_log_probs_with_them(lm):
    free = lm.generate(PROMPTS, max_new_tokens=8)
    end = free.tokens[0][2]
    found = lm.generate(PROMPTS, max_new_tokens=8, eos_token_id=end)
    assert found.log_probs is not None
    assert free.log_probs is not None
    for at, row in enumerate(free.tokens):
        stop = row.index(end) + 1 if end in row else 8
        assert found.tokens[at] == row[:stop]
        torch.testing.assert_close(found.log_probs[at], free.log_probs[at][:stop])


def test_sampling_with_a_seed_repeats_and_leaves_the_global_generator_alone(lm):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = lm.generate(PROMPTS, max_new_tokens=8, do_sample=True, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again = lm.generate(PROMPTS, max_new_tokens=8, do_sample=True, seed=1)
    other = lm.generate(PROMPTS, max_new_tokens=8, do_sample=True, seed=2)
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens


def test_return_sequences_come_prompt_by_prompt(lm):
    found = lm.generate(PROMPTS, max_new_tokens=4, do_sample=True, seed=0, num_return_sequences=2)
    assert len(found) == len(found.tokens) == 6
    assert found.log_probs is not None
    for at, row in enumerate(rows(lm)):
        for copy in (2 * at, 2 * at + 1):
            new = found.tokens[copy]
            expected = alone(lm, row + new).log_softmax(-1)
            want = [float(expected[len(row) - 1 + i, token]) for i, token in enumerate(new)]
            assert found.log_probs[copy].tolist() == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_beams_find_the_text_that_transformers_finds_and_have_no_log_probs(lm):
    found = lm.generate(PROMPTS, max_new_tokens=5, num_beams=3)
    assert found.log_probs is None
    for at, row in enumerate(rows(lm)):
        with torch.no_grad():
            out = lm.model.generate(
                input_ids=torch.tensor([row]), max_new_tokens=5, num_beams=3, do_sample=False
            )
        assert found.tokens[at] == out[0, len(row) :].tolist()


def test_generations_print_as_a_list_of_texts_and_show_escaped(lm):
    found = lm.generate(["one"], max_new_tokens=2)
    assert list(found) == [found[0]]
    found[0] = "<b>"
    assert "&lt;b&gt;" in found._repr_html_()


def test_a_chat_is_rendered_by_the_tokenizers_template(lm):
    chat = [{"role": "user", "content": "it was"}]
    text = lm.chat(chat)
    assert text == lm.tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(lm.logits([chat]), lm.logits([ids]))
