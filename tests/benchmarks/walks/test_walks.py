from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.task import Options
from benchmarks.walks import graphs
from benchmarks.walks.geometry import likeness
from benchmarks.walks.measure import measure_walks
from benchmarks.walks.passing import Passed, _between, _nearest
from benchmarks.walks.reading import ASKED, LENGTHS, WINDOW, Walked, centroids
from benchmarks.walks.steering import Moved, shape_of, targets_of


@pytest.mark.parametrize(
    ("graph", "oracle"),
    [
        (graphs.RING, nx.cycle_graph(8)),
        (graphs.GRID, nx.grid_2d_graph(4, 4)),
        (graphs.CYLINDER, nx.cartesian_product(nx.cycle_graph(6), nx.path_graph(3))),
    ],
    ids=["ring", "grid", "cylinder"],
)
def test_the_graphs_are_those_of_networkx(graph, oracle):
    nodes = sorted(oracle)
    assert np.array_equal(graph.adjacency.numpy(), nx.to_numpy_array(oracle, nodes))
    assert np.allclose(graph.hops.numpy(), nx.floyd_warshall_numpy(oracle, nodes))
    assert len(graph.edges) == oracle.number_of_edges()


def test_a_walk_goes_from_neighbour_to_neighbour_and_visits_every_node():
    for graph in graphs.GRAPHS:
        steps = graphs.walk(graph, 700, seed=3)
        assert bool((graph.adjacency[steps[:-1], steps[1:]] == 1).all())
        assert len(steps.unique()) == graph.n


def _noisy(graph: graphs.WalkGraph, noise: float) -> torch.Tensor:
    vectors = torch.linalg.eigh(graph.laplacian).eigenvectors
    mix = torch.linalg.qr(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)))[
        0
    ].T.double()
    mix = mix * torch.tensor([3.0, 2.5, 1.0, 1.0]).double()[:, None]
    x = vectors[:, 1:5] @ mix
    return x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("graph", graphs.GRAPHS, ids=lambda graph: graph.name)
def test_states_laid_out_like_the_graph_are_told_from_names_exchanged(graph):
    found = likeness(graph, _noisy(graph, 0.05)[None], seed=0)
    assert found["energy"].value < found["energy"].low
    assert found["distance_correlation"].value > found["distance_correlation"].high
    assert found["procrustes"].value > found["procrustes"].high
    none = likeness(graph, torch.randn(50, graph.n, 30).double(), seed=0)
    inside = none["energy"].value > none["energy"].low
    assert 0.8 < float(inside.double().mean()) <= 1


def test_the_measures_are_their_formulas():
    graph, x = graphs.CYLINDER, _noisy(graphs.CYLINDER, 0.3)
    found = likeness(graph, x, seed=0)
    away = x - x.mean(0)
    pairs = [(i, j) for i in range(graph.n) for j in range(i)]
    summed = sum(graph.adjacency[i, j] * (x[i] - x[j]).square().sum() for i, j in pairs)
    assert float(found["energy"].value) == pytest.approx(float(summed / away.square().sum()))
    far = [float((x[i] - x[j]).norm()) for i, j in pairs]
    hops = [float(graph.hops[i, j]) for i, j in pairs]
    r = np.corrcoef(far, hops)[0, 1]
    assert float(found["distance_correlation"].value) == pytest.approx(r)
    assert 0 <= float(found["procrustes"].value) <= 1


def _walked(graph: graphs.WalkGraph) -> Walked:
    nodes = torch.stack([graphs.walk(graph, LENGTHS[-1], seed) for seed in range(2)])
    mass = torch.zeros(2, len(LENGTHS), ASKED, graph.n)
    mass[..., 0] = 1.0
    states = nodes[:, None, :, None].float().expand(2, 1, -1, 3) + 0.0
    return Walked(graph, nodes, torch.zeros(2, graph.n).long(), [], mass, states, False)


def test_the_mass_on_neighbours_is_that_of_the_asked_positions():
    walked = _walked(graphs.RING)
    asked = walked.nodes[:, LENGTHS[-1] - ASKED :]
    beside = ((asked == 1) | (asked == 7)).float().mean(1)
    assert torch.allclose(walked.legal[:, -1], beside)


def test_a_centroid_is_the_mean_over_the_windows_occurrences():
    walked = _walked(graphs.RING)
    found, seen = centroids(walked, LENGTHS[-1])
    assert bool(seen.all())
    assert torch.allclose(found[:, 0, :, 0], torch.arange(8.0).expand(2, 8))


