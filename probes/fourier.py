"""Fourier probes: which periods of a number are in the states, against a permutation null."""

from collections.abc import Sequence
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import ProbeError
from probes.features import principal_axes
from probes.fourier_probe import FourierProbe
from probes.inputs import Array, Labels, check_penalty, plain_list, samples, targets
from probes.linear import Origin


def fit_fourier(
    x: Array,
    values: Labels,
    periods: Sequence[int | float],
    *,
    l2: float = 1.0,
    standardize: bool = True,
    folds: int = 5,
    permutations: int = 200,
    groups: Labels | None = None,
    seed: int = 0,
    origin: Origin | None = None,
) -> FourierProbe:
    """Fit cos(2 pi v / T) and sin(2 pi v / T) of a number v by ridge regression, for each period T.

    Kantamneni and Tegmark 2025 (arXiv:2502.00873), Feucht et al. 2026 (arXiv:2605.01148). They
    train by gradient and split samples at random; ours is the closed form, and whole values are
    held out: samples of one value on both sides would let any function of it be read. The
    diagnostics have, for each period, the cross-validated R2 of both waves together, the 95th
    percentile of the same with values exchanged (all samples of a value move together), and the
    p-value. All periods, permutations and sites share one factorisation for each fold.

    Args:
        x: [sample, d], or [site, sample, d] for one probe per site.
        values: a number for each sample.
        periods: in the numbers' own units, each above 0; for whole numbers 2 or more.
        l2: the penalty, on weights of standardized features if they are.
        standardize: divide each feature by its deviation first; folded into the weights after.
        folds: of the cross-validation; no more than there are values.
        permutations: how many make the null.
        groups: what is held out together instead of values, such as whole sequences. Values
            are on both sides then, so that any code of the value scores: the p-value says whether
            the period matters, R2 does not.
        seed: of folds and permutations.
        origin: where x came from, `acts.origin(site)`.

    Raises:
        ProbeError: no period, one that is not above 0, or one at which all values coincide; fewer
            than three values; no permutation; otherwise as fit_ridge.
    """
    check_penalty("l2", l2)
    data = samples(x)
    n = data.values.shape[1]
    numbers = targets(values, n)
    turns = tuple(float(t) for t in periods)
    if not turns or min(turns) <= 0 or len(set(turns)) < len(turns):
        raise ProbeError(
            f"The periods are {list(turns)}. Each is a length above 0 and is read once. Give "
            "such as [2, 5, 10]."
        )
    kinds, kind = numbers.unique(return_inverse=True)
    if len(kinds) < 3 or folds < 2:
        raise ProbeError(
            f"There are {len(kinds)} different values and {folds} folds. Whole values are held "
            "out, so a score needs three values and two folds. Add values."
        )
    draw = torch.Generator().manual_seed(seed)
    names = None if groups is None else plain_list(groups, "groups", n)
    if permutations < 1:
        raise ProbeError(
            f"permutations is {permutations}. Without one there is no null to compare with. Give "
            "1 or more; p-values go no lower than 1 / (1 + permutations)."
        )
    parts = _parts(kind, names, folds, draw)
    turned = _exchanged(len(kinds), permutations, draw)
    waves = _waves(kinds, turns)
    flat = [t for t, still in zip(turns, _is_constant(waves), strict=True) if still]
    if flat:
        raise ProbeError(
            f"All values have the same phase at the periods {flat}. There is nothing to read then, "
            "and a constant would score 1. Leave them out, or add values between."
        )
    # [sample, permutation, period, wave]: the true values come first.
    targets_of = waves[turned].transpose(0, 1)[kind].to(data.values.device)
    predicted = _cross_validated(
        data.values, targets_of, parts.to(data.values.device), l2, standardize
    )
    r2 = _r_squared(predicted, targets_of).cpu()
    null = r2[:, 1:]
    p = (1 + (null >= r2[:, :1]).sum(1)) / (1 + permutations)
    weight, bias = _ridge(data.values, targets_of[:, :1], l2, standardize)
    told = {"held_out_r2": r2[:, 0], "null_r2": null.quantile(0.95, dim=1), "p_value": p}
    diagnostics: dict[str, object] = {"n_samples": n, "n_values": len(kinds), "seed": seed}
    diagnostics |= {k: v.tolist() if data.stacked else v[0].tolist() for k, v in told.items()}
    shape = (len(turns), 2)
    return FourierProbe(
        data.restored(weight.unflatten(1, shape)),
        data.restored(bias.unflatten(1, shape)),
        turns,
        origin,
        diagnostics,
    )


def _waves(values: Tensor, periods: Sequence[int | float]) -> Float[Tensor, "value period wave"]:
    angle = 2 * pi * values[:, None] / torch.tensor(periods, dtype=values.dtype)
    # Rounding of sin(pi v) would else be a target of its own.
    return torch.stack([angle.cos(), angle.sin()], -1).round(decimals=12)


def _is_constant(waves: Tensor) -> list[bool]:
    """Return for each period whether neither wave differs between values."""
    return (waves.amax(0) - waves.amin(0)).amax(-1).lt(1e-9).tolist()


def _parts(
    kind: Tensor, groups: Sequence[object] | None, folds: int, draw: torch.Generator
) -> Tensor:
    """Return [sample]: which fold each is held out in; whole values, or whole groups."""
    if groups is not None:
        place = {name: k for k, name in enumerate(dict.fromkeys(groups))}
        kind = torch.tensor([place[name] for name in groups])
    n = int(kind.max()) + 1
    if n < 2:
        raise ProbeError("There is one group only, so nothing can be held out. Give several.")
    order = torch.randperm(n, generator=draw)
    return (order.argsort() % min(folds, n))[kind]


def _exchanged(n_values: int, permutations: int, draw: torch.Generator) -> Tensor:
    """Return [1 + permutation, value]: the identity, then random orders."""
    orders = torch.rand(permutations, n_values, generator=draw).argsort(1)
    return torch.cat([torch.arange(n_values)[None], orders])


def _cross_validated(
    x: Tensor, y: Tensor, parts: Tensor, l2: float, standardize: bool
) -> Float[Tensor, "site sample permutation period wave"]:
    """Return what is predicted of each sample by the fit without its fold."""
    out = x.new_zeros(len(x), *y.shape)
    for fold in parts.unique().tolist():
        train, test = parts != fold, parts == fold
        weight, bias = _ridge(x[:, train], y[train], l2, standardize)
        found = x[:, test] @ weight.mT + bias.unsqueeze(1)
        out = out.index_copy(1, test.nonzero()[:, 0], found.unflatten(2, y.shape[1:]))
    return out


def _ridge(x: Tensor, y: Tensor, l2: float, standardize: bool) -> tuple[Tensor, Tensor]:
    """Return weight [site, out, d] and bias [site, out] for targets [sample, ...] flattened."""
    axes = principal_axes(x, standardize=standardize)
    flat = y.flatten(1)
    middle = flat.mean(0)
    weight = axes.z.mT @ (flat - middle) / (axes.gram + l2).unsqueeze(-1)
    return axes.folded(weight, middle.expand(len(x), -1))


def _r_squared(predicted: Tensor, y: Tensor) -> Float[Tensor, "site permutation period"]:
    """Return 1 - (squared error) / (squared deviation), both waves together."""
    wrong = (predicted - y).square().sum((1, -1))
    spread = (y - y.mean(0)).square().sum((0, -1))
    return 1 - wrong / spread.clamp_min(1e-12)
