"""Pull-back: the path of activations whose outputs go along the behaviour manifold.

    found = steer.pullback.optimise(lm, prompts, site, chart, behavior, u0, u1, bins=bins)
    found.loss, found.chord.loss, found.on_manifold(chart), found.plan(7)

The opposite of steering along a fitted shape: here the outputs are given and the activations are
searched for. If the path found lies on the shape of natural activations, the two agree. `suffix`
runs the blocks above a site with gradients, `objective` compares outputs, `searching` moves the
path, `result` says what it is worth.
"""

from steer.pullback.result import OnManifold as OnManifold
from steer.pullback.result import Path as Path
from steer.pullback.result import PullBack as PullBack
from steer.pullback.searching import optimise as optimise
