"""What one vector added at one block costs: a pass and a generation, ours and others'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import steer
from benchmarks.peers import hooks, nnsight, transformer_lens
from benchmarks.peers.bare import bare_twin
from benchmarks.result import Outcome
from benchmarks.speed.harness import Pair, far, near, timed_outcome
from benchmarks.speed.inputs import (
    DECODED,
    block,
    block_path,
    decode,
    decoding,
    directions,
    forward,
    largest,
    same_tokens,
    token_batch,
    worst,
)
from benchmarks.stats import Number
from benchmarks.task import Options
from steer.interop import bridge_of

CONTROLS = ("bare_over_bare", "bare_over_bare_decode")
Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Ways:
    """The same thing done in each way."""

    bare: Run
    other_bare: Run
    hook: Run
    ours: Run
    lens: Run | None
    """None where TransformerLens does not do it rightly under this transformers."""
    nnsight: Run


@torch.no_grad()
def measure_edit(lm: steer.LM, options: Options) -> Outcome:
    """Time one Add at the middle block, its receipt included, against the same edit by others."""
    layer = block(lm, 15)
    site = steer.Site(layer, "resid_post")
    ids, prompt = token_batch(lm, 8, 32, seed=0), token_batch(lm, 1, 32, seed=1)
    length = lm.norm(site, ids.tolist())
    delta = directions(lm, 1, length=length, seed=2)[0]
    plan = [steer.Add(site, delta)]
    passes, generations = _ways(lm, layer, delta, plan, ids, prompt)
    assert passes.lens is not None  # without a cache it does it rightly
    near_by, far_off = near(options), far(options)
    pairs = {
        "forward_over_bare": Pair(passes.ours, passes.bare, near_by),
        "bare_over_bare": Pair(passes.other_bare, passes.bare, near_by),
        "over_hook": Pair(passes.ours, passes.hook, near_by),
        "lens_over_ours": Pair(passes.lens, passes.ours, far_off),
        "nnsight_over_ours": Pair(passes.nnsight, passes.ours, far_off),
        "decode_over_bare": Pair(generations.ours, generations.bare, near_by),
        "bare_over_bare_decode": Pair(generations.other_bare, generations.bare, near_by),
        "over_hook_decode": Pair(generations.ours, generations.hook, near_by),
        "nnsight_over_ours_decode": Pair(generations.nnsight, generations.ours, far_off),
    }
    unscored: dict[str, Number] = {}
    if generations.lens is None:
        unscored["lens_over_ours_decode"] = Number(None)
    else:
        pairs["lens_over_ours_decode"] = Pair(generations.lens, generations.ours, far_off)
    equality = {
        "hook": largest(passes.ours(), passes.hook()),
        "lens": largest(passes.ours(), passes.lens()),
        "nnsight": largest(passes.ours(), passes.nnsight()),
    }
    tokens = generations.ours()
    others = {"hook": generations.hook, "lens": generations.lens, "nnsight": generations.nnsight}
    agreed = {n: None if run is None else same_tokens(tokens, run()) for n, run in others.items()}
    return timed_outcome(
        pairs,
        options,
        device=lm.device,
        controls=CONTROLS,
        facts={"max_abs_diff": worst(equality), **unscored},
        tables={
            "equality": equality,
            "moved_by_the_edit": largest(passes.ours(), passes.bare()),
            "share_of_equal_tokens": agreed,
        },
        specs={
            "plan": repr(plan),
            "forward": [8, 32],
            "decode": {"prompt": [1, 32], **decoding(lm)},
        },
    )


def _ways(
    lm: steer.LM,
    layer: int,
    delta: Tensor,
    plan: Sequence[steer.Add],
    ids: Tensor,
    prompt: Tensor,
) -> tuple[Ways, Ways]:
    path = block_path(lm, layer)
    twin, second = bare_twin(lm.model), bare_twin(lm.model)
    bridge = bridge_of(lm)
    traced = nnsight.traced(bare_twin(lm.model), lm.tokenizer)
    plain, generate = forward(twin, ids), decode(lm, twin, prompt)
    own, own_generate = forward(lm.model, ids), decode(lm, lm.model, prompt)
    passes = Ways(
        plain,
        forward(second, ids),
        _by_hand(plain, twin, path, delta),
        _attached(own, lm, plan),
        transformer_lens.forward_added(bridge, ids, layer, delta),
        nnsight.forward_added(traced, ids, path, delta),
    )
    lens = None
    if transformer_lens.keeps_cache(bridge, prompt):
        lens = transformer_lens.decode_added(bridge, prompt, layer, delta, DECODED)
    generations = Ways(
        generate,
        decode(lm, second, prompt),
        _by_hand(generate, twin, path, delta),
        _attached(own_generate, lm, plan),
        lens,
        nnsight.decode_added(traced, prompt, path, delta, DECODED, decoding(lm)),
    )
    return passes, generations


def _attached(run: Run, lm: steer.LM, plan: Sequence[steer.Add]) -> Run:
    def steered() -> Tensor:
        with lm.attached(plan) as attached:
            out = run()
        assert attached.receipt.fired
        return out

    return steered


def _by_hand(run: Run, model: nn.Module, path: str, delta: Tensor) -> Run:
    def steered() -> Tensor:
        with hooks.output_edited(model, path, hooks.add(delta)):
            return run()

    return steered
