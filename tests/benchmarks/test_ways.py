"""The ways that comparisons share, against closed forms."""

import numpy as np
import torch
from scipy.stats import norm

import manifolds
from benchmarks.ways import geometric_mixture, straight, turned


def test_a_straight_way_is_even_and_has_both_ends():
    first, last = torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.tensor([[4.0, 1.0], [2.0, -2.0]])
    way = straight(first, last, 5)
    torch.testing.assert_close(way[0], torch.tensor([[0.0, 1], [1, 1], [2, 1], [3, 1], [4, 1]]))
    assert torch.equal(way[:, [0, -1]], torch.stack([first, last], 1))


def test_a_turned_way_has_the_same_distances_the_same_start_and_stays_in_the_subspace():
    draws = torch.Generator().manual_seed(0)
    space = manifolds.fit_pca(torch.randn(50, 12, generator=draws).double(), n_components=4)
    points = space.embed(torch.randn(3, 7, 4, generator=draws).double())
    found = turned(points, space, 1)
    torch.testing.assert_close(found[:, 0], points[:, 0])
    torch.testing.assert_close(space.flatten(found), found)
    gaps, own = (x[:, :, None] - x[:, None] for x in (found, points))
    torch.testing.assert_close(gaps.norm(dim=-1), own.norm(dim=-1))
    assert float((found[:, 1:] - points[:, 1:]).norm(dim=-1).min()) > 0.1


def test_mixtures_of_two_normals_of_one_width_are_normals_between_them():
    grid = np.arange(-40, 60)
    ends = [norm.pdf(grid, 0, 4), norm.pdf(grid, 12, 4)]
    p = torch.from_numpy(np.stack([ends[0], ends[0], ends[0], ends[1]]))
    found = geometric_mixture(p)
    for share, row in zip((0, 1 / 3, 2 / 3, 1), found.numpy(), strict=True):
        expected = norm.pdf(grid, 12 * share, 4)
        np.testing.assert_allclose(row, expected / expected.sum(), atol=1e-6)
