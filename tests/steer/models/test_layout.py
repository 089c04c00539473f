"""Views and the layout's answers to a site, without any model."""

from dataclasses import replace

import pytest
import torch

from steer.errors import SiteNotFound
from steer.models.layout import (
    Columns,
    Heads,
    Interleaved,
    Layout,
    OneHead,
    Scaled,
    Tap,
    View,
    Whole,
)
from steer.models.layouts import prefixed
from steer.sites import ModuleSite, Site

LAYOUT = Layout(
    family="llama",
    name="toy",
    stack="model",
    blocks="model.layers",
    n_layers=2,
    d_model=8,
    n_heads=4,
    n_kv_heads=2,
    d_head=3,
    d_mlp=5,
    d_vocab=11,
    taps={
        "q": Tap("model.layers.{layer}.q_proj", "output", Heads(4, 3)),
        "v": Tap("model.layers.{layer}.v_proj", "output", Heads(2, 3)),
        "resid_mid": Tap("model.layers.{layer}.attn", "output", base="model.layers.{layer}"),
        "mlp_pre": Tap("model.layers.{layer}.gate", "output", flat=True),
        "logits": Tap("", "output"),
    },
    absent={"router": "its MLP is not a mixture of experts"},
    special={1: {"mlp_pre": "it is a mixture"}},
    reads={"q": ("resid_pre", ""), "mlp_pre": ("resid_mid", "model.layers.{layer}.norm")},
)
VIEWS: dict[str, tuple[View, int]] = {
    "whole": (Whole(), 12),
    "columns": (Columns(2, 5), 12),
    "heads": (Heads(2, 3, start=6), 12),
    "interleaved": (Interleaved(2, 3, 2, first=1, count=1), 12),
    "several slots": (Interleaved(2, 3, 2, first=0, count=2), 12),
    "one head": (OneHead(Heads(4, 3), 2), 12),
    "one interleaved head": (OneHead(Interleaved(2, 3, 2, first=0, count=2), 3), 12),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_puts_back_what_it_got_and_changes_only_that(name: str) -> None:
    view, width = VIEWS[name]
    whole = torch.arange(2.0 * 3 * width).view(2, 3, width)
    kept = whole.clone()
    part = view.get(whole)
    assert torch.equal(view.put(whole, part), whole)
    fresh = -part - 1
    changed = view.put(whole, fresh)
    assert torch.equal(view.get(changed), fresh)
    assert int((changed != whole).sum()) == part.numel()
    assert torch.equal(whole, kept)


def test_interleaved_heads_come_group_by_group() -> None:
    # Two groups of (q, q, k): columns 0-1 and 2-3 are q of group 0, 6-7 and 8-9 of group 1.
    whole = torch.arange(12.0).view(1, 1, 12)
    heads = Interleaved(2, 3, 2, first=0, count=2).get(whole)
    assert heads.tolist() == [[[[0, 1], [2, 3], [6, 7], [8, 9]]]]


def test_a_scaled_view_reads_the_product_and_writes_the_quotient() -> None:
    view = Scaled(0.25)
    assert view.get(torch.tensor([8.0])).item() == 2.0
    assert view.put(torch.tensor([0.0]), torch.tensor([2.0])).item() == 8.0


def test_a_tap_has_its_layer_in_every_path_and_keeps_its_flags() -> None:
    assert LAYOUT.tap(Site(1, "resid_mid")) == Tap(
        "model.layers.1.attn", "output", base="model.layers.1"
    )
    assert LAYOUT.tap(Site(0, "mlp_pre")).flat
    assert LAYOUT.tap(Site(1, "q", head=3)).view == OneHead(Heads(4, 3), 3)
    assert LAYOUT.tap(ModuleSite("a.b", "input")) == Tap("a.b", "input")


def test_width_is_of_one_head_for_headed_sites() -> None:
    widths = [LAYOUT.width(Site(0, name)) for name in ("q", "resid_pre", "mlp_pre", "pattern")]
    assert widths == [3, 8, 5, None]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(2), r"no site blocks\.2\.resid_post: it has 2 blocks \(0 to 1\).*blocks\.1"),
        (Site(0, "q", head=4), r"q has 4 heads \(0 to 3\)"),
        (Site(0, "v", head=2), r"v has 2 kv heads \(0 to 1\)"),
        (Site(0, "router"), "its MLP is not a mixture of experts"),
        (Site(1, "mlp_pre"), "it is a mixture"),
        (Site(0, "z"), "its layout does not say where it is"),
        (Site(0, stack="encoder"), "no stack 'encoder'"),
    ],
)
def test_what_a_model_lacks_is_said_with_the_reason(site: Site, message: str) -> None:
    with pytest.raises(SiteNotFound, match=message):
        LAYOUT.tap(site)


def test_a_prefix_moves_every_path_but_the_root_of_the_logits() -> None:
    moved = prefixed(LAYOUT, "inner")
    assert moved.stack == "inner.model"
    assert moved.tap(Site(0, "resid_mid")).base == "inner.model.layers.0"
    assert moved.tap(Site.logits()).path == ""
    assert moved.special[1] == LAYOUT.special[1]
    assert moved.reads["q"] == ("resid_pre", "")
    assert moved.reads["mlp_pre"][1] == "inner.model.layers.{layer}.norm"
    assert replace(moved, **{name: getattr(LAYOUT, name) for name in (
        "stack", "blocks", "taps", "special", "reads",
    )}) == LAYOUT  # fmt: skip
