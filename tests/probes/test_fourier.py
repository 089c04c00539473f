"""Fourier probes against scikit-learn's ridge on the same folds, and planted helices."""

from math import pi
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import probes
from probes import ProbeError
from probes.fourier import _parts  # pyright: ignore[reportPrivateUsage]


def notes(probe: Any) -> Any:
    return probe.diagnostics


def helix(seed: int = 0, n_values: int = 60, n_contexts: int = 3) -> tuple[torch.Tensor, ...]:
    """Return states [sample, 24] with periods 5 and 10 and a line, values, and the frame."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.arange(n_values).repeat(n_contexts).double()
    frame = torch.linalg.qr(torch.randn(24, 5, generator=draw, dtype=torch.float64))[0].mT
    angle = 2 * pi * values / 5
    wide = 2 * pi * values / 10
    code = torch.stack([angle.cos(), angle.sin(), wide.cos(), wide.sin(), values / 20], 1)
    noise = 0.1 * torch.randn(len(values), 24, generator=draw, dtype=torch.float64)
    return code @ frame + noise, values, frame


def test_planted_periods_are_named_and_others_are_not():
    x, values, frame = helix()
    probe = probes.fit_fourier(x, values, [3, 5, 7, 10], permutations=99)
    r2 = dict(zip(probe.periods, notes(probe)["held_out_r2"], strict=True))
    p = dict(zip(probe.periods, notes(probe)["p_value"], strict=True))
    assert r2[5.0] > 0.9
    assert r2[10.0] > 0.9
    assert p[5.0] == p[10.0] == pytest.approx(1 / 100)
    assert p[3.0] > 0.05
    assert p[7.0] > 0.05
    plain = probes.fit_fourier(x, values, [5], permutations=1, standardize=False)
    cosines = torch.linalg.svdvals(plain.plane(5) @ frame[:2].mT)
    assert float(cosines.min()) > 0.95
    torch.testing.assert_close(probe.plane(10) @ probe.plane(10).mT, torch.eye(2).double())


def test_values_are_read_modulo_a_period():
    x, values, _ = helix(1)
    probe = probes.fit_fourier(x, values, [5, 10], permutations=5)
    off = (probe.remainder(x, 10) - values % 10 + 5) % 10 - 5
    assert float(off.abs().mean()) < 0.3
    torch.testing.assert_close(probe.scores(x), probe.remainder(x, 10))


def test_the_score_is_that_of_ridge_regressions_that_never_saw_the_value():
    x, values, _ = helix(2, n_values=20)
    probe = probes.fit_fourier(x, values, [4], l2=2.0, folds=4, permutations=3, seed=5)
    kinds, kind = values.unique(return_inverse=True)
    parts = _parts(kind, None, 4, torch.Generator().manual_seed(5)).numpy()
    assert all(len(set(parts[kind.numpy() == k])) == 1 for k in range(len(kinds)))
    angle = 2 * np.pi * values.numpy() / 4
    y = np.stack([np.cos(angle), np.sin(angle)], 1)
    predicted = np.zeros_like(y)
    for fold in range(4):
        scale = StandardScaler().fit(x.numpy()[parts != fold])
        fit = Ridge(alpha=2.0).fit(scale.transform(x.numpy()[parts != fold]), y[parts != fold])
        predicted[parts == fold] = fit.predict(scale.transform(x.numpy()[parts == fold]))
    expected = 1 - ((predicted - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert notes(probe)["held_out_r2"] == pytest.approx([expected], abs=1e-9)
    whole = Ridge(alpha=2.0).fit(StandardScaler().fit_transform(x.numpy()), y)
    got = probe.waves(x)[:, 0].numpy()
    np.testing.assert_allclose(
        got, whole.predict(StandardScaler().fit_transform(x.numpy())), atol=1e-9
    )


def test_noise_has_p_values_that_are_uniform():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 30, 12, generator=draw, dtype=torch.float64)
    values = torch.arange(30)
    probe = probes.fit_fourier(x, values, [5], permutations=49)
    p = torch.tensor(notes(probe)["p_value"])[:, 0]
    assert float((p <= 0.1).float().mean()) < 0.3
    assert 0.3 < float(p.mean()) < 0.7


def test_period_two_has_a_cosine_only():
    draw = torch.Generator().manual_seed(0)
    values = torch.arange(40).double()
    axis = torch.randn(8, generator=draw, dtype=torch.float64)
    x = (-1) ** values[:, None] * axis + 0.1 * torch.randn(40, 8, generator=draw).double()
    probe = probes.fit_fourier(x, values, [2, 5], permutations=50, standardize=False)
    assert notes(probe)["held_out_r2"][0] > 0.9
    plane = probe.plane(2)
    assert plane.shape == (1, 8)
    assert abs(float(plane[0] @ axis / axis.norm())) > 0.9


def test_a_stack_is_the_fits_one_by_one_and_a_spec_round_trip_is_the_same_probe():
    x = torch.stack([helix(k)[0] for k in range(3)])
    values = helix()[1]
    stack = probes.fit_fourier(
        x, values, [5, 7], permutations=20, origin=[{"site": k} for k in "abc"]
    )
    for k in range(3):
        one = probes.fit_fourier(x[k], values, [5, 7], permutations=20)
        torch.testing.assert_close(stack[k].weight, one.weight)
        assert notes(stack[k])["p_value"] == pytest.approx(notes(one)["p_value"])
    assert stack[1].origin == {"site": "b"}
    again = probes.FourierProbe.from_spec(stack.spec())
    assert again.digest == stack.digest
    assert "periods 5, 7" in repr(stack)


def test_bad_input_is_refused():
    x, values, _ = helix()
    with pytest.raises(ProbeError, match="Each is a length above 0"):
        probes.fit_fourier(x, values, [0, 5])
    with pytest.raises(ProbeError, match="Fit it with that period"):
        probes.fit_fourier(x, values, [5], permutations=1).phase(x, 7)
    with pytest.raises(ProbeError, match="Whole values are held out"):
        probes.fit_fourier(x[:4], [1, 2, 1, 2], [5])


def test_a_period_at_which_all_values_coincide_is_refused_not_scored_one():
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ProbeError, match="same phase at the periods"):
        probes.fit_fourier(x, torch.arange(20).repeat(3), [1, 5], permutations=5)
    with pytest.raises(ProbeError, match="no null to compare with"):
        probes.fit_fourier(x, torch.arange(20).repeat(3), [5], permutations=0)


@pytest.mark.parametrize(("shift", "step", "period"), [(0.5, 1, 2), (0, 1, 2), (0, 2, 4)])
def test_a_plane_has_the_directions_of_the_waves_that_vary_only(
    shift: float, step: int, period: int
):
    draw = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(12, generator=draw).double(), dim=0)
    v = shift + step * torch.arange(20).repeat(3).double()
    sign = (-1) ** torch.arange(20).repeat(3).double()
    x = sign[:, None] * axis + 0.01 * torch.randn(60, 12, generator=draw).double()
    plane = probes.fit_fourier(x, v, [period], permutations=1, standardize=False).plane(period)
    assert plane.shape == (1, 12)
    assert float((plane @ axis).abs()) > 0.99


def test_between_whole_numbers_period_two_has_both_waves():
    draw = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(12, 2, generator=draw).double())[0].mT
    v = torch.arange(20).repeat(3).double() / 2
    x = torch.stack([(pi * v).cos(), (pi * v).sin()], 1) @ frame
    x = x + 0.01 * torch.randn(60, 12, generator=draw).double()
    plane = probes.fit_fourier(x, v, [2], permutations=1, standardize=False).plane(2)
    assert float(torch.linalg.svdvals(plane @ frame.mT).min()) > 0.99
