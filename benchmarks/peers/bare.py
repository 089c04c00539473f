"""The HuggingFace model alone: one that no LM has ever seen, over the same weights."""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_METHODS = ("forward", "generate", "__call__")


def bare_twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model built by its own class, over the very tensors of another.

    A second load would put the weights elsewhere in memory, and where they lie is a difference of
    its own (pages, caches) that no number of pairs averages out. A copy of the wrapped model would
    copy what wrapping did to it. This one shares the storage and nothing else.
    """
    # Built where it will lie: the weights made here are thrown away, and on the host those of a
    # large model would take minutes and twice its memory.
    with torch.random.fork_rng(), model.device:
        twin = type(model)(copy.deepcopy(model.config))
    twin.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    twin.generation_config = copy.deepcopy(model.generation_config)
    twin.to(model.device)  # type: ignore[arg-type]
    return twin.eval()


def hooks_present(model: nn.Module) -> int:
    """Return how many hooks and shadowed methods a model carries, counted on its modules."""
    hooks = sum(len(vars(module)[table]) for module in model.modules() for table in _TABLES)
    shadowed = sum(name in vars(module) for module in model.modules() for name in _METHODS)
    return hooks + shadowed
