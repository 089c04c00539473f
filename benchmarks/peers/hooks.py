"""Hand-written torch hooks: what one writes without a library, for one model and one purpose.

They take the conventions of transformers 5 for granted: a block takes its state as the first
argument and returns a tensor. steer's own hooks are in `steer.registry`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]


@contextmanager
def output_edited(model: nn.Module, path: str, edit: Edit) -> Iterator[None]:
    """Replace what a module returns by edit(it)."""
    module = model.get_submodule(path)

    def on_output(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        return edit(out)

    handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def input_edited(model: nn.Module, path: str, edit: Edit) -> Iterator[None]:
    """Replace what a module takes first by edit(it)."""
    module = model.get_submodule(path)

    def on_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (edit(args[0]), *args[1:])

    handle = module.register_forward_pre_hook(on_input)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def kept(model: nn.Module, paths: Sequence[str], side: str) -> Iterator[dict[str, Tensor]]:
    """Keep what each module takes first ("input") or returns ("output") in the next pass."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def on_input(_module: nn.Module, args: tuple[Any, ...]) -> None:
            found[path] = args[0]

        def on_output(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
            found[path] = out

        return on_input if side == "input" else on_output

    with ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            register = (
                module.register_forward_pre_hook
                if side == "input"
                else module.register_forward_hook
            )
            stack.callback(register(keep(path)).remove)
        yield found


@contextmanager
def tokens_counted(model: nn.Module, paths: Sequence[str]) -> Iterator[list[int]]:
    """Count the tokens, padding included, that some modules return, call by call."""
    counts: list[int] = []

    def count(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
        counts.append(out.numel() // out.shape[-1])

    with ExitStack() as stack:
        for path in paths:
            handle = model.get_submodule(path).register_forward_hook(count)
            stack.callback(handle.remove)
        yield counts


def add(delta: Tensor) -> Edit:
    """Return an edit that adds a vector [d_model], or one for each row [row, 1, d_model]."""
    return lambda h: h + delta


def write(column: int, values: Tensor) -> Edit:
    """Return an edit that writes values [d_model] or [row, d_model] at one column."""

    def edit(h: Tensor) -> Tensor:
        h = h.clone()
        h[:, column] = values
        return h

    return edit
