"""Circuits against hand-written ablations, and a planted one found again."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steer
from benchmarks.peers.bare import bare_twin
from steer import LM, PlanError, Site, attribution, patching

CLEAN = [[5, 6, 7, 8, 9, 10], [5, 11, 7, 12, 9, 13], [4, 6, 14, 8]]
CORRUPTED = [[5, 6, 20, 8, 9, 10], [5, 21, 7, 12, 9, 13], [4, 22, 14, 8]]
RIGHT, WRONG = [30, 31, 32], [40, 41, 42]
METRIC = patching.logit_difference(RIGHT, WRONG)


def keep_input(kept: list[Tensor], _: nn.Module, args: tuple[Tensor, ...]) -> None:
    kept.append(args[0])


@torch.no_grad()
def by_hooks(lm: LM, kept: set[tuple[int, int]]) -> Tensor:
    """Return [pair]: every head but those kept overwritten by its value in the corrupted run."""
    width = lm.model.config.hidden_size // lm.registry.layout.n_heads
    found = []
    for row, (clean, corrupted) in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
        z: list[Tensor] = []
        projections = [
            lm.model.get_submodule(f"model.layers.{layer}.self_attn.o_proj")
            for layer in range(lm.n_layers)
        ]
        handles = [
            project.register_forward_pre_hook(partial(keep_input, z)) for project in projections
        ]
        lm.model(torch.tensor([corrupted]))
        for handle in handles:
            handle.remove()

        def write(layer: int, args: tuple[Tensor, ...], z: list[Tensor] = z) -> tuple[Tensor]:
            out = args[0].clone()
            for head in range(lm.registry.layout.n_heads):
                if (layer, head) not in kept:
                    part = slice(head * width, (head + 1) * width)
                    out[..., part] = z[layer][..., part]
            return (out,)

        handles = [
            project.register_forward_pre_hook(
                lambda _, args, layer=layer: write(layer, args)  # pyright: ignore
            )
            for layer, project in enumerate(projections)
        ]
        logits = lm.model(torch.tensor([clean])).logits[0, -1]
        for handle in handles:
            handle.remove()
        found.append(logits[RIGHT[row]] - logits[WRONG[row]])
    return torch.stack(found)


def test_circuits_are_scored_as_by_hooks_written_by_hand(lm: LM):
    circuits = [[Site(0, "z", 1), Site(2, "z", 3)], patching.heads(lm), [Site(3, "z", 0)]]
    found = attribution.faithfulness(lm, CLEAN, CORRUPTED, circuits, METRIC)
    for circuit, values in zip(circuits, found.metric, strict=True):
        expected = by_hooks(lm, {(site.layer or 0, site.head or 0) for site in circuit})
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.empty, by_hooks(lm, set()), atol=1e-4, rtol=0)
    assert float(found.share[1]) == pytest.approx(1.0, abs=1e-4)
    lo, hi = found.interval()
    assert bool((lo <= found.share + 1e-9).all() & (found.share <= hi + 1e-9).all())


def planted() -> tuple[LM, set[Site]]:
    """Return a model in which three heads alone reach the stream."""
    lm = steer.load("tiny-llama")
    model: Any = copy.deepcopy(bare_twin(lm.model))
    alive = {Site(0, "z", 2), Site(1, "z", 1), Site(3, "z", 3)}
    width = lm.d_model // lm.registry.layout.n_heads
    with torch.no_grad():
        for site in patching.heads(lm):
            head = site.head or 0
            if site not in alive:
                project = model.model.layers[site.layer].self_attn.o_proj
                project.weight[:, head * width : (head + 1) * width] = 0.0
    return steer.wrap(model, lm.tokenizer), alive


def test_a_planted_circuit_is_found_and_no_head_of_it_can_be_spared():
    lm, alive = planted()
    clean = lm.logits(CLEAN)

    def metric(logits: Tensor, batch: steer.Batch) -> Tensor:
        # Nearness to the model itself: each of its heads brings it nearer.
        return -(logits - clean[batch.rows]).square().mean(-1)

    whole = attribution.faithfulness(lm, CLEAN, CORRUPTED, [sorted(alive)], metric)
    assert float(whole.share[0]) == pytest.approx(1.0, abs=1e-3)
    found = attribution.find_circuit(lm, CLEAN, CORRUPTED, metric, size=3)
    assert set(found) == alive
    # From a wrong start: one dead head in the place of a live one is exchanged for it.
    dead = next(site for site in patching.heads(lm) if site not in alive)
    wrong = (*sorted(alive)[:2], dead)
    better = attribution.refine_circuit(lm, CLEAN, CORRUPTED, wrong, metric)
    assert set(better) == alive
    whole_one = attribution.completeness(lm, CLEAN, CORRUPTED, sorted(alive), metric, n_subsets=5)
    assert float(whole_one.gap.max()) < 1e-3
    assert whole_one.idle == ()
    lacking = attribution.completeness(lm, CLEAN, CORRUPTED, wrong, metric, subsets=[[wrong[0]]])
    assert float(lacking.gap[0]) > 100 * float(whole_one.gap.max())
    assert "without" in repr(lacking)
    assert dead in lacking.idle
    less = attribution.without_each(found)
    shares = attribution.faithfulness(lm, CLEAN, CORRUPTED, less, metric).share
    assert bool((shares < 1 - 1e-3).all())
    effects = patching.sweep(
        lm, CLEAN, CORRUPTED, patching.heads(lm), metric, scope=steer.ALL, direction="noise"
    )
    assert set(attribution.threshold_circuit(effects, 3)) == alive


def test_gains_are_the_gradients_of_giving_each_head_back(lm: LM):
    # Giving back a small share of a head: the metric's change over the share.
    from steer.attribution.circuits import gains
    from steer.patching.pairs import columns_of

    every = patching.heads(lm)
    (column,) = columns_of(
        lm, CLEAN, CORRUPTED, every, steer.ALL, baseline="other", align="token", seed=0
    )
    found = [Site(1, "z", 2)]
    found_gains = gains(lm, CLEAN, every, found, column, METRIC)
    (scored,) = attribution.faithfulness(lm, CLEAN, CORRUPTED, [found], METRIC).metric
    share = 1e-2
    for site in (Site(0, "z", 1), Site(3, "z", 2)):

        def partly(h: Tensor, step: steer.Step, site: Site = site) -> Tensor:
            source = column.sources[Site(site.layer, "z")][step.rows]
            there = source[:, : h.shape[1], site.head or 0]
            return there + share * (h - there)

        cut = [
            steer.Patch(
                one,
                column.sources[Site(one.layer, "z")][:, :, one.head or 0],
                scope=steer.ALL,
                counts=column.counts,
            )
            for one in every
            if one not in (*found, site)
        ]
        logits = lm.logits(CLEAN, [*cut, steer.Custom(site, partly)])
        values = METRIC(logits, steer.Batch(torch.full((3,), -1), torch.arange(3)))
        slope = float((values - scored).sum()) / share
        assert float(found_gains[every.index(site)]) == pytest.approx(slope, rel=0.1, abs=2e-3)


def test_overlap_is_that_of_sets_and_strange_heads_are_refused(lm: LM):
    a, b, c = (Site(1, "z", head) for head in range(3))
    assert attribution.overlap([a, b], [b, c]) == pytest.approx(1 / 3)
    with pytest.raises(PlanError, match="not among the 1 heads"):
        attribution.faithfulness(lm, CLEAN, CORRUPTED, [[a]], METRIC, among=[b])
    with pytest.raises(PlanError, match="Give 1 to 16"):
        attribution.find_circuit(lm, CLEAN, CORRUPTED, METRIC, size=17)
    assert lm.registry.live == 0
