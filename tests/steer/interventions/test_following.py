"""Following a field against closed forms: circles, spirals, and a probe with a curve."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import manifolds
import probes
import steer
from steer.errors import PlanError, WidthMismatch
from steer.interventions.following import Field, Follow, ProbeField, To
from steer.kinds import kinds, rebuild
from steer.lm import LM
from steer.sites import Site
from steer.step import Step

SITE = Site(1, "resid_post")
D = 6
STEP = Step(torch.arange(4).expand(3, 4), torch.tensor([1, 0, 2]))


class Turning:
    """The angle in the plane of the first two axes; its direction is that of the unit circle."""

    d_model = D
    period = 2 * math.pi

    def coordinate(self, x: Tensor) -> Tensor:
        """Return the angle."""
        return torch.atan2(x[..., 1], x[..., 0])

    def tangent(self, u: Tensor) -> Tensor:
        """Return the derivative of (cos u, sin u)."""
        flat = torch.zeros(*u.shape, D - 2, dtype=u.dtype)
        return torch.cat([torch.stack([-u.sin(), u.cos()], -1), flat], -1)


class Growing:
    """u is the first entry; the second grows as its square, the third as its exponential."""

    def coordinate(self, x: Tensor) -> Tensor:
        """Return the first entry."""
        return x[..., 0]

    def tangent(self, u: Tensor) -> Tensor:
        """Return the derivative of (u, u^2, e^u, 0, ...)."""
        flat = torch.zeros(*u.shape, D - 3, dtype=u.dtype)
        return torch.cat([torch.stack([torch.ones_like(u), 2 * u, u.exp()], -1), flat], -1)


H = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved(field: Any, by: Any, **options: Any) -> Tensor:
    return Follow(SITE, field, by, **options).edit(H, STEP) - H


def test_it_adds_the_integral_of_the_tangent():
    u = H[..., 0]
    want = torch.stack([torch.full_like(u, 0.8), (u + 0.8) ** 2 - u**2, (u + 0.8).exp() - u.exp()])
    got = moved(Growing(), 0.8, steps=64)
    torch.testing.assert_close(got[..., :3], want.movedim(0, -1), atol=1e-4, rtol=1e-4)
    assert bool((got[..., 3:] == 0).all())


def test_the_error_falls_as_the_square_of_the_steps():
    u = H[..., 0]
    want = (u + 0.8).exp() - u.exp()
    off = [(moved(Growing(), 0.8, steps=n)[..., 2] - want).abs().max() for n in (4, 8, 16)]
    assert 3.8 < float(off[0] / off[1]) < 4.2
    assert 3.8 < float(off[1] / off[2]) < 4.2


def test_what_is_off_the_field_is_carried_along():
    # Half a turn of the unit circle is the difference of two of its points, from any radius.
    u = torch.atan2(H[..., 1], H[..., 0])
    want = torch.stack([(u + 2).cos() - u.cos(), (u + 2).sin() - u.sin()], -1)
    got = moved(Turning(), 2.0, steps=200)
    torch.testing.assert_close(got[..., :2], want, atol=1e-4, rtol=1e-4)


def test_read_again_it_solves_the_differential_equation():
    # d(angle)/ds = by / radius and d(radius)/ds = 0: a turn by `by` in units of arc, any radius.
    radius = H[..., :2].norm(dim=-1)
    u = torch.atan2(H[..., 1], H[..., 0]) + 0.2 / radius
    want = radius[..., None] * torch.stack([u.cos(), u.sin()], -1)
    got = moved(Turning(), 0.2, steps=200, reread=True) + H
    torch.testing.assert_close(got[..., :2], want, atol=1e-4, rtol=1e-4)
    once = moved(Turning(), 0.2, steps=200) + H
    assert float((once[..., :2] - want).abs().max()) > 1e-3


def test_to_goes_the_shorter_way_round():
    angle = torch.tensor([3.0, -3.0, 0.1], dtype=torch.float64)
    h = torch.zeros(3, 1, D, dtype=torch.float64)
    h[:, 0, 0], h[:, 0, 1] = angle.cos(), angle.sin()
    step = Step(torch.zeros(3, 1, dtype=torch.long), torch.arange(3))
    place = To(torch.tensor([-3.0, 3.0, 0.4], dtype=torch.float64))
    got = Follow(SITE, Turning(), place, steps=100).edit(h, step)[:, 0, :2]
    want = torch.stack([place.u.cos(), place.u.sin()], -1)  # type: ignore[union-attr]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    # The way is short: 0.283 either way across pi, where round the other side it would be 6.
    (middle,) = Follow(SITE, Turning(), place, steps=100, strength=0.5).edit(h, step)[:1, 0]
    assert float(middle[0]) < -0.9


def test_each_row_has_its_own_distance():
    by = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)
    got = moved(Growing(), by)[..., 0]
    torch.testing.assert_close(got, by[STEP.rows][:, None].expand(3, 4))
    assert torch.equal(Follow(SITE, Growing(), by).edit(H, STEP)[0], H[0])


def test_strength_scales_the_whole_way_and_0_keeps_the_bits():
    h = H.clone()
    h[0, 0, 3] = -0.0
    for dtype in (torch.float32, torch.bfloat16):
        x = h.to(dtype)
        got = Follow(SITE, Growing(), 0.8, strength=0.0).edit(x, STEP)
        assert torch.equal(got, x)
        assert torch.equal(got.signbit(), x.signbit())
    torch.testing.assert_close(
        moved(Growing(), 0.8, strength=0.25), 0.25 * moved(Growing(), 0.8), atol=1e-12, rtol=1e-9
    )


def test_a_curve_with_its_own_reading_is_followed_from_point_to_point():
    u = torch.arange(8, dtype=torch.float64)
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    curve = manifolds.fit_curve(x, u, period=8)

    class OfCurve:
        period = 8.0

        def coordinate(self, x: Tensor) -> Tensor:
            """Return the nearest point's."""
            return curve.encode(x)

        def tangent(self, u: Tensor) -> Tensor:
            """Return the curve's."""
            return curve.tangent(u)

    h = curve.decode(torch.tensor([[1.0], [6.5]], dtype=torch.float64))
    step = Step(torch.zeros(2, 1, dtype=torch.long), torch.arange(2))
    got = Follow(SITE, OfCurve(), 2.7, steps=400).edit(h, step)
    want = steer.MoveAlong(SITE, curve, 2.7).edit(h, step)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def arc(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy states along an arc in many dimensions, and their parameter 0 to 8."""
    g = torch.Generator().manual_seed(seed)
    u = torch.arange(9).repeat_interleave(n).double()
    angle = u / 8 * math.pi * 0.8
    frame = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(9)).double())
    x = 6 * torch.stack([angle.cos(), angle.sin()], -1) @ frame.Q.T
    return x + 0.1 * torch.randn(len(u), 16, generator=g).double(), u


def test_a_probe_and_a_curve_of_the_same_parameter_make_a_field():
    x, u = arc(30, 1)
    field = ProbeField(probes.fit_field(x, u), manifolds.fit_curve(x, u))
    assert isinstance(field, Field)
    fresh, v = arc(5, 2)
    start = fresh[v == 1][:, None]
    step = Step(torch.zeros(5, 1, dtype=torch.long), torch.arange(5))
    local = Follow(SITE, field, 5.0).edit(start, step)[:, 0]
    means = torch.stack([x[u == k].mean(0) for k in range(9)])
    off = (local - means[6]).norm(dim=-1)
    # The control: the straight direction fitted at the start, followed as far.
    tangent = (means[2] - means[0]) / 2
    straight = (start[:, 0] + 5 * tangent - means[6]).norm(dim=-1)
    assert float(off.max()) < 0.25 * float(straight.min())
    read = field.coordinate(local)
    assert float((read - 6).abs().max()) < 0.5


def test_parts_that_do_not_agree_are_refused():
    x, u = arc(3, 1)
    probe, curve = probes.fit_field(x, u), manifolds.fit_curve(x, u)
    ring = manifolds.fit_curve(x[u < 8], u[u < 8], period=9)
    with pytest.raises(PlanError, match=r"The probe has the period None and the shape 9\.0"):
        ProbeField(probe, ring)
    with pytest.raises(PlanError, match="reads states 15 wide and the shape lies in 16"):
        ProbeField(probes.fit_field(x[:, 1:], u), curve)


BAD = {
    "no steps": ({"steps": 0}, "Follow was given 0 steps"),
    "a nan": ({"by": float("nan")}, "not finite"),
    "a place that is infinite": ({"by": To(float("inf"))}, "not finite"),
    "a matrix": ({"by": torch.ones(2, 2)}, r"distance of Follow has shape \(2, 2\)"),
    "a relative strength": ({"strength": steer.Relative(1.0)}, "Follow cannot take"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_followed_is_refused(name: str):
    options, message = BAD[name]
    told: dict[str, Any] = {"by": 1.0, **options}
    with pytest.raises(PlanError, match=message):
        Follow(SITE, Growing(), **told)


def test_a_field_of_another_width_is_refused_at_attach(lm: LM):
    with (
        pytest.raises(WidthMismatch, match=f"the field has {D} entries|{D}"),
        lm.attached([Follow(SITE, Turning(), 1.0)]),
    ):
        pass


def test_rows_of_a_batch_equal_rows_alone(lm: LM):
    rows = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    acts = lm.capture(rows * 3, [SITE])[SITE]
    x = acts + 0.1 * torch.randn(acts.shape, generator=torch.Generator().manual_seed(0))
    u = [0, 1, 2] * 3
    field = ProbeField(probes.fit_field(x, u), manifolds.fit_curve(x, u))
    by = torch.tensor([0.5, -0.7, 1.2])
    together = lm.logits(rows, [Follow(SITE, field, by, scope=steer.LAST)])
    for row, ids in enumerate(rows):
        alone = lm.logits([ids], [Follow(SITE, field, float(by[row]), scope=steer.LAST)])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-4)
    assert float((together - lm.logits(rows)).abs().amax(-1).min()) > 1e-3


def test_it_has_an_identity_and_says_what_it_does():
    x, u = arc(3, 1)
    field = ProbeField(probes.fit_field(x, u), manifolds.fit_curve(x, u))
    item = Follow(SITE, field, To(torch.tensor([1.0, 2.0])))
    assert repr(item) == "Follow(blocks.1.resid_post, to=[2 rows], 16 steps, scope=OUTPUT)"
    again = Follow(SITE, field, To(torch.tensor([1.0, 2.0])))
    assert item.digest == again.digest
    assert item.digest != Follow(SITE, field, torch.tensor([1.0, 2.0])).digest
    assert item.row_counts() == {"by": 2}
    assert item.widths() == {"the field": 16}


def test_its_spec_gives_it_back():
    x, u = arc(3, 1)
    field = ProbeField(probes.fit_field(x, u), manifolds.fit_curve(x, u))
    own = {f"steer.{one.__name__}": one for one in (Follow, ProbeField, To)}
    known = {name: kinds()[name] for name in kinds() if name not in own} | own
    for by in (To(2.0), torch.tensor([0.5, 1.0])):
        item = Follow(SITE, field, by, steps=5, reread=True)
        again = rebuild(item.spec(), kinds=known)
        assert isinstance(again, Follow)
        assert again.digest == item.digest
