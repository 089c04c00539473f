"""What generate is asked for: prompts and options, as transformers itself would read them."""

import functools

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

import steer
from steer.generating import sequences_of_generate
from steer.passes import cache_of_generate
from steer.sites import Site

IDS = torch.tensor([[0, 0, 5, 6, 7], [1, 8, 9, 10, 11]])  # 0 pads
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def lengths(lm: "steer.LM", *args: object, **kwargs: object) -> list[int]:
    sequences, _ = sequences_of_generate(lm.model, args, kwargs)
    assert sequences.prompt is not None
    assert sequences.generating
    return sequences.prompt.lengths.tolist()


def test_the_prompt_is_found_wherever_it_is_given(lm):
    assert lengths(lm, IDS, attention_mask=MASK) == [3, 5]
    assert lengths(lm, inputs=IDS, attention_mask=MASK) == [3, 5]
    assert lengths(lm, input_ids=IDS, attention_mask=MASK) == [3, 5]
    embeds = lm.model.get_input_embeddings()(IDS)
    assert lengths(lm, inputs_embeds=embeds, attention_mask=MASK) == [3, 5]


def test_without_a_mask_padding_is_inferred_as_transformers_infers_it(lm):
    assert lengths(lm, IDS) == [3, 5]
    assert lengths(lm, IDS, pad_token_id=5) == [4, 5]
    assert lengths(lm, IDS, pad_token_id=0, eos_token_id=0) == [5, 5]
    assert lengths(lm, IDS, generation_config=GenerationConfig(pad_token_id=8)) == [5, 4]


def test_options_come_from_arguments_then_the_config_given_then_the_models(lm):
    def asked(**kwargs: object) -> tuple[int, bool, bool]:
        _, found = sequences_of_generate(lm.model, (IDS,), dict(kwargs))
        return found.beams, found.sampling, found.cached

    assert asked() == (1, False, True)
    config = GenerationConfig(num_beams=3, do_sample=True, use_cache=False)
    assert asked(generation_config=config) == (3, True, False)
    assert asked(generation_config=config, num_beams=2, do_sample=False) == (2, False, False)


def test_a_given_cache_says_where_the_new_columns_begin(lm):
    cache = DynamicCache(config=lm.model.config)
    with torch.no_grad():
        lm.model(input_ids=IDS[:, 1:4], **{cache_of_generate(lm.model): cache})
    sequences, _ = sequences_of_generate(lm.model, (IDS,), {cache_of_generate(lm.model): cache})
    assert (sequences.column, sequences.seen) == (3, 3)


def test_automatic_compilation_is_off_while_steered_and_left_alone_otherwise(lm, monkeypatch):
    seen: list[object] = []
    original = type(lm.model).generate

    @functools.wraps(original)
    def spy(self, *args, **kwargs):
        seen.append(kwargs.get("disable_compile"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(lm.model), "generate", spy)
    options = {"attention_mask": MASK, "max_new_tokens": 2, "do_sample": False}
    lm.model.generate(IDS, **options)
    with lm.attached([steer.Add(Site(1), torch.ones(lm.d_model))]):
        lm.model.generate(IDS, **options)
    assert seen == [None, True]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_rows_of_a_batch_expand_prompt_by_prompt(lm, n):
    v = torch.ones(lm.d_model)
    rows = steer.Rows([[steer.Add(Site(1), v)], []])
    options = {"attention_mask": MASK, "max_new_tokens": 2, "do_sample": True}
    with lm.attached(rows) as run:
        out = lm.model.generate(IDS, num_return_sequences=n, **options)
    assert out.shape[0] == 2 * n
    assert run.receipt[0].edited.tolist() == [4 * n, 0]
