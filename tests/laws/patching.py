"""Laws of patching and attribution: what every map must satisfy, on any model."""

import torch

import steer
from steer import Site, attribution, patching
from steer.engine import Measure
from tests.laws.interventions import Setting

Rows = list[list[int]]


def pairs(setting: Setting) -> tuple[Rows, Rows, Measure]:
    """Return prompts, the same with the second token exchanged, and a metric."""
    clean = setting.prompts[:3]
    corrupted = [[row[0], 5 + (row[1] + 17) % 500, *row[2:]] for row in clean]
    return clean, corrupted, patching.logit_difference([30, 31, 32], [40, 41, 42])


def law_patching_everything_is_the_other_run(setting: Setting) -> None:
    """All tokens of the first state exchanged: the metric is the other run's."""
    clean, corrupted, metric = pairs(setting)
    first = Site(0, "resid_pre")
    found = patching.sweep(setting.lm, clean, corrupted, [first], metric, scope=steer.ALL)
    torch.testing.assert_close(found.values[0, 0], found.out_of, atol=1e-4, rtol=1e-4)


def law_a_patch_of_what_is_there_changes_nothing(setting: Setting) -> None:
    """Before the first token that differs both runs hold the same: no patch there changes a bit."""
    clean, corrupted, metric = pairs(setting)
    sites = [Site(1, "resid_pre"), Site(1, "mlp_out")]
    found = patching.sweep(setting.lm, clean, corrupted, sites, metric)
    assert torch.equal(found.change[:, 0], torch.zeros(2, 3))
    assert float(found.change[:, 1].abs().max()) > 0


def law_direct_effects_are_paths_to_the_logits(setting: Setting) -> None:
    """The shortcut adds what a sender writes to the last state; the long way holds all between."""
    clean, corrupted, metric = pairs(setting)
    lm = setting.lm
    senders = [*patching.heads(lm)[:2], Site(0, "mlp_out"), Site(0, "attn_out")]
    long = patching.paths(lm, clean, corrupted, senders, [Site.logits()], metric)
    short = patching.direct(lm, clean, corrupted, senders, metric)
    torch.testing.assert_close(short.values, long.values, atol=1e-4, rtol=1e-3)
    # Held still in between: what the sender does through other blocks is not there.
    whole = patching.sweep(
        lm, clean, corrupted, senders, metric, scope=steer.ALL, direction="noise"
    )
    assert float((whole.values - long.values).abs().max()) > 1e-4


def law_edges_add_up_to_attribution(setting: Setting) -> None:
    """What a component says to all others is what attribution says of it."""
    clean, corrupted, metric = pairs(setting)
    lm = setting.lm
    found = attribution.edges(lm, clean, corrupted, metric, steps=0)
    senders = [site for site in found.senders if site.component in ("z", "mlp_out")]
    nodes = attribution.atp(
        lm, clean, corrupted, senders, metric, scope=steer.ALL, direction="noise"
    )
    sums = found.change.nansum(1)[[site in senders for site in found.senders]]
    torch.testing.assert_close(sums, nodes.change[:, 0], atol=1e-4, rtol=1e-2)


def law_a_skipped_block_passes_on_what_it_is_given(setting: Setting) -> None:
    """Attention and MLP of a skipped block add nothing."""
    before, after = Site(1, "resid_pre"), Site(1, "resid_post")
    acts = setting.lm.capture(
        setting.prompts[:3], [before, after], scope=steer.ALL, plan=patching.skip([1])
    )
    torch.testing.assert_close(acts[after], acts[before], atol=1e-5, rtol=1e-5)


def law_attention_cut_in_one_head_leaves_the_others_bits(setting: Setting) -> None:
    """And gives the one head another value."""
    lm = setting.lm
    cut = patching.Cut([1], steer.LAST, steer.FIRST, heads=[1])
    rows = setting.prompts[:3]
    plan = patching.knock_out_plan(lm, rows, {"one": cut})
    site = Site(1, "z")
    before, after = (lm.capture(rows, [site], plan=some)[site] for some in ([], plan))
    same = (before == after).all(-1)
    others = [head for head in range(same.shape[1]) if head != 1]
    assert bool(same[:, others].all())
    assert not bool(same[:, 1].any())


PATCHING_LAWS = (
    law_patching_everything_is_the_other_run,
    law_a_patch_of_what_is_there_changes_nothing,
    law_direct_effects_are_paths_to_the_logits,
    law_edges_add_up_to_attribution,
    law_a_skipped_block_passes_on_what_it_is_given,
    law_attention_cut_in_one_head_leaves_the_others_bits,
)
