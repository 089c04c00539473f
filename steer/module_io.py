"""The tensor within what a module takes or returns: found, and put back in the same kind of value.

transformers 5 blocks return a plain tensor where older ones returned a tuple; both are handled.
"""

from typing import Any

from torch import Tensor

from steer.errors import PlanError


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor]:
    """Return where a module's input tensor is among its arguments, and the tensor."""
    for place, value in enumerate(args):
        if isinstance(value, Tensor):
            return place, value
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return "hidden_states", kwargs["hidden_states"]
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            return name, value
    raise PlanError("A module at an input site was called without any tensor. Use its output.")


def tensor_of(output: Any) -> Tensor:
    """Return the tensor of a module's output: itself, `logits`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    for value in output if isinstance(output, tuple | list) else ():
        if isinstance(value, Tensor):
            return value
    raise PlanError(f"A module at an output site returned {type(output).__name__} with no tensor.")


def with_tensor(output: Any, new: Tensor) -> Any:
    """Return the module's output with its tensor replaced, of the same kind."""
    if isinstance(output, Tensor):
        return new
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return type(output)(**{**output, name: new})
    place = next(i for i, value in enumerate(output) if isinstance(value, Tensor))
    return type(output)((*output[:place], new, *output[place + 1 :]))
