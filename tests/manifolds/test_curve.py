import math

import pytest
import torch

import manifolds
from manifolds import Curve, ManifoldError


def _circle(n: int = 12, radius: float = 5.0, d_model: int = 8) -> torch.Tensor:
    angle = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    x = torch.zeros(n, d_model, dtype=torch.float64)
    x[:, 1], x[:, 4] = radius * angle.cos(), radius * angle.sin()
    return x + 2


def _months() -> Curve:
    return manifolds.fit_curve(_circle(), range(12), period=12)


def test_twelve_knots_make_a_circle() -> None:
    ring = _months()
    u = torch.linspace(0, 12, 101, dtype=torch.float64)
    from_centre = ring.decode(u) - 2
    angle = torch.atan2(from_centre[:, 4], from_centre[:, 1])
    # A periodic cubic through 12 points of a circle is off by h^4/384 = 2e-4 of the radius.
    assert (from_centre.norm(dim=1) - 5).abs().max() < 5 * 3e-4
    gap = angle - u * 2 * math.pi / 12
    assert torch.sin(gap / 2).abs().max() < 1e-3
    assert float(ring.length) == pytest.approx(2 * math.pi * 5, rel=2e-4)
    assert float(ring.arc_length(1, 4)) == pytest.approx(2 * math.pi * 5 / 4, rel=2e-4)
    assert torch.allclose(
        ring.tangent(u).norm(dim=1), torch.tensor(10 * math.pi / 12).double(), 1e-3
    )
    assert (ring.tangent(u) * from_centre).sum(1).abs().max() < 0.02 * 5


def test_the_residual_survives_a_write() -> None:
    ring = _months()
    h = 2 + torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).double()
    written = h + ring.decode(3.5) - ring.flatten(h)
    off = [0, 2, 3, 5, 6, 7]
    # Exactly the part off the circle's plane; 1e-14 is rounding.
    assert torch.allclose(written[:, off], h[:, off], rtol=0, atol=1e-14)
    target = ring.decode(3.5)
    assert torch.allclose(written[:, [1, 4]], target[[1, 4]].expand(20, 2), rtol=0, atol=1e-14)


def test_distance_has_a_part_in_the_plane_and_a_part_off_it() -> None:
    ring = _months()
    x = ring.decode(torch.tensor([2.0], dtype=torch.float64)).clone()
    x[0, 1] += 3 * (x[0, 1] - 2) / 5
    x[0, 4] += 3 * (x[0, 4] - 2) / 5
    x[0, 0] += 4
    # 3 outwards and 4 off the plane are 5.
    assert float(ring.distance(x)) == pytest.approx(5, abs=1e-9)
    assert float(ring.distance(ring.flatten(x))) == pytest.approx(3, abs=1e-9)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (11, 1, [11, 11.5, 12, 12.5, 13]),
        (1, 11, [1, 0.5, 0, -0.5, -1]),
        (2, 5, [2, 2.75, 3.5, 4.25, 5]),
        (0, 6, [0, 1.5, 3, 4.5, 6]),
        (6, 0, [6, 7.5, 9, 10.5, 12]),
        (25, 3, [25, 25.5, 26, 26.5, 27]),
    ],
)
def test_a_path_takes_the_shorter_way_round(start: int, end: int, expected: list[float]) -> None:
    assert _months().path(start, end, 5).tolist() == expected


def test_a_path_on_a_line_goes_straight_there() -> None:
    line = manifolds.fit_curve(_circle()[:7], range(7))
    assert line.path(6, 0, 4).tolist() == [6, 4, 2, 0]
    assert float(line.arc_length(6, 0)) == pytest.approx(float(line.length))


def test_a_path_of_one_point_is_refused() -> None:
    with pytest.raises(ManifoldError, match=r"path of 1 points.*at least 2"):
        _months().path(0, 3, 1)


def test_many_paths_at_once_are_the_single_ones() -> None:
    ring = _months()
    start, end = torch.tensor([11.0, 2.0]).double(), torch.tensor([1.0, 8.5]).double()
    batch = ring.path(start, end, 7)
    assert torch.equal(batch[0], ring.path(11, 1, 7))
    assert torch.equal(batch[1], ring.path(2, 8.5, 7))
    lengths = ring.arc_length(start, end)
    assert float(lengths[1]) == pytest.approx(float(ring.arc_length(2, 8.5)), rel=1e-12)
    assert ring.path(0, end, 3).shape == (2, 3)


def test_a_chord_is_the_straight_segment_on_the_same_subspace() -> None:
    ring = _months()
    chord = ring.chord(1, 5)
    t = torch.tensor([0, 0.25, 1], dtype=torch.float64)
    ends = ring.decode(torch.tensor([1, 5], dtype=torch.float64))
    expected = ends[0] + t[:, None] * (ends[1] - ends[0])
    assert torch.allclose(chord.decode(t), expected, rtol=0, atol=1e-12)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).double()
    assert torch.equal(chord.flatten(x), ring.flatten(x))
    assert float(chord.length) == pytest.approx(float((ends[1] - ends[0]).norm()))
    assert Curve.from_spec(chord.spec()).digest == chord.digest


