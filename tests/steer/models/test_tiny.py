import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from steer.errors import ModelNotFound
from steer.models.tiny import TINY, tiny
from steer.models.tiny_tokenizer import BOS, COMMON, EOS, MONTHS, PAD, WEEKDAYS, tiny_tokenizer

PROMPT = "January, February, March, and it was the day after Monday that he"


@pytest.fixture(params=list(TINY))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def blocks(model: PreTrainedModel) -> Iterator[nn.Module]:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return iter(max(lists, key=lambda found: len(found)))


def test_every_call_returns_the_same_bits_in_other_storage(name: str) -> None:
    first, second = tiny(name)[0], tiny(name)[0]
    theirs = dict(second.named_parameters())
    for key, weight in first.named_parameters():
        assert torch.equal(weight, theirs[key]), key
        assert weight.data_ptr() != theirs[key].data_ptr(), key


def test_building_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    tiny(name)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_global_seed_does_not_matter(name: str) -> None:
    first = tiny(name)[0].state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second = tiny(name)[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_every_family_is_small_fp32_in_eval_mode_and_quick(name: str) -> None:
    start = time.perf_counter()
    model, tokenizer = tiny(name)
    assert time.perf_counter() - start < 1.0
    assert not model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert sum(weight.numel() for weight in model.parameters()) < 250_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.config._attn_implementation == "sdpa"


def test_each_model_type_is_what_its_name_says(name: str) -> None:
    family = name.removeprefix("tiny-")
    expected = {"gemma3": "gemma3_text", "neox": "gpt_neox"}.get(family, family)
    assert tiny(name)[0].config.model_type == expected


def test_every_edit_of_a_block_moves_the_logits(name: str) -> None:
    model, tokenizer = tiny(name)
    inputs = tokenizer([PROMPT], return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        plain = model(**inputs).logits[0, -1]
    for block in blocks(model):
        direction = torch.randn(model.config.hidden_size, generator=generator)
        direction /= direction.norm()

        def push(_m: nn.Module, _a: tuple, h: torch.Tensor, d: torch.Tensor = direction):
            return torch.cat([h[:, :-1], h[:, -1:] + h[:, -1:].norm() * d], dim=1)

        handle = block.register_forward_hook(push)
        with torch.no_grad():
            moved = model(**inputs).logits[0, -1]
        handle.remove()
        assert (moved - plain).abs().max() > 0.5


def test_every_head_and_mlp_moves_the_logits(name: str) -> None:
    model, tokenizer = tiny(name)
    inputs = tokenizer([PROMPT], return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs).logits[0, -1]
    for block in blocks(model):
        for child in block.children():
            if "norm" in type(child).__name__.lower() or not list(child.parameters()):
                continue

            def silence(_m: nn.Module, _a: tuple, out: Any) -> Any:
                if isinstance(out, tuple):
                    return (torch.zeros_like(out[0]), *out[1:])
                return torch.zeros_like(out)

            handle = child.register_forward_hook(silence)
            with torch.no_grad():
                moved = model(**inputs).logits[0, -1]
            handle.remove()
            assert (moved - plain).abs().max() > 0.1, type(child).__name__


def test_the_first_token_matters_to_the_last(name: str) -> None:
    model, tokenizer = tiny(name)
    ids = tokenizer([PROMPT], return_tensors="pt").input_ids
    other = ids.clone()
    other[0, 0] += 1
    with torch.no_grad():
        moved = model(ids).logits[0, -1] - model(other).logits[0, -1]
    assert moved.abs().max() > 0.1


def test_greedy_text_runs_to_its_full_length_and_varies(name: str) -> None:
    model: Any
    model, tokenizer = tiny(name)
    inputs = tokenizer([PROMPT], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    new = out[0, inputs.input_ids.shape[1] :].tolist()
    assert len(new) == 64
    assert len(set(new)) > 8


def test_families_differ_where_layouts_can_go_wrong() -> None:
    gemma, llama = tiny("tiny-gemma3")[0].config, tiny("tiny-llama")[0].config
    assert gemma.head_dim != gemma.hidden_size // gemma.num_attention_heads
    assert gemma.query_pre_attn_scalar != gemma.head_dim
    assert gemma.sliding_window < 32
    assert set(gemma.layer_types) == {"sliding_attention", "full_attention"}
    assert llama.num_key_value_heads < llama.num_attention_heads
    tied = {name: tiny(name)[0].config.tie_word_embeddings for name in TINY}
    assert set(tied.values()) == {True, False}


def test_norms_and_biases_are_not_left_at_one_and_zero(name: str) -> None:
    for key, weight in tiny(name)[0].named_parameters():
        assert weight.unique().numel() > 1, key


def test_the_weights_are_not_those_of_transformers_at_std_002(name: str) -> None:
    model, _ = tiny(name)
    default = AutoConfig.for_model(model.config.model_type).initializer_range
    for key, weight in model.named_parameters():
        if weight.ndim > 1:
            assert weight.std() > 3 * default, key


def test_a_misspelt_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ModelNotFound, match=r"'tiny-lama'.*Did you mean tiny-llama\?"):
        tiny("tiny-lama")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "January, February",
        "  two  spaces\n\n\ttab\r\n",
        "caf\u00e9 e\u0301 \u65e5\u672c\u8a9e \U0001f600\u200d\U0001f680",
        "\x00\x7f\u00a0\u200b\ufeff",
        "don't (stop) x**2 == 10",
    ],
)
def test_any_text_round_trips(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_any_bytes_of_unicode_round_trip() -> None:
    tokenizer = tiny_tokenizer()
    text = "".join(chr(code) for code in range(0x20, 0xD800, 37))
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("word", [*MONTHS, *WEEKDAYS, *COMMON])
def test_known_words_are_one_token_after_a_space(word: str) -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer(f" {word}").input_ids) == 1
    assert tokenizer.tokenize(f" before {word}, x")[1:2] == tokenizer.tokenize(f" {word}")


def test_no_bos_is_added_and_special_tokens_are_single() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer("March").input_ids == tokenizer("March", add_special_tokens=False).input_ids
    assert tokenizer("<|bos|>a<|eos|>").input_ids[::2] == [
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ]
    ids = tokenizer.convert_tokens_to_ids([PAD, BOS, EOS])
    assert ids == [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert ids == [0, 1, 2]


def test_padding_uses_the_pad_token_and_masks_it() -> None:
    tokenizer = tiny_tokenizer()
    batch = tokenizer([" March", " March April"], padding=True)
    assert batch.attention_mask == [[1, 0], [1, 1]]
    assert batch.input_ids[0][1] == tokenizer.pad_token_id


def test_the_chat_template_renders_roles_and_the_prompt_for_an_answer() -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|>user\nhi<|eos|>\n<|bos|>assistant\n"


def test_the_tokenizer_survives_saving(tmp_path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(PROMPT).input_ids == tokenizer(PROMPT).input_ids
