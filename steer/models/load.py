"""The door to every model: names, folders and hub ids in, a model with its provenance out.

The only `from_pretrained` of the toolkit besides the conversion of GGUF files (`convert`). Which
names there are is said in `embedded` and `tiny`; finding the sites of a model is not done here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from steer.errors import ModelNotFound, SteerError, did_you_mean
from steer.models.embedded import cached_folder, provenance_of
from steer.models.pinned import EMBEDDED
from steer.models.provenance import Provenance, Source
from steer.models.refusals import (
    explained,
    refuse_made_up,
    refuse_misspelt,
    refuse_revision,
    refuse_unreachable,
)
from steer.models.tiny import TINY, tiny

if TYPE_CHECKING:
    HFModel = PreTrainedModel
else:
    # A PeftModel is no PreTrainedModel, but forwards every attribute to the one inside it.
    HFModel = nn.Module

DeviceMap = str | Mapping[str, int | str | torch.device]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A HuggingFace model, its tokenizer and where both came from."""

    model: HFModel
    tokenizer: PreTrainedTokenizerBase
    provenance: Provenance

    def __repr__(self) -> str:
        """Return one line that says what was loaded, never the modules."""
        return f"LoadedModel({self.provenance})"


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    device_map: DeviceMap | None = None,
    accept_license: bool = False,
    allow_download: bool = True,
) -> LoadedModel:
    """Load a model by name, in eval mode, with the attention kernel that transformers chooses.

    Code from a repository is never run (trust_remote_code stays off). A tokenizer without a
    padding token pads with its end token; the vocabulary is not resized.

    Args:
        name: an embedded model ("smollm2-135m"), a seeded random one ("tiny-llama"), a folder, or
            a hub id ("Qwen/Qwen2.5-0.5B"). A path is a folder if it exists or starts with one of
            ". ~ /".
        revision: commit, branch or tag; for hub ids only.
        dtype: torch.bfloat16 or "bfloat16"; default: as stored on a GPU, float32 on a CPU.
            Embedded models are stored in float32, the values of their quantised weights.
        device: default: cuda if there is one.
        device_map: given to transformers; every weight must end up on a device, not offloaded.
        accept_license: needed once per machine for a model whose terms must be accepted (Gemma).
        allow_download: if False, nothing is fetched: caches and folders only.

    Raises:
        ModelNotFound: no such model, revision or wheel, or a licence that is not accepted.
        UnsupportedModel: it needs code of its own, is no causal language model, or is offloaded.
    """
    is_path = isinstance(name, Path)
    name = str(name)
    if device is not None and device_map is not None:
        raise SteerError(
            f"Both device={device!r} and device_map={device_map!r} were given. Each decides where "
            "the weights go. Give one of them."
        )
    dtype = None if dtype is None else _as_dtype(dtype)
    target = _target(device, device_map)
    if name in TINY or name in EMBEDDED:
        refuse_revision(name, revision)
    if name in TINY:
        return _load_tiny(name, dtype=dtype, device=target, device_map=device_map)
    if name in EMBEDDED:
        embedded = EMBEDDED[name]
        folder = cached_folder(
            embedded, accept_license=accept_license, allow_download=allow_download
        )
        with _quiet():
            loaded = _from_pretrained(
                str(folder), embedded.name, dtype=dtype, device=target, device_map=device_map
            )
        # What errors call this model: its name, not a path inside the cache.
        loaded.model.config.name_or_path = embedded.name
        return LoadedModel(
            loaded.model, loaded.tokenizer, provenance_of(embedded, dtype=loaded.provenance.dtype)
        )
    if is_path or name.startswith((".", "~", "/")) or Path(name).exists():
        refuse_revision(name, revision)
        path = _folder(name)
        return _from_pretrained(
            str(path), name, dtype=dtype, device=target, device_map=device_map, source="path"
        )
    refuse_misspelt(name)
    return _from_pretrained(
        name,
        name,
        dtype=dtype,
        device=target,
        device_map=device_map,
        source="hub",
        revision=revision,
        local_files_only=not allow_download,
    )


