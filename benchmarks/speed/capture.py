"""What reading costs: the states after all blocks, and after one, against a plain pass."""

import torch
from torch import Tensor

import steer
from benchmarks.peers import hooks
from benchmarks.peers.bare import bare_twin
from benchmarks.result import Outcome
from benchmarks.speed.harness import Pair, near, timed_outcome
from benchmarks.speed.inputs import block, block_path, forward, largest, token_rows, worst
from benchmarks.task import Options

CONTROLS = ("bare_over_bare",)


@torch.no_grad()
def measure_capture(lm: steer.LM, options: Options) -> Outcome:
    """Time lm.capture of resid_post at all tokens against a plain pass with its logits.

    One block costs less than a pass, because a capture stops after the last block that it needs
    and computes no logits.
    """
    rows = token_rows(lm, 8, 32, seed=0)
    ids = torch.tensor(rows, device=lm.device)
    twin, second = bare_twin(lm.model), bare_twin(lm.model)
    sites = lm.sites("resid_post")
    one = [sites[block(lm, 8)]]
    bare, other = forward(twin, ids), forward(second, ids)

    def every_block() -> steer.Activations:
        return lm.capture(rows, sites, scope=steer.ALL)

    def one_block() -> steer.Activations:
        return lm.capture(rows, one, scope=steer.ALL)

    by_hand = _captured_by_hand(lm, twin, ids)
    got, single = every_block(), one_block()
    equality = {
        "all": max(largest(got[site], by_hand[at]) for at, site in enumerate(sites)),
        "block8": largest(single[one[0]], by_hand[sites.index(one[0])]),
    }
    n = near(options)
    return timed_outcome(
        {
            "all_over_bare": Pair(every_block, bare, n),
            "block8_over_bare": Pair(one_block, bare, n),
            "bare_over_bare": Pair(other, bare, n),
        },
        options,
        device=lm.device,
        controls=CONTROLS,
        facts={"max_abs_diff": worst(equality)},
        tables={"equality": equality},
        specs={"forward": [8, 32], "sites": len(sites), "one": str(one[0])},
    )


def _captured_by_hand(lm: steer.LM, model: torch.nn.Module, ids: Tensor) -> list[Tensor]:
    paths = [block_path(lm, layer) for layer in range(lm.n_layers)]
    with hooks.kept(model, paths, "output") as found:
        forward(model, ids)()
    return [found[path] for path in paths]
