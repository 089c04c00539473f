import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from steer.errors import ModelNotFound, SteerError, UnsupportedModel
from steer.models.load import load_model, wrap_model
from steer.models.provenance import CHUNK, weight_hash
from steer.models.tiny import TINY, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, tokenizer = tiny("tiny-llama")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", list(TINY))
def test_tiny_models_load_by_name_in_eval_mode_with_provenance(name: str) -> None:
    loaded = load_model(name, device="cpu")
    assert not loaded.model.training
    assert loaded.model.config.name_or_path == name
    assert (loaded.provenance.name, loaded.provenance.source) == (name, "tiny")
    assert str(loaded.provenance) == f"{name} (float32, from tiny)"
    assert repr(loaded) == f"LoadedModel({name} (float32, from tiny))"


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_a_dtype_is_taken_as_a_value_or_by_name(dtype: torch.dtype | str) -> None:
    loaded = load_model("tiny-llama", dtype=dtype, device="cpu")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.provenance.dtype == "bfloat16"


@pytest.mark.parametrize(("dtype", "near"), [("bfloat", "bfloat16"), ("float31", "float32")])
def test_a_misspelt_dtype_is_refused_with_the_nearest(dtype: str, near: str) -> None:
    with pytest.raises(SteerError, match=rf"dtype='{dtype}'.*Did you mean {near}\?"):
        load_model("tiny-llama", dtype=dtype)


def test_an_integer_dtype_is_refused() -> None:
    with pytest.raises(SteerError, match=r"torch\.int8 is no floating dtype"):
        load_model("tiny-llama", dtype=torch.int8)


def test_a_folder_loads_with_its_own_weights_in_fp32_on_a_cpu(folder: Path) -> None:
    original: Any = tiny("tiny-llama")[0]
    original.to(torch.bfloat16).save_pretrained(folder)
    loaded = load_model(folder, device="cpu")
    assert loaded.model.dtype == torch.float32
    assert loaded.provenance.source == "path"
    for key, weight in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], weight.float()), key


def test_a_folder_loads_by_string_and_relative_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    for name in ("saved", "./saved", str(folder)):
        assert load_model(name, device="cpu").provenance.name == name


def test_loading_is_silent(
    folder: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    load_model("tiny-gpt2", device="cpu")
    load_model("tiny-llama", device="cpu")
    assert capfd.readouterr() == ("", "")
    load_model(folder, device="cpu")
    assert "warn" not in capfd.readouterr().err.lower()
    assert not list(recwarn)


def test_the_attention_kernel_is_the_one_transformers_chooses(folder: Path) -> None:
    chosen = AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation
    assert load_model(folder, device="cpu").model.config._attn_implementation == chosen == "sdpa"


def test_a_tokenizer_without_padding_pads_with_its_end_token(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_model(folder, device="cpu")
    model: Any = loaded.model
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token
    assert len(loaded.tokenizer) == model.config.vocab_size
    assert model.get_input_embeddings().weight.shape[0] == len(loaded.tokenizer)
    batch = loaded.tokenizer(["a", "b c"], padding=True, return_tensors="pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**batch, max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "near"),
    [("tiny-lama", "tiny-llama"), ("tiny-qwen", "tiny-qwen2"), ("tiny-gemma", "tiny-gemma3")],
)
def test_a_misspelt_tiny_name_never_reaches_for_the_hub(name: str, near: str) -> None:
    with pytest.raises(ModelNotFound, match=rf"no model '{name}'.*Did you mean {near}\?"):
        load_model(name)


def test_an_unknown_name_says_what_there_is_and_the_nearest() -> None:
    with pytest.raises(ModelNotFound) as caught:
        load_model("smollm2-135", allow_download=False)
    said = str(caught.value)
    assert "smollm2-135 cannot be had from the hub's local cache (allow_download=False)" in said
    assert "Did you mean smollm2-135m?" in said
    assert "gemma3-270m" in said


def test_a_hub_id_that_is_not_cached_is_not_fetched_when_forbidden() -> None:
    with pytest.raises(ModelNotFound, match="nobody/nothing cannot be had"):
        load_model("nobody/nothing", allow_download=False)


def test_what_is_no_possible_hub_id_is_model_not_found_too() -> None:
    with pytest.raises(ModelNotFound, match="no such model!"):
        load_model("no such model!", allow_download=False)


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "/nowhere/at/all", Path("nowhere")])
def test_a_missing_folder_is_said_to_be_missing(name: str | Path) -> None:
    with pytest.raises(ModelNotFound, match=r"nowhere.* is no folder"):
        load_model(name)


def test_a_folder_without_config_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        load_model(tmp_path)
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(ModelNotFound, match=r"model\.gguf' is no folder"):
        load_model(file)


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelNotFound, match=r"saved cannot be loaded \("):
        load_model(folder)


def test_a_checkpoint_that_lacks_weights_is_refused_not_filled_at_random(folder: Path) -> None:
    model = tiny("tiny-llama")[0]
    partial = {k: v for k, v in model.state_dict().items() if "layers.2.mlp.up_proj" not in k}
    model.save_pretrained(folder, state_dict=partial)
    with pytest.raises(
        UnsupportedModel, match=r"lacks 1 weights.*model\.layers\.2\.mlp\.up_proj\.weight"
    ):
        load_model(folder)


def test_code_of_a_repository_is_never_run(folder: Path) -> None:
    code = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": code}))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    with pytest.raises(UnsupportedModel, match=r"Such code is never run here.*steer\.wrap"):
        load_model(folder)
    assert not (folder / "ran").exists()


