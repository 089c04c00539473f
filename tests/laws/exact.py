"""Laws of exact writes, of order, and of identity."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

import steer
from steer import Site
from steer.interventions.plans import Plan
from steer.protocols import Intervention
from tests.laws.interventions import WITHOUT_FILE, Setting, Wanted, make, one_each
from tests.laws.running import Padded, block, forward, gap, padded, same_bits, watching

COMPONENTS = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "q",
    "k",
    "v",
    "z",
)
"""Those inside a block that can be written."""


def sites_of(setting: Setting, layer: int = 1) -> list[Site]:
    """Return every writable site of one block and around the blocks that the family has."""
    lm = setting.lm
    absent = lm.registry.layout.absent
    inside = [Site(layer, name) for name in COMPONENTS if name not in absent]
    return [Site.embed(), *inside, Site.ln_final(), Site.logits()]


def law_a_patch_from_its_own_run_changes_nothing(setting: Setting) -> None:
    """Writing back what was read, at any site, whole or one head, keeps the bits of the logits."""
    lm, prompts = setting.lm, setting.prompts[:3]
    sites = [*sites_of(setting), Site(1, "z", head=1), Site(1, "k", head=0)]
    acts = lm.capture(prompts, sites, scope=steer.ALL)
    plain = lm.logits(prompts, scope=steer.ALL)
    for site in sites:
        written = lm.logits(prompts, [steer.Patch(site, acts)], scope=steer.ALL)
        assert same_bits(written, plain), f"a patch of {site} from its own run changes the logits"


def law_coordinates_read_here_change_nothing(setting: Setting) -> None:
    """Writing coordinates read in the same edit keeps the bits: a move by 0, a patch of itself."""
    lm, site, prompts = setting.lm, setting.site, setting.prompts[:4]
    acts = lm.capture(prompts, [site])
    basis = setting.draw("subspace", 3, lm.d_model)
    still: dict[str, Intervention] = {
        "a move by 0": steer.MoveAlong(site, setting.curve, 0.0),
        "moves by [0, 0, 0, 0]": steer.MoveAlong(site, setting.curve, torch.zeros(4)),
        "a subspace patch": steer.Patch(site, acts, basis, scope=steer.LAST),
        "a rotation by 0": steer.Rotate(site, basis[:2], 0.0, scope=steer.LAST),
        "a scaling by 1": steer.Scale(site, 1.0),
    }
    plain = lm.logits(prompts)
    for name, item in still.items():
        assert same_bits(lm.logits(prompts, [item]), plain), f"{name} changes bits"


def law_a_whole_patch_selects_the_bits_of_its_source(setting: Setting) -> None:
    """What the next block is given are the source's bits, -0.0 and the smallest numbers too."""
    lm, dtype = setting.lm, setting.lm.dtype
    batch = padded(lm, setting.prompts[:3], left=True)
    source = setting.scale * setting.draw("exact", 3, lm.d_model).to(dtype)
    source[:, :8:2], source[:, 1:8:2] = -0.0, torch.finfo(dtype).tiny
    written = _stream(setting, [steer.Patch(setting.site, source, scope=steer.LAST)], batch)
    last = torch.tensor([len(row) for row in batch.rows]).cumsum(0) - 1
    assert same_bits(written[last], source), "a whole patch rounds its source"


def law_a_delta_takes_the_models_dtype(setting: Setting) -> None:
    """An fp32 direction is added in the stream's dtype: the cast delta, rounded once."""
    lm, item = setting.lm, cast("steer.Add", make("add", Wanted(setting, range(3))))
    item = replace(item, scope=steer.ALL)
    batch = padded(lm, setting.prompts[:3], left=True)
    before, after = _stream(setting, [], batch), _stream(setting, [item], batch)
    wanted = before + item.direction.to(lm.dtype)
    assert same_bits(after, wanted), f"Add gives {after.dtype}, not h + v in {lm.dtype}"


def law_ablating_twice_is_ablating_once(setting: Setting) -> None:
    """Nothing is left along an ablated basis, so a second ablation finds nothing to remove."""
    item = cast("steer.Ablate", make("ablate", Wanted(setting, range(3), scope=steer.ALL)))
    batch = padded(setting.lm, setting.prompts[:3], left=False)
    once = _stream(setting, [item], batch).float()
    twice = _stream(setting, [item, item], batch).float()
    size = float(once.norm(dim=-1).max())
    # One rounding of each of the 64 entries of a state, in the model's dtype.
    limit = 8 * torch.finfo(setting.lm.dtype).eps * size
    left = float((once @ item.basis.T).abs().max())
    assert left <= limit, f"ablation leaves {left:.1e} of {size:.1f} along its basis"
    assert gap(once, twice) <= limit, f"ablating twice moves the state by {gap(once, twice):.1e}"


