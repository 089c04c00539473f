"""What an LM costs while no plan is attached: it should be nothing."""

import torch

import steer
from benchmarks.peers.bare import bare_twin, hooks_present
from benchmarks.result import Outcome
from benchmarks.speed.harness import Pair, near, timed_outcome
from benchmarks.speed.inputs import decode, decoding, forward, largest, token_batch, worst
from benchmarks.stats import Number
from benchmarks.task import Options

FORWARD_TIMES = 5
DECODE_TIMES = 3
"""As many pairs as elsewhere: the bound lies 2 % above 1, which 30 pairs do not resolve here."""
CONTROLS = ("bare_over_bare", "bare_over_bare_decode")


@torch.no_grad()
def measure_idle(lm: steer.LM, options: Options) -> Outcome:
    """Time lm.model without a plan against a model of the same weights that was never wrapped.

    The control is a second such model: it has its own module objects as well, so it says what two
    models of equal weights differ by.
    """
    ids, prompt = token_batch(lm, 8, 32, seed=0), token_batch(lm, 1, 32, seed=1)
    twin, second = bare_twin(lm.model), bare_twin(lm.model)
    bare, ours, other = (forward(model, ids) for model in (twin, lm.model, second))
    bare_decode, ours_decode, other_decode = (
        decode(lm, model, prompt) for model in (twin, lm.model, second)
    )
    n = near(options)
    n_forward, n_decode = FORWARD_TIMES * n, round(DECODE_TIMES * n)
    pairs = {
        "forward_over_bare": Pair(ours, bare, n_forward),
        "bare_over_bare": Pair(other, bare, n_forward),
        "decode_over_bare": Pair(ours_decode, bare_decode, n_decode),
        "bare_over_bare_decode": Pair(other_decode, bare_decode, n_decode),
    }
    equality = {
        "forward": largest(ours(), bare()),
        "decode": largest(ours_decode(), bare_decode()),
    }
    return timed_outcome(
        pairs,
        options,
        device=lm.device,
        controls=CONTROLS,
        facts={
            "hooks_present": Number(float(hooks_present(lm.model))),
            "max_abs_diff": worst(equality),
        },
        tables={"equality": equality},
        specs={"forward": [8, 32], "decode": {"prompt": [1, 32], **decoding(lm)}},
    )
