import pytest
import torch

from benchmarks.walks.graphs import GRAPHS, exchanged


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
@pytest.mark.parametrize("seed", range(5))
def test_an_exchanged_graph_keeps_no_node_and_few_edges(graph, seed):
    order = exchanged(graph, seed)
    assert order.sort().values.tolist() == list(range(graph.n))
    assert not (order == torch.arange(graph.n)).any()
    kept = [graph.adjacency[order[a], order[b]] for a, b in graph.edges.tolist()]
    assert sum(kept) < len(kept) / 2
