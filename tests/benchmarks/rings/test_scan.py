from benchmarks.rings.scan import Block, best_of


def _block(layer, miss):
    return Block(f"blocks.{layer}.resid_post", layer, miss, 0.5, 0.1, 0.1, 0.2)


def test_the_first_block_that_misses_hardly_more_than_the_best_is_chosen():
    blocks = [_block(0, 0.7), _block(1, 0.106), _block(2, 0.104), _block(3, 0.1), _block(4, 0.2)]
    assert best_of(blocks).layer == 2


def test_a_small_distance_to_nearest_natural_outputs_does_not_choose_a_block():
    # Block 0 is overwritten: it changes nothing, so its outputs are natural, but it misses its aim.
    idle = Block("blocks.0.resid_post", 0, 0.7, 0.02, 0.02, 0.01, 0.01)
    assert best_of([idle, _block(1, 0.1)]).layer == 1
