"""Walking a path: many prompts, many points, written at the last token of one block."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

import manifolds
import steer
from benchmarks.peers.bare import bare_twin
from benchmarks.peers.sweeps import path_loop
from benchmarks.result import Outcome
from benchmarks.speed.accounts import Account, account, summed
from benchmarks.speed.harness import Pair, far, near, timed_outcome
from benchmarks.speed.inputs import block, block_path, forward, largest, token_rows, worst
from benchmarks.task import Options

CONTROLS = ("bare_over_bare",)


@dataclass(frozen=True, slots=True)
class Walk:
    """How many prompts of how many tokens meet how many points, and after which block of thirty."""

    of_thirty: int
    n_prompts: int
    n_tokens: int
    n_points: int


WALKS = {"block26": Walk(26, 16, 40, 16), "block15": Walk(15, 8, 64, 32)}


@dataclass(frozen=True, slots=True, eq=False)
class Ways:
    """One walk done in each way, values [point, prompt]."""

    ours: Callable[[], Tensor]
    loop: Callable[[], Tensor]
    loop_last: Callable[[], Tensor]
    account: Account


@torch.no_grad()
def measure_path(lm: steer.LM, options: Options) -> Outcome:
    """Time steer.sweep over the points of a ring against a hand-written loop over the points.

    Ours includes the planning and the pass over the prompts; the loop needs none, as it writes
    points that are known. `loop_last` is the loop with logits_to_keep=1. Both walk the same points,
    with the log-probability of one token measured. token_blocks are summed over both walks.
    """
    twin, second = bare_twin(lm.model), bare_twin(lm.model)
    ways = {name: _ways(lm, twin, walk) for name, walk in WALKS.items()}
    ids = torch.tensor(token_rows(lm, 8, 32, seed=0), device=lm.device)
    pairs = {"bare_over_bare": Pair(forward(second, ids), forward(twin, ids), near(options))}
    equality = {}
    for name, way in ways.items():
        pairs[f"loop_over_ours_{name}"] = Pair(way.loop, way.ours, far(options))
        pairs[f"loop_last_over_ours_{name}"] = Pair(way.loop_last, way.ours, far(options))
        equality[name] = largest(way.ours(), way.loop())
    accounts = {name: way.account for name, way in ways.items()}
    return timed_outcome(
        pairs,
        options,
        device=lm.device,
        controls=CONTROLS,
        facts={"max_abs_diff": worst(equality), **summed(list(accounts.values()))},
        tables={
            "equality": equality,
            "token_blocks": {name: asdict(found) for name, found in accounts.items()},
        },
        specs={name: asdict(walk) for name, walk in WALKS.items()},
    )


def _ways(lm: steer.LM, twin: PreTrainedModel, walk: Walk) -> Ways:
    layer = block(lm, walk.of_thirty)
    site = steer.Site(layer, "resid_post")
    rows = token_rows(lm, walk.n_prompts, walk.n_tokens, seed=4)
    points = ring_points(lm, site, walk.n_points)
    arms = [[steer.Patch(site, point, scope=steer.LAST)] for point in points]
    target = rows[0][0]

    def metric(logits: Tensor) -> Tensor:
        return logits.float().log_softmax(-1)[:, target]

    def swept() -> steer.Sweep:
        return steer.sweep(lm, rows, arms, lambda logits, _: metric(logits), scope=steer.LAST)

    ids = torch.tensor(rows, device=lm.device)
    path = block_path(lm, layer)
    return Ways(
        lambda: swept().values,
        path_loop(twin, ids, path, points, metric, last_only=False),
        path_loop(twin, ids, path, points, metric, last_only=True),
        account(lm, swept()),
    )


def ring_points(lm: steer.LM, site: steer.Site, n: int) -> Tensor:
    """Return [n, d_model] points round a ring through the states of twelve short prompts."""
    seen = lm.capture(token_rows(lm, 12, 8, seed=3), [site], scope=steer.LAST)
    ring = manifolds.fit_curve(seen[site], torch.arange(12.0), period=12.0)
    around = torch.linspace(0.0, 12.0, n + 1, device=lm.device)[:-1]
    return ring.decode(around).to(lm.device, lm.dtype)