def test_a_chord_between_several_points_is_refused() -> None:
    with pytest.raises(ManifoldError, match=r"given 2 and 1 coordinates.*one chord"):
        _months().chord(torch.tensor([1.0, 2.0]), 3)


def test_coordinates_may_be_numbers_and_tensors_of_any_kind() -> None:
    ring = _months().to("cpu", torch.float32)
    expected = ring.decode(torch.tensor([3.0]))[0]
    assert torch.equal(ring.decode(3), expected)
    assert torch.equal(ring.decode(3.0), expected)
    assert torch.equal(ring.decode(torch.tensor(3)), expected)
    assert torch.equal(ring.decode(torch.tensor(3, dtype=torch.bfloat16)), expected)
    assert ring.decode(3).dtype == torch.float32
    assert ring.decode(torch.tensor(3.0, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_handled_in_float32(dtype: torch.dtype) -> None:
    ring = _months().to("cpu", torch.float32)
    h = (2 + 3 * torch.randn(30, 8, generator=torch.Generator().manual_seed(2))).to(dtype)
    assert ring.encode(h).dtype == torch.float32
    assert torch.equal(ring.encode(h), ring.encode(h.float()))
    assert torch.equal(ring.flatten(h), ring.flatten(h.float()))
    assert torch.equal(ring.project(h), ring.project(h.float()))


def test_states_a_thousand_times_as_long_are_still_told_apart_in_float32() -> None:
    # The first token of a row is such a state: its norm is a hundred times that of the others.
    angle = torch.arange(12, dtype=torch.float64) * 2 * math.pi / 12
    x = torch.stack([5 * angle.cos(), 5 * angle.sin(), (3 * angle).cos()], 1)
    exact = manifolds.fit_curve(x, range(12), period=12)
    ring = exact.to("cpu", torch.float32)
    far = 5000 * torch.randn(300, 3, generator=torch.Generator().manual_seed(4))
    chosen = exact.decode(ring.encode(far).double())
    least = (exact.project(far.double()) - far.double()).norm(dim=1)
    # 5e-3: of distances of 5000, in which float32 has steps of 5e-4.
    assert ((chosen - far.double()).norm(dim=1) - least).max() < 5e-3


def test_autocast_does_not_change_the_coordinate() -> None:
    ring = _months().to("cpu", torch.float32)
    h = 2 + 3 * torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    plain = ring.encode(h)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ring.encode(h), plain)
        assert torch.equal(ring.project(h), ring.decode(plain))


def test_decode_is_differentiable_with_the_tangent_as_its_slope() -> None:
    ring = _months()
    u = torch.tensor(4.3, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(ring.decode, u)
    assert isinstance(slope, torch.Tensor)
    assert torch.allclose(slope, ring.tangent(4.3), rtol=1e-12)


def test_a_ring_whose_first_class_is_not_zero_counts_from_zero_all_the_same() -> None:
    shifted = manifolds.fit_curve(_circle(), [float(u) + 0.25 for u in range(12)], period=12)
    u = torch.tensor([0.0, 0.1, 11.9, 5.0], dtype=torch.float64)
    assert torch.allclose(shifted.encode(shifted.decode(u)), u, rtol=0, atol=1e-9)
    assert torch.allclose(shifted.decode(u), _months().decode(u - 0.25), rtol=0, atol=1e-12)


def test_states_of_another_width_are_refused() -> None:
    ring = _months()
    for call in (ring.encode, ring.flatten, ring.project, ring.distance):
        with pytest.raises(ManifoldError, match=r"shape \[2, 9\].*fitted in 8 dimensions"):
            call(torch.zeros(2, 9))


def test_repr_says_the_sizes_and_html_the_diagnostics() -> None:
    ring = _months()
    assert repr(ring) == "Curve(12 knots, period 12, d_model 8, k 2, 100.0% of variance)"
    assert repr(manifolds.fit_curve(_circle()[:5], range(5))).startswith("Curve(5 knots, open,")
    html = ring._repr_html_()
    assert "<b>Curve(12 knots" in html
    assert "<td>n_classes</td><td>12</td>" in html


def test_diagnostics_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        _months().diagnostics["smoothing"] = 1  # pyright: ignore[reportIndexIssue]


@pytest.mark.gpu
def test_a_gpu_gives_the_same_as_the_cpu() -> None:
    ring = _months().to("cpu", torch.float32)
    moved = ring.to("cuda")
    x = 2 + 4 * torch.randn(200, 8, generator=torch.Generator().manual_seed(3))
    # 1e-4: sums in another order; magnified for points near the middle of the ring.
    far = (x - 2)[:, [1, 4]].norm(dim=1) > 0.5
    gap = (moved.encode(x.cuda()).cpu() - ring.encode(x)).abs()[far]
    assert torch.minimum(gap, 12 - gap).max() < 1e-4
    assert moved.digest == ring.digest
    fitted = manifolds.fit_curve(_circle().float().cuda(), range(12), period=12)
    assert fitted.decode(3).device.type == "cuda"
