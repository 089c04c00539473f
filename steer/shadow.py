"""Shadowing `generate` on a model while plans are attached, so that prompts are known as prompts.

What is prompt and what is generated cannot be told from the forward calls: the last chunk of a
chunked prefill looks like a decode step. The shadow is a pass-through in the instance, removed with
the last plan; one model may be wrapped twice, and both registries share it.
"""

import inspect
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from steer.errors import UnsupportedModel

LOCK = threading.Lock()


@runtime_checkable  # the test run checks types with beartype, which needs isinstance
class Owner(Protocol):
    """A registry, as far as a shadow is concerned."""

    def runs(self) -> tuple[object, ...]:
        """Return what is attached in this context."""
        ...

    def declare(
        self, rows: ExitStack, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Declare the prompts of a call while `rows` is open; return its arguments."""
        ...


def cover(model: nn.Module, owner: Owner, name: str) -> None:
    """Shadow `generate` for an owner; once per attached plan.

    Raises:
        UnsupportedModel: other code has put a `generate` into the instance.
    """
    with LOCK:
        if not callable(getattr(model, "generate", None)):
            return
        owners = _owners(model)
        if owners is not None:
            owners.append(owner)
            return
        if "generate" in model.__dict__:
            raise UnsupportedModel(
                f"{name} has a `generate` of its own in the instance, put there by other code. "
                "Replacing it would break that code when the plan leaves. Remove it "
                "(del model.generate) and attach again."
            )
        original = cast("Callable[..., Any]", model.generate)
        model.__dict__["generate"] = _shadow(original, [owner])


def uncover(model: nn.Module, owner: Owner) -> None:
    """Take back one `cover`; the last one restores the model."""
    with LOCK:
        owners = _owners(model)
        if owners is None or owner not in owners:
            return
        owners.remove(owner)
        if not owners:
            del model.__dict__["generate"]


def _owners(model: nn.Module) -> list[Owner] | None:
    return getattr(model.__dict__.get("generate"), "owners", None)


def _shadow(original: Callable[..., Any], owners: list[Owner]) -> Callable[..., Any]:
    def generate(*args: Any, **kwargs: Any) -> Any:
        working = [owner for owner in dict.fromkeys(tuple(owners)) if owner.runs()]
        with ExitStack() as rows:
            for owner in working:
                kwargs = owner.declare(rows, args, kwargs)
            return original(*args, **kwargs)

    generate.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    generate.__doc__ = original.__doc__
    generate.owners = owners  # type: ignore[attr-defined]
    return generate
