"""Where arms begin, and which are not run: against comparisons with the model's own states."""

import pytest
import torch

import steer
from steer import LM, Site
from steer.engine.starts import block_of

CLEAN = [5, 6, 7, 8, 9, 10, 11, 12]
CORRUPTED = [5, 6, 7, 8, 99, 10, 11, 12]


@pytest.mark.parametrize(
    ("site", "block"),
    [
        (Site(3, "resid_pre"), 3),
        (Site(3, "resid_post"), 4),
        (Site(3, "resid_mid"), 3),
        (Site(3, "z", 1), 3),
        (Site(3, "mlp_out"), 3),
        (Site.embed(), 0),
        (Site.ln_final(), 12),
        (Site.logits(), 12),
    ],
)
def test_an_edit_begins_at_its_own_block(site: Site, block: int):
    assert block_of(site, 12) == block


def test_a_patch_that_changes_nothing_is_not_run(any_lm: LM):
    lm = any_lm
    sites = lm.sites("resid_pre")
    source = lm.capture([CLEAN], sites, scope=steer.ALL)
    there = lm.capture([CORRUPTED], sites, scope=steer.ALL)
    arms = {
        f"{site.layer} {p}": [steer.Patch(site, source[site][:, p], scope=steer.at(p))]
        for site in sites
        for p in range(len(CLEAN))
    }
    sweep = steer.sweep(lm, [CORRUPTED], arms, lambda logits, _: logits[:, 5])
    same = {
        f"{site.layer} {p}"
        for site in sites
        for p in range(len(CLEAN))
        if _alike(source[site][0, p], there[site][0, p])
    }
    assert sweep.cost().dead == len(same) >= 4 * lm.n_layers
    for name in same:
        assert torch.equal(sweep[name], sweep.natural)
    live = [(site.layer, p) for site in sites for p in range(8) if f"{site.layer} {p}" not in same]
    wanted = sum((lm.n_layers - (layer or 0)) * (8 - p) for layer, p in live)
    assert sweep.cost().minimum == wanted
    # One token runs below the first start of the one pass.
    assert sweep.cost().passes == 1
    assert sweep.executed == wanted + min(layer or 0 for layer, _ in live)


def test_an_edit_after_what_is_measured_is_not_run(lm: LM):
    direction = torch.ones(lm.d_model)
    arms = {
        "before": [steer.Add(Site(0), direction, scope=steer.at(2))],
        "after": [steer.Add(Site(0), direction, scope=steer.at(6))],
        "off": [steer.Add(Site(0), direction, 0.0, scope=steer.at(2))],
        "deeper": [steer.Add(Site(3), direction, scope=steer.at(2))],
    }
    early = steer.sweep(lm, [CLEAN], arms, lambda h, _: h, scope=steer.at(4), read=Site(2))
    assert early.cost().dead == 3
    for name in ("after", "off", "deeper"):
        assert torch.equal(early[name], early.natural)
    states = lm.capture([CLEAN], [Site(2)], scope=steer.at(4), plan=arms["before"])[Site(2)]
    torch.testing.assert_close(early["before"], states, rtol=0, atol=1e-5)
    # Measured after block 2, nothing above it is run: blocks 1 and 2 on 6 tokens, 0 on one.
    assert early.cost().minimum == 2 * 6
    assert early.executed == 2 * 6 + 1


def test_rows_of_which_some_strengths_are_zero_run_the_others_alone(lm: LM):
    add = steer.Add(Site(1), torch.ones(lm.d_model), torch.tensor([0.0, 1.0, 0.0]))
    prompts = [CLEAN, CORRUPTED, CLEAN[:5]]
    sweep = steer.sweep(lm, prompts, [[add]], lambda logits, _: logits)
    assert sweep.cost().dead == 2
    torch.testing.assert_close(sweep.values[0], lm.logits(prompts, [add]), rtol=0, atol=1e-5)


def test_a_reading_begins_where_it_reads(lm: LM):
    probe = steer.Read(Site(0), _Sum(), steer.PROMPT, reduce="mean")
    add = steer.Add(Site(3), torch.ones(lm.d_model), scope=steer.LAST)
    late = steer.When(probe, add, above=-1e9)
    sweep = steer.sweep(lm, [CLEAN], [[late]], lambda logits, _: logits)
    assert sweep.cost().minimum == (lm.n_layers - 1) * len(CLEAN)
    torch.testing.assert_close(sweep.values[0], lm.logits([CLEAN], [late]), rtol=0, atol=1e-5)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Experts multiply the tokens of all rows at once: equal prefixes differ in their last bits.
    return float((a - b).norm()) <= 1e-6 * float(b.norm())


class _Sum:
    """A probe: the sum of the entries."""

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum over the last axis."""
        return x.sum(-1)
