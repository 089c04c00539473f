import torch

from benchmarks.rings.order import Order


def test_a_ring_always_goes_up_and_a_line_turns_down_where_it_ends():
    start = torch.arange(5)
    assert Order(5).way(start, 2).tolist() == [2] * 5
    assert Order(5, closed=False).way(start, 2).tolist() == [2, 2, 2, -2, -2]
    assert Order(5, closed=False).way(start, 4).tolist() == [4, 0, 0, 0, -4]


def test_places_come_again_on_a_ring_only():
    at = torch.tensor([-1, 0, 6])
    assert Order(5).place(at).tolist() == [4, 0, 1]
    assert Order(5, closed=False).place(at).tolist() == [-1, 0, 6]
    assert (Order(5).period, Order(5, closed=False).period) == (5, None)


def test_the_last_and_the_first_are_neighbours_on_a_ring_only():
    turned = torch.tensor([2, 3, 4, 0, 1])
    assert Order(5).neighbours(turned) == 5
    assert Order(5, closed=False).neighbours(turned) == 3
    assert Order(5, closed=False).neighbours(torch.tensor([0, 2, 4, 1, 3])) == 0
