"""Beliefs about normal laws: texts, readings, steering and changes of which the truth is known."""

import numpy as np
import pytest
import torch

import manifolds
import steer
from benchmarks.errors import BenchmarkError
from benchmarks.normals import plane
from benchmarks.normals.fields import fields
from benchmarks.normals.measure import measure_normals
from benchmarks.normals.numbers import _r2
from benchmarks.normals.reading import (
    MEANS,
    Readings,
    digits_of,
    draw,
    mean_of,
    read,
    shuffled,
    spread_of,
    tokens_of,
)
from benchmarks.normals.steering import Shapes, walk
from benchmarks.normals.switching import FIRST, Texts, lag, switch, texts_of
from benchmarks.task import Options


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


def _planted(n: int, seed: int) -> Readings:
    """Return texts whose states and outputs lie on a curve over the mean, with a little noise."""
    draws = torch.Generator().manual_seed(seed)
    u = torch.tensor(MEANS).double().repeat_interleave(n)
    angle = (u[:, None] - 2) / 5 * 3 + 0.02 * torch.randn(len(u), 4, generator=draws)
    x = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos()], -1)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(7)))[0]
    x = x.float() @ turn[:3] + 0.01 * torch.randn(len(u), 4, 16, generator=draws)
    about = torch.arange(10).double() - u[:, None, None]
    p = (-about.square() / 2).softmax(-1).expand(-1, 4, -1)
    digits = torch.zeros(len(u), 8, dtype=torch.long)
    return Readings(digits, u, (5, 6, 7, 8), p, torch.ones(len(u), 4), torch.stack([0 * x, x]))


def test_texts_have_the_mean_and_the_spread_of_their_laws():
    digits = draw([(3.0, 1.0), (6.0, 0.5)], 200, 72, 0).double()
    first, second = digits[:200], digits[200:]
    # Rounding adds a twelfth to the variance; clipping at 0 and 9 is three deviations away.
    assert float(first.mean()) == pytest.approx(3, abs=0.03)
    assert float(first.var()) == pytest.approx(1 + 1 / 12, rel=0.03)
    assert float(second.mean()) == pytest.approx(6, abs=0.03)
    assert float(second.var()) == pytest.approx(0.25 + 1 / 12, rel=0.03)


def test_exchanged_digits_are_the_same_digits_and_no_text_keeps_its_mean():
    digits = draw([(2.0, 0.5), (7.0, 0.5)], 50, 72, 0)
    mixed = shuffled(digits, 0)
    assert torch.equal(mixed.flatten().sort().values, digits.flatten().sort().values)
    assert float(mixed[:50].double().mean() - mixed[50:].double().mean()) < 0.3


def test_mean_and_spread_are_those_of_the_distribution():
    p = torch.tensor([[0, 0.5, 0, 0.5, 0, 0, 0, 0, 0, 0]])
    assert (float(mean_of(p)), float(spread_of(p))) == (2.0, 1.0)