def test_a_node_that_the_window_misses_has_its_last_state_and_one_never_met_has_none():
    walked = _walked(graphs.RING)
    nodes = torch.tensor([1, 2] * (LENGTHS[-1] // 2))
    nodes[[0, 10, 20]] = torch.tensor([5, 6, 6])
    states = torch.arange(float(LENGTHS[-1]))[None, None, :, None].expand(2, 1, -1, 3)
    walked = replace(walked, nodes=nodes.expand(2, -1), states=states)
    found, met = centroids(walked, LENGTHS[-1])
    assert met[0].nonzero()[:, 0].tolist() == [1, 2, 5, 6]
    assert found[0, 0, [5, 6], 0].tolist() == [0.0, 20.0]
    window = torch.arange(LENGTHS[-1] - WINDOW, LENGTHS[-1]).float()
    assert float(found[0, 0, 1, 0]) == float(window[::2].mean())
    assert not bool(found[0, 0, ~met[0]].any())


def test_nodes_not_met_have_no_say():
    graph, x = graphs.CYLINDER, _noisy(graphs.CYLINDER, 0.3)
    met = torch.arange(graph.n) != 7
    one = likeness(graph, x, seed=0, met=met)
    far = x.clone()
    far[7] = 1e6
    two = likeness(graph, far, seed=0, met=met)
    for name in one:
        assert torch.equal(one[name].value, two[name].value)
        assert torch.equal(one[name].high, two[name].high)
    away = x[met] - x[met].mean(0)
    near = graph.adjacency[met][:, met]
    summed = 0.5 * (near * torch.cdist(x[met], x[met]).square()).sum()
    assert float(one["energy"].value) == pytest.approx(float(summed / away.square().sum()))


def test_adjacent_targets_are_next_to_the_own_node():
    own = torch.tensor([0, 7, 13])
    for graph in (graphs.GRID, graphs.CYLINDER):
        targets = targets_of(graph, own, 2, adjacent=True)
        assert bool((graph.adjacency[own[:, None], targets] == 1).all())


def test_the_nodes_passed_are_those_of_the_shorter_way_round():
    t = torch.tensor([0.25, 0.5, 0.75]).double()
    ring = graphs.RING
    u = _between(ring, torch.tensor([[7]]), torch.tensor([[3]]), t)
    assert _nearest(ring, u).flatten().tolist() in ([0, 1, 2], [6, 5, 4])
    u = _between(ring, torch.tensor([[1]]), torch.tensor([[6]]), t)
    assert _nearest(ring, u).flatten().tolist()[1] in (7, 0)
    cylinder = graphs.CYLINDER  # node 3 i + j lies at (i, j)
    u = _between(cylinder, torch.tensor([[0]]), torch.tensor([[3 * 4 + 2]]), t)
    assert _nearest(cylinder, u).flatten().tolist()[1] == 3 * 5 + 1


def test_mass_that_the_two_ends_share_is_not_counted_as_passing():
    graph = graphs.RING
    mass = torch.zeros(1, 1, 1, 3, 8)
    mass[..., 1], mass[..., 2] = 0.3, 0.5
    nodes = torch.tensor([[[1, 2, 3]]])
    passed = Passed(nodes, mass, torch.zeros(1, 8), torch.tensor([0]), torch.tensor([[4]]))
    gain = passed.gain(graph)[0, 0, 0]
    # 0 is next to 1 and 7, 4 to 3 and 5: of 1's neighbours 0 and 2 are left, of 2's none.
    assert gain[[0, 2]].tolist() == [0.5, 0.5]
    assert bool(gain[1].isnan())


def test_targets_are_the_farthest_nodes_and_gains_are_counted_on_their_own_neighbours():
    graph, own = graphs.RING, torch.tensor([0, 3])
    targets = targets_of(graph, own, 3)
    assert targets[:, 0].tolist() == [4, 7]
    mass = torch.zeros(1, 1, 2, 3, 8)
    mass[0, 0, 0, 0, 3] = mass[0, 0, 0, 0, 1] = 0.5  # 3 is beside 4, 1 is beside the own node 0
    moved = Moved(("surface",), (0,), targets, own, mass, torch.zeros(2, 8))
    assert float(moved.gain(graph)[0, 0, 0, 0]) == 0.5
    assert float(moved.kept(graph)[0, 0, 0, 0]) == 0.5


def test_the_shape_goes_through_the_centroids_in_the_graphs_own_coordinates():
    for graph in graphs.GRAPHS:
        x = _noisy(graph, 0.1).float()
        shape = shape_of(graph, x)
        u = graph.u[:, 0] if graph.u.shape[1] == 1 else graph.u
        # 2 %: the subspace holds 99.9 % of the variance.
        assert (shape.decode(u) - x).norm() < 0.05 * (x - x.mean(0)).norm()


def test_a_shape_that_does_not_see_a_node_puts_it_where_its_neighbours_say():
    graph = graphs.CYLINDER
    angle = 2 * torch.pi * graph.u[:, 0] / 6
    x = torch.stack([angle.cos(), angle.sin(), graph.u[:, 1]], 1)
    found = shape_of(graph, x, without=4).decode(graph.u[4])
    assert (found - x[4]).norm() < 0.2


def test_a_model_that_does_not_follow_walks_is_refused(lm: steer.LM):
    with pytest.raises(BenchmarkError, match=r"does not build the graph|one token each"):
        measure_walks(lm, Options(limit=2))
    with pytest.raises(BenchmarkError, match="an interval takes two"):
        measure_walks(lm, Options(limit=1))
