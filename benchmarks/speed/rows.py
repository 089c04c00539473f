"""What a plan of its own for every row costs, against the same batch unsteered."""

from collections.abc import Callable

import torch
from torch import Tensor

import manifolds
import probes
import steer
from benchmarks.peers import hooks
from benchmarks.peers.bare import bare_twin
from benchmarks.result import Outcome
from benchmarks.speed.harness import Pair, near, timed_outcome
from benchmarks.speed.inputs import (
    block,
    block_path,
    directions,
    forward,
    largest,
    token_batch,
    token_rows,
    worst,
)
from benchmarks.task import Options
from steer.interventions.plans import Plan

CONTROLS = ("bare_over_bare",)
N_ROWS, N_TOKENS = 64, 8
KINDS = 4
"""Add, Ablate, MoveAlong, When, in turn."""


@torch.no_grad()
def measure_rows(lm: steer.LM, options: Options) -> Outcome:
    """Time one pass of 64 rows under 64 plans: all Adds, and four kinds mixed.

    Adds are compared with one hand-written hook for the whole batch. In the mixed batch Add and
    Ablate are too; rows that move along a curve or are gated are compared with each row run alone.
    """
    ids = token_batch(lm, N_ROWS, N_TOKENS, seed=0)
    twin, second = bare_twin(lm.model), bare_twin(lm.model)
    site = steer.Site(block(lm, 15), "resid_post")
    length = lm.norm(site, ids[:8].tolist())
    vectors = directions(lm, N_ROWS, length=length, seed=2)
    strengths = torch.linspace(0.1, 2.0, N_ROWS, device=lm.device, dtype=lm.dtype)
    adds = steer.Rows(
        [[steer.Add(site, v, float(s))] for v, s in zip(vectors, strengths, strict=True)]
    )
    mixed = _mixed(lm, site, vectors)
    bare, other = forward(twin, ids), forward(second, ids)
    added, mixture = _attached(lm, adds, ids), _attached(lm, mixed, ids)

    delta = (vectors * strengths[:, None])[:, None]
    with hooks.output_edited(twin, block_path(lm, site.layer or 0), hooks.add(delta)):
        added_by_hand = bare()
    mixture_by_hand = _mixed_by_hand(lm, twin, site, vectors, ids)
    made = mixture()
    linear = torch.tensor([row % KINDS < 2 for row in range(N_ROWS)])
    alone = [row for row in range(2 * KINDS) if row % KINDS >= 2]
    equality = {
        "adds": largest(added(), added_by_hand),
        "mixed_linear": largest(made[linear], mixture_by_hand[linear]),
        "mixed_alone": max(_against_alone(lm, mixed, ids, row, made[row]) for row in alone),
    }
    n = near(options)
    return timed_outcome(
        {
            "adds_over_batch": Pair(added, bare, n),
            "mixed_over_batch": Pair(mixture, bare, n),
            "bare_over_bare": Pair(other, bare, n),
        },
        options,
        device=lm.device,
        controls=CONTROLS,
        facts={"max_abs_diff": worst(equality)},
        tables={"equality": equality},
        specs={"forward": [N_ROWS, N_TOKENS], "mixed": [repr(p) for p in mixed.plans[:KINDS]]},
    )


def _mixed(lm: steer.LM, site: steer.Site, vectors: Tensor) -> steer.Rows:
    """Return 64 plans that cycle through the four kinds."""
    early = steer.Site(block(lm, 8), "resid_post")
    seen = lm.capture(token_rows(lm, 12, 8, seed=3), [early, site], scope=steer.LAST)
    curve = manifolds.fit_curve(seen[site], torch.arange(12.0), period=12.0)
    probe = probes.fit_mean_difference(seen[early][::2], seen[early][1::2])
    read = steer.Read(early, probe, scope=steer.PROMPT)
    plans = []
    for row, vector in enumerate(vectors):
        kinds = (
            steer.Add(site, vector),
            steer.Ablate(site, vector),
            steer.MoveAlong(site, curve, by=1.0 + row % 5),
            steer.When(read, steer.Add(site, vector), above=0.0),
        )
        plans.append([kinds[row % KINDS]])
    return steer.Rows(plans)


def _mixed_by_hand(
    lm: steer.LM, model: torch.nn.Module, site: steer.Site, vectors: Tensor, ids: Tensor
) -> Tensor:
    """Return logits with the rows of the first two kinds edited by a hand-written hook."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)

    def edit(h: Tensor) -> Tensor:
        h = h.clone()
        h[::KINDS] += vectors[::KINDS, None]
        part = torch.einsum("btd,bd->bt", h[1::KINDS], unit[1::KINDS])
        h[1::KINDS] -= part[..., None] * unit[1::KINDS, None]
        return h

    with hooks.output_edited(model, block_path(lm, site.layer or 0), edit):
        return forward(model, ids)()


def _attached(lm: steer.LM, plan: Plan, ids: Tensor) -> Callable[[], Tensor]:
    run = forward(lm.model, ids)

    def steered() -> Tensor:
        with lm.attached(plan) as attached:
            out = run()
        assert attached.receipt.fired
        return out

    return steered


def _against_alone(
    lm: steer.LM, plans: steer.Rows, ids: Tensor, row: int, batched: Tensor
) -> float:
    return largest(_attached(lm, plans[row], ids[row : row + 1])()[0], batched)
