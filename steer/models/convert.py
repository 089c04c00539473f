"""Turn one GGUF file into a folder of dense fp32 safetensors and a tokenizer, or into nothing.

transformers dequantises the file; the folder appears under its final name in one step, so that
neither an interrupted nor a concurrent conversion is ever seen half-written.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

# Older than this, a work folder was left behind by a process that was killed outright.
STALE_SECONDS = 24 * 3600


def convert(gguf: Path, work: Path, *, digits_alone: bool = False) -> None:
    """Write the model and the tokenizer of a GGUF file into the folder `work`.

    fp32, because the dequantised values (a 4-bit integer times an fp16 scale plus an fp16
    minimum) fit neither fp16 nor bf16: 211 of 272 tensors of smollm2 would be rounded.

    digits_alone restores a step of SmolLM's tokenizer that transformers 5.23 drops (it reads no
    `tokenizer.ggml.pre`): without it, two or more spaces before a digit become other tokens.
    """
    # transformers 5.23 would keep the weights packed where it has a kernel; older ones have no
    # GgufConfig and always dequantise.
    gguf_config = getattr(transformers, "GgufConfig", None)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=None if gguf_config is None else gguf_config(dequantize=True),
        trust_remote_code=False,
    )
    plain(model).save_pretrained(work)
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    if digits_alone:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    tokenizer.save_pretrained(work)


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same weights in a model that has no trace of a quantiser.

    transformers refuses to save a model that was loaded from GGUF as long as the model or its
    config says so; a fresh model from a clean config says nothing.
    """
    fields = model.config.to_dict()
    for trace in ("quantization_config", "_model_name_or_path"):
        fields.pop(trace, None)
    config = type(model.config).from_dict(fields)
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dense.load_state_dict(model.state_dict(), assign=True)
    dense.tie_weights()
    dense.generation_config = model.generation_config
    return dense


def publish(work: Path, folder: Path, facts: Mapping[str, object]) -> None:
    """Write provenance.json into `work` and give `work` its final name `folder`.

    If another process was first, its folder stays and ours is dropped: both hold the same bits.
    """
    everything = {**facts, "transformers": transformers.__version__, "torch": torch.__version__}
    (work / "provenance.json").write_text(json.dumps(everything, indent=2) + "\n")
    try:
        os.replace(work, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(work)


def work_folder(root: Path) -> Path:
    """Return a fresh work folder beside the final ones (os.replace needs one file system)."""
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".work-*"):
        # Another process may be sweeping the same leftovers.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=".work-", dir=root))
