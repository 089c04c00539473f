"""Laws of every fit: what holds whichever probe it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import probes

Fit = Callable[[Tensor, Tensor], Any]


def contrast(fit: Callable[..., Any]) -> Fit:
    return lambda x, y: fit(x[..., y == 1, :], x[..., y == 0, :])


def consistent(x: Tensor, y: Tensor) -> Any:
    """Fit on pairs of which every second one is the other way round, with the labels of both."""
    first, second = x[..., y == 1, :], x[..., y == 0, :]
    turned = (torch.arange(first.shape[-2]) % 2 == 1)[:, None]
    sides = torch.where(turned, second, first), torch.where(turned, first, second)
    return probes.fit_consistent(*sides, labels=(~turned[:, 0]).tolist())


FITS: dict[str, Fit] = {
    "logistic": lambda x, y: probes.fit_logistic(x, y.tolist()),
    "lda": lambda x, y: probes.fit_lda(x, y.tolist()),
    "mean difference": contrast(probes.fit_mean_difference),
    "pca difference": contrast(probes.fit_pca_difference),
    "consistent": lambda x, y: consistent(x, y),
    "ridge": lambda x, y: probes.fit_ridge(x, (2.0 * y - 1).tolist()),
    "mlp": lambda x, y: probes.fit_mlp(x, y.tolist(), n_iterations=400),
    "ordinal": lambda x, y: probes.fit_ordinal(x, y.tolist()),
}
DIRECTED = sorted(set(FITS) - {"mlp"})


def data(n: int = 60, sites: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    shape = (sites, n, 6) if sites else (n, 6)
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    return x + 1.5 * y[:, None] * torch.eye(6, dtype=torch.float64)[0], y


@pytest.mark.parametrize("name", DIRECTED)
def test_swapping_the_labels_flips_the_direction(name: str):
    x, y = data()
    there, back = FITS[name](x, y).direction, FITS[name](x, 1 - y).direction
    torch.testing.assert_close(back, -there, atol=1e-6, rtol=1e-5)


def test_swapping_the_labels_turns_the_scores_of_a_hidden_layer():
    x, y = data()
    there, back = FITS["mlp"](x, y).scores(x), FITS["mlp"](x, 1 - y).scores(x)
    torch.testing.assert_close(back, 1 - there, atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", sorted(FITS))
def test_the_direction_points_to_the_positive_class_and_scores_rise_along_it(name: str):
    x, y = data()
    probe = FITS[name](x, y)
    scores = probe.scores(x)
    assert float(scores[y == 1].mean()) > float(scores[y == 0].mean())
    if name in DIRECTED:
        torch.testing.assert_close(probe.direction.norm(), torch.ones(()).double())
        assert bool((probe.scores(x + 0.5 * probe.direction) > scores).all())


@pytest.mark.parametrize("name", sorted(FITS))
def test_a_stack_is_the_fits_one_by_one(name: str):
    x, y = data(sites=3)
    stack = FITS[name](x, y)
    for site in range(3):
        one = FITS[name](x[site], y)
        torch.testing.assert_close(
            stack[site].scores(x[site]), one.scores(x[site]), atol=1e-5, rtol=1e-5
        )
    assert len(stack) == 3


@pytest.mark.parametrize("name", sorted(FITS))
def test_a_spec_round_trip_is_the_same_probe(name: str):
    x, y = data()
    probe = FITS[name](x, y)
    again = type(probe).from_spec(probe.spec())
    assert again.digest == probe.digest
    assert torch.equal(again.scores(x), probe.scores(x))


@pytest.mark.parametrize("name", ["mean difference", "pca difference"])
def test_a_contrast_turns_with_the_space(name: str):
    x, y = data()
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())[
        0
    ]
    there, back = FITS[name](x, y).direction, FITS[name](x @ turn, y).direction
    torch.testing.assert_close(back, there @ turn, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(FITS))
def test_after_erasure_no_direction_is_left_to_read(name: str):
    x, y = data()
    gone = probes.fit_erasure(x, y.tolist()).apply(x)
    if name in ("mean difference", "pca difference"):
        with pytest.raises(probes.ProbeError, match="coincide along the axis"):
            FITS[name](gone, y)
        return
    before, after = FITS[name](x, y).scores(x), FITS[name](gone, y).scores(gone)
    gap = [float(s[y == 1].mean() - s[y == 0].mean()) for s in (before, after)]
    # The hidden layer may find what no line can; on so few samples it remembers some.
    assert abs(gap[1]) < {"mlp": 1.0, "consistent": 2e-2}.get(name, 1e-3) * abs(gap[0])
