"""The illusion checks on planted hidden layers: a dormant pathway, and a real one."""

import copy
from typing import Any

import pytest
import torch

import steer
from benchmarks.peers.bare import bare_twin
from steer import LM, PlanError, Site, interchange, patching
from steer.engine import Measure

SITE = Site(2, "mlp_post")
VARIES, DORMANT = 3, 5


def planted(sign: float = 1.0) -> LM:
    """Return a model in which neuron 5 never fires but is read, and neuron 3 fires unread."""
    lm = steer.load("tiny-llama")
    model: Any = copy.deepcopy(bare_twin(lm.model))
    mlp = model.model.layers[2].mlp
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mlp.up_proj.weight[DORMANT] = 0.0
        mlp.down_proj.weight[:, DORMANT] = sign * torch.randn(64, generator=draw)
        mlp.down_proj.weight[:, VARIES] = 0.0
        mlp.up_proj.weight[VARIES] *= 20
    return steer.wrap(model, lm.tokenizer)


def pairs() -> tuple[LM, list[list[int]], list[list[int]], Measure]:
    """Return a planted model, and pairs that the dormant neuron could tell apart if it fired."""
    draw = torch.Generator().manual_seed(3)
    first = torch.randint(5, 570, (12, 5), generator=draw)
    second = torch.randint(5, 570, (12, 5), generator=draw)
    lm = planted()
    state = [lm.capture(x.tolist(), [SITE])[SITE][:, VARIES] for x in (first, second)]
    # The variable that differs: neuron 3 is higher in the clean prompt of each pair.
    swap = (state[0] < state[1])[:, None]
    clean, corrupted = torch.where(swap, second, first), torch.where(swap, first, second)
    direction = lm.model.get_parameter("model.layers.2.mlp.down_proj.weight")[:, DORMANT]
    unembed = lm.model.get_parameter("lm_head.weight")
    order = (unembed @ direction).argsort()
    metric = patching.logit_difference([int(order[-1])] * 12, [int(order[0])] * 12)
    batch = steer.Batch(torch.full((12,), -1), torch.arange(12))
    gap = metric(lm.logits(clean.tolist()), batch) - metric(lm.logits(corrupted.tolist()), batch)
    # The dormant neuron points with the gap; as it never fires, the gap does not depend on it.
    return planted(float(gap.mean().sign())), clean.tolist(), corrupted.tolist(), metric


def unit(*neurons: int) -> torch.Tensor:
    v = torch.eye(steer.load("tiny-llama").model.config.intermediate_size)[list(neurons)].sum(0)
    return v / v.norm()


def test_a_dormant_pathway_fools_patching_and_is_named():
    lm, clean, corrupted, metric = pairs()
    report = interchange.check_illusion(lm, clean, corrupted, SITE, unit(VARIES, DORMANT), metric)
    effect = report.effects["subspace"][0]
    assert effect > 0.5  # plain patching is fooled
    assert report.effects["unread part"][0] == pytest.approx(0.0, abs=1e-4)
    assert abs(report.effects["read part"][0]) < 0.2 * effect
    assert effect > report.effects["random"][2]
    assert report.illusory
    assert "an illusion" in repr(report)
    assert report.variance["read part"] < report.variance["subspace"]


def test_what_is_read_and_varies_is_no_illusion(lm: LM):
    draw = torch.Generator().manual_seed(3)
    first, second = torch.randint(5, 570, (2, 12, 5), generator=draw).tolist()
    site = Site(3, "mlp_post")
    metric = patching.logit_difference([30] * 12, [40] * 12)
    own, other = (lm.capture(rows, [site])[site] for rows in (second, first))
    # What the last MLP reads of the direction in which the pairs differ most.
    down = lm.model.get_parameter("model.layers.3.mlp.down_proj.weight").detach()
    read = torch.linalg.svd(down, full_matrices=False)[2]
    axes = torch.linalg.svd((other - own) @ read.mT @ read, full_matrices=False)[2][:8]
    report = interchange.check_illusion(lm, first, second, site, axes, metric)
    assert report.read_share == pytest.approx(1.0, abs=1e-3)
    assert not report.illusory
    assert report.effects["read part"][0] == pytest.approx(report.effects["subspace"][0], abs=1e-3)
    assert report.variance["read part"] > 1.0


def test_the_parts_are_patched_as_they_would_be_by_hand():
    lm, clean, corrupted, metric = pairs()
    v = unit(VARIES, DORMANT)
    report = interchange.check_illusion(lm, clean, corrupted, SITE, v, metric)
    source = lm.capture(clean, [SITE])[SITE]
    batch = steer.Batch(torch.full((12,), -1), torch.arange(12))
    own, best = (metric(lm.logits(rows), batch) for rows in (corrupted, clean))
    for name, basis in (("subspace", v), ("whole", None)):
        patch = steer.Patch(SITE, source, basis, scope=steer.LAST)
        moved = metric(lm.logits(corrupted, [patch]), batch) - own
        expected = float(moved.mean() / (best - own).mean())
        assert report.effects[name][0] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_elsewhere_what_is_read_is_the_span_of_gradients(lm: LM):
    site = Site(1, "resid_post")
    rows = [[5, 6, 7, 8], [9, 10, 11, 12], [6, 8, 10, 13]]
    others = [[5, 6, 7, 30], [9, 10, 11, 31], [6, 8, 10, 32]]
    metric = patching.logit_difference([30] * 3, [40] * 3)
    basis = torch.randn(64, generator=torch.Generator().manual_seed(0))
    report = interchange.check_illusion(lm, rows, others, site, basis, metric)
    # Three pairs in two runs: at most six directions are read, of 64.
    assert 0.0 < report.read_share < 0.5
    assert 0.0 <= report.gradient_cosine <= 1.0


def test_a_subspace_of_another_width_or_a_single_pair_is_refused(lm: LM):
    metric = patching.logit_difference([30], [40])
    with pytest.raises(PlanError, match="as wide as the site"):
        interchange.check_illusion(lm, [[5, 6]], [[5, 7]], SITE, torch.ones(3), metric)
