"""The share of a path that lies on the manifold, on circles where it is known."""

import math

import torch
from torch import Tensor

import manifolds
from steer.pullback.result import Path, PullBack
from steer.sites import Site

D = 5
N = 33
EMPTY = torch.zeros(1, N, 1, 1)


def ring() -> manifolds.Curve:
    angle = 2 * math.pi * torch.arange(24, dtype=torch.float64) / 24
    circle = torch.cat([angle.cos()[:, None], angle.sin()[:, None], torch.zeros(24, D - 2)], 1)
    return manifolds.fit_curve(circle, range(24), period=24)


def bent(shares: Tensor, radius: float) -> Tensor:
    """Return half a turn, from angle 0 to pi, whose radius bulges by a sine to `radius`."""
    angle = math.pi * shares
    r = 1 + (radius - 1) * angle.sin()
    flat = torch.zeros(len(shares), D - 2, dtype=shares.dtype)
    return torch.cat([(r * angle.cos())[:, None], (r * angle.sin())[:, None], flat], 1)


def found_on(points: Tensor) -> PullBack:
    shares = torch.linspace(0, 1, N, dtype=torch.float64)[:, None]
    chord = torch.lerp(points[0], points[-1], shares)
    basis = torch.eye(D, dtype=torch.float64)[:3]
    paths = [Path(x[None], EMPTY, torch.zeros(1)) for x in (points, chord, points)]
    u = torch.zeros(1, dtype=torch.float64)
    return PullBack(
        Site(0),
        u,
        u + 12,
        basis,
        EMPTY[:, :, 0],
        paths[0],
        paths[1],
        paths[2],
        torch.zeros(1, 1),
        1,
        n_controls=6,
    )


def test_a_path_on_the_manifold_has_all_of_its_variance_there():
    shares = torch.linspace(0, 1, N, dtype=torch.float64)
    scored = found_on(bent(shares, 1.0)).on_manifold(ring())
    # Interpolated through 24 points, and looked for among 1024: not exact.
    assert float(scored.found) > 0.9999
    assert scored.dims.tolist() == [2]


def test_the_share_is_that_of_distances_over_variance():
    shares = torch.linspace(0, 1, N, dtype=torch.float64)
    points = bent(shares, 1.6)
    scored = found_on(points).on_manifold(ring())
    # The nearest point of the half circle lies on the same radius.
    want = 1 - (points.norm(dim=1) - 1).square().sum() / (points - points.mean(0)).square().sum()
    torch.testing.assert_close(scored.found[0], want, atol=1e-3, rtol=0)
    chord = torch.lerp(points[0], points[-1], shares[:, None])
    off = 1 - chord.norm(dim=1)
    want = 1 - off.square().sum() / (chord - chord.mean(0)).square().sum()
    torch.testing.assert_close(scored.chord[0], want, atol=1e-3, rtol=0)


def test_random_paths_are_as_long_as_the_path_and_share_its_ends():
    found = found_on(bent(torch.linspace(0, 1, N, dtype=torch.float64), 1.6))
    randoms = found._random(9, seed=3)
    steps = randoms.diff(dim=-2).norm(dim=-1).sum(-1)
    own = found.points.diff(dim=-2).norm(dim=-1).sum(-1)
    torch.testing.assert_close(steps, own.expand(9, 1), atol=1e-6, rtol=1e-6)
    for at in (0, -1):
        torch.testing.assert_close(randoms[:, :, at], found.points[:, at].expand(9, 1, D))
    assert float((randoms[0] - randoms[1]).norm()) > 0.1
    scored = found.on_manifold(ring(), n_random=200)
    assert float(scored.random.quantile(0.95)) < float(found_on(bent(
        torch.linspace(0, 1, N, dtype=torch.float64), 1.0)).on_manifold(ring()).found)  # fmt: skip
