"""Field probes against scikit-learn without an intercept, and planted curves."""

from math import pi
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import probes
from probes import ProbeError


def notes(probe: Any) -> Any:
    return probe.diagnostics


def ring(seed: int = 0, n: int = 24, repeats: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy states on a ring in 16 dimensions, their angle in hours, and the plane."""
    draw = torch.Generator().manual_seed(seed)
    plane = torch.linalg.qr(torch.randn(16, 2, generator=draw, dtype=torch.float64))[0].mT
    u = torch.arange(n).repeat(repeats).double()
    angle = 2 * pi * u / n
    x = 4 * torch.stack([angle.cos(), angle.sin()], 1) @ plane
    return x + 0.3 * torch.randn(x.shape, generator=draw, dtype=torch.float64), u, plane


def test_it_is_scikit_learns_fit_without_an_intercept():
    x, u, _ = ring(n=6)
    x = x + 1.5  # far from zero: an intercept would matter
    probe = probes.fit_field(x, u, period=6, l2=0.5)
    fit = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=10_000)
    fit.fit(x.numpy(), u.numpy())
    weight = fit.coef_ - fit.coef_.mean(0)
    np.testing.assert_allclose(probe.weight.numpy(), weight, atol=1e-5)
    np.testing.assert_allclose(
        probe.probabilities(x).numpy(), fit.predict_proba(x.numpy()), atol=1e-6
    )


def test_a_ring_is_read_all_the_way_round_and_its_directions_turn_with_it():
    x, u, plane = ring()
    probe = probes.fit_field(x, u, period=24, l2=100.0)
    off = (probe.scores(x) - u + 12) % 24 - 12
    assert float(off.abs().mean()) < 0.5
    assert notes(probe)["held_out_error"] < 1.0
    assert notes(probe)["held_out_accuracy"] > 3 * notes(probe)["guessed_accuracy"]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = probes.fit_field(x, order[u.long()].double(), period=24, l2=100.0)
    assert notes(probe)["interpolated_cosine"] > 0.5
    assert notes(shuffled)["interpolated_cosine"] < 0.2
    distance, cosine = probe.locality()
    # A band: the farther apart, the less alike.
    assert float(torch.corrcoef(torch.stack([distance, cosine]))[0, 1]) < -0.95
    at = torch.tensor([0.0, 5.5, 11.0, 23.5, 30.0], dtype=torch.float64)
    angle = 2 * pi * at / 24
    tangent = torch.stack([-angle.sin(), angle.cos()], 1) @ plane
    assert float((probe.direction(at) * tangent).sum(1).min()) > 0.9
    torch.testing.assert_close(probe.direction(6.0), probe.direction(30.0))
    # One plane holds the field.
    assert float(probe.spectrum()[:2].sum()) > 0.9


def test_a_line_is_read_in_its_own_units():
    draw = torch.Generator().manual_seed(1)
    axis = torch.randn(2, 12, generator=draw, dtype=torch.float64)
    u = torch.tensor([300.0, 350, 400, 450, 500]).repeat(20).double()
    t = (u - 400) / 100
    x = t[:, None] * axis[0] + (t**2)[:, None] * axis[1] + 1.0
    x = x + 0.2 * torch.randn(x.shape, generator=draw, dtype=torch.float64)
    probe = probes.fit_field(x, u)
    correlation = torch.corrcoef(torch.stack([probe.scores(x), u]))[0, 1]
    assert float(correlation) > 0.99
    assert float(probe.direction(400.0) @ axis[0] / axis[0].norm()) > 0.5


def test_what_all_values_share_is_not_in_the_rows():
    x, u, _ = ring(n=6)
    probe = probes.fit_field(x, u, period=6)
    torch.testing.assert_close(probe.weight.sum(0), torch.zeros(16).double(), atol=1e-9, rtol=0)


def test_a_stack_is_the_fits_one_by_one_and_a_spec_round_trip_is_the_same_probe():
    x = torch.stack([ring(k, n=6)[0] for k in range(3)])
    u = ring(n=6)[1]
    stack = probes.fit_field(x, u, period=6)
    for k in range(3):
        one = probes.fit_field(x[k], u, period=6)
        torch.testing.assert_close(stack[k].weight, one.weight, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(stack.scores(x)[k], one.scores(x[k]), atol=1e-7, rtol=1e-6)
    again = probes.FieldProbe.from_spec(stack.spec())
    assert again.digest == stack.digest
    with pytest.raises(ProbeError, match="Take one"):
        stack.direction(1.0)


def test_bad_input_is_refused():
    x, u, _ = ring(n=6)
    with pytest.raises(ProbeError, match="three values or more"):
        probes.fit_field(x, (u > 2).double())
    with pytest.raises(ProbeError, match="within one period"):
        probes.fit_field(x, u, period=4)
    with pytest.raises(ProbeError, match="fitted at a site of that width"):
        probes.fit_field(x, u).scores(x[:, :3])


def test_a_field_of_small_units_has_all_its_distances_and_one_digest():
    draw = torch.Generator().manual_seed(0)
    rows, values = torch.randn(6, 4, generator=draw).double(), torch.arange(6).double()
    wide, small = probes.FieldProbe(rows, values), probes.FieldProbe(rows, values * 1e-7)
    torch.testing.assert_close(small.locality()[0] * 1e7, wide.locality()[0])
    torch.testing.assert_close(small.locality()[1], wide.locality()[1])
    assert probes.FieldProbe(rows, values, 6).digest == probes.FieldProbe(rows, values, 6.0).digest