def wrap_model(model: HFModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Take a live model as it is: nothing of it changes, not even its training mode.

    LoRA adapters (peft) and quantised weights are welcome; a peft model stays wrapped by peft.

    Raises:
        TypeError: this is no torch module, or no tokenizer of transformers.
        UnsupportedModel: some of its weights are on the meta device or offloaded.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"wrap takes a model and its tokenizer, but the model is a {type(model).__name__}. To "
            "load a model by name use steer.load(name)."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"wrap takes a model and its tokenizer, but the tokenizer is a "
            f"{type(tokenizer).__name__}. Load it with transformers.AutoTokenizer."
        )
    config = getattr(model, "config", None)
    name = getattr(config, "name_or_path", "") or type(model).__name__
    refuse_unreachable(model, name)
    return LoadedModel(model, tokenizer, _provenance(model, name, source="live", revision=None))


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a floating dtype, also by its name.

    Raises:
        SteerError: no floating dtype has this name.
    """
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        known = ("float32", "bfloat16", "float16", "float64")
        raise SteerError(
            f"dtype={dtype!r} is no floating dtype of torch. Activations are real numbers. Use one "
            f"of {', '.join(known)}.{did_you_mean(str(dtype), known)}"
        )
    return found


def _target(
    device: torch.device | str | int | None, device_map: DeviceMap | None
) -> torch.device | None:
    """Return the device that everything goes to, or None if device_map says so."""
    if device_map is not None:
        return None
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if not (path / "config.json").is_file():
        what = "holds no config.json" if path.is_dir() else "is no folder"
        raise ModelNotFound(
            f"{str(path)!r} {what}. A local model is a folder as save_pretrained writes it "
            "(config.json, weights, tokenizer). Give that folder, or one of the names "
            f"{', '.join((*EMBEDDED, *TINY))}."
        )
    return path


def _load_tiny(
    name: str,
    *,
    dtype: torch.dtype | None,
    device: torch.device | None,
    device_map: DeviceMap | None,
) -> LoadedModel:
    if device is None:
        raise SteerError(
            f"device_map={device_map!r} was given for {name}, which is made in memory and fits on "
            "any device. Use device= instead."
        )
    model, tokenizer = tiny(name)
    _move(model, device, dtype)
    return LoadedModel(model, tokenizer, _provenance(model, name, source="tiny", revision=None))


def _from_pretrained(
    place: str,
    name: str,
    *,
    dtype: torch.dtype | None,
    device: torch.device | None,
    device_map: DeviceMap | None,
    source: Source = "wheel",
    revision: str | None = None,
    local_files_only: bool = True,
) -> LoadedModel:
    """Call transformers, and turn what it raises into our own errors."""
    on_gpu = device.type != "cpu" if device is not None else torch.cuda.is_available()
    chosen = dtype or ("auto" if on_gpu else torch.float32)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place,
            revision=revision or "main",
            local_files_only=local_files_only,
            trust_remote_code=False,
        )
        # With output_loading_info it returns a pair, which its annotation does not say.
        pair: Any = AutoModelForCausalLM.from_pretrained(
            place,
            revision=revision or "main",
            dtype=chosen,
            device_map=device_map,
            local_files_only=local_files_only,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise explained(error, name, source, local_files_only=local_files_only) from error
    model, report = pair
    refuse_unreachable(model, name)
    refuse_made_up(report["missing_keys"], name)
    # A model that its quantiser placed cannot be moved, and is where it has to be.
    if device is not None and not getattr(model, "is_quantized", False):
        _move(model, device, None)
    model.eval()
    _settle_padding(model, tokenizer)
    commit = _commit(place, revision) if source == "hub" else None
    return LoadedModel(model, tokenizer, _provenance(model, name, source=source, revision=commit))


def _move(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    model.to(device=device, dtype=dtype)


def _settle_padding(model: HFModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model that we loaded a padding token, so that rows can be batched without warnings."""
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    settings = getattr(model, "generation_config", None)
    if settings is not None and settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id


def _provenance(model: HFModel, name: str, *, source: Source, revision: str | None) -> Provenance:
    dtype = str(getattr(model, "dtype", next(model.parameters()).dtype)).removeprefix("torch.")
    return Provenance(
        name=name,
        source=source,
        dtype=dtype,
        revision=revision,
        quantisation=_quantisation(getattr(model, "config", None)),
    )


def _quantisation(config: object) -> str | None:
    """Return what a config says of packed weights: "bitsandbytes 4-bit", or None."""
    packed = getattr(config, "quantization_config", None)
    if packed is None:
        return None
    said = packed if isinstance(packed, Mapping) else packed.to_dict()
    method = said.get("quant_method", "unknown method")
    bits = 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else said.get("bits")
    words = str(getattr(method, "value", method))
    return words if bits is None else f"{words} {bits}-bit"


def _commit(name: str, revision: str | None) -> str | None:
    """Return the commit that the hub's cache resolved a revision to."""
    config = cached_file(name, "config.json", revision=revision or "main", local_files_only=True)
    snapshot = None if config is None else Path(config).parent
    return snapshot.name if snapshot and snapshot.parent.name == "snapshots" else revision


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bar of a load that takes a second or two."""
    if not hf_logging.is_progress_bar_enabled():
        yield
        return
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()
