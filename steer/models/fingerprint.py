"""A quick identity of a model's weights, cheap enough to be taken at every capture."""

import hashlib

import torch
from torch import nn

from steer.models.provenance import dense

SAMPLE = 64
"""Entries of each weight that are looked at, evenly spread."""


def fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits over name, shape and 64 evenly spread entries of each weight.

    It tells one checkpoint or fine-tune from another in milliseconds; a change of a few single
    weights can escape it. The proof over every weight is `steer.models.weight_hash`.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        if weight.numel() and weight.device.type != "meta":
            flat = dense(name, weight).reshape(-1)
            step = max(1, flat.numel() // SAMPLE)
            sample = flat[::step][:SAMPLE].to("cpu", torch.float32).contiguous()
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
