"""How the laws run a model and look at it: plain torch and transformers, no reading of ours."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from steer import LM
from steer.interventions.plans import Plan

_BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    """Return the bits as integers: torch.equal takes -0.0 for 0.0."""
    return x.contiguous().view(_INTEGERS[x.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors agree in dtype, device, shape and every bit."""
    alike = a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
    return alike and bool((bits(a) == bits(b)).all())


def block(lm: LM, layer: int) -> nn.Module:
    """Return a block of the model by transformers' own names."""
    path = _BLOCKS.get(lm.model.config.model_type, "model.layers")
    return lm.model.get_submodule(f"{path}.{layer}")


@contextmanager
def watching(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module returns, pass by pass. Enter after a plan to see what it wrote."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: object, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).detach().clone())

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(frozen=True)
class Padded:
    """Rows of one width, with what a forward call needs to take them for what they are."""

    ids: Tensor
    mask: Tensor
    starts: Sequence[int]
    """Column of each row's first token."""
    rows: Sequence[Sequence[int]]

    def inputs(self) -> dict[str, Tensor]:
        """Return the arguments of a forward pass; positions as generate counts them."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions}

    def real(self, x: Tensor) -> list[Tensor]:
        """Return the entries of the real tokens of [row, column, ...], row by row."""
        pairs = zip(x, self.starts, self.rows, strict=True)
        return [values[start : start + len(row)] for values, start, row in pairs]


def padded(lm: LM, rows: Sequence[Sequence[int]], *, left: bool, extra: int = 0) -> Padded:
    """Return rows padded on one side, by `extra` columns more than they need."""
    width = max(map(len, rows)) + extra
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    starts = [width - len(row) if left else 0 for row in rows]
    for at, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[at, start : start + len(row)] = torch.tensor(row)
        mask[at, start : start + len(row)] = 1
    return Padded(ids.to(lm.device), mask.to(lm.device), starts, rows)


def forward(lm: LM, batch: Padded, plan: Plan) -> Tensor:
    """Return the logits [row, column, vocab] of one plain forward call under a plan."""
    with torch.no_grad(), lm.attached(plan):
        return lm.model(**batch.inputs()).logits


def generate_of(lm: LM) -> Callable[..., Any]:
    """Return transformers' generate, as it is on the model now."""
    return cast("Callable[..., Any]", lm.model.generate)


@dataclass(frozen=True)
class Output:
    """What a generate call gave."""

    tokens: Tensor
    """[row, new]"""
    logits: Tensor
    """[row, new, vocab], as the model gave them."""


def generated(
    lm: LM, rows: Sequence[Sequence[int]], plan: Plan, *, new: int, extra: int = 0, **options: Any
) -> Output:
    """Generate greedily by transformers' own generate, left-padded, under a plan."""
    batch = padded(lm, rows, left=True, extra=extra)
    with torch.no_grad(), lm.attached(plan):
        out = generate_of(lm)(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            **options,
        )
    return Output(out.sequences[:, batch.ids.shape[1] :], torch.stack(out.logits, dim=1))


def gap(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors; NaN counts as infinite."""
    difference = (a.double() - b.double()).abs().nan_to_num(float("inf"))
    return float(difference.max()) if difference.numel() else 0.0