def test_a_model_that_is_no_causal_language_model_is_sent_to_wrap(folder: Path) -> None:
    transformers.T5Config().save_pretrained(folder)
    with pytest.raises(UnsupportedModel, match=r"no causal language model.*steer\.wrap"):
        load_model(folder)


@pytest.mark.parametrize("name", ["tiny-llama", "smollm2-135m", "."])
def test_a_revision_of_what_has_none_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFound, match=r"revision='v1'.*has no revisions"):
        load_model(name, revision="v1")


def test_device_and_device_map_together_are_refused() -> None:
    with pytest.raises(SteerError, match=r"Both device='cpu' and device_map='auto'"):
        load_model("tiny-llama", device="cpu", device_map="auto")
    with pytest.raises(SteerError, match="Use device= instead"):
        load_model("tiny-llama", device_map="auto")


def test_a_device_map_that_keeps_everything_in_memory_is_taken(folder: Path) -> None:
    loaded = load_model(folder, device_map={"": "cpu"})
    assert {weight.device.type for weight in loaded.model.parameters()} == {"cpu"}


def test_a_device_map_that_offloads_to_disk_is_refused(folder: Path) -> None:
    device_map = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(UnsupportedModel, match=r"lm_head\.weight.*offloaded to CPU or disk"):
        load_model(folder, device_map=device_map)


def test_wrap_refuses_offloaded_and_meta_models() -> None:
    model, tokenizer = tiny("tiny-llama")
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModel, match="tensors on the meta device"):
        wrap_model(model, tokenizer)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny("tiny-gpt2")[0].config)
    with pytest.raises(UnsupportedModel, match=r"tiny-gpt2 has .*transformer\.wte\.weight"):
        wrap_model(empty, tokenizer)


def test_wrap_changes_nothing() -> None:
    model, tokenizer = tiny("tiny-llama")
    model.train()
    model.generation_config.pad_token_id = tokenizer.pad_token = None
    attributes, modules = dict(vars(model)), list(model.modules())
    loaded = wrap_model(model, tokenizer)
    assert loaded.model is model
    assert loaded.tokenizer is tokenizer
    assert dict(vars(model)) == attributes
    assert list(model.modules()) == modules
    assert model.training
    assert tokenizer.pad_token is None
    assert model.generation_config.pad_token_id is None
    assert loaded.provenance.source == "live"
    assert loaded.provenance.name == "tiny-llama"


# peft 0.21 reads an attribute that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_wrap_takes_a_lora_model_as_it_is() -> None:
    model, tokenizer = tiny("tiny-llama")
    before = weight_hash(model)
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    lora: Any = get_peft_model(model, adapter)
    loaded = wrap_model(lora, tokenizer)
    assert loaded.model is lora
    assert loaded.provenance.name == "tiny-llama"
    assert weight_hash(loaded.model) != before


def test_wrap_refuses_what_is_no_model_or_no_tokenizer() -> None:
    model, tokenizer = tiny("tiny-llama")
    wrap: Any = inspect.unwrap(wrap_model)  # without the shape checker, which refuses earlier
    with pytest.raises(TypeError, match=r"model is a str.*steer\.load"):
        wrap("tiny-llama", tokenizer)
    with pytest.raises(TypeError, match=r"tokenizer is a str.*AutoTokenizer"):
        wrap(model, "tiny-llama")


class Weights(nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(values)


def test_the_weight_hash_is_one_for_bf16_and_its_fp32_copy() -> None:
    model = tiny("tiny-llama")[0]
    original = weight_hash(model)
    packed = weight_hash(model.bfloat16())
    assert packed != original
    assert weight_hash(model.float()) == packed


def test_the_weight_hash_sees_every_value_name_and_shape() -> None:
    values = torch.arange(12.0)
    base = weight_hash(Weights(values.reshape(3, 4)))
    assert weight_hash(Weights(values.reshape(4, 3))) != base
    assert weight_hash(nn.ParameterDict({"b": values.reshape(3, 4)})) != base
    moved = values.clone()
    moved[0] = -0.0
    assert weight_hash(Weights(moved.reshape(3, 4))) != base
    assert weight_hash(Weights(values.reshape(4, 3).T.contiguous().T)) == weight_hash(
        Weights(values.reshape(4, 3))
    )


def test_the_weight_hash_does_not_depend_on_the_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(CHUNK + 17, generator=generator)
    base = weight_hash(Weights(values))
    values[-1] += 1
    assert weight_hash(Weights(values)) != base


def test_the_weight_hash_counts_saved_buffers_only() -> None:
    module = Weights(torch.ones(2))
    base = weight_hash(module)
    module.register_buffer("scratch", torch.ones(2), persistent=False)
    assert weight_hash(module) == base
    module.register_buffer("kept", torch.ones(2))
    assert weight_hash(module) != base


def test_meta_weights_cannot_be_hashed() -> None:
    with pytest.raises(UnsupportedModel, match="The weight a is on the meta device"):
        weight_hash(Weights(torch.ones(2, device="meta")))


@pytest.mark.gpu
def test_on_a_gpu_the_default_is_cuda_in_the_stored_dtype(folder: Path) -> None:
    model: Any = tiny("tiny-llama")[0]
    model.to(torch.bfloat16).save_pretrained(folder)
    loaded = load_model(folder)
    assert loaded.model.device.type == "cuda"
    assert loaded.model.dtype == torch.bfloat16
    assert load_model("tiny-llama").model.device.type == "cuda"


@pytest.mark.gpu
def test_the_weight_hash_is_the_same_on_a_gpu() -> None:
    model: Any = tiny("tiny-llama")[0]
    assert weight_hash(model) == weight_hash(model.cuda())
