"""nnsight 0.8: one trace for a pass, one for a generation.

nnsight wraps the modules of the model that it is given for good, so give it a model of its own.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from nnsight import TransformersModel


def traced(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "TransformersModel":
    """Return nnsight's model over a HuggingFace model, which it wraps."""
    # Heavy: importing it mounts a method on every Python object.
    from nnsight import TransformersModel

    return TransformersModel(model, tokenizer=tokenizer, task="text-generation")


def forward_added(
    model: "TransformersModel", ids: Tensor, path: str, delta: Tensor
) -> Callable[[], Tensor]:
    """Return a traced pass in which a vector is added to what a module returns."""
    module = model.get(path)

    def run() -> Tensor:
        with model.trace(input_ids=ids, use_cache=False):
            module.output = module.output + delta
            logits = model.output.logits.save()
        return logits

    return run


def decode_added(
    model: "TransformersModel",
    ids: Tensor,
    path: str,
    delta: Tensor,
    n_tokens: int,
    asked: Mapping[str, Any],
) -> Callable[[], Tensor]:
    """Return a traced greedy generation, a vector added at every token."""
    module = model.get(path)

    def run() -> Tensor:
        with model.generate(input_ids=ids, **asked) as tracer:
            for _ in tracer.iter[:n_tokens]:
                module.output = module.output + delta
            out = tracer.result.save()
        return out[:, ids.shape[1] :]

    return run