def test_readings_are_those_of_a_pass_over_each_text_alone(lm):
    digits = draw([(4.0, 1.0)], 3, 10, 0)
    found = read(lm, digits, torch.zeros(3), [4, 7, 10], [0, 3])
    ids = tokens_of(lm)
    for i, row in enumerate(digits.tolist()):
        tokens = torch.tensor([ids.row(row)])
        with torch.no_grad():
            out = lm.model(tokens, output_hidden_states=True)
        for k, after in enumerate((4, 7, 10)):
            at = ids.place(after)
            assert int(tokens[0, at]) == ids.comma
            p = out.logits[0, at].double().softmax(-1)[list(ids.digits)]
            torch.testing.assert_close(found.mass[i, k], p.sum(), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(found.probabilities[i, k], p / p.sum(), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(
                found.states[0, i, k], out.hidden_states[1][0, at], atol=1e-5, rtol=1e-4
            )


def test_probes_tell_planted_laws_apart_where_they_are_and_nowhere_else():
    train, test = _planted(6, 0), _planted(4, 1)
    # A block without states would make the scale 0.
    noise = torch.Generator().manual_seed(3)
    for one in (train, test):
        one.states[0].normal_(generator=noise)
    found = fields(train, test, 1, 0)
    assert float(found.accuracy[1].mean()) > 0.9
    assert float(found.accuracy[0].mean()) < 0.25
    assert float(found.shuffled.mean()) < 0.3
    assert float(found.local[1, 0]) > 0.9
    # The curve bends by three radians: at its other end the first direction orders the wrong way.
    assert float(found.local[1, -1]) < 0.1


def test_r2_is_one_for_the_truth_and_nothing_for_the_mean():
    u = torch.linspace(0, 1, 20).double()
    assert _r2(u[:, None].expand(-1, 3), u, 0).value == pytest.approx(1)
    assert _r2(torch.full((20, 3), float(u.mean())).double(), u, 0).value == pytest.approx(0)


@pytest.fixture(scope="module")
def shapes(lm):
    draws = torch.Generator().manual_seed(0)
    u = torch.tensor(MEANS).repeat_interleave(3)
    angle = (u - 2) / 5 * 3
    frame = torch.linalg.qr(torch.randn(lm.d_model, 3, generator=draws))[0]
    x = torch.stack([angle.cos(), angle.sin(), 0.3 * angle], 1) @ frame.T
    p = (-(torch.arange(10) - u[:, None]).square() / 2).softmax(-1)
    curve = manifolds.fit_curve(x, u)
    behavior = manifolds.fit_behavior(p, u, other=False)
    return Shapes(2, curve, behavior, curve, None, x[:3].mean(0), x[-3:].mean(0))


def test_arms_are_the_writes_that_they_say(lm, shapes):
    digits = draw([(2.0, 1.0)], 2, 8, 0)
    base = read(lm, digits, torch.full((2,), 2.0), [8], [0])
    arms = ("vector", "manifold", "chord")
    found = walk(lm, shapes, base, arms, seed=0, n_points=5)
    ids = tokens_of(lm)
    site = shapes.site

    def said(plan: steer.Plan, row: int) -> torch.Tensor:
        logits = lm.logits([ids.row(digits[row].tolist())], plan=plan)
        return digits_of(logits, ids)[0][0]

    for row in range(2):
        add = steer.Add(site, shapes.high - shapes.low, 0.5, scope=steer.LAST)
        torch.testing.assert_close(
            found.outputs["vector"][row, 2], said([add], row), atol=1e-5, rtol=1e-4
        )
        move = steer.MoveTo(site, shapes.curve, 4.5, scope=steer.LAST)
        torch.testing.assert_close(
            found.outputs["manifold"][row, 2], said([move], row), atol=1e-5, rtol=1e-4
        )
        x = shapes.curve.decode(torch.tensor([2.0, 7.0])).mean(0)
        patch = steer.Patch(site, x, subspace=shapes.curve.subspace.basis, scope=steer.LAST)
        torch.testing.assert_close(
            found.outputs["chord"][row, 2], said([patch], row), atol=1e-5, rtol=1e-4
        )
    ends = found.outputs["vector"][:, [0, -1]]
    torch.testing.assert_close(found.outputs["mixture"][:, [0, -1]], ends)


def test_a_lag_is_the_digits_until_the_middle_is_passed():
    course = torch.cat([torch.full((FIRST,), 2.6), torch.tensor([3.0, 4.0, 4.6, 5.0, 6.0])])
    assert lag(course, FIRST) == 3
    assert np.isnan(lag(torch.full((FIRST + 9,), 4.4), FIRST))


def test_observers_of_a_change_expect_what_their_formulas_say(lm, shapes):
    found = switch(texts_of(lm, 2, 2, 0), shapes)
    late = {name: float(course[:, -1].mean()) for name, course in found.observers.items()}
    # The exact observer averages over both laws, the others have left the first one.
    assert 3.8 < late["exact"] < 5.2
    assert late["forgetting"] > 5.8
    assert late["change_point"] > 5.8
    assert float(found.off_steady.mean()) == pytest.approx(1, abs=1e-6)


def test_states_that_leave_the_plane_are_told_from_those_that_are_only_wide(lm, monkeypatch):
    frame = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    noise = torch.Generator().manual_seed(1)

    def states(mean, sigma):
        bent = torch.stack([mean.cos(), mean.sin(), sigma.log(), 0.3 * mean * sigma.log()], -1)
        x = bent.float() @ frame[:4]
        return x + 0.02 * torch.randn(x.shape, generator=noise)

    def planted(lm, digits, u, after, blocks):
        del lm, u, blocks
        seen = [digits[:, :n].double() for n in after]
        mean = torch.stack([d.mean(1) for d in seen], 1)
        sigma = torch.stack([d.std(1).clamp_min(0.3) for d in seen], 1)
        p = torch.full((*mean.shape, 10), 0.1).double()
        return Readings(digits, mean[:, 0], tuple(after), p, p[..., 0], states(mean, sigma)[None])

    monkeypatch.setattr(plane, "read", planted)
    after = tuple(range(16, 73))
    n, time = 4, len(after)
    left = states(torch.full((2 * n, time), 2.6).double(), torch.ones(2 * n, time).double())
    # Between two far places of the circle of means, where no law lies.
    left[:n, FIRST:] = left[:n, FIRST:] * 0.3
    p = torch.full((2 * n, time, 10), 0.1).double()
    digits = torch.zeros(2 * n, 72, dtype=torch.long)
    readings = Readings(digits, p[:, 0, 0], after, p, p[..., 0], left[None])
    found = plane.off_plane(lm, 0, Texts(readings, n), 0)
    assert float(found.off[:, :FIRST].mean()) == pytest.approx(1, abs=0.3)
    soon = found.off[:, FIRST:].mean()
    assert float(soon) > 3
    assert float(found.wide[:, FIRST:].mean()) < 0.5 * float(soon)
    assert float(found.permuted.mean()) < float(soon)


def test_a_model_without_beliefs_is_refused_with_its_slope(lm):
    with pytest.raises(BenchmarkError, match=r"moves -?0\.\d\d times as far.*It holds no belief"):
        measure_normals(lm, Options(limit=1))
