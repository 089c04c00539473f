"""The arithmetic that every edit shares: strengths, deltas in the model's dtype, exact zeros.

Subspace and manifold arithmetic is done in fp32 (fp64 where the stream is fp64) and only the delta
is cast to the model's dtype. `h + 0 * v` is not the baseline (-0.0 becomes +0.0), so untouched
tokens are selected, never computed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steer.errors import PlanError, WidthMismatch
from steer.step import Step


@dataclass(frozen=True, slots=True)
class Relative:
    """A strength in multiples of each token's own norm; the direction counts as a unit vector."""

    kind: ClassVar[str] = "steer.Relative"
    multiple: int | float | Tensor
    """A number; within a stack (see `stacked`) one for each of its rows."""


Number = int | float
"""Both spelled out: run-time shape checks do not take an int for a float."""
Strength = Number | Tensor | Relative


def precise(x: Tensor) -> Tensor:
    """Return x in fp32, or unchanged if it is fp64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def as_strength(value: Number | Tensor | Relative, owner: str) -> Strength:
    """Return a checked strength: a number, or one per row of the batch.

    Raises:
        PlanError: not finite, or a tensor that is not [batch].
    """
    if isinstance(value, Relative):
        if isinstance(value.multiple, Tensor):
            raise TypeError(f"The multiple of {owner} is one number, not {value.multiple!r}.")
        as_strength(value.multiple, owner)
        return value
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return as_strength(float(value), owner)
        if value.ndim != 1:
            raise PlanError(
                f"The strength of {owner} has shape {tuple(value.shape)}. It is a number, or a "
                "tensor [batch] with one number for each row. Flatten it, or use several items."
            )
        require_finite(value, f"The strength of {owner}")
        return value.detach()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"The strength of {owner} is a number or a tensor [batch], not {value!r}.")
    require_finite(torch.tensor(float(value)), f"The strength of {owner}")
    return float(value)


def require_finite(values: Tensor, what: str) -> Tensor:
    """Return the values.

    Raises:
        PlanError: some are NaN or infinite.
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise PlanError(
            f"{what} has {bad} of {values.numel()} entries that are not finite. Every token it "
            "touched would become NaN, and so would all later logits. Look at how it was computed "
            "(a division by a zero norm, an overflow in half precision)."
        )
    return values


def as_vector(values: Tensor, what: str) -> Tensor:
    """Return a finite, detached vector [d].

    Raises:
        WidthMismatch: not one axis.
        PlanError: not finite.
    """
    vector = torch.as_tensor(values).detach()
    if vector.ndim != 1:
        raise WidthMismatch(
            f"{what} has shape {tuple(vector.shape)}, but it is one direction [d_model]. Choose "
            "one row, or use one intervention for each direction (steer.Rows for one per row)."
        )
    return require_finite(vector, what)


def as_basis(values: Tensor, what: str) -> Tensor:
    """Return orthonormal rows [k, d] spanning the given direction or directions, in fp32 or fp64.

    Raises:
        PlanError: not finite, or the directions are linearly dependent.
        WidthMismatch: neither one nor two axes.
    """
    rows = precise(torch.as_tensor(values).detach())
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[0] > rows.shape[1]:
        raise WidthMismatch(
            f"{what} has shape {tuple(values.shape)}, but it is [d_model] or [k, d_model] with at "
            "most d_model rows. Transpose it if the directions stand in columns."
        )
    require_finite(rows, what)
    gram = rows.double() @ rows.double().T
    if torch.allclose(gram, torch.eye(len(rows), dtype=gram.dtype, device=gram.device), atol=1e-6):
        # Orthonormal already: keep the bits, so that a saved basis keeps its digest.
        return rows.contiguous()
    q, r = torch.linalg.qr(rows.double().T)
    diagonal = r.diagonal()
    if bool((diagonal.abs() <= 1e-6 * rows.double().norm(dim=1).max()).any()):
        raise PlanError(
            f"{what} holds {len(rows)} directions that are linearly dependent (or zero), so they "
            "do not span a subspace of that size. Drop the redundant ones."
        )
    return (q * diagonal.sign()).T.to(rows.dtype).contiguous()


def add_delta(h: Tensor, delta: Tensor) -> Tensor:
    """Return h + delta in h's dtype; where the delta is zero the bits of h are kept."""
    small = delta.to(h.dtype)
    return torch.where(small == 0, h, h + small)


def scaled(h: Tensor, delta: Tensor, strength: Strength, step: Step) -> Tensor:
    """Return h + strength * delta, selecting the untouched bits where the strength is 0."""
    if isinstance(strength, Relative):
        strength = strength.multiple
    if not isinstance(strength, Tensor):
        return h if strength == 0 else add_delta(h, delta if strength == 1 else strength * delta)
    amount = step.of_row(strength, h).to(delta.dtype)
    return torch.where(amount == 0, h, add_delta(h, amount * delta))


FEW = 8
"""Directions up to which products are taken one by one: a matrix product's bits depend on how many
rows it has, and what one row gets must not depend on the others."""


def coordinates(h: Tensor, basis: Tensor) -> Tensor:
    """Return the coordinates [..., k] of h in orthonormal rows [k, d] (or [row, ..., k, d])."""
    x = precise(h)
    rows = basis.to(x.dtype)
    if rows.shape[-2] > FEW:
        return x @ rows.mT
    return torch.stack([(x * one).sum(-1) for one in _each(rows)], dim=-1)


def within(c: Tensor, basis: Tensor) -> Tensor:
    """Return the point [..., d] with coordinates [..., k]."""
    rows = basis.to(c.dtype)
    if rows.shape[-2] > FEW:
        return c @ rows
    parts = [x[..., None] * one for x, one in zip(c.unbind(-1), _each(rows), strict=True)]
    return torch.stack(parts).sum(0)


def _each(rows: Tensor) -> list[Tensor]:
    # [d] each, or [row, ..., 1, d], to broadcast over positions and heads.
    return [one if one.ndim == 1 else one.unsqueeze(-2) for one in rows.unbind(-2)]
