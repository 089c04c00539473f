"""What every fit does to its data first: take it in, refuse what cannot be fitted.

Arithmetic of fits is float64 on the device of the data (on the CPU where the device has none);
the probe is float32, or float64 if the data were.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.linear import Label

Array: TypeAlias = Tensor | np.ndarray
Labels: TypeAlias = Tensor | np.ndarray | Sequence[Label]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Checked activations: [site, sample, d] in float64, and how to give results back."""

    values: Tensor
    stacked: bool
    """Whether the data came with a site axis."""
    dtype: torch.dtype
    device: torch.device

    def restored(self, result: Tensor) -> Tensor:
        """Return a result with a leading site axis in the form of the data."""
        result = result.to(self.device, self.dtype)
        return result if self.stacked else result[0]


def samples(x: Array, name: str = "x") -> Samples:
    """Return the checked data of [sample, d] or [site, sample, d].

    Raises:
        ProbeError: another number of axes, an empty axis, or entries that are not finite.
    """
    data = _tensor(x)
    if data.ndim not in (2, 3) or 0 in data.shape or data.is_complex():
        raise ProbeError(
            f"{name} is {list(data.shape)} {data.dtype}. A fit needs real numbers as [sample, d], "
            "or [site, sample, d] for many sites at once. For activations of many tokens, select "
            "tokens or flatten batch and position first."
        )
    finite = torch.isfinite(data).flatten(0, -2).all(-1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ProbeError(
            f"{name} has {len(bad)} rows with entries that are not finite, the first of them row "
            f"{bad[0] % data.shape[-2]}. They would make every weight NaN. Leave those rows out, "
            "or capture in a wider dtype than float16."
        )
    # Apple's mps has no float64.
    place = torch.device("cpu") if data.device.type == "mps" else data.device
    values = data.to(place, torch.float64)
    dtype = torch.float64 if data.dtype == torch.float64 else torch.float32
    return Samples(values if data.ndim == 3 else values[None], data.ndim == 3, dtype, data.device)


def plain_list(values: Labels, name: str, n_samples: int) -> list[Label]:
    """Return labels, targets or groups as a list with one entry for each sample.

    Raises:
        ProbeError: another number of them, or more than one axis.
    """
    listed = values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)
    if not isinstance(listed, list) or any(isinstance(item, list | tuple) for item in listed):
        raise ProbeError(f"{name} has more than one axis or none. Give one entry for each sample.")
    if len(listed) != n_samples:
        raise ProbeError(
            f"{name} has {len(listed)} entries but x has {n_samples} samples. Each sample needs "
            "one. Select the same rows from both."
        )
    return [item.item() if isinstance(item, np.generic) else item for item in listed]


def labelled(y: Labels, n_samples: int) -> tuple[tuple[Label, ...], Tensor]:
    """Return the sorted classes and, for each sample, the index of its class.

    Raises:
        ProbeError: fewer than two classes, fewer than two samples of one, labels without order.
    """
    listed = plain_list(y, "y", n_samples)
    try:
        classes: tuple[Label, ...] = tuple(sorted(set(listed)))  # type: ignore[type-var]
    except TypeError:
        kinds = sorted({type(label).__name__ for label in listed})
        raise ProbeError(
            f"y mixes labels of the types {', '.join(kinds)}. They cannot be sorted, so no class "
            "is the positive one. Give labels of one type."
        ) from None
    if len(classes) < 2:
        raise ProbeError(
            f"All {n_samples} labels are {listed[0]!r}. One class only leaves nothing to tell "
            "apart. Add samples of another class."
        )
    counts = Counter(listed)
    few = [label for label in classes if counts[label] < 2]
    if few:
        raise ProbeError(
            f"{len(classes)} classes share {n_samples} samples, and {few[0]!r} has only one. A "
            "class needs at least 2. Merge classes, add samples, or use fit_ridge for numbers."
        )
    place = {label: i for i, label in enumerate(classes)}
    return classes, torch.tensor([place[label] for label in listed])


def targets(y: Labels, n_samples: int) -> Tensor:
    """Return the numbers to predict, in float64.

    Raises:
        ProbeError: not numbers, not finite, or all equal.
    """
    listed = plain_list(y, "y", n_samples)
    if any(isinstance(item, str) for item in listed):
        raise ProbeError("y holds strings. A ridge predicts numbers. Use fit_logistic for labels.")
    numbers = torch.tensor([float(item) for item in listed], dtype=torch.float64)
    if not bool(torch.isfinite(numbers).all()) or bool((numbers == numbers[0]).all()):
        raise ProbeError(
            f"y runs from {float(numbers.min())} to {float(numbers.max())}. Targets that are equal "
            "or not finite cannot be predicted. Leave the bad ones out."
        )
    return numbers


def contrast(positive: Array, negative: Array) -> tuple[Samples, Tensor]:
    """Return both sets as one, negative first, and the class index of each sample.

    Raises:
        ProbeError: different widths, sites, dtypes or devices; fewer than two samples of one.
    """
    sides = _tensor(negative), _tensor(positive)
    shapes = [(*side.shape[:-2], side.shape[-1:], side.dtype, side.device) for side in sides]
    if shapes[0] != shapes[1] or min(side.ndim for side in sides) < 2:
        raise ProbeError(
            f"positive is {list(sides[1].shape)} {sides[1].dtype} on {sides[1].device}, negative "
            f"is {list(sides[0].shape)} {sides[0].dtype} on {sides[0].device}. Only the number of "
            "samples may differ. Capture both at the same sites."
        )
    counts = [side.shape[-2] for side in sides]
    if min(counts) < 2:
        raise ProbeError(
            f"There are {counts[1]} positive and {counts[0]} negative samples. A class needs at "
            "least 2. Add samples."
        )
    index = torch.arange(2).repeat_interleave(torch.tensor(counts))
    return samples(torch.cat(sides, dim=-2), "positive or negative"), index


def check_penalty(name: str, value: float) -> None:
    """Refuse a penalty that is not above zero.

    Raises:
        ProbeError: it is zero, negative or not finite.
    """
    if not 0 < value < math.inf:
        raise ProbeError(
            f"{name} is {value}. Without a positive penalty, data that can be told apart have no "
            f"best fit. Give a small {name}, such as 0.001."
        )


def _tensor(x: Array) -> Tensor:
    """Return the data as a tensor without history; numpy's are copied, as they may be read-only."""
    return torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x.detach()
