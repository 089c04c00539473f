"""Shapes of a number with as many parameters each: helix, components, polynomial, and their null.

Each gives, for every number, a point of activation space; the subspace it moves in has the same
dimension for all, so that what differs is the shape.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import manifolds

PERIODS = (2, 5, 10, 100)
"""Those of Kantamneni and Tegmark 2025 (arXiv:2502.00873)."""


def averages(states: Float[Tensor, "row d"], number: Tensor, numbers: Tensor) -> Tensor:
    """Return [number, d_model]: the mean state of each number."""
    return torch.stack([states[number == n].mean(0) for n in numbers])


def left_out_points(
    centroids: Float[Tensor, "number d"], numbers: Tensor, seed: int
) -> dict[str, Float[Tensor, "number d"]]:
    """Return each shape's point for every number, fitted without that number's ten-fold.

    Numbers are held out in ten folds, so that a shape has to predict a state that it has not seen;
    `components` (PCA) sees the state itself and keeps its first components, as in the paper: it
    is a ceiling for a linear subspace of that dimension, not a prediction.
    """
    chooser = torch.Generator().manual_seed(seed)
    fold = torch.randperm(len(numbers), generator=chooser) % 10
    shuffled = numbers[torch.randperm(len(numbers), generator=chooser)]
    points = {name: torch.empty_like(centroids) for name in (*SHAPES, "permuted", "components")}
    for k in range(10):
        own, rest = fold == k, fold != k
        for name, columns in SHAPES.items():
            points[name][own] = _fitted(columns, numbers[rest], centroids[rest], numbers[own])
        points["permuted"][own] = _fitted(helix, shuffled[rest], centroids[rest], shuffled[own])
        rank = helix(numbers).shape[1] - 1
        space = manifolds.fit_pca(centroids[rest], n_components=rank, variance=1)
        points["components"][own] = space.flatten(centroids[own])
    return points


def helix(numbers: Tensor) -> Tensor:
    """Return the columns 1, a, and cosine and sine for each period; no sine for T = 2."""
    a = numbers.double()
    columns = [torch.ones_like(a), (a - 50) / 50]
    for turn in PERIODS:
        columns.append(torch.cos(2 * torch.pi * a / turn))
        if turn != 2:  # of whole numbers it is 0
            columns.append(torch.sin(2 * torch.pi * a / turn))
    return torch.stack(columns, 1)


def polynomial(numbers: Tensor) -> Tensor:
    """Return Legendre polynomials, as many columns as the helix has."""
    degree = helix(numbers).shape[1] - 1
    a = (numbers.double() - 56) / 43
    return torch.from_numpy(np.polynomial.legendre.legvander(a.numpy(), degree))


def circle(numbers: Tensor) -> Tensor:
    """Return the columns of the last digit alone: period 10 and its harmonics, as many columns."""
    a = numbers.double()
    columns = [torch.ones_like(a)]
    for k in (1, 2, 3, 4):
        columns += [torch.cos(2 * torch.pi * k * a / 10), torch.sin(2 * torch.pi * k * a / 10)]
    return torch.stack(columns, 1)


def line(numbers: Tensor) -> Tensor:
    """Return the columns 1 and a."""
    return helix(numbers)[:, :2]


SHAPES: Mapping = {"helix": helix, "polynomial": polynomial, "circle": circle, "line": line}


def _fitted(columns, seen: Tensor, states: Tensor, asked: Tensor) -> Tensor:
    found = torch.linalg.lstsq(columns(seen), states.double(), driver="gelsd").solution
    return (columns(asked) @ found).to(states)
