"""What loading refuses, and how it says so: what happened, why it cannot work, what to do.

Each function raises or returns our own error; none of them loads anything. See `load`.
"""

from collections.abc import Collection

from torch import nn

from steer.errors import ModelNotFound, UnsupportedModel, did_you_mean
from steer.models.pinned import EMBEDDED
from steer.models.provenance import Source
from steer.models.tiny import TINY


def refuse_revision(name: str, revision: str | None) -> None:
    """Refuse a revision of what is no hub model.

    Raises:
        ModelNotFound: a revision was given.
    """
    if revision is not None:
        raise ModelNotFound(
            f"revision={revision!r} was given for {name}, which has no revisions: embedded models "
            "are pinned by hash, tiny ones are made in memory, folders are what they are. Leave "
            "revision out, or give a hub id."
        )


def refuse_misspelt(name: str) -> None:
    """Refuse what can only be a misspelt tiny name, before any network is used.

    Raises:
        ModelNotFound: the name starts with "tiny-" and is none of ours.
    """
    if name.startswith("tiny-") and "/" not in name:
        raise ModelNotFound(
            f"There is no model {name!r}. The tiny models are {', '.join(TINY)}."
            f"{did_you_mean(name, TINY)}"
        )


def refuse_unreachable(model: nn.Module, name: str) -> None:
    """Refuse a model with weights that are not where they are computed.

    Raises:
        UnsupportedModel: a parameter or buffer is on the meta device.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    missing = [key for key, tensor in tensors if tensor.device.type == "meta"]
    if missing:
        raise UnsupportedModel(
            f"{name} has {len(missing)} of {len(tensors)} tensors on the meta device (the first is "
            f"{missing[0]}): it was offloaded to CPU or disk, or never filled. Such weights come "
            "and go around each call, so reads, hashes and writes of them cannot be trusted. Load "
            "it whole: device=..., a smaller dtype, or a device_map without 'cpu' and 'disk'."
        )


def refuse_made_up(missing: Collection[str], name: str) -> None:
    """Refuse a model for which transformers drew weights at random.

    Raises:
        UnsupportedModel: the checkpoint lacks weights of a causal language model.
    """
    if missing:
        raise UnsupportedModel(
            f"The checkpoint of {name} lacks {len(missing)} weights of a causal language model "
            f"(the first is {min(missing)}). transformers fills such weights with random numbers, "
            "so nothing measured on it would mean anything. If that is intended, load it with "
            "transformers yourself and use steer.wrap(model, tokenizer)."
        )


def explained(
    error: Exception, name: str, source: Source, *, local_files_only: bool
) -> ModelNotFound | UnsupportedModel:
    """Return our error for what transformers raised: what to do differs by the reason."""
    said = str(error).strip().split("\n")[0]
    if "trust_remote_code" in str(error):
        return UnsupportedModel(
            f"{name} needs Python code from its own repository ({said}). Such code is never run "
            "here. If you trust it, load it with transformers yourself and use "
            "steer.wrap(model, tokenizer)."
        )
    if "Unrecognized configuration class" in said:
        return UnsupportedModel(
            f"{name} is no causal language model for transformers ({said}). Only models with "
            "AutoModelForCausalLM are loaded by name. Load it with transformers yourself and use "
            "steer.wrap(model, tokenizer)."
        )
    if source == "wheel":
        return ModelNotFound(
            f"The cached conversion of {name} cannot be read ({said}). Delete its folder in "
            "$XDG_CACHE_HOME/manifold-steer (default ~/.cache) and load it again."
        )
    if source == "path":
        return ModelNotFound(
            f"{name} cannot be loaded ({said}). The folder must hold a config, weights and a "
            "tokenizer as save_pretrained writes them."
        )
    names = [*EMBEDDED, *TINY]
    where = "the hub's local cache (allow_download=False)" if local_files_only else "the hub"
    return ModelNotFound(
        f"{name} cannot be had from {where} ({said}). It is neither an embedded model, nor a tiny "
        f"one, nor a folder. Check the spelling, the network and, for a gated model, "
        f"`hf auth login`. Without a hub there are: {', '.join(names)}.{did_you_mean(name, names)}"
    )