def law_order_is_order_of_application(setting: Setting) -> None:
    """A list applies in order; nested blocks compose, outer first, as one list does."""
    lm, site = setting.lm, setting.site
    v = setting.direction("add").to(lm.dtype)
    add, double = steer.Add(site, v), steer.Scale(site, 2.0)
    batch = padded(lm, setting.prompts[:3], left=False)
    h = _stream(setting, [], batch).float()
    first, last = 2 * (h + v.float()), 2 * h + v.float()
    limit = 4 * torch.finfo(lm.dtype).eps * float(first.abs().max())
    for plan, wanted in (([add, double], first), ([double, add], last)):
        found = _stream(setting, plan, batch)
        assert gap(found, wanted) <= limit, f"{plan} is not applied in its order"
        rows = steer.Rows([plan, plan, plan])
        assert same_bits(_stream(setting, rows, batch), found), "Rows change the order"
        with lm.attached(plan[:1]):
            nested = _stream(setting, plan[1:], batch)
        assert same_bits(nested, found), f"nested {plan} is not the list, outer first"


def law_a_saved_plan_does_the_same(setting: Setting) -> None:
    """What is loaded has the digest and the output bits of what was saved."""
    names, items = one_each(setting)
    batch = padded(setting.lm, setting.prompts[: len(names)], left=True)
    loaded = []
    with tempfile.TemporaryDirectory() as folder:
        for name, item in zip(names, items, strict=True):
            if name in WITHOUT_FILE:
                loaded.append(item)
                continue
            again = steer.load_artifact(steer.save(item, Path(folder) / f"{name}.safetensors"))
            assert type(again) is type(item), f"{name} comes back as {type(again).__name__}"
            same = cast("steer.Add", again).digest == cast("steer.Add", item).digest
            assert same, f"{name} comes back with another digest"
            loaded.append(again)
    before = forward(setting.lm, batch, steer.Rows([[item] for item in items]))
    after = forward(setting.lm, batch, steer.Rows([[item] for item in loaded]))
    for at, name in enumerate(names):
        assert same_bits(before[at], after[at]), f"{name} gives other logits when loaded"


def law_a_digest_tells_recipes_apart(setting: Setting) -> None:
    """Another strength, scope, site, order or tensor is another digest; the same is the same."""
    wanted = Wanted(setting, range(4))
    add = cast("steer.Add", make("add", wanted))
    variants = [
        add,
        2 * add,
        steer.Add(add.site, add.direction, 1.0, steer.ALL),
        steer.Add(setting.reads, add.direction, 1.0, add.scope),
        steer.Add(add.site, -add.direction, 1.0, add.scope),
        steer.Add(add.site, add.direction.double(), 1.0, add.scope),
    ]
    digests = {item.digest for item in variants}
    assert len(digests) == len(variants), "two different recipes share a digest"
    assert cast("steer.Add", make("add", wanted)).digest == add.digest, "a digest is not repeatable"
    one, other = steer.Rows([[add], [2 * add]]), steer.Rows([[2 * add], [add]])
    assert one.digest != other.digest, "the order of rows is not in the digest"


EXACT_LAWS = (
    law_a_patch_from_its_own_run_changes_nothing,
    law_coordinates_read_here_change_nothing,
    law_a_whole_patch_selects_the_bits_of_its_source,
    law_a_delta_takes_the_models_dtype,
    law_ablating_twice_is_ablating_once,
    law_order_is_order_of_application,
    law_a_saved_plan_does_the_same,
    law_a_digest_tells_recipes_apart,
)
"""Each takes a setting, of a model in any floating dtype."""


def _stream(setting: Setting, plan: Plan, batch: Padded) -> Tensor:
    """Return the real tokens [token, d_model] that the setting's block gives on: a plain hook."""
    layer = setting.site.layer
    assert layer is not None
    with torch.no_grad(), setting.lm.attached(plan), watching(block(setting.lm, layer)) as seen:
        setting.lm.model(**batch.inputs())
    return torch.cat(batch.real(seen[0]))
